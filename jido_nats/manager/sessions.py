"""The sessions that this manager runs: found, limited in number and in time, and ended together.

One change at a time for a session, side by side for different ones. What has begun is finished in a task of the
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
from jido_nats.core import lifecycle
from jido_nats.core.commands import CreateRequest, SendReply, SendRequest, limits_of
from jido_nats.core.session import Reason, SessionRecord, Status
from jido_nats.core.settings import Settings
from jido_nats.errors import (
    InvalidTransition,
    JidoError,
    Overloaded,
    StopTimeout,
    Unavailable,
)
from jido_nats.manager.conversation import Conversations
from jido_nats.manager.deadlines import Deadlines
from jido_nats.manager.live_session import KILL_GRACE_S, LiveSession, SessionDependencies, SessionExists
from jido_nats.manager.writer import SessionWriter, WriterContext
from jido_nats.store.records import Entry
from jido_nats.worker.session import Outcome, Session, Worker

STOPS_AT_ONCE: Final = 256
CLOSE_POLL_S: Final = 1.0

log = logging.getLogger(__name__)

T = TypeVar("T")


class NotHere(Exception):
    """This manager does not run that session (any more)."""


class Sessions:
    """This manager's own sessions, and the host of their workers."""

    def __init__(
        self,
        path: WriterContext,
        worker: Worker,
        settings: Settings,
        conversations: Conversations,
        *,
        now: Callable[[], datetime],
    ) -> None:
        self._path = path
        self._settings = settings
        self._conversations = conversations
        self._deps = SessionDependencies(
            path,
            worker,
            settings,
            host=self,
            default_limits={name: limit for name, limit in limits_of(settings).items() if limit},
            now=now,
            on_worker_end=self._on_worker_end,
            on_changed=self._on_changed,
            on_lost=self.lose,
            on_gone=self._drop,
        )
        self.deadlines = Deadlines(self._due_at, self._on_due)
        self._limit_gate = asyncio.Semaphore(STOPS_AT_ONCE)
        self._now = now
        self._live: dict[str, LiveSession] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        # How many of these somebody outside waits for, or has waited for.
        self._asked = 0
        self._closing = False
        self._closed = False
        # Sessions of this manager's that it runs no more, and that may not have ended.
        self.relinquished: set[str] = set()
        # The last place was taken just now.
        self.filled = asyncio.Event()
        self._drained: asyncio.Future[None] | None = None

    def __len__(self) -> int:
        return len(self._live)

    def __contains__(self, session_id: str) -> bool:
        return session_id in self._live

    @property
    def full(self) -> bool:
        """Whether no more sessions are exists."""
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

    async def in_own_task(self, session_id: str, work: Coroutine[Any, Any, T], timeout_s: float) -> T:
        """The result of what somebody asks for; `work` goes on when the caller is cancelled.

        Raises `Unavailable` when `timeout_s` is over, `Overloaded` when too much is asked for at once.
        """
        if self._asked >= 2 * self._settings.commands_max:
            work.close()
            raise Overloaded("too many changes are under way; ask again later")
        self._asked += 1
        task = self._own_task(work, session_id)
        task.add_done_callback(self._on_answered)
        done, _ = await asyncio.wait({task}, timeout=timeout_s)
        if not done:
            raise Unavailable("not done yet, or not known to be: ask again with the same session id")
        if task.cancelled():
            raise Unavailable("this manager has ended, and it is not known whether it was done: ask again")
        return task.result()

    async def create(self, session_id: str, request: CreateRequest) -> tuple[SessionRecord, bool]:
        """(record, replayed) of a session that is `active`, or was made by the same request before.

        Raises `SessionExists` for one that runs elsewhere, `AlreadyExists`, `StartFailed`, `Overloaded`, `Unavailable`.
        """
        while (live := self._live.get(session_id)) is not None:
            async with live.lock:  # its start, if that still goes on
                if live.is_here:
                    return live.record, True
        if self._closing:
            raise Unavailable("this manager is stopping; ask again")
        if self.full:
            known = await self._path.records.get(session_id) if request.session_id is not None else None
            if known is not None and known.record is not None:  # one that is asked for again is answered all the same
                raise SessionExists(known.record)
            raise Overloaded(f"this manager runs {len(self._live)} sessions, its limit; ask again later")
        live = self._live[session_id] = LiveSession(self._deps)
        if self.full:
            self.filled.set()
        try:
            async with live.lock:
                await live.create(self._first_record(session_id, request), chosen=request.session_id is not None)
        finally:
            if live.writer is None and self._live.get(session_id) is live:
                self._drop(session_id)
        return live.record, False

    async def change(self, session_id: str, status: Status) -> SessionRecord:
        """The record in its new status, `active` or `idle`. Raises `NotHere`, `InvalidTransition`."""
        live = self._find(session_id)
        _check_started(live, f"cannot become {status}")
        return await self._change(session_id, live, status)

    async def _change(self, session_id: str, live: LiveSession, status: Status) -> SessionRecord:
        async with live.lock:
            _check_here(session_id, live)
            await live.advance(status)
            return live.record

    async def send(self, session_id: str, request: SendRequest) -> SendReply:
        """Put a message into the session's inbox, waking one that is `idle`; returns when it is told and stored.

        Raises `NotHere`, `InvalidTransition`, `Overloaded`, `AlreadyExists`, `TooLarge`.
        """
        live = self._find(session_id)
        _check_started(live, "takes no messages")
        async with live.lock:
            _check_here(session_id, live)
            if live.session is None or live.record.status not in (Status.ACTIVE, Status.IDLE):
                raise InvalidTransition(
                    f"a session that is {live.record.status} takes no messages", session_id=session_id
                )
            known = self._conversations.check_room(live.session, request)
            if not known and live.record.status is Status.IDLE:
                await live.advance(Status.ACTIVE)
            reply = self._conversations.deliver(live.session, request)
        await self._conversations.stored(live.session, reply.number)
        return reply

    async def terminate(self, session_id: str, reason: Reason, detail: str | None = None) -> SessionRecord:
        """The record, `terminated`; at once where it is already. Raises `NotHere`, `StopTimeout`."""
        live = self._find(session_id)
        async with live.lock:
            _check_here(session_id, live)
            await live.ask_to_stop(reason, detail)
        return await self._stopped(session_id, live)

    def lose(self, session_id: str) -> None:
        """Another manager has this session now: stop its worker, write nothing more."""
        live = self._live.get(session_id)
        self._drop(session_id)
        if live is None or live.writer is None:
            return
        log.warning(
            "letting go of a session that another manager has, or that a defect broke", extra={"session_id": session_id}
        )
        self.relinquished.add(session_id)
        live.lose()

    async def drain(self, timeout_s: float) -> int:
        """Take no new sessions, and let those that run end by themselves within `timeout_s`; how many still run."""
        self._closing = True
        if self._live and timeout_s > 0:
            self._drained = asyncio.get_running_loop().create_future()
            await asyncio.wait({self._drained}, timeout=timeout_s)
        return len(self._live)

    def give_up_starts(self) -> None:
        """Wait no longer for workers that are not ready: who asked for them is told, while that still can be."""
        self._closing = True
        for live in list(self._live.values()):
            live.give_up_start()

    async def close(self, timeout_s: float) -> int:
        """End every session with `manager_stopped`; how many are left when none has ended for `timeout_s`."""
        self.give_up_starts()
        gate = asyncio.Semaphore(STOPS_AT_ONCE)
        for session_id in list(self._live):
            self._own_task(self._stop_one(session_id, gate), session_id)
        await self._wait_for_tasks(timeout_s)
        left = len(self._live)
        for task in self._tasks:
            task.cancel()
        self._closed = True
        await asyncio.gather(*self._tasks, return_exceptions=True)
        return left

    async def _wait_for_tasks(self, timeout_s: float) -> None:
        """Return when all are done, or when no session has ended for `timeout_s`."""
        loop = asyncio.get_running_loop()
        deadline, left = loop.time() + timeout_s, len(self._live)
        while self._tasks and loop.time() < deadline:
            await asyncio.wait(set(self._tasks), timeout=min(CLOSE_POLL_S, deadline - loop.time()))
            if len(self._live) < left:
                deadline, left = loop.time() + timeout_s, len(self._live)

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

    # What workers ask for.

    async def make_ready(self, session: Session) -> None:
        """Whoever waits for it was told by the session itself."""

    async def step(self, session: Session, status: Status) -> None:
        """A step that the worker itself asks for."""
        live = self._check_runs(session)
        try:
            task = self._own_task(self._change(session.session_id, live, status), session.session_id)
            await asyncio.wait({task})  # which goes on when the worker is cancelled
            task.result()
        except NotHere:
            raise _ended(session) from None

    async def emit(self, session: Session, name: str, data: Any, *, ephemeral: bool) -> int:
        """See `Session.emit`."""
        self._check_runs(session)
        return await self._conversations.emit(session, name, data, ephemeral=ephemeral)

    async def say(self, session: Session, role: str, content: Any) -> int:
        """See `Session.say`."""
        self._check_runs(session)
        return await self._conversations.say(session, role, content)

    async def flush(self, session: Session) -> None:
        """See `Session.flush`."""
        await self._conversations.flush(session)

    async def touched(self, session: Session) -> None:
        """The session has noted when."""

    def _check_runs(self, session: Session) -> LiveSession:
        """What a worker has left behind, or does after another manager took its session, is not heard."""
        live = self._live.get(session.session_id)
        if live is None or live.session is not session or live.record.status is Status.TERMINATED:
            raise _ended(session)
        return live

    # Time limits: found due by `deadlines`, and once more under the session's lock.

    def _due_at(self, session_id: str) -> float | None:
        live = self._live.get(session_id)
        limit = live.next_limit() if live is not None else None
        return None if limit is None else limit.moment

    def _on_due(self, session_id: str) -> None:
        live = self._live.get(session_id)
        if live is not None:
            self._own_task(self._apply_limits(session_id, live), session_id)

    async def _apply_limits(self, session_id: str, live: LiveSession) -> None:
        async with self._limit_gate, live.lock:
            if self._live.get(session_id) is not live or (limit := live.next_limit()) is None:
                return
            if limit.moment > boottime():
                self.deadlines.watch(session_id)
            else:
                await live.apply(limit)

    def _on_worker_end(self, session_id: str, outcome: Outcome) -> None:
        live = self._live.get(session_id)
        if live is not None and not self._closed:
            self._own_task(self._finish(session_id, live, outcome), session_id)

    async def _finish(self, session_id: str, live: LiveSession, outcome: Outcome) -> None:
        async with live.lock:
            if self._live.get(session_id) is live:
                await live.finish(outcome)

    def _on_changed(self, session_id: str) -> None:
        live = self._live.get(session_id)
        if live is not None and (self._deps.default_limits or live.record.has_limits):
            self.deadlines.watch(session_id)

    async def _stop_one(self, session_id: str, gate: asyncio.Semaphore) -> None:
        live = self._live.get(session_id)
        if live is None:
            return
        try:
            async with gate, live.lock:
                _check_here(session_id, live)
                await live.ask_to_stop(Reason.MANAGER_STOPPED)
            await self._stopped(session_id, live)
        except StopTimeout:
            await live.wait_ended(KILL_GRACE_S)
            async with gate, live.lock:
                if live.record.status is Status.TERMINATING and live.run is not None and not live.run.ended:
                    await live.abandon()  # one that has ended by now is being finished
        except NotHere:
            pass

    async def _stopped(self, session_id: str, live: LiveSession) -> SessionRecord:
        if live.record.status is not Status.TERMINATED:
            if not await live.wait_ended(self._settings.stop_timeout_s):
                raise StopTimeout(
                    f"the worker has not stopped within {self._settings.stop_timeout_s:g} s; stopping goes on",
                    session_id=session_id,
                )
            _check_here(session_id, live)
        return live.record

    def _drop(self, session_id: str) -> None:
        self._live.pop(session_id, None)
        self.deadlines.forget(session_id)
        if not self._live and self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    def _find(self, session_id: str) -> LiveSession:
        live = self._live.get(session_id)
        if live is None:
            raise NotHere(session_id)
        return live

    def _own_task(self, work: Coroutine[Any, Any, T], session_id: str) -> "asyncio.Task[T]":
        task = asyncio.create_task(work, name=f"{session_id}: change")  # a worker's task is called as its session
        self._tasks.add(task)
        task.add_done_callback(self._on_task_end)
        return task

    def _on_answered(self, _: "asyncio.Task[Any]") -> None:
        self._asked -= 1

    def _on_task_end(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None and not isinstance(error, JidoError | SessionExists | NotHere):
            log.error(
                "a session's task failed", exc_info=error, extra={"session_id": task.get_name().partition(":")[0]}
            )


def _ended(session: Session) -> InvalidTransition:
    return InvalidTransition("the session has ended, or another manager has it", session_id=session.session_id)


def _check_started(live: LiveSession, refusal: str) -> None:
    """`InvalidTransition` while the start goes on: only `terminate` waits for it."""
    if live.writer is not None and live.record.status is Status.INITIALIZING:
        raise InvalidTransition(
            f"a session that is {live.record.status} {refusal}; wait until it is active",
            session_id=live.record.session_id,
        )


def _check_here(session_id: str, live: LiveSession) -> None:
    """After waiting for the lock: was it made, and is it still ours?"""
    if not live.is_here:
        raise NotHere(session_id)
