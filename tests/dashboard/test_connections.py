"""What clients that are slow, silent or gone cost the others: nothing."""

import asyncio
import resource
import shutil
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final, cast

import pytest

from jido_nats import Client, LocalServer, SessionManager
from jido_nats.dashboard import connections
from tests.dashboard.stage import TOKEN, shown
from tests.tools.http import ask, listening
from tests.tools.programs import JIDO_NATS, NEW, running
from tests.tools.support import eventually

HALF_OPEN: Final = 1200
# Half of a request: none of it, some headers, some of its body.
PARTS: Final = (
    b"",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ",
    b"POST /api/sessions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{",
)
STYLE: Final = b"GET /static/style.css HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Raw:
    """A connection, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def drip(self) -> None:
        """Send a byte at a time for as long as it is open."""
        try:
            while not self.reader.at_eof():
                self.writer.write(b"x")
                await self.writer.drain()
                await asyncio.wait({asyncio.ensure_future(self.reader.read(1))}, timeout=0.02)
        except ConnectionError:
            return

    async def rest(self) -> bytes:
        """What comes until it is closed."""
        found = b""
        try:
            while part := await self.reader.read(65536):
                found += part
        except ConnectionError:
            pass
        return found


@asynccontextmanager
async def connected(url: str, sent: bytes = b"") -> AsyncIterator[Raw]:
    """A connection that has sent that, and reads nothing by itself."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)  # otherwise the kernel reads megabytes for it
    client.connect(("127.0.0.1", int(url.rpartition(":")[2])))
    reader, writer = await asyncio.open_connection(sock=client, limit=1024)
    try:
        writer.write(sent)
        yield Raw(reader, writer)
    finally:
        cast(asyncio.Transport, writer.transport).abort()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dashboard that waits for half a second."""
    monkeypatch.setattr(connections, "STALL_TIMEOUT_S", 0.5)
    monkeypatch.setattr(connections, "LOOK_S", 0.05)


@contextmanager
def many_files() -> Iterator[None]:
    """This process may have more files open than the one that it tests."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(before[1], 8192), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def test_half_open_connections_lock_nobody_out(server: LocalServer, manager: SessionManager) -> None:
    prlimit = shutil.which("prlimit")
    assert prlimit is not None
    command = ["--nofile=1024:1024", str(JIDO_NATS), "dashboard", "--server", server.url, "--port", "0"]
    async with running(*command, version=NEW._replace(jido_nats=Path(prlimit))) as program, AsyncExitStack() as held:
        await program.said("Ctrl-C stops it")
        url = program.out.partition("is on ")[2].partition(";")[0]
        await eventually(lambda: is_loaded(url))
        async with listening(url, "/api/sessions/s1/output") as stream:
            held.enter_context(many_files())
            for number in range(HALF_OPEN):
                await held.enter_async_context(connected(url, PARTS[number % len(PARTS)]))
            began = time.monotonic()
            status = (await ask(url, path="/api/sessions")).status
            took_s = time.monotonic() - began
            await stream.named("beat")

    assert status == 200
    assert took_s < 10  # half of the time after which the others are closed
    assert program.err == ""


async def is_loaded(url: str) -> bool:
    return (await ask(url, path="/api/sessions")).status == 200


@pytest.mark.parametrize("part", PARTS, ids=["nothing", "headers", "a body"])
async def test_the_connection_that_has_waited_longest_makes_room(
    server: LocalServer, manager: SessionManager, part: bytes
) -> None:
    async with shown(server.url, connections_max=10) as url, AsyncExitStack() as held:
        first, *_ = [await held.enter_async_context(connected(url, part)) for _ in range(9)]

        assert (await ask(url)).status == 200
        await first.rest()


