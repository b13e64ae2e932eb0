"""What a stream's leader reports: whether the stream exists, what it still has, whether a position is of this life."""

import asyncio
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

import msgspec

from jido_nats.broker.connection import Connection
from jido_nats.broker.jetstream import (
    STREAM_NOT_FOUND,
    JetStreamError,
    StoredMessage,
    api,
    get_message,
    settled,
    timestamp,
)
from jido_nats.core.position import Position, nanoseconds
from jido_nats.errors import NoResponders, NotSent, OutcomeUnknown, PositionUnavailable, ServerUnusable

CHECK_ATTEMPTS_MAX: Final = 5
CHECK_WAIT_S: Final = 0.2


class StreamState(NamedTuple):
    """The first sequence that a stream still has, and its end: its last message, which may have been removed."""

    first: int
    end: Position

    @property
    def last(self) -> int:
        """The last sequence."""
        return self.end.sequence


async def last_position(connection: Connection, stream: str, subject: str) -> int:
    """The sequence of the last message on a subject (wildcards allowed), at the leader; 0 if there is none.

    A reader always reaches this one; the message at the stream's last sequence may have expired.
    """
    message = await _read(connection, stream, {"last_by_subj": subject})
    return 0 if message is None else message.sequence


async def check_stream(connection: Connection, stream: str) -> None:
    """Raise `ServerUnusable` if there is no JetStream or no such stream; waits for a server that is just starting."""
    for attempt in range(CHECK_ATTEMPTS_MAX):
        try:
            await api(connection, f"STREAM.INFO.{stream}")
            return
        except NoResponders as error:
            if attempt == CHECK_ATTEMPTS_MAX - 1:
                raise ServerUnusable("the NATS server has no JetStream: start it with -js") from error
            await asyncio.sleep(CHECK_WAIT_S)
        except JetStreamError as error:
            raise _unusable(stream, error) from error
        except (NotSent, OutcomeUnknown):
            await connection.wait_up()
            return


async def stream_state(connection: Connection, stream: str) -> StreamState:
    """The state of a stream, at its leader."""
    return _state(await _stream_info(connection, stream))


async def stream_memory(connection: Connection, stream: str) -> tuple[int, datetime]:
    """What the stream still has: (its first sequence, a moment before which everything was removed by age).

    If nothing was removed by age, the moment is that of the first message.
    """
    info = await _stream_info(connection, stream)
    first, now = timestamp(info.state.first_ts), timestamp(info.ts)
    age_max = timedelta(microseconds=info.config.max_age / 1000)
    return info.state.first_seq, min(first, now - age_max) if age_max else first


async def check_position(connection: Connection, stream: str, position: Position) -> StreamState:
    """The state of a stream if the position is of its present life; raises `PositionUnavailable` if it is not.

    A message that was removed proves nothing, and neither does a bare sequence: both are accepted.
    """
    state = await stream_state(connection, stream)
    if not position.is_verifiable:
        return state
    if position.created_ns != state.end.created_ns or position.sequence > state.last:
        raise PositionUnavailable.of_another_life(position.sequence)
    if not position.stored_ns or position.sequence < state.first:
        return state
    stored_ns: int | None = state.end.stored_ns
    if position.sequence < state.last:
        message = await _read(connection, stream, {"seq": position.sequence})
        stored_ns = None if message is None else message.time_ns
    if stored_ns not in (None, position.stored_ns):
        raise PositionUnavailable.of_another_life(position.sequence)
    return state


async def check_latest(connection: Connection, stream: str, known: Iterable[tuple[str, int, int]]) -> None:
    """Raise `PositionUnavailable` if a stream that keeps the last message of each subject is older than it was.

    `known`: (subject, sequence, time in ns or 0 if not known) of messages that were the last of their subjects.
    """
    for subject, sequence, time_ns in known:
        message = await _read(connection, stream, {"last_by_subj": subject})
        found = (0, 0) if message is None else (message.sequence, message.time_ns)
        if found[0] < sequence or (found[0] == sequence and time_ns not in (0, found[1])):
            raise PositionUnavailable.of_another_life(sequence)


async def server_time_ns(connection: Connection, stream: str) -> int:
    """The time of the stream's leader, in nanoseconds since 1970."""
    return nanoseconds((await _stream_info(connection, stream)).ts)


async def _read(connection: Connection, stream: str, request: Mapping[str, Any]) -> StoredMessage | None:
    try:
        return await settled(connection, lambda: get_message(connection, stream, request))
    except JetStreamError as error:
        raise _unusable(stream, error) from error


async def _stream_info(connection: Connection, stream: str) -> "_StreamInfo":
    try:
        return await settled(connection, lambda: api(connection, f"STREAM.INFO.{stream}", kind=_StreamInfo))
    except JetStreamError as error:
        raise _unusable(stream, error) from error


def _state(info: "_StreamInfo") -> StreamState:
    try:
        end = Position(info.state.last_seq, nanoseconds(info.state.last_ts), nanoseconds(info.created))
    except ValueError as error:
        raise ServerUnusable(f"the server's times cannot be read: {error}") from error
    return StreamState(info.state.first_seq, end)


def _unusable(stream: str, error: JetStreamError) -> ServerUnusable:
    if error.code == STREAM_NOT_FOUND:
        return ServerUnusable(f"there is no stream {stream}; a manager creates it: 'jido-nats serve'")
    return ServerUnusable(f"the stream {stream} cannot be read: {error.description}")


class _State(msgspec.Struct):
    first_seq: int
    last_seq: int
    first_ts: str
    last_ts: str


class _Config(msgspec.Struct):
    max_age: int = 0


class _StreamInfo(msgspec.Struct):
    created: str
    state: _State
    config: _Config
    ts: str
