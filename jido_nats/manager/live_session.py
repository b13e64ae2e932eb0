"""One session that this manager runs: its start, changes and end; and the host of its worker.

Every change is decided by the lifecycle and carried out by the session's writer, inside a block of
`RunningSessions.changing`.
"""

import asyncio
import logging
import random
from functools import partial
from typing import Any, Final

from jido_nats import trace
from jido_nats.broker.clock import boottime
from jido_nats.core import codec, lifecycle
from jido_nats.core.limits import Limit, next_limit
from jido_nats.core.requests import SendReply, SendRequest
from jido_nats.core.restarts import next_run
from jido_nats.core.session import Reason, SessionRecord, Status
from jido_nats.core.settings import Settings
from jido_nats.errors import (
    Fenced,
    InvalidTransition,
    JidoError,
    StartFailed,
    TooLarge,
    Unavailable,
)
from jido_nats.manager.conversation import Conversation
from jido_nats.manager.kinds import Kind
from jido_nats.manager.running import NotHere
from jido_nats.manager.worker_host import ManagedHost, SessionDependencies
from jido_nats.manager.writer import SessionWriter, until_it_fits
from jido_nats.worker.crash import error_text, log_crash
from jido_nats.worker.run import Outcome, WorkerRun
from jido_nats.worker.session import Session

# How long a manager that stops waits for a worker that is being killed, before the record says `forced`.
KILL_GRACE_S: Final = 1.0
# How long a time limit waits that the server's `max_payload` does not allow to be applied.
LIMIT_WAIT_S: Final = 10.0
# How long an attempt waits that could not read its journal.
JOURNAL_WAIT_S: Final = 1.0
RECORD_DELETED: Final = "record deleted"

log = logging.getLogger(__name__)


