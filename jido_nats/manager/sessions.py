"""The sessions that this manager runs: create them, change them, apply limits, and end them all.

What has begun is finished in the manager's own task, whether or not its caller still waits.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine
from datetime import datetime
from typing import Any, Final, TypeVar

import msgspec

from jido_nats import trace
from jido_nats.broker.clock import boottime
from jido_nats.core import lifecycle, placement
from jido_nats.core.manager_info import ManagerInfo
from jido_nats.core.placement import Wanted
from jido_nats.core.requests import CreateRequest, SendReply, SendRequest, same_content
from jido_nats.core.session import Reason, SessionRecord, Status
from jido_nats.core.settings import Settings
from jido_nats.errors import InvalidTransition, Overloaded, StopTimeout, TooLarge, Unavailable
from jido_nats.manager.conversation import Conversations
from jido_nats.manager.kinds import Kinds
from jido_nats.manager.live_session import KILL_GRACE_S, LiveSession
from jido_nats.manager.running import NoRoomHere, NotHere, RunningSessions, SessionExists
from jido_nats.manager.worker_host import SessionDependencies
from jido_nats.manager.writer import WriterContext
from jido_nats.store.index import ClaimIndex, SessionIndex
from jido_nats.store.records import Entry

STOPS_AT_ONCE: Final = 256
# How many later attempts start at a time; a start may take long.
STARTS_AT_ONCE: Final = 32
CLOSE_POLL_S: Final = 1.0
UNFINISHED: Final = "not done yet, or not known to be done: ask again with the same session id"

NO_JOURNALS: Final = (
    "this manager may not use the stream of journals (see its log), so no session with a restart policy can be created "
    "here; ask again for another manager"
)

log = logging.getLogger(__name__)

T = TypeVar("T")


class Sessions:
    """The operations on this manager's own sessions."""

    def __init__(
        self,
        context: WriterContext,
        description: ManagerInfo,
        kinds: Kinds,
        settings: Settings,
        conversations: Conversations,
        *,
        now: Callable[[], datetime],
    ) -> None:
        self._context = context
        limits = {"sessions_max": settings.sessions_max, "labels": settings.labels}
        self._description = msgspec.structs.replace(description, **limits)
        self._kinds = kinds
        self._settings = settings
        self.running: Final[RunningSessions[LiveSession]] = RunningSessions()
        self._deps = SessionDependencies(context, conversations, self.running, now)
        self._limit_gate = asyncio.Semaphore(STOPS_AT_ONCE)
        self._start_gate = asyncio.Semaphore(STARTS_AT_ONCE)
        # How many requested changes are under way, whether or not their callers still wait.
        self._requested = 0
        self._closing = False
        # Set when a kind of worker becomes full.
        self.filled = asyncio.Event()

    def __len__(self) -> int:
        return len(self.running)

    @property
    def full(self) -> bool:
        """Whether no more sessions are accepted."""
        return (
            self._closing or len(self.running) >= self._settings.sessions_max or self._deps.conversations.held.is_full
        )

    @property
    def info(self) -> ManagerInfo:
        """The manager's description, with its kinds of worker and the room that it has for more sessions."""
        full = self.full
        kinds = {name: kind.info(full=full) for name, kind in self._kinds.items()}
        return msgspec.structs.replace(
            self._description,
            sessions=len(self),
            full=all(kind.full for kind in kinds.values()),
            workers=kinds,
        )

    @property
    def stop_timeout_s(self) -> float:
        """How long a worker of any kind may take to stop."""
        return max(kind.settings.stop_timeout_s for kind in self._kinds.values())

    def settings_of(self, session_id: str) -> Settings:
        """The settings of a session's kind of worker, if it runs here; else the manager's."""
        live = self.running.get(session_id)
        return self._settings if live is None else live.settings

    def by_status(self) -> dict[str, Counter[Status]]:
        """How many sessions of each kind of worker run here, by status."""
        counts: dict[str, Counter[Status]] = {name: Counter() for name in self._kinds}
        for live in self.running:
            if live.is_here:
                counts[live.record.worker][live.record.status] += 1
        return counts

    def written(self, session_id: str, revision: int) -> Entry | None:
        """The entry, if it is the last one that this manager wrote for a session that it runs."""
        live = self.running.get(session_id)
        if live is None or not live.is_here or live.writer.revision != revision:
            return None
        return Entry(live.record.session_id, revision, live.record)

    async def in_own_task(
        self, session_id: str, work: Coroutine[Any, Any, T], timeout_s: float, *, unfinished: str = UNFINISHED
    ) -> T:
        """The result of a requested change; `work` continues if the caller is cancelled.

        Raises `Unavailable(unfinished)` after `timeout_s`, `Overloaded` if too many changes are under way.
        """
        if self._requested >= 2 * self._settings.commands_max:
            work.close()
            raise Overloaded("too many changes are under way; ask again later")
        self._requested += 1
        task = self.running.start_task(work, session_id)
        task.add_done_callback(self._on_done)
        done, _ = await asyncio.wait({task}, timeout=timeout_s)
        if not done:
            raise Unavailable(unfinished, session_id=session_id)
        if task.cancelled():
            raise Unavailable("this manager has stopped, and it is unknown whether this was done: ask again")
        return task.result()

    async def create(self, session_id: str, request: CreateRequest) -> tuple[SessionRecord, bool]:
        """(record, replayed) of a session that is `active`, or was created by the same request before.

        Raises `SessionExists` for one that runs elsewhere, `NoRoomHere`, `AlreadyExists`, `StartFailed`, `Unavailable`.
        """
        chosen = request.session_id is not None
        while (live := self.running.get(session_id)) is not None:
            async with live.lock:  # held during its start
                if live.is_here and live.waits_for_attempt and same_content(request, live.record):
                    raise Unavailable("the session waits for its next attempt; ask again", session_id=session_id)
                if live.is_here:
                    return live.record, True
        await self._check_room(session_id, request)
        live = LiveSession(self._deps, self._kinds[request.worker], self._first_record(session_id, request))
        async with self.running.starting(live):
            if self.full or self._kinds[request.worker].full:
                self.filled.set()
            await live.create(chosen=chosen)
        return live.record, False

    def is_starting(self, session_id: str) -> bool:
        """Whether a start of that session is under way here."""
        live = self.running.get(session_id)
        return live is not None and live.record.status is Status.INITIALIZING

    async def wait_started(self, session_id: str) -> None:
        """Return when the start of that session, which is under way here, has ended."""
        if (live := self.running.get(session_id)) is not None:
            async with live.lock:  # held during its start
                return

    async def change(self, session_id: str, status: Status) -> SessionRecord:
        """The record in its new status, `active` or `idle`. Raises `NotHere`, `InvalidTransition`."""
        refusal = f"cannot become {status}"
        live = self._find_started(session_id, refusal)
        async with self.running.changing(live):
            self._find_started(session_id, refusal)  # its worker may have failed while this waited for its turn
            await live.advance(status)
            return live.record

    async def send(self, session_id: str, request: SendRequest) -> SendReply:
        """Put a message into the session's inbox, activating an `idle` one; returns when it is published and stored.

        Raises `NotHere`, `InvalidTransition`, `Overloaded`, `AlreadyExists`, `TooLarge`.
        """
        live = self.running.find(session_id)
        if live.record.restart is not None:
            return await live.accept(request)
        live = self._find_started(session_id, "accepts no messages")
        async with self.running.changing(live):
            reply = await live.deliver(request)
        await live.conversation.stored(reply.number)
        return reply

    async def terminate(self, session_id: str, reason: Reason, detail: str | None = None) -> SessionRecord:
        """The record, `terminated`; at once if it is already. Raises `NotHere`, `StopTimeout`."""
        live = self.running.find(session_id)
        async with self.running.changing(live):
            await live.ask_to_stop(reason, detail)
        return await self._stopped(live)

    # Background work

    async def apply_deadlines(self) -> None:
        """Apply the time limits of sessions as they expire, and begin attempts when it is time; never returns."""
        deadlines = self.running.deadlines
        while True:
            session_id = await deadlines.next()
            if (live := self.running.get(session_id)) is None:
                continue
            due = live.due_at()
            if due is not None and due <= boottime():
                self.running.start_task(self._apply_deadline(live), session_id)
            else:  # postponed by activity
                deadlines.watch(session_id, due)

    async def recheck_after_lapses(self, claims: ClaimIndex) -> None:
        """After each lapse of the lease, relinquish the sessions that another manager has claimed; never returns.

        Until that is done nothing is written, and no command is answered.
        """
        ownership = self._context.ownership
        while True:
            since = await ownership.wait_regained()
            log.warning(
                "the lease had lapsed and is held again; checking the claims on every session",
                extra={"manager_id": self._context.manager_id, "sessions": len(self)},
            )
            await claims.position.reached(await self._context.event_log.last_claim())
            for live in self.running:
                if live.is_here and claims.claimant(live.session_id) not in (None, self._context.manager_id):
                    self.running.relinquish(live)
            ownership.rechecked(since)

    def compare(self, index: SessionIndex) -> None:
        """Recheck the sessions of which the bucket, after it was read again, has another version or none.

        What the bucket has of this manager, and does not run here, is left to the sweep: the store may be older, and
        have sessions that have ended since.
        """
        for live in self.running:
            if live.is_here and index.get(live.session_id) != live.record:
                self.recheck(live)
        unsealed = index.unsealed(self._context.manager_id)
        self.running.relinquished.update(session_id for session_id in unsealed if session_id not in self.running)

    def check_entry(self, entry: Entry) -> None:
        """The key of a session holds no record: if it runs here, a person has deleted or overwritten its record."""
        live = self.running.get(entry.session_id)
        if live is not None and live.is_here and entry.revision > live.writer.revision:
            self.recheck(live)

    def recheck(self, live: LiveSession) -> None:
        """Compare a session, in a task of its own, with its key in the bucket, and follow what was done to that."""
        self.running.start_task(self._recheck(live), live.session_id)

    async def _recheck(self, live: LiveSession) -> None:
        async with self.running.changing(live):
            entry, revision = await self._context.records.get(live.session_id), live.writer.revision
            if entry.revision == revision and entry.record == live.record:
                return
            if entry.revision > revision and entry.is_damaged:
                await live.writer.restore()
            elif entry.revision > revision and entry.record is None:
                await live.end_deleted(entry.revision)
            elif entry.revision > revision:
                self.running.relinquish(live)
            else:  # the store wins
                log.error(
                    "the bucket came back without this session, or with an older version of it",
                    extra={"session_id": live.session_id, "version": live.record.version, "revision": revision},
                )
                self.running.relinquish(live, "the bucket is older than this session")

    # The end

    async def drain(self, timeout_s: float) -> int:
        """Accept no new sessions, and let those that run end by themselves within `timeout_s`; how many still run."""
        self._closing = True
        await self.running.wait_empty(timeout_s)
        return len(self.running)

    def give_up_starts(self) -> None:
        """Do not wait any longer for workers that are not ready, so that their callers still get an answer."""
        self._closing = True
        for live in self.running:
            live.give_up_start()

    async def close(self, timeout_s: float) -> int:
        """End every session with `manager_stopped`; how many are left once none has ended for `timeout_s`."""
        self.give_up_starts()
        gate = asyncio.Semaphore(STOPS_AT_ONCE)
        for live in self.running:
            self.running.start_task(self._stop_one(live, gate), live.session_id)
        await self._wait_for_tasks(timeout_s)
        left = len(self.running)
        await self.running.close()
        return left

    async def _wait_for_tasks(self, timeout_s: float) -> None:
        """Return when all tasks are done, or when no session has ended for `timeout_s`."""
        loop = asyncio.get_running_loop()
        deadline, left = loop.time() + timeout_s, len(self.running)
        while (tasks := self.running.tasks) and loop.time() < deadline:
            await asyncio.wait(tasks, timeout=min(CLOSE_POLL_S, deadline - loop.time()))
            if len(self.running) < left:
                deadline, left = loop.time() + timeout_s, len(self.running)

    async def _stop_one(self, live: LiveSession, gate: asyncio.Semaphore) -> None:
        try:
            async with gate, self.running.changing(live):
                await live.ask_to_stop(Reason.MANAGER_STOPPED)
            await self._stopped(live)
        except StopTimeout:
            await live.wait_ended(KILL_GRACE_S)
            async with gate, self.running.changing(live):
                if live.record.status is Status.TERMINATING and not live.worker_ended:
                    await live.abandon()  # if the worker has ended by now, `_finish` ends the session
        except TooLarge:
            self.running.relinquish(live, "its record is larger than max_payload; another manager will end it")

    async def _stopped(self, live: LiveSession) -> SessionRecord:
        """The record of the end: the worker has `stop_timeout_s` to stop, then its output as long to be stored."""
        if live.record.status is not Status.TERMINATED:
            timeout_s = live.settings.stop_timeout_s
            if not (await live.wait_ended(timeout_s) or (live.worker_ended and await live.wait_ended(timeout_s))):
                raise StopTimeout(
                    f"the worker has not stopped within {timeout_s:g} s; stopping continues",
                    session_id=live.session_id,
                )
            if not live.is_here:
                raise NotHere(live.session_id)
        return live.record

    async def _apply_deadline(self, live: LiveSession) -> None:
        async with self.running.changing(live):
            async with self._limit_gate:
                await live.apply_limit()
            if live.is_restart_due:
                async with self._start_gate:
                    error = await live.restart()
                await live.finish_start(error)

    async def _check_room(self, session_id: str, request: CreateRequest) -> None:
        """Raise unless this session can be created here: `SessionExists`, `NoRoomHere`, or `Unavailable`."""
        if self._closing:
            raise Unavailable("this manager is stopping; ask again")
        if request.restart is not None and self._context.journals is None:
            raise Unavailable(NO_JOURNALS)
        refusal = self._why_not_here(request.wanted)
        if refusal is None:
            return
        known = await self._context.records.get(session_id) if request.session_id is not None else None
        if known is not None and known.record is not None:  # a manager without room still answers for it
            raise SessionExists(known.record)
        raise NoRoomHere(refusal)

    def _why_not_here(self, wanted: Wanted) -> str | None:
        """Why this manager does not take a session, None if it does. `Unavailable`: that is not known yet."""
        info, kind = self.info, self._kinds.get(wanted.worker)
        managers = {info.manager_id: info}
        if kind is not None and kind.waits:
            self._context.leases.check_read()
            managers |= self._context.leases.others(info.manager_id)
        if info.manager_id not in placement.fitting(managers, wanted):
            waits = kind is not None and kind.waits
            return (
                "this manager only waits, and another has a worker" if waits else f"this manager does not run {wanted}"
            )
        if info.kinds[wanted.worker].full:
            return f"this manager has as many sessions with {wanted} as its limits allow"
        return None

    def _first_record(self, session_id: str, request: CreateRequest) -> SessionRecord:
        record, _ = lifecycle.create(
            session_id,
            owner=self._context.manager_id,
            at=self._deps.now(),
            metadata=request.metadata,
            llm_config=request.llm_config,
            worker=request.worker,
            labels=request.labels,
            after=self._context.event_log.acknowledged,
            traceparent=trace.CURRENT.get(),
            idle_after_s=request.idle_after_s,
            idle_timeout_s=request.idle_timeout_s,
            max_lifetime_s=request.max_lifetime_s,
            restart=None if request.restart is None else request.restart.policy,
        )
        return record

    def _find_started(self, session_id: str, refusal: str) -> LiveSession:
        """The session. Raises `NotHere`, and `InvalidTransition` while it is starting (`terminate` waits for that)."""
        live = self.running.find(session_id)
        if live.is_here and live.record.status is Status.INITIALIZING:
            raise InvalidTransition(
                f"a session that is {live.record.status} {refusal}; wait until it is active", session_id=session_id
            )
        return live

    def _on_done(self, _: "asyncio.Task[Any]") -> None:
        self._requested -= 1
