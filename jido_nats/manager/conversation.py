"""The conversations of sessions: messages go into the inbox, output and conversation to the output subject."""

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

from jido_nats import trace
from jido_nats.core.output import ConversationAdded, SessionOutput
from jido_nats.core.requests import SendReply, SendRequest, check_emitted, check_said
from jido_nats.ids import new_message_id
from jido_nats.manager.outbox import Outbox
from jido_nats.worker.inbox import HeldBytes, Inbox, Message


class Conversations:
    """What the conversations of one manager share."""

    def __init__(
        self, outbox: Outbox, held: HeldBytes, *, inbox_messages_max: int, now: Callable[[], datetime]
    ) -> None:
        self.outbox: Final = outbox
        self.held: Final = held
        self.inbox_messages_max: Final = inbox_messages_max
        self.now: Final = now


class Conversation:
    """The inbox and the output of one session."""

    __slots__ = ("_inbox", "_queue", "_session_id", "_shared", "_waits_for_room")

    def __init__(self, shared: Conversations, session_id: str) -> None:
        self._shared = shared
        self._session_id = session_id
        self._inbox: Inbox | None = None
        self._queue = shared.outbox.queue()
        self._waits_for_room = True

    @property
    def inbox(self) -> Inbox:
        """The messages that the worker has not taken yet."""
        if self._inbox is None:
            self._inbox = Inbox(self._shared.held)
        return self._inbox

    @property
    def kept(self) -> int:
        """The number of the last kept output."""
        return self._queue.kept

    async def emit(self, name: str, data: Any, *, ephemeral: bool) -> int:
        """Publish a worker's output; returns its number. Raises `BadRequest`, `TooLarge`."""
        check_emitted(name, data)
        if not ephemeral:
            await self._wait_for_room()
        queue = self._queue
        output = SessionOutput(
            session_id=self._session_id,
            number=(queue.ephemeral if ephemeral else queue.kept) + 1,
            name=name,
            data=data,
            created_at=self._shared.now(),
            ephemeral=ephemeral,
        )
        if not ephemeral:
            queue.push(output)
            return output.number
        item = self._shared.outbox.item(output)
        queue.ephemeral += 1
        await self._shared.outbox.publish(item)
        if self._waits_for_room:
            await asyncio.sleep(0)  # a worker that streams at full speed yields after each message
        return output.number

    async def say(self, role: str, content: Any) -> int:
        """Add a worker's message to the conversation; returns its number. Raises `BadRequest`, `TooLarge`."""
        check_said(role, content)
        await self._wait_for_room()
        return self._add(role, content, new_message_id()).number

    async def flush(self) -> None:
        """Return when everything pushed so far is stored."""
        await self._queue.flushed()

    def stop_waiting_for_room(self) -> None:
        """Accept the rest of a program's output at once: its pipe holds little."""
        self._waits_for_room = False

    async def finish(self, timeout_s: float) -> bool:
        """The session ends: whether all of its output and conversation is stored, at the latest after `timeout_s`."""
        return await self._queue.finish(timeout_s)

    def drop_messages(self) -> None:
        """The session is no longer here: nobody will take the messages that wait."""
        if self._inbox is not None:
            self._inbox.clear()

    def lose_output(self) -> None:
        """Some of the worker's output was lost before it was pushed."""
        self._queue.lost = True

    def check_room(self, request: SendRequest) -> bool:
        """Whether the same message was delivered before. Raises `AlreadyExists`, `TooLarge`, `Overloaded`."""
        if self.inbox.number_of(request) is not None:
            return True
        self.inbox.check_room(self._shared.inbox_messages_max)
        self._shared.outbox.item(self._added(request.role, request.content, request.message_id or ""))
        return False

    def deliver(self, request: SendRequest) -> SendReply:
        """Put a message into the inbox and queue it for publication, in one step; do neither for a repeated send."""
        number = self.inbox.number_of(request)
        if number is not None:
            return SendReply(
                session_id=self._session_id, message_id=request.message_id or "", number=number, replayed=True
            )
        added = self._add(request.role, request.content, request.message_id or new_message_id())
        message = Message(
            role=added.role,
            content=added.content,
            message_id=added.message_id,
            number=added.number,
            created_at=added.created_at,
            traceparent=trace.CURRENT.get(),
        )
        self.inbox.put(message, request)
        return SendReply(session_id=self._session_id, message_id=added.message_id, number=added.number)

    async def stored(self, number: int) -> None:
        """Return when the output up to `number` is stored."""
        await self._queue.stored(number)

    def _add(self, role: str, content: Any, message_id: str) -> ConversationAdded:
        added = self._added(role, content, message_id)
        self._queue.push(added)
        return added

    def _added(self, role: str, content: Any, message_id: str) -> ConversationAdded:
        return ConversationAdded(
            session_id=self._session_id,
            number=self._queue.kept + 1,
            role=role,
            content=content,
            created_at=self._shared.now(),
            message_id=message_id,
        )

    async def _wait_for_room(self) -> None:
        """Return when one more output may be pushed."""
        while self._waits_for_room and not self._queue.has_room:
            await self._queue.wait_moved()
