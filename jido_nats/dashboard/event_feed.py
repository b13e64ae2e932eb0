"""NATS into the board, and the board out to browsers: one follower for all of them.

A browser's stream is a position, nothing more: it reads the events behind it from the board. What the board no
longer has is read from the event stream; where that has forgotten it too, or it is too much, the browser is told
to take a new snapshot. So nothing is kept for a slow browser: one that falls so far behind while it is connected
is let go, and comes back with the last id that it has seen.
"""

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from types import TracebackType
from typing import Any, Final, Self

from jido_nats.client.client import Client
from jido_nats.client.watch import SessionChanged, SnapshotComplete, WatchedSession
from jido_nats.core.session import SessionRecord
from jido_nats.dashboard.state import RATES_S, Chunk, DashboardState, change_message, message
from jido_nats.errors import JidoError, PositionTooOld

RETRY_S: Final = 1.0
TICK_S: Final = 0.25
TICKS_PER_MANAGERS: Final = 4
BEAT_S: Final = 5.0
# Events that come together go together: at most so many writes a second to each browser.
PACE_S: Final = 0.05
# Sequences that a browser may be behind; for more of them a snapshot is quicker.
REPLAY_MAX: Final = 100_000
REPLAY_CHUNK: Final = 1000
REPLAY_TIMEOUT_S: Final = 5.0

RECONNECT: Final = b"retry: 1000\n\n"
RESET: Final = message("reset", {})

log = logging.getLogger(__name__)


