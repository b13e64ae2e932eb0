"""The sessions that this manager runs, and the one way in which they change.

Every change is decided by the lifecycle and carried out by the session's writer, under the session's lock:
one at a time for a session, side by side for different ones. What has begun is finished in a task of the
manager's own, whether or not its caller still waits.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from datetime import datetime
from typing import Any, Final, TypeVar

from jido_nats import trace
from jido_nats.broker.clock import boottime
from jido_nats.broker.registry import Entry
from jido_nats.core import lifecycle
from jido_nats.core.commands import CreateRequest, SendReply, SendRequest, limits_of
from jido_nats.core.session import Reason, SessionRecord, Status
from jido_nats.core.settings import Settings
from jido_nats.deadlines import Deadlines
from jido_nats.errors import (
    AlreadyExists,
    Fenced,
    InvalidTransition,
    JidoError,
    Overloaded,
    StartFailed,
    StopTimeout,
    Unavailable,
)
from jido_nats.talk import Talk
from jido_nats.worker import Outcome, Session, Worker, WorkerRun, error_text
from jido_nats.write_path import SessionWriter, WritePath

STOPS_AT_ONCE: Final = 256
# A manager that ends gives a worker that is being killed this long to be gone, before the record says `forced`.
KILL_GRACE_S: Final = 1.0
FIRST_COMMITS_MAX: Final = 3

log = logging.getLogger(__name__)

T = TypeVar("T")


class Taken(Exception):
    """A session of that id exists and is not run here; `.record` is what was read of it."""

    def __init__(self, record: SessionRecord) -> None:
        super().__init__(record.session_id)
        self.record = record


class NotHere(Exception):
    """This manager does not run that session (any more)."""


class _Live:
    """One session that this manager runs: from before its first commit until it is sealed."""

    __slots__ = ("_ended", "began_at", "lock", "run", "session", "writer")

    def __init__(self) -> None:
        self.began_at = boottime()
        self.lock = asyncio.Lock()
        self.writer: SessionWriter | None = None
        self.session: Session | None = None
        self.run: WorkerRun | None = None
        self._ended: asyncio.Future[None] | None = None

    @property
    def record(self) -> SessionRecord:
        assert self.writer is not None, "begun"
        return self.writer.record

    async def wait_ended(self, timeout_s: float) -> bool:
        """Whether the end was stored within `timeout_s`."""
        if self._ended is None:
            self._ended = asyncio.get_running_loop().create_future()
        await asyncio.wait({self._ended}, timeout=timeout_s)
        return self._ended.done()

    def tell_ended(self) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)


class Sessions:
    """This manager's own sessions, and the host of their workers."""

    def __init__(
        self,
        path: WritePath,
        worker: Worker,
        settings: Settings,
        talk: Talk,
        *,
        now: Callable[[], datetime],
        new_id: Callable[[], str],
    ) -> None:
        self._path = path
        self._worker = worker
        self._settings = settings
        self._talk = talk
        self._defaults = {name: limit for name, limit in limits_of(settings).items() if limit}
        self.deadlines = Deadlines(self._due_at, self._on_due)
        self._limit_gate = asyncio.Semaphore(STOPS_AT_ONCE)
        self._now = now
        self._new_id = new_id
        self._live: dict[str, _Live] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closing = False
        self._closed = False
        # Sessions of this manager's that it runs no more, and that may not have ended.
        self.let_go: set[str] = set()
        self._drained: asyncio.Future[None] | None = None

    def __len__(self) -> int:
        return len(self._live)

    def __contains__(self, session_id: str) -> bool:
        return session_id in self._live

    @property
    def full(self) -> bool:
        """Whether no more sessions are taken."""
        return self._closing or len(self._live) >= self._settings.sessions_max

    def by_status(self) -> Counter[Status]:
        """How many sessions run here, by status."""
        return Counter(live.record.status for live in self._live.values() if live.writer is not None)

    def written(self, session_id: str, revision: int) -> Entry | None:
        """The entry, where it is what this manager wrote last of a session that it runs."""
        live = self._live.get(session_id)
        if live is None or live.writer is None or live.writer.revision != revision:
            return None
        return Entry(live.writer.record.session_id, revision, live.writer.record)

    def writers(self) -> Iterable[SessionWriter]:
        """The writer of every session that has begun."""
        return [live.writer for live in self._live.values() if live.writer is not None]

    async def in_own_task(self, work: Coroutine[Any, Any, T], timeout_s: float | None) -> T:
        """The result of `work`, which goes on when the caller is cancelled or `timeout_s` is over (`Unavailable`)."""
        if len(self._tasks) >= 2 * self._settings.commands_max:
            work.close()
            raise Overloaded("too many changes are under way; ask again later")
        task = asyncio.create_task(work)
        self._keep(task)
        done, _ = await asyncio.wait({task}, timeout=timeout_s)
        if not done:
            raise Unavailable("not done yet, or not known to be: ask again with the same session id")
        return task.result()

    async def create(self, session_id: str | None, request: CreateRequest) -> tuple[SessionRecord, bool]:
        """(record, replayed) of a session that is `active`, or was made by the same request before.

        Raises `Taken` for one that is not run here, `AlreadyExists`, `StartFailed`, `Overloaded`, `Unavailable`.
        """
        session_id = session_id or self._new_id()
        while (live := self._live.get(session_id)) is not None:
            async with live.lock:  # its start, if that still goes on
                if live.writer is not None and not live.writer.lost:
                    return live.record, True
        if self._closing:
            raise Unavailable("this manager is stopping; ask again")
        if self.full:
            raise Overloaded(f"this manager runs {len(self._live)} sessions, its limit; ask again later")
        return await self._create(session_id, request), False

    async def change(self, session_id: str, status: Status) -> SessionRecord:
        """The record in its new status, `active` or `idle`. Raises `NotHere`, `InvalidTransition`."""
        live = self._find(session_id)
        async with live.lock:
            _check_here(session_id, live)
            await self._advance(live, status)
            return live.record

    async def send(self, session_id: str, request: SendRequest) -> SendReply:
        """Put a message into the session's inbox, waking one that is `idle`; returns when it is told and stored.

        Raises `NotHere`, `InvalidTransition`, `Overloaded`, `AlreadyExists`, `TooLarge`.
        """
        live = self._find(session_id)
        async with live.lock:
            _check_here(session_id, live)
            if live.session is None or live.record.status not in (Status.ACTIVE, Status.IDLE):
                raise InvalidTransition(
                    f"a session that is {live.record.status} takes no messages", session_id=session_id
                )
            known = self._talk.check_room(live.session, request)
            if not known and live.record.status is Status.IDLE:
                await self._advance(live, Status.ACTIVE)
            reply = self._talk.deliver(live.session, request)
        await self._talk.stored(live.session, reply.number)
        return reply

    async def terminate(self, session_id: str, reason: Reason, detail: str | None = None) -> SessionRecord:
        """The record, `terminated`; at once where it is already. Raises `NotHere`, `StopTimeout`."""
        live = self._find(session_id)
        await self._ask_to_stop(session_id, live, reason, detail)
        return await self._stopped(session_id, live)

    def lose(self, session_id: str) -> None:
        """Another manager has this session now: stop its worker, write nothing more."""
        live = self._drop(session_id)
        if live is None or live.writer is None:
            return
        log.warning(
            "letting go of a session that another manager has, or that a defect broke", extra={"session_id": session_id}
        )
        live.writer.lost = True
        self.let_go.add(session_id)
        if live.run is not None:
            live.run.cancel()
        live.tell_ended()

    async def drain(self, timeout_s: float) -> int:
        """Take no new sessions, and let those that run end by themselves within `timeout_s`; how many still run."""
        self._closing = True
        if self._live and timeout_s > 0:
            self._drained = asyncio.get_running_loop().create_future()
            await asyncio.wait({self._drained}, timeout=timeout_s)
        return len(self._live)

    async def close(self, timeout_s: float) -> int:
        """End every session with `manager_stopped`; how many could not be ended within `timeout_s`."""
        self._closing = True
        gate = asyncio.Semaphore(STOPS_AT_ONCE)
        for session_id in list(self._live):
            self._keep(asyncio.create_task(self._stop_one(session_id, gate), name=f"stop {session_id}"))
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while self._tasks and loop.time() < deadline:
            await asyncio.wait(set(self._tasks), timeout=deadline - loop.time())
        left = len(self._live)
        for task in self._tasks:
            task.cancel()
        self._closed = True
        await asyncio.gather(*self._tasks, return_exceptions=True)
        return left

    async def _create(self, session_id: str, request: CreateRequest) -> SessionRecord:
        live = self._live[session_id] = _Live()
        async with live.lock:
            first = self._first_record(session_id, request)
            error = self._call_worker(live, first)
            if error is None and not self._settings.wait_ready:
                opened, _ = lifecycle.opened(first)
                await self._begin(live, opened, request)
            else:
                await self._begin(live, first, request)
                await self._start(live, error)
        return live.record

    def _first_record(self, session_id: str, request: CreateRequest) -> SessionRecord:
        record, _ = lifecycle.create(
            session_id,
            owner=self._path.manager_id,
            at=self._now(),
            metadata=request.metadata,
            llm_config=request.llm_config,
            after=self._path.event_log.acknowledged,
            traceparent=trace.CURRENT.get(),
            idle_after_s=request.idle_after_s,
            idle_timeout_s=request.idle_timeout_s,
            max_lifetime_s=request.max_lifetime_s,
        )
        return record

    def _call_worker(self, live: _Live, record: SessionRecord) -> str | None:
        """Make the worker's coroutine, which does not run yet; what went wrong, or None."""
        live.session = Session(record, self, wait_ready=self._settings.wait_ready)
        try:
            live.run = WorkerRun(self._worker, live.session)
        except Exception as error:
            return error_text(error)
        return None

    async def _begin(self, live: _Live, record: SessionRecord, request: CreateRequest) -> None:
        """Commit the session's first record, start its worker, publish. A session that is opened is active with that.

        Raises `Taken`, `AlreadyExists`: nothing has run, and nothing was written.
        """
        try:
            live.writer = await self._commit_first(record, chosen=request.session_id is not None)
        except BaseException:
            if live.run is not None:
                live.run.discard()
            self._drop(record.session_id)
            raise
        assert live.session is not None
        live.session.changed(record)
        if live.run is not None:
            live.run.start(self._on_worker_end)
        await self._guarded(live, live.writer.publish())
        self._watch_limits(live)

    async def _commit_first(self, record: SessionRecord, *, chosen: bool) -> SessionWriter:
        """The writer that has written the record. `chosen`: the id may have been used before.

        The key is taken to be new, which the commit finds out: only where it is not, it is read.
        """
        path, revision = self._path, 0
        for _ in range(FIRST_COMMITS_MAX):
            used = chosen and await path.event_log.remembers(record.session_id)
            if not used:
                writer = SessionWriter(path, record, revision)
                try:
                    await writer.commit(record)
                    return writer
                except Fenced:
                    pass
            entry = await path.registry.get(record.session_id)
            if entry.record is not None:
                raise Taken(entry.record)
            if used:
                raise AlreadyExists(
                    "a session of that id has been before, its record has expired; choose another",
                    session_id=record.session_id,
                )
            revision = entry.revision  # an expiry's marker: what the stream remembers is read again
        raise Unavailable("the session id is just being expired; ask again", session_id=record.session_id)

    async def _start(self, live: _Live, error: str | None) -> None:
        """From `initializing` to `active`, once the worker is ready; raises `StartFailed` where it is not."""
        if error is None:
            assert live.run is not None
            error = await live.run.wait_ready(self._settings.start_timeout_s)
        if error is None:
            await self._advance(live, Status.ACTIVE)
            return
        await self._end_failed_start(live, error)
        raise StartFailed(f"the session did not start: {error}", session_id=live.record.session_id)

    async def _end_failed_start(self, live: _Live, error: str) -> None:
        while live.run is not None and not live.run.ended:
            live.run.cancel()
            await live.run.wait_ended(self._settings.stop_timeout_s)
        forced = live.run is not None and live.run.forced
        await self._end(live, reason=Reason.START_FAILED, error=error, forced=forced)

    # What workers ask for.

    async def make_ready(self, session: Session) -> None:
        """Whoever waits for it was told by the session itself."""

    async def step(self, session: Session, status: Status) -> None:
        """A step that the worker itself asks for."""
        self._check_runs(session)
        try:
            await self.in_own_task(self.change(session.session_id, status), None)
        except NotHere:
            raise _ended(session) from None

    async def emit(self, session: Session, name: str, data: Any, *, ephemeral: bool) -> int:
        """See `Session.emit`."""
        self._check_runs(session)
        return await self._talk.emit(session, name, data, ephemeral=ephemeral)

    async def say(self, session: Session, role: str, content: Any) -> int:
        """See `Session.say`."""
        self._check_runs(session)
        return await self._talk.say(session, role, content)

    async def flush(self, session: Session) -> None:
        """See `Session.flush`."""
        await self._talk.flush(session)

    async def touched(self, session: Session) -> None:
        """The session has noted when."""

    def _check_runs(self, session: Session) -> None:
        """What a worker has left behind, or does after another manager took its session, is not heard."""
        live = self._live.get(session.session_id)
        if live is None or live.session is not session or live.record.status is Status.TERMINATED:
            raise _ended(session)

    # Time limits: found due by `deadlines`, and once more under the session's lock.

    def _due_at(self, session_id: str) -> float | None:
        live = self._live.get(session_id)
        if live is None or live.session is None:
            return None
        moments = [moment for moment, _, _ in self._limits(live)]
        return min(moments, default=None)

    def _limits(self, live: _Live) -> list[tuple[float, str, float]]:
        """(when, which, seconds) of the limits that count in the session's status."""
        assert live.session is not None
        given = {name: limit for name, limit in limits_of(live.record).items() if limit is not None}
        seconds = self._defaults | given
        since = {"max_lifetime_s": live.began_at}
        match live.record.status:
            case Status.ACTIVE:
                since["idle_after_s"] = live.session.active_at
            case Status.IDLE:
                since["idle_timeout_s"] = live.session.active_at
            case _:
                return []
        return [(since[name] + seconds[name], name, seconds[name]) for name in since if seconds.get(name)]

    def _on_due(self, session_id: str) -> None:
        live = self._live.get(session_id)
        if live is not None:
            self._keep(asyncio.create_task(self._apply_limits(live), name=f"limit of {session_id}"))

    async def _apply_limits(self, live: _Live) -> None:
        async with self._limit_gate, live.lock:
            session_id = live.record.session_id
            if session_id not in self._live or not (limits := self._limits(live)):
                return
            moment, name, seconds = min(limits)
            if moment > boottime():
                self.deadlines.watch(session_id)
            elif name == "idle_after_s":
                await self._advance(live, Status.IDLE)
            else:
                detail = f"{name} of {seconds:g} s is over"
                await self._advance(live, Status.TERMINATING, reason=Reason.TIMED_OUT, detail=detail)
        if live.record.status is Status.TERMINATING and live.run is not None:
            live.run.cancel()

    def _on_worker_end(self, session_id: str, outcome: Outcome) -> None:
        live = self._live.get(session_id)
        if live is not None and not self._closed:
            self._keep(asyncio.create_task(self._finish(live, outcome), name=f"finish {session_id}"))

    async def _finish(self, live: _Live, outcome: Outcome) -> None:
        async with live.lock:
            if live.writer is None or live.run is None or not live.run.ended:
                return  # another run's end: one that was let go of
            if live.record.status is Status.TERMINATED or self._live.get(live.record.session_id) is not live:
                return
            if live.record.status is Status.TERMINATING:
                trace.CURRENT.set(live.record.traceparent)  # of what made it terminate, not of what made the worker
                await self._end(live, error=outcome.error, forced=outcome.forced)
            elif outcome.error is not None or outcome.cancelled:
                error = outcome.error or "CancelledError"
                await self._end(live, reason=Reason.CRASHED, error=error, forced=outcome.forced)
            else:
                await self._end(live, reason=Reason.COMPLETED)

    async def _end(self, live: _Live, **why: Any) -> None:
        """To `terminated`, tell those who wait, seal, and let go of it. The lock is held."""
        await self._advance(live, Status.TERMINATED, **why)
        live.tell_ended()
        assert live.writer is not None
        await self._guarded(live, live.writer.seal())
        self._drop(live.record.session_id)

    async def _advance(self, live: _Live, status: Status, **why: Any) -> None:
        """Decide, commit, publish. The lock is held."""
        changed, _ = lifecycle.transition(
            live.record,
            status,
            at=self._now(),
            after=self._path.event_log.acknowledged,
            traceparent=trace.CURRENT.get(),
            **why,
        )
        assert live.writer is not None
        await self._guarded(live, self._write(live.writer, changed))
        if live.session is not None:
            live.session.changed(changed)
            self._watch_limits(live)

    def _watch_limits(self, live: _Live) -> None:
        if self._defaults or live.record.has_limits:
            self.deadlines.watch(live.record.session_id)

    async def _write(self, writer: SessionWriter, changed: SessionRecord) -> None:
        await writer.commit(changed)
        await writer.publish()

    async def _guarded(self, live: _Live, write: Coroutine[Any, Any, None]) -> None:
        """Carry out a write; where another manager has the session, let go of it.

        After a defect of ours nobody knows how far it got: it is let go of as well, and the sweep ends it.
        """
        try:
            await write
        except Exception as error:
            session_id = live.record.session_id
            self.lose(session_id)
            if not isinstance(error, Fenced):
                raise
            raise Unavailable("another manager has taken the session over; ask again", session_id=session_id) from error

    async def _stop_one(self, session_id: str, gate: asyncio.Semaphore) -> None:
        live = self._live.get(session_id)
        if live is None:
            return
        if live.writer is not None and live.record.status is Status.INITIALIZING and live.run is not None:
            live.run.cancel()  # a start that is still waited for
        try:
            async with gate:
                await self._ask_to_stop(session_id, live, Reason.MANAGER_STOPPED)
            await self._stopped(session_id, live)
        except StopTimeout:
            await live.wait_ended(KILL_GRACE_S)
            async with gate, live.lock:
                if live.record.status is Status.TERMINATING:
                    await self._end(live, forced=True)
        except NotHere:
            pass

    async def _ask_to_stop(self, session_id: str, live: _Live, reason: Reason, detail: str | None = None) -> None:
        async with live.lock:
            _check_here(session_id, live)
            if live.record.status not in (Status.TERMINATING, Status.TERMINATED):
                await self._advance(live, Status.TERMINATING, reason=reason, detail=detail)
            if live.record.status is not Status.TERMINATED:
                assert live.run is not None, "a session that has started has a worker"
                live.run.cancel()

    async def _stopped(self, session_id: str, live: _Live) -> SessionRecord:
        if live.record.status is not Status.TERMINATED:
            if not await live.wait_ended(self._settings.stop_timeout_s):
                raise StopTimeout(
                    f"the worker has not stopped within {self._settings.stop_timeout_s:g} s; stopping goes on",
                    session_id=session_id,
                )
            _check_here(session_id, live)
        return live.record

    def _drop(self, session_id: str) -> _Live | None:
        live = self._live.pop(session_id, None)
        self.deadlines.forget(session_id)
        if not self._live and self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        return live

    def _find(self, session_id: str) -> _Live:
        live = self._live.get(session_id)
        if live is None:
            raise NotHere(session_id)
        return live

    def _keep(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.add(task)
        task.add_done_callback(self._let_go)

    def _let_go(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None and not isinstance(error, JidoError | Taken | NotHere):
            log.error("a session's task failed", exc_info=error, extra={"task": task.get_name()})


def _ended(session: Session) -> InvalidTransition:
    return InvalidTransition("the session has ended, or another manager has it", session_id=session.session_id)


def _check_here(session_id: str, live: _Live) -> None:
    """After waiting for the lock: was it made, and is it still ours?"""
    if live.writer is None or live.writer.lost:
        raise NotHere(session_id)
