"""The live table of sessions: a reader that never waits for the screen, and at most ten frames per second."""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Coroutine, Iterator
from datetime import UTC, datetime
from typing import Any, Final

from jido_nats.cli.logs import LineFormatter
from jido_nats.cli.table.model import SessionTable
from jido_nats.cli.table.render import Scene, frame
from jido_nats.cli.table.terminal import Terminal
from jido_nats.cli.table.view import Keys, View
from jido_nats.client.client import Client
from jido_nats.client.watch import SessionWatch
from jido_nats.core.session import Status
from jido_nats.errors import JidoError, PositionUnavailable

FRAME_S: Final = 0.1
TICK_S: Final = 1.0
RETRY_S: Final = 1.0
NOTICE_S: Final = 6.0
# After this many messages the event loop gets a turn for screen and keys, even if more are waiting.
TOGETHER: Final = 200


class WatchScreen:
    """`jido-nats watch` in a terminal. The filters are those of `Client.watch_sessions`."""

    def __init__(
        self,
        client: Client,
        server: str,
        *,
        session_id: str | None = None,
        status: Status | None = None,
        metadata: dict[str, Any] | None = None,
        worker: str | None = None,
    ) -> None:
        self._client = client
        self._server = server
        self._session_id = session_id
        self._status = status
        self._metadata = metadata or {}
        self._worker = worker
        self._table = SessionTable(status)
        self._view = View(self._table)
        self._keys = Keys()
        self._changed = asyncio.Event()
        self._down_since: float | None = None
        self._notice = ""
        self._notice_until = 0.0

    async def run(self, position: str | None = None) -> None:
        """Run until `q`. Raises what opening the watch raises; later errors are shown on the screen."""
        follower = asyncio.create_task(self._follow(position), name="watch: follow")
        follower.add_done_callback(lambda _: self._changed.set())
        try:
            with self._logs_on_screen(), Terminal(self._on_input) as terminal, self._signals(terminal):
                while not self._view.done:
                    await self._paint(terminal)
                    if follower.done():
                        follower.result()
        finally:
            follower.cancel()
            await asyncio.gather(follower, return_exceptions=True)

    async def _follow(self, position: str | None) -> None:
        """Apply the messages of the watch; start again with a new snapshot whenever it ends."""
        async with self._open(position) as watch:
            await self._until_lost(self._take_all(watch))
        while True:
            self._table.begin()
            await self._until_lost(self._take_snapshot())

    async def _until_lost(self, taking: Coroutine[Any, Any, None]) -> None:
        try:
            await taking
        except PositionUnavailable:
            self._show("the position is no longer in the stream; reading all sessions again")
        except JidoError as error:  # such as a stream that does not exist yet after a restart
            self._show(str(error))
            await asyncio.sleep(RETRY_S)

    async def _take_snapshot(self) -> None:
        async with self._open(None) as watch:
            await self._take_all(watch)

    def _open(self, position: str | None) -> SessionWatch:
        return self._client.watch_sessions(
            session_id=self._session_id,
            status=self._status,
            metadata=self._metadata,
            worker=self._worker,
            position=position,
        )

    async def _take_all(self, watch: SessionWatch) -> None:
        taken = 0
        async for message in watch:
            self._table.take(message, self._now())
            self._changed.set()
            taken += 1
            if taken % TOGETHER == 0:
                await asyncio.sleep(0)

    async def _paint(self, terminal: Terminal) -> None:
        """Paint a frame, then wait until the next is due: after a change, or after a second."""
        began = self._now()
        self._table.drop_ended(began)
        if self._view.redraw:
            self._view.redraw = False
            terminal.forget()
        self._changed.clear()
        await terminal.paint(frame(self._view, self._scene(began), *terminal.size()))
        await asyncio.sleep(began + FRAME_S - self._now())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(began + TICK_S):
                await self._changed.wait()

    def _scene(self, now: float) -> Scene:
        if self._client.connected:
            if self._down_since is not None:
                self._down_since, self._notice = None, ""  # the notice is obsolete too
        elif self._down_since is None:
            self._down_since = now
        return Scene(
            self._server,
            self._filters(),
            datetime.now(UTC),
            now,
            None if self._down_since is None else now - self._down_since,
            self._notice if now < self._notice_until else "",
        )

    def _filters(self) -> str:
        asked = [self._session_id or "", self._status or ""]
        asked += [f"worker={self._worker}"] if self._worker else []
        return "  ".join(filter(None, [*asked, *(f"{name}={value}" for name, value in self._metadata.items())]))

    def _on_input(self, data: bytes) -> None:
        for key in self._keys.read(data):
            self._view.press(key, datetime.now(UTC), self._now())
        self._changed.set()

    def _show(self, text: str) -> None:
        self._notice, self._notice_until = text, self._now() + NOTICE_S
        self._changed.set()

    @contextlib.contextmanager
    def _signals(self, terminal: Terminal) -> Iterator[None]:
        """Repaint at once after a resize; give the terminal back to the shell while the program is stopped."""
        loop = asyncio.get_running_loop()

        def on_stop() -> None:
            terminal.leave()
            os.kill(os.getpid(), signal.SIGSTOP)

        def on_continue() -> None:
            terminal.enter()
            self._changed.set()

        handlers = {signal.SIGWINCH: self._changed.set, signal.SIGTSTP: on_stop, signal.SIGCONT: on_continue}
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        try:
            yield
        finally:
            for number in handlers:
                loop.remove_signal_handler(number)

    @contextlib.contextmanager
    def _logs_on_screen(self) -> Iterator[None]:
        """Log records on the same terminal would garble the screen: show them in its last line instead."""
        if not sys.stderr.isatty():
            yield
            return
        root = logging.getLogger()
        before = root.handlers[:]
        root.handlers[:] = [_Notices(self)]
        try:
            yield
        finally:
            root.handlers[:] = before

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


class _Notices(logging.Handler):
    """Shows log records on the screen."""

    def __init__(self, screen: WatchScreen) -> None:
        super().__init__()
        self.setFormatter(LineFormatter())
        self._screen = screen

    def emit(self, record: logging.LogRecord) -> None:
        self._screen._show(self.format(record))
