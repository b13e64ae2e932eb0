"""What no client library sends: the manager answers what can be answered, changes nothing and stays up."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jido_nats import LocalServer, SessionManager
from tests.tools.support import Stranger, eventually


class RawClient:
    """The NATS protocol by hand, for bytes that a library would refuse to send."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(
        self, subject: bytes, *, reply: bytes = b"_INBOX.raw.1", headers: bytes = b"", data: bytes = b""
    ) -> None:
        """Publish it as it is."""
        if headers:
            line = b"HPUB %b %b %d %d\r\n" % (subject, reply, len(headers), len(headers) + len(data))
        else:
            line = b"PUB %b %b %d\r\n" % (subject, reply, len(data))
        self._writer.write(line + headers + data + b"\r\n")
        await self._writer.drain()

    async def heard(self) -> bytes:
        """What has come until the server answers a PING: everything that was sent before is through."""
        self._writer.write(b"PING\r\n")
        return await self._reader.readuntil(b"PONG\r\n")


@pytest.fixture
async def raw(server: LocalServer, manager: SessionManager) -> AsyncIterator[RawClient]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    await reader.readline()
    writer.write(b'CONNECT {"verbose":false,"headers":true,"no_responders":true}\r\nSUB _INBOX.raw.> 1\r\n')
    yield RawClient(reader, writer)
    writer.close()
    await writer.wait_closed()


async def still_up(stranger: Stranger, manager: SessionManager) -> None:
    """It creates a session, on the connections that it had."""
    assert (await stranger.create("after"))["status"] == "active"
    assert manager._connections[0].reconnects == 0
    assert [record.session_id for record in await manager.list_sessions()] == ["after"]


BAD_SUBJECTS = [b"jido.session.get.\xff\xfe", "jido.session.get.sé".encode(), b"jido.session.terminate.a\x01b"]


@pytest.mark.parametrize("subject", BAD_SUBJECTS)
async def test_a_subject_of_any_bytes_leaves_the_manager_up(
    raw: RawClient, stranger: Stranger, manager: SessionManager, subject: bytes
) -> None:
    await raw.send(subject)
    await raw.heard()
    await still_up(stranger, manager)


BAD_REPLIES = [
    b"_INBOX.raw.\xff",
    b"_INBOX.raw.*",
    b"_INBOX.raw.>",
    b"jido.client.events",
    b"jido.session.create",
    b">",
]


@pytest.mark.parametrize("reply", BAD_REPLIES)
async def test_a_command_with_a_bad_reply_subject_is_not_carried_out(
    raw: RawClient, stranger: Stranger, manager: SessionManager, reply: bytes
) -> None:
    ear = await stranger.hear("jido.client.>")
    await raw.send(b"jido.session.create", reply=reply)
    await raw.heard()
    await still_up(stranger, manager)
    assert all(event["session_id"] == "after" for event in ear.on("jido.client.events"))


BAD_HEADERS = [
    b"NATS/1.0 \xff\xff\xff\r\n\r\n",
    b"NATS/1.0 503\r\n\r\n",
    b"NATS/1.0\r\nContent-Type: \xff\xfe\r\n\r\n",
    b"NATS/1.0\r\n\r\n",
    b"NATS/1.0\r\n",
    b"\r\n\r\n",
    b"NATS/1.0\r\n" + b"X: y\r\n" * 5000 + b"\r\n",
    b"NATS/1.0\r\nX: " + b"y" * 60_000 + b"\r\n\r\n",
]


@pytest.mark.parametrize("headers", BAD_HEADERS, ids=range(len(BAD_HEADERS)))
async def test_headers_of_any_bytes_leave_the_manager_up(
    raw: RawClient, stranger: Stranger, manager: SessionManager, headers: bytes
) -> None:
    await raw.send(b"jido.session.get.nobody", headers=headers)
    await raw.heard()
    await still_up(stranger, manager)


async def test_the_same_request_ten_thousand_times_makes_one_session(
    raw: RawClient, stranger: Stranger, manager: SessionManager
) -> None:
    for _ in range(10_000):
        await raw.send(b"jido.session.create", data=b'{"session_id":"once"}')
    await raw.heard()
    created = await eventually(lambda: _created(stranger))
    assert created == ["once"]


async def _created(stranger: Stranger) -> list[str]:
    return [event["session_id"] for event in await stranger.stored_events() if event["type"] == "session_created"]


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    verb=st.sampled_from(["create", "list", "get.x", "terminate.x", "idle.x", "activate.x", "history.x"]),
    data=st.binary(max_size=200) | st.text(max_size=100).map(str.encode),
    content_type=st.sampled_from(["application/json", "application/msgpack", "text/plain"]),
)
async def test_any_bytes_get_an_answer(
    stranger: Stranger, manager: SessionManager, verb: str, data: bytes, content_type: str
) -> None:
    reply = await stranger.request(f"jido.session.{verb}", data, headers={"Content-Type": content_type})
    assert reply.headers is not None
    code = reply.headers.get("Nats-Service-Error-Code")
    assert code in ("400", "404", None), reply.headers
    assert code is not None or verb in ("create", "list")
