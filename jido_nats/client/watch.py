"""Snapshot, then follow: the sessions that exist, then every change, with no gap between them.

The position is one of the event stream. It is read before the bucket is: what is published has been committed, so
every event up to it is in the snapshot, and following starts after it; an event that the snapshot already includes is
recognized by its version. The snapshot is read until nothing moves any more, since a record that is written meanwhile
moves to the end of the bucket. After that the bucket is read only for what events do not carry (the owner, the
configuration), by direct gets: a thousand watchers need no consumer of it.
"""

import contextlib
from collections import deque
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from types import TracebackType
from typing import Final, NamedTuple, Self

import msgspec

from jido_nats.broker.connection import Connection
from jido_nats.broker.consumer import Start, StreamMessage
from jido_nats.broker.ordered import OrderedConsumer
from jido_nats.broker.stream_info import check_stream, stream_state
from jido_nats.core import subjects
from jido_nats.core.events import Event, KnownEvent, SessionCreated, SessionStatus, SessionTerminated, UnknownEvent
from jido_nats.core.lifecycle import after_event
from jido_nats.core.manager_info import ManagerInfo
from jido_nats.core.position import Position
from jido_nats.core.requests import ListRequest
from jido_nats.core.session import DEFAULT_WORKER, Reason, SessionRecord, Status
from jido_nats.errors import BrokerError
from jido_nats.store.event_log import event_in
from jido_nats.store.index import matches
from jido_nats.store.leases import Leases, lease_time
from jido_nats.store.records import SessionRecords, entry_of
from jido_nats.store.snapshot import snapshot

# How many events that are here already are looked at together, so that their records are read in one request.
TOGETHER: Final = 256


class WatchedSession(NamedTuple):
    """A session of the snapshot."""

    record: SessionRecord


class SnapshotComplete(NamedTuple):
    """The snapshot is complete; changes after `position` (`position_token`, with the stream's life) follow."""

    position: int
    position_token: str = ""


class SessionChanged(NamedTuple):
    """One event, the record as of that event, and the position (and its token) from which to resume after it."""

    event: Event
    record: SessionRecord
    position: int
    position_token: str = ""


class _Arrival(NamedTuple):
    """An event that has arrived, and its position."""

    event: Event
    position: Position


Watched = WatchedSession | SnapshotComplete | SessionChanged


