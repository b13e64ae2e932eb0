"""A TCP proxy between a client and a server of a test, which cuts, holds, loses and delays what passes."""

import asyncio
import contextlib
import socket
from types import TracebackType
from typing import Final, Self

HOST: Final = "127.0.0.1"
CHUNK_BYTES_MAX: Final = 64 * 1024
CHUNKS_HELD_MAX: Final = 1024


class Proxy:
    """`async with Proxy(server.port) as proxy:` and clients connect to `proxy.url`.

    Faults last until they are taken back, and hit connections that are made meanwhile too.
    """

    def __init__(self, target_port: int, *, target_host: str = HOST) -> None:
        self._target = (target_host, target_port)
        self._reserved = reserve_port()
        self.port: int = self._reserved.getsockname()[1]
        self.delay_s = 0.0
        self._listener: asyncio.Server | None = None
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._in_black_hole = False
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"nats://{HOST}:{self.port}"

    @property
    def connections(self) -> int:
        """How many connections there are through it."""
        return len(self._links)

    async def __aenter__(self) -> Self:
        await self.accept()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.refuse()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._reserved.close()

    def cut(self) -> None:
        """Close every connection now; what was on its way is lost. New ones are taken."""
        for link in self._links:
            link.cut()

    def refuse(self) -> None:
        """Take no new connections; those there are go on."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def accept(self) -> None:
        """Take connections again."""
        if self._listener is None:
            self._listener = await asyncio.start_server(self._on_connection, HOST, self.port)

    def black_hole(self) -> None:
        """Deliver nothing more in either direction, and tell nobody, until `heal`."""
        self._in_black_hole = True
        self._flowing.clear()

    def heal(self) -> None:
        """End the black hole: close the connections it swallowed, and deliver nothing of what they had sent."""
        if self._in_black_hole:
            self.cut()
            self._in_black_hole = False
            self._flowing.set()

    def freeze(self) -> None:
        """Hold what comes, in either direction, until `thaw`; a closing too."""
        self._flowing.clear()

    def thaw(self) -> None:
        """Deliver what was held, in order. (A black hole stays one until `heal`.)"""
        if not self._in_black_hole:
            self._flowing.set()

    def delay(self, seconds: float) -> None:
        """From now on every chunk arrives so much later, in either direction; the order and the rate stay."""
        self.delay_s = seconds

    def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._carry(reader, writer), name=f"proxy {self.port}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection until a side closes it or it is cut."""
        link = _Link(writer)
        self._links.add(link)
        pumps: list[asyncio.Task[None]] = []
        try:
            server_reader, server_writer = await asyncio.open_connection(*self._target)
            link.add(server_writer)
            for source, target in ((reader, server_writer), (server_reader, writer)):
                held: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(CHUNKS_HELD_MAX)
                pumps.append(asyncio.create_task(self._take(source, held), name="proxy takes"))
                pumps.append(asyncio.create_task(self._deliver(held, target, link), name="proxy delivers"))
            await link.over.wait()
        except OSError:
            pass  # the server is not there: neither is the proxy
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            await link.close()
            self._links.discard(link)

    async def _take(self, reader: asyncio.StreamReader, held: "asyncio.Queue[tuple[float, bytes]]") -> None:
        loop = asyncio.get_running_loop()
        data = b"-"
        while data:
            try:
                data = await reader.read(CHUNK_BYTES_MAX)
            except ConnectionError:
                data = b""
            await held.put((loop.time() + self.delay_s, data))

    async def _deliver(
        self, held: "asyncio.Queue[tuple[float, bytes]]", writer: asyncio.StreamWriter, link: "_Link"
    ) -> None:
        loop = asyncio.get_running_loop()
        data = b"-"
        while data:
            due, data = await held.get()
            await asyncio.sleep(max(0.0, due - loop.time()))
            await self._flowing.wait()
            with contextlib.suppress(ConnectionError):
                writer.write(data)
                await writer.drain()
        link.over.set()


class _Link:
    """The two sockets of one connection; `over` when it is to be closed."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writers = [writer]
        self._is_cut = False
        self.over = asyncio.Event()

    def add(self, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        if self._is_cut:
            writer.transport.abort()

    def cut(self) -> None:
        self._is_cut = True
        self.over.set()
        for writer in self._writers:
            writer.transport.abort()

    async def close(self) -> None:
        """Close both sides; what was delivered still goes out."""
        for writer in self._writers:
            writer.close()
        for writer in self._writers:
            with contextlib.suppress(OSError):
                await writer.wait_closed()


def reserve_port() -> socket.socket:
    """A free port on loopback that stays ours while the socket is open: others may listen on it, by its number only."""
    reserved = socket.socket()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind((HOST, 0))
    return reserved
