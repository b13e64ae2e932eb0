"""What is said to sessions and by them: messages into inboxes, output and conversation onto the output subject."""

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import Any

from jido_nats import trace
from jido_nats.broker.clock import boottime
from jido_nats.core.commands import SendReply, SendRequest, check_emitted, check_said
from jido_nats.core.output import ConversationAdded, SessionOutput
from jido_nats.manager.outbox import Outbox, OutputQueue
from jido_nats.worker.inbox import Inbox, Message
from jido_nats.worker.session import Session


class Conversations:
    """The inboxes and outboxes of one manager's sessions."""

    def __init__(
        self,
        outbox: Outbox,
        *,
        inbox_messages_max: int,
        now: Callable[[], datetime],
        new_message_id: Callable[[], str],
    ) -> None:
        self._outbox = outbox
        self._inbox_messages_max = inbox_messages_max
        self._now = now
        self._new_message_id = new_message_id

    async def emit(self, session: Session, name: str, data: Any, *, ephemeral: bool) -> int:
        """Tell of a worker's output; its number. Raises `BadRequest`, `TooLarge`."""
        check_emitted(name, data)
        session.active_at = boottime()
        lane = self._lane(session)
        if not ephemeral:
            await _room(session, lane)
        output = SessionOutput(
            session_id=session.session_id,
            number=(lane.ephemeral if ephemeral else lane.kept) + 1,
            name=name,
            data=data,
            created_at=self._now(),
            ephemeral=ephemeral,
        )
        if not ephemeral:
            lane.push(output)
            return output.number
        item = self._outbox.item(output)
        lane.ephemeral += 1
        await self._outbox.tell(item)
        if not session.ending:
            await asyncio.sleep(0)  # one that streams as fast as it can gives the others a turn after each
        return output.number

    async def say(self, session: Session, role: str, content: Any) -> int:
        """Add what a worker says to the conversation; its number. Raises `BadRequest`, `TooLarge`."""
        check_said(role, content)
        session.active_at = boottime()
        lane = self._lane(session)
        await _room(session, lane)
        return self._add(session, role, content, self._new_message_id()).number

    async def flush(self, session: Session) -> None:
        """Return when all that was pushed before is stored."""
        if session.lane is not None:
            await session.lane.flushed()

    def check_room(self, session: Session, request: SendRequest) -> bool:
        """Whether the same message was delivered before. Raises `AlreadyExists`, `TooLarge`; `Overloaded`: too many."""
        inbox = self._inbox(session)
        if inbox.number_of(request) is not None:
            return True
        inbox.check_room(self._inbox_messages_max)
        self._outbox.item(self._conversation(session, request.role, request.content, request.message_id or ""))
        return False

    def deliver(self, session: Session, request: SendRequest) -> SendReply:
        """Put a message into the inbox and tell of it, in one step; or know that both were done before."""
        inbox = self._inbox(session)
        number = inbox.number_of(request)
        if number is not None:
            return SendReply(
                session_id=session.session_id, message_id=request.message_id or "", number=number, replayed=True
            )
        told = self._add(session, request.role, request.content, request.message_id or self._new_message_id())
        message = Message(
            role=told.role,
            content=told.content,
            message_id=told.message_id,
            number=told.number,
            created_at=told.created_at,
            traceparent=trace.CURRENT.get(),
        )
        inbox.put(message, request)
        session.active_at = boottime()
        return SendReply(session_id=session.session_id, message_id=told.message_id, number=told.number)

    async def stored(self, session: Session, number: int) -> None:
        """Return when the output up to `number` is stored."""
        await self._lane(session).stored(number)

    def _add(self, session: Session, role: str, content: Any, message_id: str) -> ConversationAdded:
        added = self._conversation(session, role, content, message_id)
        self._lane(session).push(added)
        return added

    def _conversation(self, session: Session, role: str, content: Any, message_id: str) -> ConversationAdded:
        return ConversationAdded(
            session_id=session.session_id,
            number=self._lane(session).kept + 1,
            role=role,
            content=content,
            created_at=self._now(),
            message_id=message_id,
        )

    def _inbox(self, session: Session) -> Inbox:
        if session.inbox is None:
            session.inbox = Inbox()
        return session.inbox

    def _lane(self, session: Session) -> OutputQueue:
        if session.lane is None:
            session.lane = self._outbox.lane()
        return session.lane


async def _room(session: Session, lane: OutputQueue) -> None:
    """Return when one more output may be pushed. What a program said last does not wait: a pipe holds little."""
    while not (lane.has_room or session.ending):
        await lane.wait_moved()
