"""The proxy of the tests does to connections what it says."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import nats
import pytest

from jido_nats import LocalServer
from tests.tools.proxy import HOST, Proxy

SOON_S = 5.0
NOT_NOW_S = 0.2


class Echo:
    """A connection to a server that sends everything back."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    async def hear(self, number: int, timeout_s: float = SOON_S) -> bytes:
        return await asyncio.wait_for(self._reader.readexactly(number), timeout_s)

    async def hears_nothing(self) -> bool:
        try:
            await self.hear(1, NOT_NOW_S)
        except TimeoutError:
            return True
        return False

    async def is_closed(self) -> bool:
        """Whether the other side closes it soon."""
        try:
            return await asyncio.wait_for(self._reader.read(1), SOON_S) == b""
        except ConnectionError:
            return True

    async def close(self) -> None:
        self._writer.close()


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    """A proxy before an echo server."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, HOST, 0)
    async with Proxy(server.sockets[0].getsockname()[1]) as proxy:
        yield proxy
    server.close()
    await asyncio.sleep(0.01)  # the echoes end


@asynccontextmanager
async def connect(proxy: Proxy) -> AsyncIterator[Echo]:
    """A connection that has been answered."""
    echo = Echo(*await asyncio.open_connection(HOST, proxy.port))
    echo.send(b"?")
    assert await echo.hear(1) == b"?"
    try:
        yield echo
    finally:
        await echo.close()


async def test_everything_passes_in_order(proxy: Proxy) -> None:
    data = bytes(range(256)) * 40_000
    async with connect(proxy) as echo:
        echo.send(data)
        assert await echo.hear(len(data)) == data


async def test_cut_closes_every_connection(proxy: Proxy) -> None:
    async with connect(proxy) as one, connect(proxy) as other:
        proxy.cut()
        assert await one.is_closed()
        assert await other.is_closed()


async def test_new_connections_are_taken_after_a_cut(proxy: Proxy) -> None:
    async with connect(proxy):
        proxy.cut()
        async with connect(proxy):
            pass


async def test_refuse_hits_only_new_connections(proxy: Proxy) -> None:
    async with connect(proxy) as echo:
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(HOST, proxy.port)
        echo.send(b"still here")
        assert await echo.hear(10) == b"still here"


async def test_accept_takes_connections_on_the_same_port_again(proxy: Proxy) -> None:
    proxy.refuse()
    await proxy.accept()
    async with connect(proxy):
        pass


async def test_a_black_hole_delivers_nothing_and_closes_nothing(proxy: Proxy) -> None:
    async with connect(proxy) as echo:
        proxy.black_hole()
        echo.send(b"lost")
        assert await echo.hears_nothing()


async def test_a_new_connection_falls_into_the_black_hole_too(proxy: Proxy) -> None:
    proxy.black_hole()
    echo = Echo(*await asyncio.open_connection(HOST, proxy.port))
    echo.send(b"lost")
    assert await echo.hears_nothing()
    await echo.close()


async def test_heal_closes_what_the_black_hole_swallowed(proxy: Proxy) -> None:
    async with connect(proxy) as echo:
        proxy.black_hole()
        echo.send(b"lost")
        proxy.heal()
        assert await echo.is_closed()
    async with connect(proxy):
        pass


async def test_what_was_frozen_arrives_after_thaw(proxy: Proxy) -> None:
    async with connect(proxy) as echo:
        proxy.freeze()
        echo.send(b"late")
        assert await echo.hears_nothing()
        proxy.thaw()
        assert await echo.hear(4) == b"late"


async def test_cut_ends_a_frozen_connection(proxy: Proxy) -> None:
    async with connect(proxy) as echo:
        proxy.freeze()
        proxy.cut()
        assert await echo.is_closed()


async def test_delay_holds_each_chunk_both_ways(proxy: Proxy) -> None:
    loop = asyncio.get_running_loop()
    async with connect(proxy) as echo:
        proxy.delay(0.1)
        sent_at = loop.time()
        echo.send(b"slow")
        assert await echo.hear(4) == b"slow"
        assert loop.time() - sent_at >= 0.2


async def test_a_closing_passes_with_all_that_was_sent_before(proxy: Proxy) -> None:
    async def speak(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"x" * 1_000_000)
        writer.close()

    server = await asyncio.start_server(speak, HOST, 0)
    async with Proxy(server.sockets[0].getsockname()[1]) as before_speaker:
        reader, writer = await asyncio.open_connection(HOST, before_speaker.port)
        assert len(await asyncio.wait_for(reader.read(-1), SOON_S)) == 1_000_000
        writer.close()
    server.close()


async def test_a_server_that_is_not_there_closes_the_connection() -> None:
    async with Proxy(1) as to_nobody:
        reader, writer = await asyncio.open_connection(HOST, to_nobody.port)
        assert await asyncio.wait_for(reader.read(1), SOON_S) == b""
        writer.close()


async def test_a_nats_client_comes_back_after_a_cut(server: LocalServer) -> None:
    back = asyncio.Event()

    async def on_back() -> None:
        back.set()

    async def ignore(_: Exception) -> None:
        """nats-py prints errors where it is given no callback."""

    async with Proxy(server.port) as proxy:
        client = await nats.connect(proxy.url, reconnected_cb=on_back, error_cb=ignore, reconnect_time_wait=0.05)
        proxy.cut()
        await asyncio.wait_for(back.wait(), SOON_S)
        await client.flush()
        await client.close()
