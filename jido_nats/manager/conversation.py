"""The conversations of sessions: messages go into the inbox, output and conversation to the output subject.

A session with a restart policy has a journal: a message is accepted once that has it, and its copy in the output
follows. The message's number is part of the entry, so while one is being stored, other output waits for its own.
"""

import asyncio
import contextlib
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

import msgspec

from jido_nats import trace
from jido_nats.core.journal import AcceptedMessage, JournalState
from jido_nats.core.output import ConversationAdded, SessionOutput
from jido_nats.core.requests import (
    SendReply,
    SendRequest,
    check_conversation_limit,
    check_emitted,
    check_said,
    check_state,
)
from jido_nats.core.session import SessionRecord
from jido_nats.errors import BadRequest, Overloaded, Unavailable
from jido_nats.ids import new_message_id
from jido_nats.manager.failpoints import Failpoints
from jido_nats.manager.journal import KNOWN_MAX, Known, SessionJournal
from jido_nats.manager.outbox import Outbox
from jido_nats.store.journal_log import JournalLog
from jido_nats.worker.inbox import SEEN_MAX, HeldBytes, Inbox, Message

# How late the copy of a message is sent that the journal has: its sender is answered first, and copies go together.
COPY_LATE_S: Final = 0.002
# How late it is stored that a message is handled, where the worker only takes the next one.
HANDLED_LATE_S: Final = 0.5


class Conversations:
    """What the conversations of one manager share."""

    def __init__(
        self,
        outbox: Outbox,
        held: HeldBytes,
        *,
        journals: JournalLog | None,
        failpoints: Failpoints,
        inbox_messages_max: int,
        now: Callable[[], datetime],
    ) -> None:
        self.outbox: Final = outbox
        self.journals: Final = journals
        self.failpoints: Final = failpoints
        self.held: Final = held
        self.inbox_messages_max: Final = inbox_messages_max
        self.now: Final = now


