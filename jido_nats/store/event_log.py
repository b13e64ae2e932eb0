"""The event stream: publish under a fence, claim and look, replay.

The fence of a session is the last sequence on `jido.fence.<id>`, 0 until a manager claims it. An event is stored
only if the fence is still what its publisher expects, so after a claim nothing older can be stored, however late.
"""

import itertools
import logging
from collections.abc import Collection, Sequence
from functools import partial
from typing import Final, NamedTuple

import msgspec

from jido_nats import trace
from jido_nats.broker.connection import Connection
from jido_nats.broker.consumer import Start, StreamMessage, decoded
from jido_nats.broker.follower import FollowingConsumer
from jido_nats.broker.jetstream import (
    CONTENT_TYPE,
    EXPECTED_SEQUENCE,
    EXPECTED_SUBJECT,
    MESSAGE_ID,
    StoredMessage,
    get_message,
    last_message,
    settled,
    store,
)
from jido_nats.broker.polled import BATCH, PolledConsumer
from jido_nats.broker.stream_info import last_position, stream_memory, stream_state
from jido_nats.core import codec, subjects
from jido_nats.core.codec import Encoding
from jido_nats.core.events import Event, KnownEvent, SessionCreated, SessionStatus
from jido_nats.core.position import Position
from jido_nats.core.session import SessionRecord, Status
from jido_nats.core.subjects import Publication
from jido_nats.errors import PositionUnavailable

# How many subjects one consumer reads: its request has to fit into a message.
FILTERS_MAX: Final = 500
# How far before a session's second event to search for its first, in messages: other sessions' come in between.
SEARCH_WINDOWS: Final = (256, 8192, 262_144)

log = logging.getLogger(__name__)


class Fence(NamedTuple):
    """The last claim on a session: its sequence and its manager; sequence 0 and None if there is none."""

    sequence: int
    manager_id: str | None


UNCLAIMED: Final = Fence(0, None)


class Page(NamedTuple):
    """Some of a session's `session_status` events, in order; whether they go up to the last that is stored."""

    steps: list[SessionStatus]
    is_last: bool


