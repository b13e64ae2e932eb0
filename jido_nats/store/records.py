"""Session records in their bucket: create, update, get, follow. Every write is a compare-and-set.

The bucket is read and written as a stream: nats-py's `kv` cannot set a TTL on update, cannot create over
an expiry marker, and its watch receives nothing for seconds after a server restart.
"""

import asyncio
import logging
import math
from collections.abc import Collection
from typing import Final, NamedTuple

from jido_nats.broker.connection import Connection
from jido_nats.broker.consumer import Start, StreamMessage
from jido_nats.broker.direct import get_batch
from jido_nats.broker.follower import FollowingConsumer
from jido_nats.broker.jetstream import EXPECTED_SEQUENCE, MESSAGE_TTL, last_message, settled, store
from jido_nats.broker.life import RecentChanges
from jido_nats.broker.stream_info import last_position, stream_state
from jido_nats.core import codec, subjects
from jido_nats.core.session import SessionRecord
from jido_nats.store.position import StreamPosition

# Expected revision 0: there is neither an entry nor a marker.
NO_REVISION: Final = 0
CATCH_UP_S: Final = 0.1
# How many subjects a direct get may name at once: the server refuses more than 1,024.
BATCH: Final = 512

log = logging.getLogger(__name__)


class Entry(NamedTuple):
    """The state of a key: its last revision (an expiry marker has one too), and the record if there is one.

    `is_damaged`: the key holds something that is not a record of that session.
    """

    session_id: str
    revision: int
    record: SessionRecord | None
    is_damaged: bool = False


class SessionRecords:
    """The bucket of session records."""

    def __init__(
        self, connection: Connection, bucket: str, *, terminated_ttl_s: int, marker_ttl_s: float = math.inf
    ) -> None:
        self._connection = connection
        self._bucket = bucket
        self.stream: Final = subjects.bucket_stream(bucket)
        self._terminated_ttl_s = terminated_ttl_s
        self._marker_ttl_s = marker_ttl_s
        self._recent: Final = RecentChanges()

    async def write(self, record: SessionRecord, expected: int) -> int:
        """Store the record over revision `expected` and return the new revision; a sealed record expires.

        Repeats the same compare-and-set until there is an answer. `Conflict`: another write came first.
        (That may be an earlier attempt of this same call: `get` and compare.)
        """
        data = codec.encode(record)
        headers = {EXPECTED_SEQUENCE: str(expected)}
        if record.sealed:
            headers[MESSAGE_TTL] = f"{self._terminated_ttl_s}s"
        subject = subjects.key(self._bucket, record.session_id)
        revision = await settled(
            self._connection, lambda: store(self._connection, self.stream, subject, data, dict(headers))
        )
        self._recent.note(subject, revision)
        return revision

    async def get(self, session_id: str) -> Entry:
        """The entry, read at the stream's leader; retries until there is an answer."""
        subject = subjects.key(self._bucket, session_id)
        message = await settled(self._connection, lambda: last_message(self._connection, self.stream, subject))
        if message is None:
            return Entry(session_id, NO_REVISION, None)
        return _entry(session_id, message.sequence, message.data)

    async def get_many(self, session_ids: Collection[str]) -> dict[str, SessionRecord]:
        """The records of those sessions that have one, as some replica has them: perhaps not the newest version.

        Raises `BrokerError`: this user may not use direct gets, or there was no answer.
        """
        keys = [subjects.key(self._bucket, session_id) for session_id in session_ids]
        found: dict[str, SessionRecord] = {}
        for begin in range(0, len(keys), BATCH):
            request = {"multi_last": keys[begin : begin + BATCH], "batch": BATCH}
            for entry in map(entry_of, await get_batch(self._connection, self.stream, request)):
                if entry.record is not None:
                    found[entry.session_id] = entry.record
        return found

    def follow(self, session_id: str | None = None, *, linger_s: float = 0.0) -> FollowingConsumer:
        """Every entry (or one session's), then every change; `entry_of` reads its messages.

        `next` raises `PositionUnavailable` also if the bucket has lost what was written here.
        """
        self._recent.clear()
        keys = subjects.all_keys(self._bucket) if session_id is None else subjects.key(self._bucket, session_id)
        start, silence_max_s = Start("last_per_subject"), self._marker_ttl_s / 2
        return FollowingConsumer(
            self._connection,
            self.stream,
            [keys],
            start,
            recent=self._recent,
            silence_max_s=silence_max_s,
            linger_s=linger_s,
        )

    async def last_position(self, session_id: str | None = None) -> int:
        """The sequence of the last change (of one session), at the leader, which every follower reaches; 0 if none."""
        keys = subjects.all_keys(self._bucket) if session_id is None else subjects.key(self._bucket, session_id)
        return await last_position(self._connection, self.stream, keys)

    async def caught_up(self, position: StreamPosition) -> None:
        """Return when the follower whose position this is has applied what the leader has now.

        The stream's last sequence is cheap to request, but that message may have expired, so that no follower ever
        reaches it. Then, after `CATCH_UP_S`, wait for the last message that exists, which the server has to search.
        """
        last = (await stream_state(self._connection, self.stream)).last
        try:
            async with asyncio.timeout(CATCH_UP_S):
                await position.reached(last)
        except TimeoutError:
            await position.reached(await self.last_position())
            position.moved_to(last)  # what was between has expired: the next call does not wait


def entry_of(message: StreamMessage) -> Entry:
    """The entry in a message of the bucket's stream; one that was deleted or has expired has no record."""
    session_id = subjects.session_of(message.subject)
    return _entry(session_id, message.sequence, message.data)


def _entry(session_id: str, revision: int, data: bytes) -> Entry:
    record = _record(session_id, data)
    return Entry(session_id, revision, record, is_damaged=bool(data) and record is None)


def _record(key: str, data: bytes) -> SessionRecord | None:
    """The record, or None for a marker (which has no data) and for an entry that is not a record (logged)."""
    if not data:
        return None
    try:
        record = codec.decode(data, SessionRecord)
    except codec.DecodeError as error:
        log.error("an entry of the bucket is not a session record", extra={"key": key, "error": str(error)})
        return None
    if record.session_id != key:
        log.error("an entry of the bucket is another session's record", extra={"key": key})
        return None
    if not subjects.is_token(record.owner):
        log.error("a session record has an owner that is not a manager id", extra={"key": key})
        return None
    return record