class Conversation:
    """The inbox and the output of one session."""

    __slots__ = ("_inbox", "_is_closed", "_queue", "_session_id", "_shared", "_waits_for_room", "accepting", "journal")

    def __init__(self, shared: Conversations, record: SessionRecord) -> None:
        self._shared = shared
        self._session_id = record.session_id
        self.journal: SessionJournal | None = None
        if record.restart is not None and shared.journals is not None:
            self.journal = SessionJournal(shared.journals, shared.failpoints, record.session_id, record.created_at)
        # Held while a message, which has a number already, is being stored in the journal.
        self.accepting: Final = asyncio.Lock()
        self._is_closed = False
        self._inbox: Inbox | None = None
        self._queue = shared.outbox.queue()
        self._waits_for_room = True

    @property
    def inbox(self) -> Inbox:
        """The messages that the worker has not taken yet."""
        if self._inbox is None:
            self._inbox = Inbox(self._shared.held, ids_max=SEEN_MAX + self._shared.inbox_messages_max)
        return self._inbox

    @property
    def kept(self) -> int:
        """The number of the last kept output."""
        return self._queue.kept

    async def emit(self, name: str, data: Any, *, ephemeral: bool, attempt: int | None) -> int:
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
            attempt=attempt,
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

    async def say(self, role: str, content: Any, *, attempt: int | None) -> int:
        """Add a worker's message to the conversation; returns its number. Raises `BadRequest`, `TooLarge`."""
        check_said(role, content)
        await self._wait_for_room()
        return self._add(role, content, new_message_id(), attempt).number

    async def flush(self) -> None:
        """Return when everything pushed so far is stored."""
        await self._queue.flushed()

    def stop_waiting_for_room(self) -> None:
        """Accept the rest of a program's output, however much waits to be stored: its pipe holds little."""
        self._waits_for_room = False

    async def finish(self, timeout_s: float) -> bool:
        """The session ends: whether all of its output and conversation is stored, at the latest after `timeout_s`.

        No message is accepted from now on; one that is just being stored comes before the end.
        """
        if self.journal is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s), self.accepting:
                    self._is_closed = True
        self._is_closed = True
        return await self._queue.finish(timeout_s)

    def drop_messages(self) -> None:
        """The session is no longer here: nobody will take the messages that wait, and no other is accepted."""
        self._is_closed = True
        if self._inbox is not None:
            self._inbox.clear()

    def lose_output(self) -> None:
        """Some of the worker's output was lost before it was pushed."""
        self._queue.lost = True

    def check_room(self, request: SendRequest, attempt: int | None) -> bool:
        """Whether the same message was delivered before. Raises `AlreadyExists`, `TooLarge`, `Overloaded`."""
        if self.inbox.number_of(request) is not None:
            return True
        self._check_counts()
        self._shared.outbox.item(self._added(request.role, request.content, request.message_id or "", attempt))
        return False

    def _check_open(self) -> None:
        if self._is_closed:
            raise Unavailable(
                "the session is ending, or another manager has it; ask again", session_id=self._session_id
            )

    def _check_counts(self) -> None:
        self.inbox.check_room(self._shared.inbox_messages_max)
        if self.journal is not None and self.journal.unhandled >= self._shared.inbox_messages_max:
            raise Overloaded(
                f"the session's worker has not handled {self.journal.unhandled} messages; send again later (a program "
                "says with a line 'handled' or 'checkpoint' what it has handled)"
            )

    def deliver(self, request: SendRequest) -> SendReply:
        """Put a message into the inbox and queue it for publication, in one step; do neither for a repeated send.

        Raises as `check_room`.
        """
        if (replayed := self._replayed(request)) is not None:
            return replayed
        self._check_counts()
        added = self._add(request.role, request.content, request.message_id or new_message_id(), None)
        message = Message(
            role=added.role,
            content=added.content,
            message_id=added.message_id,
            number=added.number,
            created_at=added.created_at,
            traceparent=trace.CURRENT.get(),
        )
        self.inbox.put(message)
        return SendReply(session_id=self._session_id, message_id=added.message_id, number=added.number)

    async def accept(self, request: SendRequest, record: SessionRecord) -> SendReply:
        """Store a message in the journal, then put it into the inbox and queue its copy, while `accepting` is held.

        Raises as `check_room`, and `Unavailable` if the session has ended, or was relinquished.
        """
        assert self.journal is not None and record.attempt is not None, "the session has a restart policy"
        if (replayed := self._replayed(request)) is not None:
            return replayed
        self._check_open()
        self._check_counts()
        if not self._queue.has_room:
            raise Overloaded("too much of the session's output and conversation waits to be stored; send again later")
        message_id = request.message_id or new_message_id()
        added = self._added(request.role, request.content, message_id, record.attempt)
        item = self._shared.outbox.item(added)
        entry = AcceptedMessage(
            attempt=record.attempt,
            created_at=record.created_at,
            role=added.role,
            content=added.content,
            message_id=message_id,
            number=added.number,
            accepted_at=added.created_at,
            traceparent=trace.CURRENT.get(),
        )
        sequence = await self.journal.accept(entry)
        self._check_open()
        self._queue.push_item(item, after_s=COPY_LATE_S)
        self.inbox.put(_delivered(entry, record.attempt), sequence)
        return SendReply(session_id=self._session_id, message_id=message_id, number=added.number)

    async def resume(self, attempt: int) -> Any:
        """Read from the journal what an attempt begins with: fill the inbox, return the state of the last checkpoint.

        Raises as `SessionJournal.begin`.
        """
        assert self.journal is not None, "the session has a restart policy"
        async with self.accepting:
            found = await self.journal.begin(attempt)
            self._check_open()
            self._fill_inbox(found, attempt)
        return None if found.state is msgspec.UNSET else found.state

    async def checkpoint(self, state: Any, handled: str | None) -> None:
        """See `Session.checkpoint`."""
        if state is not msgspec.UNSET:
            check_state(state)
        if self.journal is None:
            return
        sequence = 0 if handled is None else self.inbox.sequence_of(handled)
        if sequence is None:
            raise BadRequest(f"the session was sent no message with the id {handled!r}, or long ago")
        await self.journal.checkpoint(state, sequence, self._known())

    async def so_far(self, limit: int) -> list[ConversationAdded]:
        """See `Session.conversation`."""
        check_conversation_limit(limit)
        return await self._shared.outbox.conversation(self._session_id, limit)

    def handled_taken(self) -> bool:
        """See `WorkerHost.handled_taken`; whether `store_handled` is to be called."""
        return self.journal is not None and self.journal.note_taken(self.inbox.taken)

    async def store_handled(self) -> None:
        """Store, a moment later, that the messages which the worker has taken are handled."""
        assert self.journal is not None, "the session has a restart policy"
        await asyncio.sleep(HANDLED_LATE_S)
        await self.journal.store_handled(self._known())

    def _known(self) -> Known:
        """What the next checkpoint says of the last messages if it is to purge, None if it is not."""
        return self.inbox.newest(KNOWN_MAX) if self.journal is not None and self.journal.is_long else None

    async def stored(self, number: int) -> None:
        """Return when the output up to `number` is stored."""
        await self._queue.stored(number)

    def _replayed(self, request: SendRequest) -> SendReply | None:
        """The reply to a send that was carried out before."""
        number = self.inbox.number_of(request)
        if number is None:
            return None
        return SendReply(session_id=self._session_id, message_id=request.message_id or "", number=number, replayed=True)

    def _fill_inbox(self, found: JournalState, attempt: int) -> None:
        """Only what is not handled waits; the ids of the others are remembered."""
        self._inbox = self.inbox.successor()
        self._inbox.remember(found.known)
        for sequence, entry in found.messages:
            message = _delivered(entry, attempt)
            if sequence > found.handled:
                self._inbox.put(message, sequence)
            else:
                self._inbox.know(message, sequence)

    def _add(self, role: str, content: Any, message_id: str, attempt: int | None) -> ConversationAdded:
        added = self._added(role, content, message_id, attempt)
        self._queue.push(added)
        return added

    def _added(self, role: str, content: Any, message_id: str, attempt: int | None) -> ConversationAdded:
        return ConversationAdded(
            session_id=self._session_id,
            number=self._queue.kept + 1,
            role=role,
            content=content,
            created_at=self._shared.now(),
            message_id=message_id,
            attempt=attempt,
        )

    async def _wait_for_room(self) -> None:
        """Return when one more output may be pushed."""
        while self._waits_for_room and not self._queue.has_room:
            await self._queue.wait_moved()
        if self.accepting.locked():
            async with self.accepting:
                pass  # nothing comes between this and the caller's push


def _delivered(entry: AcceptedMessage, attempt: int) -> Message:
    """A message of the journal as a worker gets it in that attempt."""
    return Message(
        role=entry.role,
        content=entry.content,
        message_id=entry.message_id,
        number=entry.number,
        created_at=entry.accepted_at,
        traceparent=entry.traceparent,
        redelivered=entry.attempt < attempt,
    )