class Feed:
    """Follows NATS with one client into the board; an async context manager, with a `stream` for each browser."""

    def __init__(self, client: Client, board: DashboardState, *, beat_s: float = BEAT_S) -> None:
        self._client = client
        self._board = board
        self._beat_s = beat_s
        self._problems: dict[str, str | None] = {"sessions": None, "managers": None}
        self._state: dict[str, Any] = {}
        self._managers_changed = False
        self._counted = False
        self._hurried = False
        self._news: dict[str, bytes] = {}
        self._wakes: set[asyncio.Event] = set()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tell_state()
        for name, work in {"sessions": self._follow_sessions, "managers": self._follow_managers}.items():
            self._tasks.append(asyncio.create_task(self._keep(name, work), name=f"dashboard: {name}"))
        self._tasks.append(asyncio.create_task(self._keep_state(), name="dashboard: state"))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await _end(self._tasks)

    @property
    def problem(self) -> str | None:
        """Why there is no snapshot, or nothing that follows it."""
        return self._problems["sessions"]

    async def loaded(self, within_s: float) -> bool:
        """Whether there is a snapshot; waits for it and for the rates before it, or for a problem, so long."""
        with contextlib.suppress(TimeoutError), self._waking() as wake:
            async with asyncio.timeout(within_s):
                while not (self._board.loaded and self._counted) and self.problem is None:
                    await wake.wait()
                    wake.clear()
        self._hurried = self._hurried or (self._board.loaded and not self._counted)
        return self._board.loaded

    async def stream(self, position: int) -> AsyncGenerator[bytes, None]:
        """Every event behind `position`, once, in order, as Server-Sent Events; the state and its changes between."""
        board, told, generation, following = self._board, dict[str, bytes](), 0, False
        yield RECONNECT
        with self._waking() as wake:
            while True:
                for name, news in list(self._news.items()):
                    if told.get(name) is not news:
                        told[name] = news
                        yield news
                if not board.loaded:
                    yield await self._idle(wake)
                    continue
                if generation not in (0, board.generation):
                    yield RESET
                    return
                generation = board.generation
                chunk = board.behind(position)
                if chunk is None and following:
                    return  # it reads too slowly: it comes back with its last id
                if chunk is None or (position > board.position and not following):
                    try:
                        chunk = await self._replay(position)
                    except PositionTooOld:
                        yield RESET
                        return
                else:
                    following = True
                position = chunk.position
                yield chunk.data or await self._idle(wake)
                if chunk.data:
                    await asyncio.sleep(PACE_S)

    async def _replay(self, position: int) -> Chunk:
        """Some of the events behind `position`, from the stream; `PositionTooOld` where it cannot give them (soon)."""
        reached = self._board.position
        data: list[bytes] = []
        if reached - position > REPLAY_MAX:
            raise PositionTooOld(position, None, None)
        with contextlib.suppress(TimeoutError):
            async with (
                asyncio.timeout(REPLAY_TIMEOUT_S),
                self._client.events(since=position + 1) as events,
            ):
                async for stored in events.stored():
                    position = stored.sequence
                    record = self._board.sessions.get(stored.event.session_id)
                    data.append(change_message(position, stored.event, record.owner if record is not None else ""))
                    if len(data) == REPLAY_CHUNK:
                        break
                if events.caught_up:
                    position = max(position, reached)
        return Chunk(b"".join(data), position)

    async def _idle(self, wake: asyncio.Event) -> bytes:
        """Wait for something new; a sign of life where nothing came in time."""
        try:
            async with asyncio.timeout(self._beat_s):
                await wake.wait()
        except TimeoutError:
            return message("beat", {})
        wake.clear()
        return b""

    @contextlib.contextmanager
    def _waking(self) -> Iterator[asyncio.Event]:
        wake = asyncio.Event()
        self._wakes.add(wake)
        try:
            yield wake
        finally:
            self._wakes.discard(wake)

    def _wake(self) -> None:
        for wake in self._wakes:
            wake.set()

    async def _keep(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """Run `work` again whenever it ends, and remember why it did."""
        while True:
            try:
                await work()
            except JidoError as error:
                self._problems[name] = str(error)
                self._wake()
            except Exception:
                log.exception("the dashboard lost what it followed, and follows it again", extra={"following": name})
            await asyncio.sleep(RETRY_S)

    async def _follow_sessions(self) -> None:
        board = self._board
        async with contextlib.AsyncExitStack() as tasks:
            if not board.loaded:
                board.restart(*await self._snapshot())
                self._problems["sessions"] = None
                counting = asyncio.create_task(self._count_before(board.position), name="dashboard: rates")
                tasks.push_async_callback(_end, [counting])
                self._wake()
            try:
                async with self._client.watch_sessions(cursor=board.position) as watched:
                    self._problems["sessions"] = None
                    async for change in watched:
                        assert isinstance(change, SessionChanged)
                        board.apply(change)
                        self._wake()
            except PositionTooOld:
                board.loaded = False

    async def _snapshot(self) -> tuple[list[SessionRecord], int]:
        records: list[SessionRecord] = []
        async with self._client.watch_sessions(include_terminated=True) as watched:
            async for told in watched:
                if isinstance(told, WatchedSession):
                    records.append(told.record)
                elif isinstance(told, SnapshotComplete):
                    return records, told.position
        raise AssertionError("a watch does not end by itself")

    async def _count_before(self, position: int) -> None:
        """Fill the rates with what was before the snapshot."""
        self._counted = self._hurried = False
        try:
            async with self._client.events(since=f"{RATES_S}s") as events:
                async for event, sequence, _, _ in events.stored():
                    if sequence > position:
                        break
                    self._board.rates.count(event)
        finally:
            self._counted = True
        if self._hurried:  # somebody has half of it
            self._board.generation += 1
        self._wake()

    async def _follow_managers(self) -> None:
        self._board.managers.clear()
        self._managers_changed = True
        async with self._client.watch_managers() as watched:
            self._problems["managers"] = None
            async for manager_id, lease in watched:
                if lease is None:
                    self._board.managers.pop(manager_id, None)
                else:
                    self._board.managers[manager_id] = lease
                self._managers_changed = True

    async def _keep_state(self) -> None:
        for tick in itertools.count():
            self._tell_state()
            if self._managers_changed and tick % TICKS_PER_MANAGERS == 0:
                self._managers_changed = False
                self._tell("managers", self._board.manager_rows())
            await asyncio.sleep(TICK_S)

    def _tell_state(self) -> None:
        state = {
            "connected": self._client.connected,
            "loaded": self._board.loaded,
            "problem": self._problems["sessions"],
            "managers_problem": self._problems["managers"],
        }
        if state != self._state:
            self._state = state
            self._tell("state", state)

    def _tell(self, name: str, data: object) -> None:
        """Tell every stream, those that are opened later too: the last of each name counts."""
        self._news[name] = message(name, data)
        self._wake()


async def _end(tasks: "list[asyncio.Task[None]]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
