"""One session that this manager runs: how it begins, changes and ends.

Every change is decided by the lifecycle and carried out by the session's writer, under the session's lock.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple

from jido_nats import trace
from jido_nats.broker.clock import boottime
from jido_nats.core import lifecycle
from jido_nats.core.commands import limits_of
from jido_nats.core.session import Reason, SessionRecord, Status
from jido_nats.core.settings import Settings
from jido_nats.errors import AlreadyExists, Fenced, StartFailed, Unavailable
from jido_nats.manager.writer import SessionWriter, WriterContext
from jido_nats.worker.session import Outcome, Session, Worker, WorkerHost, WorkerRun, error_text

FIRST_COMMITS_MAX: Final = 3
# A manager that ends gives a worker that is being killed this long to be gone, before the record says `forced`.
KILL_GRACE_S: Final = 1.0

log = logging.getLogger(__name__)


class SessionExists(Exception):
    """A session of that id exists and is not run here; `.record` is what was read of it."""

    def __init__(self, record: SessionRecord) -> None:
        super().__init__(record.session_id)
        self.record = record


class Limit(NamedTuple):
    """A time limit: when (of `boottime`) it is over, which it is, and how long."""

    moment: float
    name: str
    seconds: float


@dataclass(frozen=True)
class SessionDependencies:
    """What every session of one manager is run with, and who is told (by session id) what becomes of it."""

    path: WriterContext
    worker: Worker
    settings: Settings
    host: WorkerHost
    default_limits: Mapping[str, float]
    now: Callable[[], datetime]
    on_worker_end: Callable[[str, Outcome], None]
    # Its status is another, and so are the time limits that count.
    on_changed: Callable[[str], None]
    # It is another manager's, or nobody knows: nothing more may be written here.
    on_lost: Callable[[str], None]
    # Nothing of it is left here.
    on_gone: Callable[[str], None]


class LiveSession:
    """From before the first commit until the seal. Its methods that change it want `lock` to be held."""

    __slots__ = ("_deps", "_ended", "_stopping", "began_at", "lock", "run", "session", "writer")

    def __init__(self, deps: SessionDependencies) -> None:
        self._deps = deps
        self.began_at = boottime()
        self.lock = asyncio.Lock()
        self.writer: SessionWriter | None = None
        self.session: Session | None = None
        self.run: WorkerRun | None = None
        self._ended: asyncio.Future[None] | None = None
        self._stopping = False

    @property
    def record(self) -> SessionRecord:
        """Its record, as it was stored last."""
        assert self.writer is not None, "begun"
        return self.writer.record

    @property
    def is_here(self) -> bool:
        """Whether it was made, and is still this manager's."""
        return self.writer is not None and not self.writer.lost

    async def create(self, first: SessionRecord, *, chosen: bool) -> None:
        """From its first record to `active`. `chosen`: the id may have been used before.

        Raises `SessionExists`, `AlreadyExists`: nothing has run, and nothing was written; and `StartFailed`.
        """
        error = self._call_worker(first)
        if error is None and not self._deps.settings.wait_ready:
            opened, _ = lifecycle.opened(first)
            await self._begin(opened, chosen=chosen)
        else:
            await self._begin(first, chosen=chosen)
            await self._start(error)

    def give_up_start(self) -> None:
        """The manager ends: wait no longer for a worker that is not ready."""
        self._stopping = True
        if self.writer is None or self.record.status is not Status.INITIALIZING:
            return
        if self.run is not None and not self.run.ready:
            self.run.cancel()

    async def advance(self, status: Status, **why: Any) -> None:
        """Decide, commit, publish."""
        deps = self._deps
        changed, _ = lifecycle.transition(
            self.record,
            status,
            at=deps.now(),
            after=deps.path.event_log.acknowledged,
            traceparent=trace.CURRENT.get(),
            **why,
        )
        assert self.writer is not None
        await self._guarded(_write(self.writer, changed))
        if self.session is not None:
            self.session.changed(changed)
            deps.on_changed(changed.session_id)

    async def ask_to_stop(self, reason: Reason, detail: str | None = None) -> None:
        """To `terminating`, and the worker is cancelled; once more where it is that already."""
        if self.record.status not in (Status.TERMINATING, Status.TERMINATED):
            await self.advance(Status.TERMINATING, reason=reason, detail=detail)
        if self.record.status is not Status.TERMINATED:
            assert self.run is not None, "a session that has started has a worker"
            self.run.cancel()

    async def finish(self, outcome: Outcome) -> None:
        """The worker has ended, and so does the session."""
        if self.writer is None or self.run is None or not self.run.ended:
            return  # another run's end: one that was let go of
        if self.record.status is Status.TERMINATED:
            return
        if self.record.status is Status.TERMINATING:
            trace.CURRENT.set(self.record.traceparent)  # of what made it terminate, not of what made the worker
            await self.end(error=outcome.error, forced=outcome.forced)
        elif outcome.error is not None or outcome.cancelled:
            error = outcome.error or "CancelledError"
            await self.end(reason=Reason.CRASHED, error=error, forced=outcome.forced)
        else:
            await self.end(reason=Reason.COMPLETED)

    async def end(self, **why: Any) -> None:
        """To `terminated`; tell those who wait; seal."""
        await self.advance(Status.TERMINATED, **why)
        self._tell_ended()
        assert self.writer is not None
        await self._guarded(self.writer.seal())
        self._deps.on_gone(self.record.session_id)

    async def abandon(self, **why: Any) -> None:
        """End it beside a worker that does not stop, when the manager itself ends."""
        log.warning("a worker does not stop and is abandoned", extra={"session_id": self.record.session_id})
        await self.end(forced=True, **why)

    async def wait_ended(self, timeout_s: float) -> bool:
        """Whether the end was stored within `timeout_s`, or the session was lost."""
        if self._ended is None:
            self._ended = asyncio.get_running_loop().create_future()
        await asyncio.wait({self._ended}, timeout=timeout_s)
        return self._ended.done()

    def lose(self) -> None:
        """Stop the worker, write nothing more."""
        assert self.writer is not None
        self.writer.lost = True
        if self.run is not None:
            self.run.cancel()
        self._tell_ended()

    def next_limit(self) -> Limit | None:
        """The time limit that is over first, of those that count in the session's status."""
        if self.session is None:
            return None
        given = {name: limit for name, limit in limits_of(self.record).items() if limit is not None}
        seconds = {**self._deps.default_limits, **given}
        since = {"max_lifetime_s": self.began_at}
        match self.record.status:
            case Status.ACTIVE:
                since["idle_after_s"] = self.session.active_at
            case Status.IDLE:
                since["idle_timeout_s"] = self.session.active_at
            case _:
                return None
        limits = (Limit(since[name] + seconds[name], name, seconds[name]) for name in since if seconds.get(name))
        return min(limits, default=None)

    async def apply(self, limit: Limit) -> None:
        """Do what is due when a limit is over."""
        if limit.name == "idle_after_s":
            await self.advance(Status.IDLE)
        else:
            await self.ask_to_stop(Reason.TIMED_OUT, f"{limit.name} of {limit.seconds:g} s is over")

    def _call_worker(self, record: SessionRecord) -> str | None:
        """Make the worker's coroutine, which does not run yet; what went wrong, or None."""
        deps = self._deps
        self.session = Session(record, deps.host, wait_ready=deps.settings.wait_ready)
        try:
            self.run = WorkerRun(deps.worker, self.session)
        except BaseException as error:  # nobody cancels this; what a worker raises ends its session, and nothing else
            return error_text(error)
        return None

    async def _begin(self, record: SessionRecord, *, chosen: bool) -> None:
        """Commit the first record, start the worker, publish. A session that is opened is active with that."""
        try:
            self.writer = await self._commit_first(record, chosen=chosen)
        except BaseException:
            if self.run is not None:
                self.run.discard()
            raise
        assert self.session is not None
        self.session.changed(record)
        if self.run is not None:
            self.run.start(self._deps.on_worker_end)
        await self._guarded(self.writer.publish())
        self._deps.on_changed(record.session_id)

    async def _commit_first(self, record: SessionRecord, *, chosen: bool) -> SessionWriter:
        """The writer that has written the record.

        The key is taken to be new, which the commit finds out: only where it is not, it is read.
        """
        path, revision = self._deps.path, 0
        for _ in range(FIRST_COMMITS_MAX):
            used = chosen and await path.event_log.remembers(record.session_id)
            if not used:
                writer = SessionWriter(path, record, revision)
                try:
                    await writer.commit(record)
                    return writer
                except Fenced:
                    pass
            entry = await path.records.get(record.session_id)
            if entry.record is not None:
                raise SessionExists(entry.record)
            if used:
                raise AlreadyExists(
                    "a session of that id has been before, its record has expired; choose another",
                    session_id=record.session_id,
                )
            revision = entry.revision  # an expiry's marker: what the stream remembers is read again
        raise Unavailable("the session id is just being expired; ask again", session_id=record.session_id)

    async def _start(self, error: str | None) -> None:
        """From `initializing` to `active`, once the worker is ready; raises `StartFailed` where it is not."""
        if error is None:
            assert self.run is not None
            error = None if self._stopping else await self.run.wait_ready(self._deps.settings.start_timeout_s)
            if self._stopping and not self.run.ready:
                error = "the manager was stopped before the worker was ready"
        if error is None:
            await self.advance(Status.ACTIVE)
            return
        await self._end_failed_start(error)
        raise StartFailed(f"the session did not start: {error}", session_id=self.record.session_id)

    async def _end_failed_start(self, error: str) -> None:
        while self.run is not None and not self.run.ended:
            asked_last = self._stopping
            self.run.cancel()
            ended = await self.run.wait_ended(self._deps.settings.stop_timeout_s + KILL_GRACE_S)
            if asked_last and not ended:
                await self.abandon(reason=Reason.START_FAILED, error=error)
                return
        forced = self.run is not None and self.run.forced
        await self.end(reason=Reason.START_FAILED, error=error, forced=forced)

    async def _guarded(self, write: Coroutine[Any, Any, None]) -> None:
        """Carry out a write; where another manager has the session, let go of it.

        After a defect of ours nobody knows how far it got: it is let go of as well, and the sweep ends it.
        """
        try:
            await write
        except Exception as error:
            session_id = self.record.session_id
            self._deps.on_lost(session_id)
            if not isinstance(error, Fenced):
                raise
            raise Unavailable("another manager has taken the session over; ask again", session_id=session_id) from error

    def _tell_ended(self) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)


async def _write(writer: SessionWriter, changed: SessionRecord) -> None:
    await writer.commit(changed)
    await writer.publish()
