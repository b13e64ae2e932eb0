"""Snapshot, then follow: the sessions that exist, then every change, with no gap between them.

The position is a sequence of the event stream. It is read before the bucket is: what is published has been
committed, so every event up to it is in the snapshot, and following starts after it; an event that the snapshot
already includes is recognized by its version. The bucket is still followed for what events do not carry (the owner,
the configuration): a version is in the bucket before its events are in the stream.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from types import TracebackType
from typing import NamedTuple, Self

import msgspec

from jido_nats.broker.connection import Connection
from jido_nats.broker.consumer import Start
from jido_nats.broker.ordered import OrderedConsumer
from jido_nats.broker.stream_info import check_stream, stream_state
from jido_nats.core import subjects
from jido_nats.core.events import Event, KnownEvent, SessionCreated, SessionTerminated, UnknownEvent
from jido_nats.core.lifecycle import after_event
from jido_nats.core.requests import ListRequest
from jido_nats.core.session import SessionRecord, Status
from jido_nats.store.event_log import event_in
from jido_nats.store.index import SessionIndex, matches
from jido_nats.store.leases import Leases, ManagerInfo, lease_time
from jido_nats.store.records import Entry, SessionRecords, entry_of


class WatchedSession(NamedTuple):
    """A session of the snapshot."""

    record: SessionRecord


class SnapshotComplete(NamedTuple):
    """The snapshot is complete; changes after `position` follow."""

    position: int


class SessionChanged(NamedTuple):
    """One event, the record as of that event, and the position from which to resume after it."""

    event: Event
    record: SessionRecord
    position: int


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
        position: int | None,
    ) -> None:
        self._connection = connection
        self._events_stream = events_stream
        self._registry = SessionRecords(connection, bucket, terminated_ttl_s=0)
        self._session_id = session_id
        self._wanted = wanted
        self._resume_after = position
        self._index = SessionIndex()
        self._included: dict[str, int] = {}
        self._ended: set[str] = set()
        self._snapshot: deque[SessionRecord] = deque()
        self._snapshot_at = 0
        self._snapshot_returned = position is not None
        # The event that is being returned: if the reader is cancelled meanwhile, it gets it the next time.
        self._in_hand: tuple[Event, int] | None = None
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
            return SnapshotComplete(self._snapshot_at)
        while True:
            event, position = self._in_hand = self._in_hand or await self._next_event()
            record = await self._record_at(event, position)
            self._in_hand = None
            if record is None:
                continue
            concerns = self._concerns_change(event, record)
            if isinstance(event, SessionTerminated):
                self._drop(event.session_id)
            if concerns:
                return SessionChanged(event, record, position)

    async def _open(self) -> None:
        await check_stream(self._connection, self._events_stream)
        self._snapshot_at = (await stream_state(self._connection, self._events_stream)).last
        start = Start.at((self._snapshot_at if self._resume_after is None else self._resume_after) + 1)
        subject = subjects.EVENTS if self._session_id is None else subjects.session(self._session_id)
        self._events = await self._exit.enter_async_context(
            OrderedConsumer(self._connection, self._events_stream, [subject], start, strict=True)
        )
        self._follower = asyncio.create_task(self._follow(), name="watch: records")
        self._exit.push_async_callback(_end, self._follower)
        await self._catch_up()
        self._included = {record.session_id: record.version for record in self._index}
        if self._resume_after is None:
            self._snapshot = deque(record for record in self._index if self._concerns(record))

    async def _next_event(self) -> tuple[Event, int]:
        """The next event that is not in the snapshot, and its position."""
        while True:
            message = await self._events.next()
            event = event_in(message)
            if event is not None and not self._is_included(event):
                return event, message.sequence

    async def _follow(self) -> None:
        """Keep the records up to date; drop an ended session when its record is sealed and its end was returned."""
        async with self._registry.follow(self._session_id) as consumer:
            async for message in consumer:
                entry = entry_of(message)
                if entry.session_id in self._ended and (entry.record is None or entry.record.sealed):
                    entry = entry._replace(record=None)
                    self._ended.discard(entry.session_id)
                self._index.apply(entry)
                self._index.position.moved_to(message.sequence)

    async def _catch_up(self) -> None:
        """Return when the records are as current as the bucket's leader is now; raises what ended the follower."""
        position = await self._registry.last_position(self._session_id)
        reached = asyncio.create_task(self._index.position.reached(position))
        try:
            await asyncio.wait([reached, self._follower], return_when=asyncio.FIRST_COMPLETED)
            if not reached.done():
                self._follower.result()
        finally:
            await _end(reached)

    def _drop(self, session_id: str) -> None:
        self._included.pop(session_id, None)
        record = self._index.get(session_id)
        if record is not None and record.sealed:
            self._index.apply(Entry(session_id, 0, None))
        elif record is not None:
            self._ended.add(session_id)

    def _is_included(self, event: Event) -> bool:
        """Whether the snapshot already includes this event."""
        return self._resume_after is None and event.version <= self._included.get(event.session_id, 0)

    async def _record_at(self, event: Event, sequence: int) -> SessionRecord | None:
        """The record as of this event; None if it has expired and the event is of an unknown type."""
        record = self._index.get(event.session_id)
        if (record is None or record.version < event.version) and sequence > self._snapshot_at:
            await self._catch_up()
            record = self._index.get(event.session_id)
        if record is None:  # its record has expired: use what the event says
            if isinstance(event, UnknownEvent):
                return None
            record = _known_by(event)
        return after_event(record, event)

    def _concerns(self, record: SessionRecord) -> bool:
        return matches(record, self._wanted)

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


def _known_by(event: KnownEvent) -> SessionRecord:
    """What one event alone says about a session."""
    at = event.created_at if isinstance(event, SessionCreated) else event.updated_at
    return SessionRecord(
        session_id=event.session_id,
        status=Status.INITIALIZING,
        version=event.version,
        owner="",
        created_at=at,
        updated_at=at,
        metadata=event.metadata if isinstance(event, SessionCreated) else {},
    )


async def _end(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
