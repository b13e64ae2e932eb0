"""The stream of journals: append an entry to those that are known, read a session's, purge, remove.

An append asserts the sequence of the last entry of its subject, so there is one writer and one append in flight.
"""

from typing import Final

import msgspec

from jido_nats.broker.connection import Connection
from jido_nats.broker.consumer import Start, StreamMessage
from jido_nats.broker.direct import get_batch
from jido_nats.broker.jetstream import (
    EXPECTED_SEQUENCE,
    NOT_STORED,
    StreamFull,
    acknowledged,
    api,
    last_message,
    settled,
)
from jido_nats.broker.polled import PolledConsumer
from jido_nats.broker.stream_info import last_position
from jido_nats.core import codec, journal, subjects
from jido_nats.core.journal import Stored
from jido_nats.errors import Conflict, JournalUnreadable, Overloaded


class JournalLog:
    """The stream of journals, for managers."""

    def __init__(self, connection: Connection, stream: str) -> None:
        self._connection = connection
        self.stream: Final = stream

    async def check(self) -> None:
        """Raise `NotAllowed` if the user of this connection may not do everything that follows. Changes nothing."""
        subject = subjects.journal("probe")
        await settled(self._connection, lambda: self._connection.request(subject, b"", headers=dict(NOT_STORED)))
        await self.last("probe")
        request = {"seq": 1, "batch": 1, "next_by_subj": subject}
        await settled(self._connection, lambda: get_batch(self._connection, self.stream, request))
        await self.purge("probe", 1)

    async def append(self, session_id: str, data: bytes, expected: int) -> int:
        """Store an entry after the one at sequence `expected` (0: the first); its sequence.

        Repeats the same append until there is an answer. Raises `Conflict` (another manager has appended, or nothing is
        there any longer), `Overloaded` (nothing was stored: the stream is full), `TooLarge`.
        """
        subject, headers = subjects.journal(session_id), {EXPECTED_SEQUENCE: str(expected)}

        async def attempt() -> int:
            try:
                ack = await acknowledged(self._connection, self.stream, subject, data, dict(headers), may_be_full=True)
                return ack.sequence
            except StreamFull as full:
                if await self.last(session_id) == expected:
                    raise Overloaded(f"the stream {self.stream} is full; ask again later") from full
                raise Conflict("an earlier attempt was stored") from full

        try:
            return await settled(self._connection, attempt)
        except Conflict:
            last = await settled(self._connection, lambda: last_message(self._connection, self.stream, subject))
            if last is not None and last.sequence > expected and last.data == data:
                return last.sequence
            raise

    async def read(self, session_id: str) -> list[Stored]:
        """All entries of a session's journal, in order, up to the last one that the leader has.

        Raises `JournalUnreadable` if one of them is none that this version knows.
        """
        found: list[Stored] = []
        for message in await self.messages(session_id):
            try:
                found.append(Stored(message.sequence, journal.decode(message.data)))
            except codec.DecodeError as error:
                raise JournalUnreadable(
                    f"the entry at sequence {message.sequence} of {self.stream} cannot be read: {error}",
                    session_id=session_id,
                ) from error
        return found

    async def messages(self, session_id: str) -> list[StreamMessage]:
        """As `read`, not decoded."""
        subject, until = subjects.journal(session_id), await self.last(session_id)
        found: list[StreamMessage] = []
        if not until:
            return found
        async with PolledConsumer(self._connection, self.stream, [subject], Start.at(1)) as consumer:
            while consumer.position < until:
                found.append(await consumer.next())
        return found

    async def purge(self, session_id: str, before: int) -> None:
        """Remove the entries of a session before that sequence."""
        request = {"filter": subjects.journal(session_id), "seq": before}
        await settled(self._connection, lambda: api(self._connection, f"STREAM.PURGE.{self.stream}", request))

    async def session_ids(self) -> list[str]:
        """The sessions that have entries, each once."""
        found: dict[str, None] = {}
        while True:
            info = await self._subjects(len(found))
            before = len(found)
            found |= dict.fromkeys(map(subjects.session_of, info.state.subjects))
            if len(found) == before or len(found) >= info.total:
                return [session_id for session_id in found if subjects.is_token(session_id)]

    async def last(self, session_id: str) -> int:
        """The sequence of a session's last entry, at the leader; 0 if there is none."""
        return await last_position(self._connection, self.stream, subjects.journal(session_id))

    async def _subjects(self, offset: int) -> "_Info":
        request = {"subjects_filter": subjects.ALL_JOURNALS, "offset": offset}
        subject = f"STREAM.INFO.{self.stream}"
        return await settled(self._connection, lambda: api(self._connection, subject, request, kind=_Info))


class _State(msgspec.Struct):
    subjects: dict[str, int] = {}


class _Info(msgspec.Struct):
    state: _State
    total: int = 0
