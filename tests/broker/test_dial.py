"""One attempt to connect: a client, or a reason, and nothing left of an attempt that came to nothing."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from jido_nats import LocalServer
from jido_nats.broker.dial import dial
from jido_nats.broker.options import ConnectOptions
from jido_nats.errors import ServerUnusable
from tests.tools.support import DEADLINE_S, eventually


class SilentServer:
    """A port that takes connections and says nothing; `hung_up` is set when the last of them was closed."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.hung_up = asyncio.Event()

    async def on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reached.set()
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()
        self.hung_up.set()


@pytest.fixture
async def silent() -> AsyncIterator[tuple[SilentServer, ConnectOptions]]:
    server = SilentServer()
    async with await asyncio.start_server(server.on_connection, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        yield server, ConnectOptions(servers=(f"nats://127.0.0.1:{port}",))


def ignore(error: Exception) -> None:
    """Errors do not matter here."""


async def test_a_dialled_client_is_lost_when_its_server_dies(server: LocalServer) -> None:
    client = await dial(ConnectOptions(servers=(server.url,)), "test", ignore)
    assert client.is_connected
    assert not client.lost.is_set()

    await server.kill()

    async with asyncio.timeout(DEADLINE_S):
        await client.lost.wait()
    await client.discard()


async def test_a_refusal_ends_the_attempt_at_once() -> None:
    async with LocalServer(config='authorization { user: "a", password: "right" }') as server:
        options = ConnectOptions(servers=(server.url,), user="a", password="wrong")

        async with asyncio.timeout(DEADLINE_S):
            with pytest.raises(ServerUnusable, match="refused the credentials"):
                await dial(options, "test", ignore, timeout_s=60)


async def test_what_nats_py_reports_reaches_the_caller() -> None:
    reported: list[Exception] = []

    with pytest.raises(ServerUnusable):
        await dial(ConnectOptions(servers=("nats://127.0.0.1:1",)), "test", reported.append, timeout_s=0.5)

    assert any(isinstance(error, OSError) for error in reported)


async def test_an_attempt_that_takes_too_long_hangs_up(silent: tuple[SilentServer, ConnectOptions]) -> None:
    server, options = silent

    with pytest.raises(ServerUnusable):
        await dial(options, "test", ignore, timeout_s=0.2)

    async with asyncio.timeout(DEADLINE_S):
        await server.hung_up.wait()


async def test_a_cancelled_attempt_hangs_up(silent: tuple[SilentServer, ConnectOptions]) -> None:
    server, options = silent
    dialling = asyncio.create_task(dial(options, "test", ignore, timeout_s=60))
    await server.reached.wait()

    dialling.cancel()

    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(asyncio.CancelledError):
            await dialling
        await server.hung_up.wait()


async def test_a_server_that_the_cluster_has_named_is_dialled_too(server: LocalServer) -> None:
    address = server.url.removeprefix("nats://")
    options = ConnectOptions(servers=("nats://127.0.0.1:1",))

    client = await eventually(lambda: dialled(options, address))

    await client.discard()


async def dialled(options: ConnectOptions, address: str) -> object:
    """nats-py takes one of its servers at random."""
    with contextlib.suppress(ServerUnusable):
        return await dial(options, "test", ignore, cluster=[address])
    return None


async def test_the_scheme_of_a_url_may_be_in_capitals(server: LocalServer) -> None:
    client = await dial(ConnectOptions(servers=(server.url.replace("nats", "NATS"),)), "test", ignore)

    await client.discard()


async def test_a_scheme_in_capitals_asks_for_tls_too(server: LocalServer) -> None:
    options = ConnectOptions(servers=(server.url.replace("nats", "TLS"),))

    with pytest.raises(ServerUnusable, match="does not offer TLS"):
        await dial(options, "test", ignore)


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A server that closes every connection without a word."""
    writer.close()


async def test_a_server_that_says_nothing_does_not_hold_up_the_next(
    server: LocalServer, silent: tuple[SilentServer, ConnectOptions]
) -> None:
    options = ConnectOptions(servers=(*silent[1].servers, server.url))

    for _ in range(12):  # in random order
        client = await dial(options, "test", ignore, timeout_s=1)
        await client.discard()


async def test_a_server_that_hangs_up_does_not_end_the_attempt(server: LocalServer) -> None:
    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as closing:
        port = closing.sockets[0].getsockname()[1]
        options = ConnectOptions(servers=(f"nats://127.0.0.1:{port}", server.url))

        for _ in range(12):
            client = await dial(options, "test", ignore, timeout_s=1)
            await client.discard()


async def test_a_server_that_refuses_does_not_end_the_attempt_at_another() -> None:
    old, new = (f'authorization {{ user: "a", password: "{password}" }}' for password in ("old", "new"))
    async with LocalServer(config=old) as outdated, LocalServer(config=new) as server:
        options = ConnectOptions(servers=(outdated.url, server.url), user="a", password="new")

        for _ in range(12):
            client = await dial(options, "test", ignore, timeout_s=1)
            await client.discard()


async def test_a_server_that_hangs_up_is_tried_again() -> None:
    tries: list[object] = []

    async def hang_up_twice(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tries.append(writer)
        if len(tries) <= 2:
            writer.close()
            return
        writer.write(b'INFO {"server_id":"x","version":"2.12.0","max_payload":1048576}\r\n')
        while line := await reader.readline():
            if line == b"PING\r\n":
                writer.write(b"PONG\r\n")
        writer.close()

    async with await asyncio.start_server(hang_up_twice, "127.0.0.1", 0) as flaky:
        port = flaky.sockets[0].getsockname()[1]

        client = await dial(ConnectOptions(servers=(f"nats://127.0.0.1:{port}",)), "test", ignore)

        assert len(tries) == 3
        await client.discard()


async def test_a_refusal_is_reported_before_a_server_that_does_not_answer() -> None:
    async with LocalServer(config='authorization { user: "a", password: "right" }') as strict:
        options = ConnectOptions(servers=(strict.url, "nats://127.0.0.1:1"), user="a", password="wrong")

        for _ in range(4):
            with pytest.raises(ServerUnusable, match="refused the credentials"):
                await dial(options, "test", ignore, timeout_s=0.5)


async def test_the_attempts_that_were_not_needed_hang_up(
    server: LocalServer, silent: tuple[SilentServer, ConnectOptions]
) -> None:
    silent_server, options = silent

    while not silent_server.reached.is_set():
        client = await dial(ConnectOptions(servers=(*options.servers, server.url)), "test", ignore)
        await client.discard()

    async with asyncio.timeout(DEADLINE_S):
        await silent_server.hung_up.wait()