class SessionWatch:
    """See `Client.watch_sessions`."""

    def __init__(
        self,
        connection: Connection,
        events_stream: str,
        bucket: str,
        session_id: str | None,
        wanted: ListRequest,
        position: Position | None,
    ) -> None:
        self._connection = connection
        self._events_stream = events_stream
        self._bucket = SessionRecords(connection, bucket, terminated_ttl_s=0)
        self._session_id = session_id
        self._wanted = wanted
        self._resume_after = position
        # The records as of the last event of each session, until its end was returned.
        self._records: dict[str, SessionRecord] = {}
        # Records that were read for events that have arrived: of some later version, perhaps.
        self._read: dict[str, SessionRecord] = {}
        self._included: dict[str, int] = {}
        self._snapshot: deque[SessionRecord] = deque()
        self._snapshot_at = Position(0)
        self._snapshot_returned = position is not None
        # What has arrived and was not returned: a reader that is cancelled gets it the next time.
        self._arrived: deque[_Arrival] = deque()
        self._is_read = False  # the records that they need
        self._exit = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        try:
            await self._open()
        except BaseException:
            await self._exit.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._exit.aclose()

    def __aiter__(self) -> AsyncIterator[Watched]:
        return self

    async def __anext__(self) -> Watched:
        if self._snapshot:
            return WatchedSession(self._snapshot.popleft())
        if not self._snapshot_returned:
            self._snapshot_returned = True
            return SnapshotComplete(self._snapshot_at.sequence, self._snapshot_at.token)
        while True:
            while not self._arrived:
                await self._receive()
            if not self._is_read:
                await self._read_missing()
                self._is_read = True
            event, position = self._arrived.popleft()
            record = self._apply(event)
            if record is not None and self._concerns_change(event, record):
                return SessionChanged(event, record, position.sequence, position.token)

    async def _open(self) -> None:
        await check_stream(self._connection, self._events_stream)
        self._snapshot_at = (await stream_state(self._connection, self._events_stream)).end
        start = Start.following(self._resume_after or self._snapshot_at)
        subject = subjects.EVENTS if self._session_id is None else subjects.session(self._session_id)
        self._events = await self._exit.enter_async_context(
            OrderedConsumer(self._connection, self._events_stream, [subject], start, strict=True)
        )
        if self._resume_after is None:
            await self._take_snapshot()

    async def _take_snapshot(self) -> None:
        found: dict[str, SessionRecord] = {}
        async with self._bucket.follow(self._session_id) as consumer:
            async for message in snapshot(consumer, lambda: self._bucket.last_position(self._session_id)):
                entry = entry_of(message)
                if entry.record is not None:
                    found[entry.session_id] = entry.record
                elif not entry.is_damaged:
                    found.pop(entry.session_id, None)
        self._included = {session_id: record.version for session_id, record in found.items()}
        self._records = {session_id: record for session_id, record in found.items() if not record.sealed}
        self._snapshot = deque(record for _, record in sorted(found.items()) if matches(record, self._wanted))

    async def _receive(self) -> None:
        """Wait for an event that is not in the snapshot, and take what else is here already."""
        message: StreamMessage | None = await self._events.next()
        self._is_read = False
        while message is not None:
            event = event_in(message)
            if event is not None and event.version > self._included.get(event.session_id, 0):
                at = self._events.at
                self._arrived.append(_Arrival(event, Position(message.sequence, message.time_ns, at.created_ns)))
            message = self._events.take() if len(self._arrived) < TOGETHER else None

    async def _read_missing(self) -> None:
        """Read the records that the events that have arrived need, all at once."""
        missing = {event.session_id for event, _ in self._arrived if self._needs_record(event)} - self._read.keys()
        if not missing:
            return
        with contextlib.suppress(BrokerError):  # the roles of older configurations may not use direct gets
            self._read |= await self._bucket.get_many(missing)
        newest = {event.session_id: event.version for event, _ in self._arrived}
        for session_id in missing:
            known = self._read.get(session_id)
            if known is None or known.version < newest[session_id]:  # a replica that lags, or it has expired
                record = (await self._bucket.get(session_id)).record
                self._read[session_id] = record or _known_by(session_id, self._arrived)

    def _needs_record(self, event: Event) -> bool:
        """Whether the event alone is not enough: of a new session, of a change of the owner, or of an unknown type."""
        if isinstance(event, SessionStatus) and event.reason is Reason.OWNER_LOST:
            return True
        return isinstance(event, UnknownEvent) or event.session_id not in self._records

    def _apply(self, event: Event) -> SessionRecord | None:
        """The record as of this event; None if nothing is known but that there was an event."""
        read = self._read.pop(event.session_id, None)
        before = read or self._records.get(event.session_id)
        if before is None or (not before.owner and isinstance(event, UnknownEvent)):
            return None
        record = self._records[event.session_id] = after_event(before, event)
        if isinstance(event, SessionTerminated):
            self._records.pop(event.session_id, None)
            self._included.pop(event.session_id, None)
        return record

    def _concerns_change(self, event: Event, record: SessionRecord) -> bool:
        before = getattr(event, "previous_status", None)
        any_status = msgspec.structs.replace(self._wanted, status=None, include_terminated=True)
        return matches(record, any_status) and self._wanted.status in (None, record.status, before)


class ManagerLease(NamedTuple):
    """What a manager's lease says, when it was renewed (by the server's clock), and for how long it is valid."""

    info: ManagerInfo
    renewed_at: datetime
    lease_s: int


class ManagerWatch:
    """See `Client.watch_managers`."""

    def __init__(self, connection: Connection, bucket: str) -> None:
        self._leases = Leases(connection, bucket)
        self._consumer = self._leases.follow()

    async def __aenter__(self) -> Self:
        await self._consumer.check()
        await self._consumer.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._consumer.__aexit__(kind, error, trace)

    def __aiter__(self) -> AsyncIterator[tuple[str, ManagerLease | None]]:
        return self

    async def __anext__(self) -> tuple[str, ManagerLease | None]:
        while True:
            message = await self._consumer.next()
            has_gone = self._leases.apply(message)
            manager_id = subjects.session_of(message.subject)
            if has_gone:
                return manager_id, None
            if (info := self._leases.managers.get(manager_id)) is not None:
                break
        renewed_at = datetime.fromtimestamp(message.time_ns / 1e9, UTC)
        return manager_id, ManagerLease(info, renewed_at, lease_time(message) or 0)


def _known_by(session_id: str, arrived: "deque[_Arrival]") -> SessionRecord:
    """What its first event alone says about a session whose record has expired."""
    event = next(event for event, _ in arrived if event.session_id == session_id)
    known = event if isinstance(event, KnownEvent) else None
    at = datetime.now(UTC)
    if known is not None:
        at = known.created_at if isinstance(known, SessionCreated) else known.updated_at
    return SessionRecord(
        session_id=session_id,
        status=Status.INITIALIZING,
        version=event.version,
        owner="",
        created_at=at,
        updated_at=at,
        metadata=known.metadata if isinstance(known, SessionCreated) else {},
        worker=known.worker if known is not None else DEFAULT_WORKER,
        labels=known.labels if isinstance(known, SessionCreated) else {},
    )
