"""The request-reply API as a stock client meets it: every kind of bad input, encodings, list, the micro service."""

import asyncio
import contextlib
from functools import partial
from typing import Any

import msgspec
import pytest
from nats.aio.msg import Msg

from jido_nats import Client, LocalServer, SessionManager, Settings
from jido_nats.core.codec import Encoding
from jido_nats.errors import TooLarge
from jido_nats.manager.handlers import CommandHandlers
from tests.conftest import StartManager
from tests.tools.support import Stranger, eventually, stranger_at, wait_for_ever

CREATE = "jido.session.create"
MSGPACK = {"Content-Type": "application/msgpack"}
DEEP = b'{"metadata":{"a":' + b"[" * 40 + b"]" * 40 + b"}}"

BAD_REQUESTS: list[tuple[str, bytes, dict[str, str] | None]] = [
    (CREATE, b"{", None),
    (CREATE, b"[]", None),
    (CREATE, b"null", None),
    (CREATE, b"{}{}", None),
    (CREATE, b'{"metdata":{}}', None),
    (CREATE, b'{"metadata":[]}', None),
    (CREATE, b'{"metadata":null}', None),
    (CREATE, b'{"metadata":{"a":NaN}}', None),
    (CREATE, b'{"metadata":{"a":1e999}}', None),
    (CREATE, b'{"metadata":{"a":9223372036854775808}}', None),
    (CREATE, b'{"metadata":{"a":123456789012345678901234567890}}', None),
    (CREATE, b'{"metadata":{"a":"\xff"}}', None),
    (CREATE, b'{"metadata":{"a":"\\ud800"}}', None),
    (CREATE, DEEP, None),
    (CREATE, b"[" * 30_000, None),
    (CREATE, b'{"llm_config":"gpt"}', None),
    (CREATE, b'{"session_id":""}', None),
    (CREATE, b'{"session_id":"a.b"}', None),
    (CREATE, b'{"session_id":"*"}', None),
    (CREATE, b'{"session_id":"a b"}', None),
    (CREATE, b'{"session_id":"a\\n"}', None),
    (CREATE, b'{"session_id":"' + b"a" * 65 + b'"}', None),
    (CREATE, b'{"session_id":"\xd0\xb0"}', None),
    (CREATE, b'{"session_id":7}', None),
    (CREATE, b"{}", {"Content-Type": "text/plain"}),
    (CREATE, b"\xc1", MSGPACK),
    (CREATE, b"\x81\xa8metadata\x81\x01\x01", MSGPACK),
    (CREATE, b"\x81\xa8metadata\x81\xa1a\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00", MSGPACK),
    (CREATE, b"\x81\xa8metadata\x81\xa1a\xcf\xff\xff\xff\xff\xff\xff\xff\xff", MSGPACK),
    (CREATE, b"\x81\xa8metadata\x81\xa1a\xc4\x01x", MSGPACK),
    ("jido.session.list", b'{"status":"busy"}', None),
    ("jido.session.list", b'{"limit":0}', None),
    ("jido.session.list", b'{"limit":1001}', None),
    ("jido.session.list", b'{"limit":"1"}', None),
    ("jido.session.list", b'{"cursor":"a.b"}', None),
    ("jido.session.list", b'{"all":true}', None),
    ("jido.session.get.s1", b'{"a":1}', None),
    ("jido.session.get." + "a" * 65, b"", None),
    ("jido.session.get.caf\xe9", b"", None),
    ("jido.session.get.a*b", b"", None),
    ("jido.session.terminate.s1", b'{"detail":1}', None),
    ("jido.session.terminate.s1", b'{"detail":"' + b"x" * 1001 + b'"}', None),
    ("jido.session.terminate.s1", b'{"reason":"crashed"}', None),
    ("jido.session.idle.s1", b"[]", None),
    ("jido.session.activate.s1", b"true", None),
]


def error(reply: Msg) -> tuple[str, str]:
    """(Nats-Service-Error-Code, code in the body) of an error; both have to be there, and its text in the header."""
    headers = reply.headers or {}
    assert headers["Nats-Service-Error"]
    assert headers["Nats-Service-Error"].isascii()
    detail = msgspec.json.decode(reply.data)["error"]
    assert detail["message"]
    return headers["Nats-Service-Error-Code"], detail["code"]