async def test_beyond_its_connections_the_dashboard_says_so(server: LocalServer, manager: SessionManager) -> None:
    async with shown(server.url, connections_max=3) as url, AsyncExitStack() as held:
        for _ in range(2):
            await held.enter_async_context(listening(url, "/api/sessions/s1/output"))

        assert (await ask(url)).status == 503


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "part", [PARTS[1], PARTS[2].replace(b"Length: 9", b"Length: 99999")], ids=["headers", "a body"]
)
async def test_a_request_that_comes_byte_by_byte_is_ended(
    server: LocalServer, manager: SessionManager, part: bytes
) -> None:
    async with shown(server.url) as url, connected(url, part) as raw, asyncio.timeout(10):
        await raw.drip()


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("part", PARTS[:1])
async def test_a_connection_that_sends_nothing_is_closed(
    server: LocalServer, manager: SessionManager, part: bytes
) -> None:
    async with shown(server.url) as url, connected(url, part) as raw, asyncio.timeout(10):
        assert await raw.rest() == b""


@pytest.mark.usefixtures("impatient")
async def test_a_body_that_never_comes_is_not_waited_for_after_the_answer(
    server: LocalServer, manager: SessionManager
) -> None:
    async with shown(server.url, token=TOKEN) as url, connected(url, PARTS[2]) as raw, asyncio.timeout(10):
        assert (await raw.rest()).startswith(b"HTTP/1.1 401 ")


@pytest.mark.usefixtures("impatient")
async def test_a_client_that_does_not_read_is_closed(server: LocalServer, manager: SessionManager) -> None:
    async with shown(server.url, token=TOKEN) as url, connected(url, STYLE * 300) as raw:
        await eventually(lambda: is_closed(raw))


async def is_closed(raw: Raw) -> bool:
    """Whether what is sent is answered with a reset."""
    raw.writer.write(b"x")
    return raw.writer.is_closing()


@pytest.mark.usefixtures("impatient")
async def test_a_client_that_reads_slowly_is_waited_for(
    server: LocalServer, manager: SessionManager, client: Client
) -> None:
    metadata = {f"key{number}": "x" * 200 for number in range(20)}
    await asyncio.gather(*(client.create_session(metadata=metadata) for _ in range(600)))
    async with shown(server.url) as url:
        await eventually(lambda: is_loaded(url))
        whole = len((await ask(url, path="/api/sessions")).body)
        async with connected(url, b"GET /api/sessions HTTP/1.1\r\nHost: localhost\r\n\r\n") as raw:
            began, found = time.monotonic(), 0
            while found < whole and (part := await raw.reader.read(2048)):
                found += len(part)
                await asyncio.sleep(0.001)  # that is how it reads

    assert found >= whole > 2_000_000
    assert time.monotonic() - began > 2 * connections.STALL_TIMEOUT_S


@pytest.mark.usefixtures("impatient")
async def test_a_silent_stream_is_no_stalled_one(server: LocalServer, manager: SessionManager) -> None:
    async with shown(server.url, beat_s=1.5) as url:
        position = (await ask(url, path="/api/sessions")).json["position_token"]
        async with listening(url, f"/api/stream?after={position}") as source:
            await source.named("beat")


async def test_a_client_that_leaves_is_no_error(server: LocalServer, manager: SessionManager, client: Client) -> None:
    async with running("dashboard", "--server", server.url, "--port", "0") as program:
        await program.said("Ctrl-C stops it")
        url = program.out.partition("is on ")[2].partition(";")[0]
        await eventually(lambda: is_loaded(url))
        position = (await ask(url, path="/api/sessions")).json["position_token"]
        paths = ("/", "/api/sessions", "/api/sessions/s1", "/api/sessions/s1/output", f"/api/stream?after={position}")
        begun = [f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() for path in paths]
        for part in (*PARTS, *begun, begun[0] * 100):
            for _ in range(5):
                async with connected(url, part):
                    pass
                async with connected(url, part) as raw:
                    await asyncio.wait({asyncio.ensure_future(raw.reader.read(100))}, timeout=0.05)
        async with listening(url, f"/api/stream?after={position}") as stream:
            for _ in range(20):
                async with listening(url, f"/api/stream?after={position}"), listening(url, "/api/sessions/s1/output"):
                    pass
            await client.create_session(session_id="s1")
            await stream.named("change")
        await program.end(signal.SIGTERM)

    assert program.err == ""
