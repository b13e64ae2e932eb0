"""What a session's worker asks for, carried out at its manager: see `WorkerHost`.

A worker may outlive its session here; its requests are then refused.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from jido_nats.broker.clock import boottime
from jido_nats.core.output import ConversationAdded
from jido_nats.core.session import SessionRecord, Status
from jido_nats.errors import Fenced, InvalidTransition, Unavailable
from jido_nats.manager.conversation import Conversation, Conversations
from jido_nats.manager.running import NotHere, RunningSessions
from jido_nats.manager.writer import WriterContext
from jido_nats.worker.inbox import Inbox

T = TypeVar("T")


@dataclass(frozen=True)
class SessionDependencies:
    """What the sessions of one manager share. `running`: their table."""

    context: WriterContext
    conversations: Conversations
    running: RunningSessions[Any]
    now: Callable[[], datetime]


class ManagedHost(ABC):
    """The host of the workers of one session, one attempt after the other."""

    __slots__ = ("_deps", "_ready", "active_at", "on_change", "session_id")

    _deps: SessionDependencies
    session_id: str
    # Called with the session's new record after each change of its status, if set.
    on_change: Callable[[SessionRecord], None] | None
    # When (of `boottime`) it last had a status change, a message or output.
    active_at: float
    # Set when the worker is ready; None if that makes no difference.
    _ready: asyncio.Event | None

    @property
    @abstractmethod
    def record(self) -> SessionRecord:
        """Its record, as last committed."""

    @property
    @abstractmethod
    def is_here(self) -> bool:
        """Whether it was created, and has not been relinquished."""

    @property
    @abstractmethod
    def conversation(self) -> Conversation:
        """Its inbox and output."""

    @abstractmethod
    async def advance(self, status: Status) -> None:
        """Change its status; returns when that is stored."""

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
        try:
            await self._in_own_task(self._step(status, self.record.attempt))
        except NotHere:
            raise self._ended_error() from None

    async def emit(self, name: str, data: Any, *, ephemeral: bool) -> int:
        """See `Session.emit`."""
        self._check_running()
        self.active_at = boottime()
        return await self.conversation.emit(name, data, ephemeral=ephemeral, attempt=self.record.attempt)

    async def say(self, role: str, content: Any) -> int:
        """See `Session.say`."""
        self._check_running()
        self.active_at = boottime()
        return await self.conversation.say(role, content, attempt=self.record.attempt)

    async def flush(self) -> None:
        """See `Session.flush`."""
        await self.conversation.flush()

    async def checkpoint(self, state: Any, handled: str | None) -> None:
        """See `Session.checkpoint`; what has begun continues if the worker is cancelled."""
        self._check_running()
        self.active_at = boottime()
        await self._in_own_task(self.of_journal(self.conversation.checkpoint(state, handled)))

    async def conversation_so_far(self, limit: int) -> list[ConversationAdded]:
        """See `Session.conversation`."""
        return await self.conversation.so_far(limit)

    def handled_taken(self) -> None:
        """See `WorkerHost.handled_taken`."""
        if self.conversation.handled_taken():
            work = self.of_journal(self.conversation.store_handled())
            self._deps.running.start_task(work, self.session_id)

    def touch(self) -> None:
        """See `Session.touch`."""
        self.active_at = boottime()

    def lose_output(self) -> None:
        """See `WorkerHost.lose_output`."""
        self.conversation.lose_output()

    def stop_waiting_for_room(self) -> None:
        """See `WorkerHost.stop_waiting_for_room`."""
        self.conversation.stop_waiting_for_room()

    async def of_journal(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of some work on the journal; if another manager has written that, the session is relinquished."""
        try:
            return await work
        except Fenced as error:
            self._deps.running.relinquish(self, "its journal was written by another manager, or removed")
            raise Unavailable(
                "another manager has taken the session over; ask again", session_id=self.session_id
            ) from error

    async def _in_own_task(self, work: Coroutine[Any, Any, None]) -> None:
        """Return when it is done; it continues if the worker is cancelled."""
        task = self._deps.running.start_task(work, self.session_id)
        await asyncio.wait({task})
        task.result()

    async def _step(self, status: Status, attempt: int | None) -> None:
        async with self._deps.running.changing(self):
            if self.record.attempt != attempt:  # it has failed while this waited for its turn
                raise self._ended_error()
            await self.advance(status)

    @property
    def _is_ready(self) -> bool:
        return self._ready is None or self._ready.is_set()

    def _check_running(self) -> None:
        if not self.is_here or self.record.status is Status.TERMINATED:
            raise self._ended_error()

    def _ended_error(self) -> InvalidTransition:
        return InvalidTransition("the session has ended, or another manager has it", session_id=self.session_id)