@pytest.mark.parametrize(("subject", "payload", "headers"), BAD_REQUESTS)
async def test_a_bad_request_is_refused(
    stranger: Stranger, manager: SessionManager, subject: str, payload: bytes, headers: dict[str, str] | None
) -> None:
    await stranger.create("s1")
    before = await stranger.positions()

    reply = await stranger.request(subject, payload, headers=headers)

    if headers == MSGPACK:
        reply.data = msgspec.json.encode(msgspec.msgpack.decode(reply.data))
    assert error(reply) == ("400", "bad_request")
    assert await stranger.positions() == before


@pytest.mark.parametrize("verb", ["get", "terminate", "idle", "activate"])
async def test_a_session_that_never_was_is_not_found(stranger: Stranger, manager: SessionManager, verb: str) -> None:
    reply = await stranger.request(f"jido.session.{verb}.nobody")

    assert error(reply) == ("404", "not_found")
    assert msgspec.json.decode(reply.data)["error"]["session_id"] == "nobody"
    assert await stranger.positions() == (0, 0)


@pytest.mark.parametrize(("before", "verb"), [("", "activate"), ("idle", "idle"), ("terminate", "idle")])
async def test_a_step_that_is_not_allowed_is_refused(
    stranger: Stranger, manager: SessionManager, before: str, verb: str
) -> None:
    await stranger.create("s1")
    if before:
        await stranger.ask(f"jido.session.{before}.s1")
    await eventually(lambda: settled(stranger))
    position = await stranger.positions()

    assert error(await stranger.request(f"jido.session.{verb}.s1")) == ("409", "invalid_transition")
    assert await stranger.positions() == position


@pytest.mark.parametrize(
    "request_",
    [{"metadata": {"a": "x" * 70_000}}, {"metadata": {"a": "x" * 40_000}}, {"llm_config": {"a": "x" * 40_000}}],
)
async def test_a_request_that_is_too_large_is_refused(
    stranger: Stranger, manager: SessionManager, request_: dict[str, Any]
) -> None:
    assert error(await stranger.request(CREATE, request_)) == ("413", "too_large")
    assert await stranger.positions() == (0, 0)


async def test_messagepack_is_answered_in_messagepack(stranger: Stranger, manager: SessionManager) -> None:
    request = msgspec.msgpack.encode({"session_id": "s1", "metadata": {"a": 1}})

    reply = await stranger.request(CREATE, request, headers=MSGPACK)

    assert (reply.headers or {})["Content-Type"] == "application/msgpack"
    assert msgspec.msgpack.decode(reply.data)["metadata"] == {"a": 1}


async def test_an_error_is_answered_in_the_request_s_encoding(stranger: Stranger, manager: SessionManager) -> None:
    reply = await stranger.request("jido.session.get.nobody", headers=MSGPACK)

    assert msgspec.msgpack.decode(reply.data)["error"]["code"] == "not_found"


async def test_the_name_of_a_header_may_be_in_small_letters(stranger: Stranger, manager: SessionManager) -> None:
    reply = await stranger.request("jido.session.list", headers={"content-type": "application/msgpack"})

    assert msgspec.msgpack.decode(reply.data)["sessions"] == []


async def test_the_reply_carries_no_header_of_the_request(stranger: Stranger, manager: SessionManager) -> None:
    reply = await stranger.request("jido.session.list", headers={"Secret": "x"})

    assert reply.headers == {"Content-Type": "application/json"}


async def test_list_shows_what_was_answered_before(stranger: Stranger, manager: SessionManager) -> None:
    for number in range(20):
        await stranger.create(f"s{number:02}")

        listed = (await stranger.ask("jido.session.list"))["sessions"]

        assert [record["session_id"] for record in listed] == [f"s{n:02}" for n in range(number + 1)]


async def test_list_gives_pages(stranger: Stranger, manager: SessionManager) -> None:
    await asyncio.gather(*(stranger.create(f"s{n}") for n in range(5)))

    first = await stranger.ask("jido.session.list", {"limit": 3})
    second = await stranger.ask("jido.session.list", {"limit": 3, "cursor": first["next_cursor"]})

    assert [record["session_id"] for record in first["sessions"]] == ["s0", "s1", "s2"]
    assert [record["session_id"] for record in second["sessions"]] == ["s3", "s4"]
    assert "next_cursor" not in second