class LiveSession(ManagedHost):
    """A session from its first commit to its seal. Methods that change it are called inside `running.changing`."""

    __slots__ = (
        "_conversation",
        "_ended",
        "_held_bytes",
        "_is_created",
        "_kind",
        "_limits_from",
        "_restart_at",
        "_stopping",
        "began_at",
        "lock",
        "run",
        "writer",
    )

    def __init__(self, deps: SessionDependencies, kind: Kind, first: SessionRecord) -> None:
        """`first`: the record that `create` commits."""
        self._deps = deps
        self._kind = kind
        self.session_id = first.session_id
        self.writer = SessionWriter(deps.context, first, 0)
        self.lock = asyncio.Lock()
        self.run: WorkerRun | None = None  # None also while it waits for its next attempt
        self.on_change = None
        self._restart_at: float | None = None  # of `boottime`
        self.began_at = self.active_at = boottime()
        self._is_created = False
        self._stopping = False
        self._limits_from = 0.0  # of `boottime`: time limits are not applied before
        self._ready = asyncio.Event() if kind.settings.wait_ready else None
        self._ended: asyncio.Future[None] | None = None
        self._conversation: Conversation | None = None  # most sessions of a large deployment have none
        self._held_bytes = len(codec.encode([first.metadata, first.llm_config]))
        deps.conversations.held.total += self._held_bytes
        kind.sessions += 1

    @property
    def record(self) -> SessionRecord:
        """Its record, as last committed."""
        return self.writer.record

    @property
    def settings(self) -> Settings:
        """Those of its kind of worker."""
        return self._kind.settings

    @property
    def is_here(self) -> bool:
        """Whether it was created, and has not been relinquished."""
        return self._is_created and not self.writer.relinquished

    @property
    def is_settled(self) -> bool:
        """Whether nothing more will be written: it was never created, or it is sealed."""
        return not self._is_created or self.writer.record.sealed

    @property
    def in_doubt(self) -> bool:
        """Whether a write has begun and it is unknown how much of it is stored."""
        return self.writer.in_doubt

    @property
    def worker_ended(self) -> bool:
        """Whether its worker has run, and ended."""
        return self.run is not None and self.run.ended

    @property
    def conversation(self) -> Conversation:
        """Its inbox and output."""
        if self._conversation is None:
            self._conversation = Conversation(self._deps.conversations, self.record)
        return self._conversation

    def removed(self) -> None:
        """Hold nothing for it any longer."""
        self._deps.conversations.held.total -= self._held_bytes
        self._kind.sessions -= 1
        if self._conversation is not None:
            self._conversation.drop_messages()

    # The start

    async def create(self, *, chosen: bool) -> None:
        """From its first record to `active`. `chosen`: the caller chose the id, which may have been used before.

        Raises `SessionExists`, `AlreadyExists`: nothing ran, and nothing was written; and `StartFailed`.
        """
        is_durable = self.record.restart is not None
        error = None if is_durable else self._call_worker(None)
        if error is None and self._ready is None and not is_durable:
            opened, _ = lifecycle.opened(self.record)
            await self._begin(opened, chosen=chosen)
            return
        await self._begin(self.record, chosen=chosen)
        if is_durable:
            error = await self._begin_attempt()
        if (error := await self.finish_start(error)) is None:
            return
        if self.record.status is Status.TERMINATED:
            raise StartFailed(f"the session did not start: {error}", session_id=self.session_id)
        raise Unavailable(
            f"the session has not started yet: {error}. It tries again; ask again with the same session id",
            session_id=self.session_id,
        )

    def give_up_start(self) -> None:
        """The manager is stopping: do not wait any longer for a worker that is not ready."""
        self._stopping = True
        if not self._is_created or self.record.status is not Status.INITIALIZING:
            return
        if self.run is not None and not self._is_ready:
            self.run.cancel()

    @property
    def waits_for_attempt(self) -> bool:
        """Whether it waits for an attempt that is not its first, or starts that."""
        return self.record.status is Status.INITIALIZING and (self.record.attempt or 1) > 1

    @property
    def is_restart_due(self) -> bool:
        """Whether it waits for an attempt, and it is time for that."""
        return self.waits_for_attempt and self._restart_at is not None and self._restart_at <= boottime()

    async def restart(self) -> str | None:
        """Begin the attempt that the session has waited for, for `finish_start`; what went wrong, or None."""
        if not self.is_restart_due:
            return None
        self._restart_at = None
        self._ready = asyncio.Event() if self._kind.settings.wait_ready else None
        try:
            return await self._begin_attempt()
        except Unavailable as unavailable:  # NATS is away: no failure of the worker, and nothing has begun
            if not self.is_here:
                raise
            extra = {"session_id": self.session_id, "error": str(unavailable), "wait_s": JOURNAL_WAIT_S}
            log.warning("a journal cannot be read; the attempt waits", extra=extra)
            self._restart_at = boottime() + JOURNAL_WAIT_S
            return None

    async def finish_start(self, error: str | None) -> str | None:
        """From `initializing` to `active`, once the worker is ready; what went wrong, or None.

        If it is not, or with an `error`: to the end, or to the next attempt.
        """
        if error is None and self.run is None:  # it still waits
            return None
        if error is None and self._ready is not None:
            assert self.run is not None, "it was started"
            timeout_s = self._kind.settings.start_timeout_s
            error = None if self._stopping else await self.run.wait_ready(self._ready, timeout_s)
            if self._stopping and not self._is_ready:
                error = "the manager was stopped before the worker was ready"
        if error is None:
            await self.advance(Status.ACTIVE)
        else:
            await self._end_failed_start(error)
        return error

    # Changes

    async def advance(self, status: Status, **why: Any) -> None:
        """Decide, commit, publish."""
        changed, _ = lifecycle.transition(
            self.record,
            status,
            at=self._deps.now(),
            after=self._deps.context.event_log.acknowledged,
            traceparent=trace.CURRENT.get(),
            **why,
        )
        await self.writer.commit(changed)
        await self.writer.publish()
        self.active_at = boottime()
        if self.on_change is not None:
            self.on_change(changed)

    async def deliver(self, request: SendRequest) -> SendReply:
        """Put a message into the inbox, activating an `idle` session; `conversation.stored` waits until it is stored.

        Raises `InvalidTransition`, `AlreadyExists`, `TooLarge`, `Overloaded`.
        """
        self._check_accepts()
        if self.record.status is Status.IDLE and not self.conversation.check_room(request, self.record.attempt):
            await self.advance(Status.ACTIVE)
        self.active_at = boottime()
        return self.conversation.deliver(request)

    async def accept(self, request: SendRequest) -> SendReply:
        """Store a message in the journal of a session that has one; its worker gets it, or that of the next attempt.

        Raises as `deliver`. It needs no turn, so that nothing else of the session waits for the journal; activating an
        `idle` session does.
        """
        self._check_accepts()
        if self.record.status is Status.IDLE and not self.conversation.check_room(request, self.record.attempt):
            async with self._deps.running.changing(self):
                if self.record.status is Status.IDLE:
                    await self.advance(Status.ACTIVE)
        async with self.conversation.accepting:
            self._check_accepts()
            self.active_at = boottime()
            return await self.of_journal(self.conversation.accept(request, self.record))

    def _check_accepts(self) -> None:
        """Raise `InvalidTransition` unless the session accepts messages in its status."""
        if not self.is_here:
            raise NotHere(self.session_id)
        if self.record.status not in (Status.ACTIVE, Status.IDLE) and not self.waits_for_attempt:
            wait = "; wait until it is active" if self.record.status is Status.INITIALIZING else ""
            raise InvalidTransition(
                f"a session that is {self.record.status} accepts no messages{wait}", session_id=self.session_id
            )

    # The end

    async def ask_to_stop(self, reason: Reason, detail: str | None = None) -> None:
        """To `terminating`, and cancel the worker; if it is `terminating` already, cancel the worker again."""
        if self.record.status not in (Status.TERMINATING, Status.TERMINATED):
            await self.advance(Status.TERMINATING, reason=reason, detail=detail)
        if self.record.status is Status.TERMINATED:
            return
        if self.run is None:  # it waits for its next attempt
            await self.end()
        else:
            self.run.cancel()

    async def end(self, **why: Any) -> None:
        """To `terminated`, once the output is stored (at most `stop_timeout_s`); wake waiting callers; seal."""
        conversation, timeout_s = self._conversation, self._kind.settings.stop_timeout_s
        incomplete = conversation is not None and not await conversation.finish(timeout_s)
        why["output_incomplete"] = incomplete
        await until_it_fits(self.session_id, lambda: self.advance(Status.TERMINATED, **why))
        self._wake_waiters()
        await until_it_fits(self.session_id, self.writer.seal)

    async def abandon(self, **why: Any) -> None:
        """End the session although its worker does not stop, because the manager is stopping."""
        log.warning("a worker does not stop; abandoning it", extra={"session_id": self.session_id})
        await self.end(forced=True, **why)

    async def end_deleted(self, revision: int) -> None:
        """The record was deleted by hand, which left a marker at `revision`: stop the worker, end over the marker."""
        log.error("the record of a session was deleted; ending it", extra={"session_id": self.session_id})
        self.writer.revision = revision
        if self.run is not None:
            self.run.cancel()
            await self.run.wait_ended(self._kind.settings.stop_timeout_s + KILL_GRACE_S)
        forced = self.run is not None and (self.run.forced or not self.run.ended)
        if self.record.status is Status.TERMINATED:
            await self.writer.seal()
        else:
            await self.end(reason=Reason.CRASHED, error=RECORD_DELETED, forced=forced)

    async def wait_ended(self, timeout_s: float) -> bool:
        """Whether the end was stored within `timeout_s`, or the session was relinquished."""
        if self._ended is None:
            self._ended = asyncio.get_running_loop().create_future()
        await asyncio.wait({self._ended}, timeout=timeout_s)
        return self._ended.done()

    def relinquish(self) -> None:
        """Stop the worker, and write nothing more."""
        self.writer.relinquished = True
        if self.run is not None:
            self.run.cancel()
        self._wake_waiters()

    # Time limits

    def due_at(self) -> float | None:
        """When (of `boottime`) the session's next time limit expires, or its next attempt begins; None: never."""
        limit = self._next_limit() if self._kind.default_limits or self.record.has_limits else None
        moment = None if limit is None else max(limit.moment, self._limits_from)
        if moment is None or self._restart_at is None:
            return moment if self._restart_at is None else self._restart_at
        return min(moment, self._restart_at)

    async def apply_limit(self) -> None:
        """Apply the session's next time limit, if it has expired."""
        limit = self._next_limit()
        if limit is None or limit.moment > boottime():
            return
        try:
            if limit.name == "idle_after_s":
                await self.advance(Status.IDLE)
            else:
                await self.ask_to_stop(Reason.TIMED_OUT, f"{limit.name} of {limit.seconds:g} s is over")
        except TooLarge as error:
            if not self._limits_from:
                extra = {"session_id": self.session_id, "error": str(error)}
                log.error("a time limit cannot be applied until max_payload is raised again", extra=extra)
            self._limits_from = boottime() + LIMIT_WAIT_S

    def _next_limit(self) -> Limit | None:
        return next_limit(self.record, self._kind.default_limits, began_at=self.began_at, active_at=self.active_at)

    # The steps of the start and the end

    def _call_worker(self, state: Any) -> str | None:
        """Create the worker's coroutine, which does not run yet; what went wrong, or None. `state`: for `Session`."""
        try:
            self.run = WorkerRun(self._kind.worker, Session(self, state))
        except BaseException as error:  # nothing cancels this; whatever a worker raises ends its own session only
            log_crash(self.session_id, error)
            return error_text(error)
        return None

    async def _begin(self, record: SessionRecord, *, chosen: bool) -> None:
        """Commit the first record, start the worker if it was called, publish.

        An opening record makes the session active at once.
        """
        try:
            await self.writer.commit_first(record, chosen=chosen)
        except BaseException:
            if self.run is not None:
                self.run.discard()
            raise
        self._is_created = True
        self.active_at = boottime()
        if self.run is not None:
            self._run_worker()
        await self.writer.publish()

    async def _begin_attempt(self) -> str | None:
        """Read the journal, which the first attempt claims, and start the worker; what went wrong, or None."""
        journal, attempt = self.conversation.journal, self.record.attempt
        assert journal is not None and attempt is not None, "it has a restart policy"
        try:
            await self.of_journal(journal.claim(attempt))
            state = await self.of_journal(self._resume())
        except JidoError as error:
            if not self.is_here or (isinstance(error, Unavailable) and attempt > 1):
                raise
            return str(error)
        if not self.is_here:  # relinquished while it was read
            raise Fenced(f"the session {self.session_id} was relinquished")
        if (error_of_call := self._call_worker(state)) is None:
            self._run_worker()
        return error_of_call

    async def _resume(self) -> Any:
        """Read what the attempt begins with; the state of the last checkpoint. `Fenced` if it is no longer ours.

        What was read is all that there is only if the record, looked at after that, is still this attempt's: an empty
        journal may be one that was removed, and nothing refuses appends to that (`tests/model/durable.py`).
        """
        assert self.record.attempt is not None, "it has a restart policy"
        state = await self.conversation.resume(self.record.attempt)
        await self.writer.check_unchanged()
        return state

    async def _end_failed_start(self, error: str) -> None:
        while self.run is not None and not self.run.ended:
            asked_last = self._stopping
            self.run.cancel()
            ended = await self.run.wait_ended(self._kind.settings.stop_timeout_s + KILL_GRACE_S)
            if asked_last and not ended:
                await self.abandon(reason=Reason.START_FAILED, error=error)
                return
        forced = self.run is not None and self.run.forced
        await self._end_attempt(Reason.START_FAILED, error, forced=forced)

    async def _end_attempt(self, reason: Reason, error: str, *, forced: bool) -> None:
        """An attempt has failed: to the end, or to `initializing`, where the session waits for its next one."""
        now = self._deps.now()
        following = None if self._stopping else next_run(self.record, reason, at=now, jitter=random.random())  # nosec B311
        if following is None:
            await self.end(reason=reason, error=error, forced=forced)
            return
        assert following.not_before is not None, "it waits"
        wait_s = (following.not_before - now).total_seconds()
        extra = {"session_id": self.session_id, "attempt": following.attempt, "wait_s": round(wait_s, 3)}
        log.info("a worker failed; the session waits for its next attempt", extra=extra)
        self.run = None
        await until_it_fits(self.session_id, lambda: self.advance(Status.INITIALIZING, run=following, error=error))
        self._restart_at = boottime() + wait_s

    def _run_worker(self) -> None:
        assert self.run is not None, "it was called"
        self.run.start(partial(self._on_worker_end, self.run))

    def _on_worker_end(self, run: WorkerRun, outcome: Outcome, raised: BaseException | None) -> None:
        if raised is not None:
            log_crash(self.session_id, raised)
        if not self._deps.running.closed:
            self._deps.running.start_task(self._finish(run, outcome), self.session_id)

    async def _finish(self, run: WorkerRun, outcome: Outcome) -> None:
        """The worker has ended, and so does the session, or its attempt."""
        async with self._deps.running.changing(self):
            if self.record.status is Status.TERMINATED or self.run is not run:
                return
            if self.record.status is Status.TERMINATING:
                trace.CURRENT.set(self.record.traceparent)  # of the request to terminate, not of the create
                await self.end(error=outcome.error, forced=outcome.forced)
            elif outcome.error is not None or outcome.cancelled:
                error = outcome.error or "CancelledError"
                await self._end_attempt(Reason.CRASHED, error, forced=outcome.forced)
            else:
                await self.end(reason=Reason.COMPLETED)

    def _wake_waiters(self) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)
