"""One session that this manager runs: its start, changes and end; and the host of its worker.

Every change is decided by the lifecycle and carried out by the session's writer, inside a block of
`RunningSessions.changing`.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from jido_nats import trace
from jido_nats.broker.clock import boottime
from jido_nats.core import codec, lifecycle
from jido_nats.core.limits import Limit, next_limit
from jido_nats.core.requests import SendReply, SendRequest
from jido_nats.core.session import Reason, SessionRecord, Status
from jido_nats.core.settings import Settings
from jido_nats.errors import InvalidTransition, StartFailed, TooLarge
from jido_nats.manager.conversation import Conversation, Conversations
from jido_nats.manager.kinds import Kind
from jido_nats.manager.running import NotHere, RunningSessions
from jido_nats.manager.writer import SessionWriter, WriterContext, until_it_fits
from jido_nats.worker.crash import error_text, log_crash
from jido_nats.worker.inbox import Inbox
from jido_nats.worker.run import Outcome, WorkerRun
from jido_nats.worker.session import Session

# How long a manager that stops waits for a worker that is being killed, before the record says `forced`.
KILL_GRACE_S: Final = 1.0
# How long a time limit waits that the server's `max_payload` does not allow to be applied.
LIMIT_WAIT_S: Final = 10.0
RECORD_DELETED: Final = "record deleted"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SessionDependencies:
    """What the sessions of one manager share."""

    context: WriterContext
    conversations: Conversations
    running: RunningSessions["LiveSession"]
    now: Callable[[], datetime]


class LiveSession:
    """A session from its first commit to its seal. Methods that change it are called inside `running.changing`."""

    __slots__ = (
        "_conversation",
        "_deps",
        "_ended",
        "_held_bytes",
        "_is_created",
        "_kind",
        "_limits_from",
        "_ready",
        "_stopping",
        "active_at",
        "began_at",
        "lock",
        "on_change",
        "run",
        "session_id",
        "writer",
    )

    def __init__(self, deps: SessionDependencies, kind: Kind, first: SessionRecord) -> None:
        """`first`: the record that `create` commits."""
        self._deps = deps
        self._kind = kind
        self.session_id = first.session_id
        self.writer = SessionWriter(deps.context, first, 0)
        self.lock = asyncio.Lock()
        self.run: WorkerRun | None = None
        self.on_change: Callable[[SessionRecord], None] | None = None
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
            self._conversation = Conversation(self._deps.conversations, self.session_id)
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
        error = self._call_worker()
        if error is None and self._ready is None:
            opened, _ = lifecycle.opened(self.record)
            await self._begin(opened, chosen=chosen)
        else:
            await self._begin(self.record, chosen=chosen)
            await self._start(error)

    def give_up_start(self) -> None:
        """The manager is stopping: do not wait any longer for a worker that is not ready."""
        self._stopping = True
        if not self._is_created or self.record.status is not Status.INITIALIZING:
            return
        if self.run is not None and not self._is_ready:
            self.run.cancel()

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
        if self.record.status not in (Status.ACTIVE, Status.IDLE):
            raise InvalidTransition(
                f"a session that is {self.record.status} accepts no messages", session_id=self.session_id
            )
        known = self.conversation.check_room(request)
        if not known and self.record.status is Status.IDLE:
            await self.advance(Status.ACTIVE)
        self.active_at = boottime()
        return self.conversation.deliver(request)

    # The end

    async def ask_to_stop(self, reason: Reason, detail: str | None = None) -> None:
        """To `terminating`, and cancel the worker; if it is `terminating` already, cancel the worker again."""
        if self.record.status not in (Status.TERMINATING, Status.TERMINATED):
            await self.advance(Status.TERMINATING, reason=reason, detail=detail)
        if self.record.status is not Status.TERMINATED:
            assert self.run is not None, "a session that has started has a worker"
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
        """When (of `boottime`) the session's next time limit expires; None: never."""
        limit = self._next_limit() if self._kind.default_limits or self.record.has_limits else None
        return None if limit is None else max(limit.moment, self._limits_from)

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

    # The worker's host: see `WorkerHost`. A worker may outlive its session here; its requests are then refused.

    @property
    def inbox(self) -> Inbox:
        """The messages that the worker has not taken yet."""
        return self.conversation.inbox

    async def ready(self) -> None:
        """See `Session.ready`."""
        if self._ready is not None:
            self._ready.set()

    async def step(self, status: Status) -> None:
        """See `Session.idle` and `Session.activate`; the change continues if the worker is cancelled."""
        if not self._is_ready:
            raise InvalidTransition(
                f"the session is still starting and cannot become {status}; await session.ready() first",
                session_id=self.session_id,
            )
        self._check_running()
        task = self._deps.running.start_task(self._step(status), self.session_id)
        await asyncio.wait({task})
        try:
            task.result()
        except NotHere:
            raise self._ended_error() from None

    async def emit(self, name: str, data: Any, *, ephemeral: bool) -> int:
        """See `Session.emit`."""
        self._check_running()
        self.active_at = boottime()
        return await self.conversation.emit(name, data, ephemeral=ephemeral)

    async def say(self, role: str, content: Any) -> int:
        """See `Session.say`."""
        self._check_running()
        self.active_at = boottime()
        return await self.conversation.say(role, content)

    async def flush(self) -> None:
        """See `Session.flush`."""
        if self._conversation is not None:
            await self._conversation.flush()

    def touch(self) -> None:
        """See `Session.touch`."""
        self.active_at = boottime()

    def lose_output(self) -> None:
        """See `WorkerHost.lose_output`."""
        self.conversation.lose_output()

    def stop_waiting_for_room(self) -> None:
        """See `WorkerHost.stop_waiting_for_room`."""
        self.conversation.stop_waiting_for_room()

    @property
    def _is_ready(self) -> bool:
        return self._ready is None or self._ready.is_set()

    def _check_running(self) -> None:
        if not self.is_here or self.record.status is Status.TERMINATED:
            raise self._ended_error()

    def _ended_error(self) -> InvalidTransition:
        return InvalidTransition("the session has ended, or another manager has it", session_id=self.session_id)

    async def _step(self, status: Status) -> None:
        async with self._deps.running.changing(self):
            await self.advance(status)

    # The steps of the start and the end

    def _call_worker(self) -> str | None:
        """Create the worker's coroutine, which does not run yet; what went wrong, or None."""
        try:
            self.run = WorkerRun(self._kind.worker, Session(self))
        except BaseException as error:  # nothing cancels this; whatever a worker raises ends its own session only
            log_crash(self.session_id, error)
            return error_text(error)
        return None

    async def _begin(self, record: SessionRecord, *, chosen: bool) -> None:
        """Commit the first record, start the worker, publish. An opening record makes the session active at once."""
        try:
            await self.writer.commit_first(record, chosen=chosen)
        except BaseException:
            if self.run is not None:
                self.run.discard()
            raise
        self._is_created = True
        self.active_at = boottime()
        if self.run is not None:
            self.run.start(self._on_worker_end)
        await self.writer.publish()

    async def _start(self, error: str | None) -> None:
        """From `initializing` to `active`, once the worker is ready; raises `StartFailed` if it is not."""
        if error is None:
            assert self.run is not None and self._ready is not None
            timeout_s = self._kind.settings.start_timeout_s
            error = None if self._stopping else await self.run.wait_ready(self._ready, timeout_s)
            if self._stopping and not self._is_ready:
                error = "the manager was stopped before the worker was ready"
        if error is None:
            await self.advance(Status.ACTIVE)
            return
        await self._end_failed_start(error)
        raise StartFailed(f"the session did not start: {error}", session_id=self.session_id)

    async def _end_failed_start(self, error: str) -> None:
        while self.run is not None and not self.run.ended:
            asked_last = self._stopping
            self.run.cancel()
            ended = await self.run.wait_ended(self._kind.settings.stop_timeout_s + KILL_GRACE_S)
            if asked_last and not ended:
                await self.abandon(reason=Reason.START_FAILED, error=error)
                return
        forced = self.run is not None and self.run.forced
        await self.end(reason=Reason.START_FAILED, error=error, forced=forced)

    def _on_worker_end(self, outcome: Outcome, raised: BaseException | None) -> None:
        if raised is not None:
            log_crash(self.session_id, raised)
        if not self._deps.running.closed:
            self._deps.running.start_task(self._finish(outcome), self.session_id)

    async def _finish(self, outcome: Outcome) -> None:
        """The worker has ended, and so does the session."""
        async with self._deps.running.changing(self):
            if self.record.status is Status.TERMINATED:
                return
            if self.record.status is Status.TERMINATING:
                trace.CURRENT.set(self.record.traceparent)  # of the request to terminate, not of the create
                await self.end(error=outcome.error, forced=outcome.forced)
            elif outcome.error is not None or outcome.cancelled:
                error = outcome.error or "CancelledError"
                await self.end(reason=Reason.CRASHED, error=error, forced=outcome.forced)
            else:
                await self.end(reason=Reason.COMPLETED)

    def _wake_waiters(self) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)