@pytest.mark.parametrize(
    ("request_", "found"),
    [
        ({}, ["active", "idle"]),
        ({"metadata": {"n": True}}, []),
        ({"metadata": {"n": 1.0}}, []),
        ({"include_terminated": True}, ["active", "ended", "idle"]),
        ({"status": "idle"}, ["idle"]),
        ({"status": "terminated"}, ["ended"]),
        ({"metadata": {"n": 1}}, ["active"]),
        ({"metadata": {"n": 1, "m": None}}, []),
        ({"status": "idle", "metadata": {"n": 1}}, []),
    ],
)
async def test_list_finds(
    stranger: Stranger, manager: SessionManager, request_: dict[str, Any], found: list[str]
) -> None:
    for number, session_id in enumerate(("active", "idle", "ended"), start=1):
        await stranger.create(session_id, metadata={"n": number})
    await stranger.ask("jido.session.idle.idle")
    await stranger.ask("jido.session.terminate.ended")

    listed = (await stranger.ask("jido.session.list", request_))["sessions"]

    assert [record["session_id"] for record in listed] == found


@pytest.mark.parametrize("reply_to", ["jido.client.events", "", "jido.client.session.s1", "$JS.API.INFO", "_INBOX.>"])
async def test_a_command_whose_reply_goes_to_no_inbox_is_not_executed(
    stranger: Stranger, manager: SessionManager, reply_to: str
) -> None:
    await stranger.nc.publish(CREATE, b'{"session_id":"s1"}', reply=reply_to)

    await stranger.create("s2")
    await stranger.ask("jido.session.get.s2")

    assert {event["session_id"] for event in await stranger.stored_events()} == {"s2"}
    assert len(await stranger.stored()) == 3


async def test_who_serves_is_answered_at_once(server: LocalServer, stranger: Stranger) -> None:
    for _ in range(10):
        async with SessionManager.connect(server.url, worker=wait_for_ever, settings=Settings(lease_s=2)) as manager:
            await manager.start_serving()
            assert (await stranger.ask("jido.session.list"))["sessions"] == []


async def test_a_manager_answers_ping(stranger: Stranger, manager: SessionManager) -> None:
    answer = await stranger.ask("$SRV.PING.jido-session-manager")

    assert answer["type"] == "io.nats.micro.v1.ping_response"
    assert (answer["name"], answer["id"]) == ("jido-session-manager", manager.manager_id)
    assert set(answer) == {"type", "name", "id", "version", "metadata"}


@pytest.mark.parametrize("verb", ["PING", "INFO", "STATS"])
async def test_a_manager_is_found_three_ways(stranger: Stranger, manager: SessionManager, verb: str) -> None:
    name, service_id = "jido-session-manager", manager.manager_id

    for subject in (f"$SRV.{verb}", f"$SRV.{verb}.{name}", f"$SRV.{verb}.{name}.{service_id}"):
        answer = await stranger.ask(subject)
        assert (answer["type"], answer["id"]) == (f"io.nats.micro.v1.{verb.lower()}_response", service_id)


async def test_info_names_the_endpoints(stranger: Stranger, manager: SessionManager) -> None:
    answer = await stranger.ask("$SRV.INFO.jido-session-manager")

    found = {endpoint["name"]: endpoint["subject"] for endpoint in answer["endpoints"]}
    assert {endpoint["queue_group"] for endpoint in answer["endpoints"]} == {"q"}
    assert (found["create"], found["list"]) == ("jido.session.create", "jido.session.list")
    for verb in ("get", "terminate", "idle", "activate"):
        assert found[verb] == f"jido.session.{verb}.*"


async def test_stats_count_requests(stranger: Stranger, manager: SessionManager) -> None:
    await stranger.create("s1")
    await stranger.create("a.b")

    answer = await stranger.ask("$SRV.STATS.jido-session-manager")

    stats = {endpoint["name"]: endpoint for endpoint in answer["endpoints"]}
    assert (stats["create"]["num_requests"], stats["create"]["num_errors"]) == (2, 1)
    assert stats["create"]["last_error"].startswith("400:")
    assert stats["create"]["processing_time"] >= 2 * stats["create"]["average_processing_time"] > 0
    assert (stats["get"]["num_requests"], stats["get"]["average_processing_time"]) == (0, 0)


async def test_two_managers_share_the_commands(stranger: Stranger, start_manager: StartManager) -> None:
    await start_manager()
    await start_manager()

    for number in range(10):
        await stranger.create(f"s{number}")

    assert await stranger.stored_brief() == ["1 created", "2 active"] * 10


@pytest.mark.parametrize("verb", ["get", "idle", "terminate"])
async def test_any_manager_answers_for_a_session(stranger: Stranger, start_manager: StartManager, verb: str) -> None:
    owner, other = await start_manager(), await start_manager()
    await owner.create_session(session_id="s1")

    commands = {"get": other.get_session_info, "idle": other.idle_session, "terminate": other.terminate_session}
    record = await commands[verb]("s1")

    assert (record.session_id, record.owner) == ("s1", owner.manager_id)