class EventLog:
    """The event stream, for managers."""

    def __init__(self, connection: Connection, stream: str, encoding: Encoding) -> None:
        self._connection = connection
        self.stream = stream
        self._encoding = encoding
        # The highest sequence acknowledged by any publish: events of what is committed later come after it.
        self.acknowledged = 0
        connection.on_up(self._forget_acknowledged)

    async def publish(self, publication: Publication, fence: int) -> int:
        """Store one message if the session's fence is `fence`; its sequence.

        Raises `Conflict`, `OutcomeUnknown`: claim and look. `NotSent`: retry.
        """
        headers = {
            EXPECTED_SEQUENCE: str(fence),
            EXPECTED_SUBJECT: subjects.fence(publication.event.session_id),
            MESSAGE_ID: publication.message_id,
            CONTENT_TYPE: self._encoding.content_type,
        }
        if publication.traceparent is not None:
            headers[trace.HEADER] = publication.traceparent
        data = codec.encode(publication.event, self._encoding)
        sequence = await store(self._connection, self.stream, publication.subject, data, headers)
        self.acknowledged = max(self.acknowledged, sequence)
        return sequence

    async def fence(self, session_id: str) -> Fence:
        """The fence, read at the stream's leader."""
        subject = subjects.fence(session_id)
        message = await settled(self._connection, lambda: last_message(self._connection, self.stream, subject))
        return Fence(0, None) if message is None else Fence(message.sequence, claimant(message.data))

    async def claim(self, session_id: str, manager_id: str, expected: int) -> int:
        """Move the fence from `expected`; the sequence of the claim. `Conflict`, `OutcomeUnknown`: read the fence."""
        body = msgspec.json.encode({"manager": manager_id})
        headers = {EXPECTED_SEQUENCE: str(expected)}
        sequence = await store(self._connection, self.stream, subjects.fence(session_id), body, headers)
        self.acknowledged = max(self.acknowledged, sequence)
        return sequence

    async def has_events(self, session_id: str) -> bool:
        """Whether the stream has any event on the session's own subject."""
        return await self._last_id(session_id) is not None

    async def is_complete(self, record: SessionRecord) -> bool:
        """Whether all messages of the version are surely stored: its copy on the session's own subject comes last."""
        return record.version > 1 and await self._last_id(record.session_id) == subjects.last_message_id(record)

    async def complete_among(self, records: Collection[SessionRecord]) -> set[str]:
        """The ids of the sessions for which `is_complete` holds, in one read.

        A replica that lags may miss some, but reports none wrongly.
        """
        last: dict[str, str | None] = {}
        filters = [subjects.session(record.session_id) for record in records if record.version > 1]
        for begin in range(0, len(filters), FILTERS_MAX):
            some, start = filters[begin : begin + FILTERS_MAX], Start("last_per_subject")
            async with FollowingConsumer(self._connection, self.stream, some, start, headers_only=True) as consumer:
                while not consumer.caught_up:
                    message = await consumer.next()
                    last[subjects.session_of(message.subject)] = message.headers.get(MESSAGE_ID)
        return {r.session_id for r in records if last.get(r.session_id) == subjects.last_message_id(r)}

    async def stored(self, record: SessionRecord, claim: int) -> Collection[str]:
        """Which of the message ids that the record's version owes are in the stream.

        `claim`: the sequence of this manager's claim, where the look ends: nothing older can be stored any more.
        """
        owed = {publication.message_id for publication in subjects.publications(record)}
        if await self.is_complete(record):
            return owed
        filters = [subjects.EVENTS, subjects.session(record.session_id), subjects.fence(record.session_id)]
        found = await self.message_ids_between(filters, record.after, claim)
        return owed & found

    async def page(self, session_id: str, *, after: int, limit: int) -> Page:
        """The stored `session_status` of the versions after `after`: `limit` of them, or all that there are.

        Costs what it returns, not what the session has lived.
        """
        subject = subjects.session(session_id)
        until = await last_position(self._connection, self.stream, subject)
        start = await self._first_after(subject, after, until)
        found: list[SessionStatus] = []
        if start > until:
            return Page(found, is_last=True)
        batch = min(limit + 1, BATCH)
        async with PolledConsumer(self._connection, self.stream, [subject], Start.at(start), batch=batch) as consumer:
            while consumer.position < until and len(found) < limit:
                event = event_in(await consumer.next())
                if isinstance(event, SessionStatus):
                    found.append(event)
            return Page(found, is_last=consumer.position >= until)

    async def _first_after(self, subject: str, after: int, until: int) -> int:
        """Where the versions after `after` begin on a session's own subject; found by bisection, as they are in order.

        A sequence beyond `until`, the last on the subject, if there are none.
        """
        low, high = 1, until + 1
        while after > 0 and low < high:
            middle = (low + high) // 2
            request = {"seq": middle, "next_by_subj": subject}
            message = await settled(self._connection, partial(get_message, self._connection, self.stream, request))
            if message is not None and message.sequence < high and not _is_after(message, after):
                low = message.sequence + 1
            else:
                high = middle
        return low

    async def events_of(self, session_id: str, claim: int) -> list[KnownEvent]:
        """Everything that the stream has about a session, in order, up to a claim on it; for a record that was lost.

        The session's own subject has all but its creation and, perhaps, the last version, whose copies come last.
        """
        copies = await self._copies(session_id)
        created = await self.find_created(session_id)
        found: list[KnownEvent] = [created] if created is not None else []
        found += [event for _, event in copies]
        if (await stream_state(self._connection, self.stream)).last < claim:
            raise PositionUnavailable.of_another_life(claim)
        after = copies[-1][0] if copies else 0
        filters = [subjects.EVENTS, subjects.fence(session_id)]
        async with FollowingConsumer(self._connection, self.stream, filters, Start.at(after + 1)) as consumer:
            while consumer.position < claim:
                event = event_in(await consumer.next())
                if isinstance(event, SessionCreated | SessionStatus) and event.session_id == session_id:
                    if not found or event.version > found[-1].version:
                        found.append(event)
        return found

    async def _copies(self, session_id: str) -> list[tuple[int, SessionStatus]]:
        """(sequence, event) of everything on a session's own subject."""
        subject = subjects.session(session_id)
        until = await last_position(self._connection, self.stream, subject)
        found: list[tuple[int, SessionStatus]] = []
        consumer = FollowingConsumer(self._connection, self.stream, [subject], Start("all"))
        if not until:
            return found
        async with consumer:
            while consumer.position < until:
                message = await consumer.next()
                event = event_in(message)
                if isinstance(event, SessionStatus):
                    found.append((message.sequence, event))
        return found

    async def find_created(self, session_id: str) -> SessionCreated | None:
        """The stored `session_created` of a session whose record has expired; searches before its second event."""
        first = await self._first(subjects.session(session_id))
        if first is None:
            return None
        wanted = f"{session_id}.1.session_created"
        for window in SEARCH_WINDOWS:
            start = Start.at(first - window)
            both = [subjects.EVENTS, subjects.session(session_id)]  # the second, so that the reader reaches `first`
            async with FollowingConsumer(self._connection, self.stream, both, start) as consumer:
                while consumer.position < first:
                    message = await consumer.next()
                    if message.headers.get(MESSAGE_ID) == wanted:
                        event = event_in(message)
                        return event if isinstance(event, SessionCreated) else None
        return None

    def _forget_acknowledged(self) -> None:
        """After a reconnect: a server with an older store uses those sequences again."""
        self.acknowledged = 0

    async def _first(self, subject: str) -> int | None:
        """The sequence of the first message on a subject."""
        request = {"seq": 1, "next_by_subj": subject}
        message = await settled(self._connection, lambda: get_message(self._connection, self.stream, request))
        return None if message is None else message.sequence

    async def message_ids_between(self, filters: Sequence[str], after: int, until: int) -> set[str]:
        """The message ids stored after sequence `after`, up to `until` (a sequence on one of the subjects).

        Raises `PositionUnavailable` if the stream has not come so far: it is older than it was.
        """
        if (await stream_state(self._connection, self.stream)).last < until:
            raise PositionUnavailable.of_another_life(until)
        found: set[str] = set()
        start = Start.at(min(after + 1, until))  # a stream that was recreated or restored may be shorter than that
        consumer = FollowingConsumer(self._connection, self.stream, filters, start, headers_only=True)
        async with consumer:
            while consumer.position < until:
                message = await consumer.next()
                if (message_id := message.headers.get(MESSAGE_ID)) is not None:
                    found.add(message_id)
        return found

    async def expired_message_ids(self, records: Collection[SessionRecord], found: Collection[str]) -> set[str]:
        """The message ids that these records' versions owe, that a look did not find, and that retention has removed.

        What is older than everything that the stream still has was stored at the time, or its manager has been dead
        for the whole retention period. An end is excluded: better published twice than not at all.
        """
        first, since = await stream_memory(self._connection, self.stream)
        ids: set[str] = set()
        for record in records:
            if record.status is Status.TERMINATED or record.after + 1 >= first or record.updated_at >= since:
                continue
            owed = (publication.message_id for publication in subjects.publications(record))
            ids.update(itertools.takewhile(lambda message_id: message_id not in found, owed))
        return ids

    async def last_sequence(self) -> int:
        """The stream's last sequence, at its leader."""
        return (await stream_state(self._connection, self.stream)).last

    async def end(self) -> Position:
        """The position of the stream's last message, at its leader."""
        return (await stream_state(self._connection, self.stream)).end

    async def last_claim(self) -> int:
        """The sequence of the last claim on any session, at the leader; 0 if there is none."""
        return await last_position(self._connection, self.stream, subjects.ALL_FENCES)

    def follow_claims(self) -> FollowingConsumer:
        """The last claim on every claimed session, then every new claim."""
        return FollowingConsumer(self._connection, self.stream, [subjects.ALL_FENCES], Start("last_per_subject"))

    async def _last_id(self, session_id: str) -> str | None:
        subject = subjects.session(session_id)
        message = await settled(self._connection, lambda: last_message(self._connection, self.stream, subject))
        return None if message is None else message.headers.get(MESSAGE_ID, "")


def event_in(message: StreamMessage | StoredMessage) -> Event | None:
    """The event in a stored message; None if its type is unknown, or if it is not an event (logged)."""
    return decoded(message, codec.decode_event, "a message on an event subject is not an event, skipping it")


def _is_after(message: StoredMessage, version: int) -> bool:
    event = event_in(message)
    return event is not None and event.version > version


def claimant(data: bytes) -> str:
    """The manager that made a claim, from its payload."""
    try:
        return codec.decode(data, _Claim).manager
    except codec.DecodeError:
        return ""


class _Claim(msgspec.Struct):
    manager: str
