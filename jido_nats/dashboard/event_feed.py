"""From NATS into the state, and from the state to browsers: one follower for all of them.

A browser's stream is just a position: it reads the events after it from the state. Events that the state no longer
has are read from the event stream; if they are gone there too, or are too many, the browser is sent a `reset` and
takes a new snapshot. So nothing is buffered for a slow browser: the stream of a browser that falls that far behind
while connected ends, and it reconnects with the last id that it has seen.
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
from jido_nats.core.position import Position
from jido_nats.core.session import SessionRecord
from jido_nats.dashboard.state import RATES_S, Chunk, DashboardState, change_message, message
from jido_nats.errors import JidoError, PositionUnavailable

RETRY_S: Final = 1.0
TICK_S: Final = 0.25
TICKS_PER_MANAGERS: Final = 4
BEAT_S: Final = 5.0
# Events that arrive together are sent together: this limits the writes per second to each browser.
PACE_S: Final = 0.05
# How many sequences a browser may lag; beyond that a snapshot is faster.
REPLAY_MAX: Final = 100_000
REPLAY_CHUNK: Final = 1000
REPLAY_TIMEOUT_S: Final = 5.0

RECONNECT: Final = b"retry: 1000\n\n"
RESET: Final = message("reset", {})

log = logging.getLogger(__name__)


class EventFeed:
    """Follows NATS with one client into the state; an async context manager, with a `stream` for each browser."""

    def __init__(self, client: Client, state: DashboardState, *, beat_s: float = BEAT_S) -> None:
        self._client = client
        self._state = state
        self._beat_s = beat_s
        self._problems: dict[str, str | None] = {"sessions": None, "managers": None}
        self._health: dict[str, Any] = {}
        self._managers_changed = False
        self._counted = False
        self._hurried = False
        self._announcements: dict[str, bytes] = {}
        self._wakes: set[asyncio.Event] = set()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._announce_health()
        for name, work in {"sessions": self._follow_sessions, "managers": self._follow_managers}.items():
            self._tasks.append(asyncio.create_task(self._keep(name, work), name=f"dashboard: {name}"))
        self._tasks.append(asyncio.create_task(self._announce_changes(), name="dashboard: state"))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await _end(self._tasks)

    @property
    def problem(self) -> str | None:
        """Why there is no snapshot, or why it is no longer updated."""
        return self._problems["sessions"]

    async def loaded(self, within_s: float) -> bool:
        """Whether there is a snapshot; waits up to `within_s` for it and the earlier rates, or for a problem."""
        with contextlib.suppress(TimeoutError), self._waking() as wake:
            async with asyncio.timeout(within_s):
                while not (self._state.loaded and self._counted) and self.problem is None:
                    await wake.wait()
                    wake.clear()
        self._hurried = self._hurried or (self._state.loaded and not self._counted)
        return self._state.loaded

    async def stream(self, position: Position) -> AsyncGenerator[bytes, None]:
        """Every event after `position`, once, in order, as Server-Sent Events, interleaved with health changes."""
        reader = _Reader(position.sequence)
        yield RECONNECT
        if not await self._is_of_this_life(position):
            yield RESET
            return
        with self._waking() as wake:
            while True:
                for announcement in reader.new_of(self._announcements):
                    yield announcement
                if not self._state.loaded:
                    yield await self._idle(wake)
                    continue
                try:
                    chunk = await self._next_chunk(reader)
                except PositionUnavailable:
                    yield RESET
                    return
                if chunk is None:
                    return  # it reads too slowly: it reconnects with its last id
                yield chunk.data or await self._idle(wake)
                if chunk.data:
                    await asyncio.sleep(PACE_S)

    async def _is_of_this_life(self, position: Position) -> bool:
        """Whether the stream of events is still the one in which a browser has that position, as far as it is known."""
        try:
            async with asyncio.timeout(REPLAY_TIMEOUT_S):
                await self._client.check_position(position.token)
        except PositionUnavailable:
            return False
        except (JidoError, TimeoutError):
            log.debug("a browser's position could not be verified", exc_info=True)
        return True

    async def _next_chunk(self, reader: "_Reader") -> Chunk | None:
        """Some of the events after the reader's position, which advances; None if it reads too slowly.

        Raises `PositionUnavailable` if the reader needs a new snapshot.
        """
        state = self._state
        if reader.generation not in (0, state.generation):
            raise PositionUnavailable(reader.position, None, None)
        reader.generation = state.generation
        chunk = state.after(reader.position)
        if chunk is None and reader.following:
            return None
        if chunk is None or (reader.position > state.position and not reader.following):
            chunk = await self._replay(reader.position)
        else:
            reader.following = True
        reader.position = chunk.position
        return chunk

    async def _replay(self, position: int) -> Chunk:
        """Events after `position`, from the stream. Raises `PositionUnavailable` if they are gone or too many."""
        reached = self._state.position
        data: list[bytes] = []
        if reached - position > REPLAY_MAX:
            raise PositionUnavailable(position, None, None)
        with contextlib.suppress(TimeoutError):
            async with (
                asyncio.timeout(REPLAY_TIMEOUT_S),
                self._client.events(since=position + 1) as events,
            ):
                async for stored in events.stored():
                    position = stored.sequence
                    record = self._state.sessions.get(stored.event.session_id)
                    owner = record.owner if record is not None else ""
                    data.append(change_message(events.position_token, stored.event, owner))
                    if len(data) == REPLAY_CHUNK:
                        break
                if events.caught_up:
                    position = max(position, reached)
        return Chunk(b"".join(data), position)

    async def _idle(self, wake: asyncio.Event) -> bytes:
        beat = await woken(wake, self._beat_s)
        if not beat:
            wake.clear()
        return beat

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
        """Run `work` again whenever it ends, and record why it did."""
        while True:
            try:
                await work()
            except JidoError as error:
                self._problems[name] = str(error)
                self._wake()
            except Exception:
                log.exception("a follower of the dashboard failed; restarting it", extra={"following": name})
            await asyncio.sleep(RETRY_S)

    async def _follow_sessions(self) -> None:
        state = self._state
        async with contextlib.AsyncExitStack() as tasks:
            if not state.loaded:
                state.restart(*await self._snapshot())
                self._problems["sessions"] = None
                counting = asyncio.create_task(self._count_before(state.position), name="dashboard: rates")
                tasks.push_async_callback(_end, [counting])
                self._wake()
            try:
                async with self._client.watch_sessions(position=state.position_token) as watched:
                    self._problems["sessions"] = None
                    async for change in watched:
                        assert isinstance(change, SessionChanged)
                        state.apply(change)
                        self._wake()
            except PositionUnavailable:
                state.loaded = False

    async def _snapshot(self) -> tuple[list[SessionRecord], SnapshotComplete]:
        records: list[SessionRecord] = []
        async with self._client.watch_sessions(include_terminated=True) as watched:
            async for found in watched:
                if isinstance(found, WatchedSession):
                    records.append(found.record)
                elif isinstance(found, SnapshotComplete):
                    return records, found
        raise AssertionError("a watch never ends by itself")

    async def _count_before(self, position: int) -> None:
        """Count the events before the snapshot into the rates."""
        self._counted = self._hurried = False
        try:
            async with self._client.events(since=f"{RATES_S}s") as events:
                async for event, sequence, _, _ in events.stored():
                    if sequence > position:
                        break
                    self._state.rates.count(event)
        finally:
            self._counted = True
        if self._hurried:  # a browser has incomplete rates
            self._state.generation += 1
        self._wake()

    async def _follow_managers(self) -> None:
        self._state.managers.clear()
        self._managers_changed = True
        async with self._client.watch_managers() as watched:
            self._problems["managers"] = None
            async for manager_id, lease in watched:
                if lease is None:
                    self._state.managers.pop(manager_id, None)
                else:
                    self._state.managers[manager_id] = lease
                self._managers_changed = True

    async def _announce_changes(self) -> None:
        for tick in itertools.count():
            self._announce_health()
            if self._managers_changed and tick % TICKS_PER_MANAGERS == 0:
                self._managers_changed = False
                self._announce("managers", self._state.manager_rows())
            await asyncio.sleep(TICK_S)

    def _announce_health(self) -> None:
        health = {
            "connected": self._client.connected,
            "loaded": self._state.loaded,
            "problem": self._problems["sessions"],
            "managers_problem": self._problems["managers"],
        }
        if health != self._health:
            self._health = health
            self._announce("state", health)

    def _announce(self, name: str, data: object) -> None:
        """Send it on every stream, also on those opened later: the last one of each name is kept."""
        self._announcements[name] = message(name, data)
        self._wake()


class _Reader:
    """How far one browser has read, and which announcements it has received."""

    def __init__(self, position: int) -> None:
        self.position = position
        self.generation = 0  # of the state; 0 until the first chunk
        self.following = False
        self._announced: dict[str, bytes] = {}

    def new_of(self, announcements: dict[str, bytes]) -> Iterator[bytes]:
        """The announcements that this browser has not received yet."""
        for name, announcement in list(announcements.items()):
            if self._announced.get(name) is not announcement:
                self._announced[name] = announcement
                yield announcement


async def woken(wake: asyncio.Event, within_s: float) -> bytes:
    """Wait until there is something new; a keep-alive message if nothing arrives in time."""
    try:
        async with asyncio.timeout(within_s):
            await wake.wait()
    except TimeoutError:
        return message("beat", {})
    return b""


async def _end(tasks: "list[asyncio.Task[None]]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