async def settled(stranger: Stranger) -> bool:
    """Nothing is still being written about s1: an end is sealed."""
    record = await stranger.record("s1")
    return record is not None and (record["status"] != "terminated" or record.get("sealed", False))


async def test_no_request_is_lost_when_a_manager_leaves(
    server: LocalServer, stranger: Stranger, start_manager: StartManager
) -> None:
    await start_manager()
    await stranger.create("s1")
    done = asyncio.Event()

    async def ask() -> list[bytes]:
        answers = []
        while not done.is_set():
            answers.append((await stranger.request("jido.session.get.s1")).data)
        return answers

    asking = [asyncio.create_task(ask()) for _ in range(20)]
    for _ in range(5):
        async with SessionManager.connect(server.url, worker=wait_for_ever, settings=Settings(lease_s=2)) as leaving:
            await leaving.start_serving()
            await eventually(partial(has_answered, leaving, 50))
    done.set()

    for task in asking:
        assert all(b'"status":"active"' in answer for answer in await task)


def has_answered(manager: SessionManager, number: int) -> bool:
    return sum(manager.stats.commands["get"].counts) > number


async def test_pages_fit_into_what_the_server_takes() -> None:
    async with LocalServer(config="max_payload: 16384") as small, stranger_at(small.url) as stranger:
        async with SessionManager.connect(small.url, worker=wait_for_ever) as manager:
            await manager.start_serving()
            for number in range(20):
                await manager.create_session(session_id=f"s{number:02}", metadata={"x": "y" * 2000})

            found: list[str] = []
            cursor: dict[str, str] = {}
            while True:
                page = await stranger.ask("jido.session.list", {"limit": 1000, **cursor})
                found += [session["session_id"] for session in page["sessions"]]
                if "next_cursor" not in page:
                    break
                cursor = {"cursor": page["next_cursor"]}

    assert found == [f"s{number:02}" for number in range(20)]


async def test_a_long_history_is_told_in_pages_that_fit() -> None:
    async with LocalServer(config="max_payload: 8192") as small:
        async with SessionManager.connect(small.url, worker=wait_for_ever) as manager, Client.connect(small.url) as far:
            await manager.start_serving()
            await manager.create_session(session_id="s1")
            for _ in range(40):
                await manager.idle_session("s1")
                await manager.activate_session("s1")

            assert [event.version for event in await far.session_history("s1")] == list(range(1, 83))


async def test_an_answer_that_the_server_would_not_take_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CommandHandlers, "_page_bytes_max", lambda self: 10**9)
    async with LocalServer(config="max_payload: 4096") as small, stranger_at(small.url) as stranger:
        async with SessionManager.connect(small.url, worker=wait_for_ever) as manager:
            await manager.start_serving()
            await manager.create_session(session_id="s1")
            for _ in range(20):
                await manager.idle_session("s1")
                await manager.activate_session("s1")

            error = (await stranger.ask("jido.session.history.s1", {"limit": 1000}))["error"]

            assert (error["code"], "max_payload" in error["message"]) == ("too_large", True)
            assert (await stranger.ask("jido.session.history.s1", {"limit": 5}))["next"] == 5


async def test_what_would_not_fit_into_an_answer_is_not_created() -> None:
    async with LocalServer(config="max_payload: 8192") as small, stranger_at(small.url) as stranger:
        async with SessionManager.connect(small.url, worker=wait_for_ever) as manager:
            await manager.start_serving()

            refused = await stranger.create("s1", metadata={"x": "y" * 5000})

            assert refused["error"]["code"] == "too_large"
            assert (await stranger.create("s2", metadata={"x": "y" * 4000}))["status"] == "active"


@pytest.mark.parametrize("encoding", list(Encoding))
async def test_what_is_larger_in_messagepack_is_created_whole_or_not_at_all(encoding: Encoding) -> None:
    async with LocalServer(config="max_payload: 65536") as small, stranger_at(small.url) as stranger:
        settings = Settings(encoding=encoding, metadata_bytes_max=60_000)
        async with SessionManager.connect(small.url, worker=wait_for_ever, settings=settings) as manager:
            for count in (2000, 3000, 4000, 7500):
                with contextlib.suppress(TooLarge):
                    await manager.create_session(session_id=f"s{count}", metadata={"v": [0.5] * count})

            records = [await stranger.record(f"s{count}") for count in (2000, 3000, 4000, 7500)]
            assert [record is not None and record["status"] for record in records] == ["active", "active", False, False]
            assert len(await manager.list_sessions()) == 2
