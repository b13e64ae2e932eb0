"""Read a stream from a position, without gaps or duplicates, across reconnects.

Consumers pull: the server sends only what was requested, so memory is bounded on this side. This module holds what
they share; `ordered` has the ephemeral consumer, `durable` the one that the server keeps.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Final, NamedTuple, Self, TypeVar

import msgspec

from jido_nats.broker import stream_info
from jido_nats.broker.connection import Connection, Message
from jido_nats.broker.jetstream import (
    CONSUMER_NOT_FOUND,
    CONSUMERS_EXHAUSTED,
    CONTENT_TYPE,
    JetStreamError,
    StoredMessage,
    api,
    settled,
)
from jido_nats.core import codec
from jido_nats.core.codec import Encoding
from jido_nats.core.position import Position
from jido_nats.errors import ConsumerLimitReached, ServerUnusable

BATCH: Final = 512
PULL_EXPIRES_S: Final = 20
HEARTBEAT_S: Final = 1
SILENCE_MAX_S: Final = 3.0
RECREATE_WAIT_S: Final = 0.2
NS_PER_S: Final = 1_000_000_000

log = logging.getLogger(__name__)

T = TypeVar("T")


class StreamMessage(NamedTuple):
    """One message of a stream; `pending`: how many more the stream had for this consumer at that time."""

    subject: str
    sequence: int
    data: bytes
    headers: dict[str, str]
    time_ns: int
    pending: int


class Start(NamedTuple):
    """Where to start: a JetStream deliver policy and its argument; `after`: the position that a reader resumes from."""

    policy: str = "all"
    sequence: int | None = None
    time: datetime | None = None
    after: Position | None = None

    def config(self) -> dict[str, Any]:
        """The corresponding fields of a consumer configuration."""
        config: dict[str, Any] = {"deliver_policy": self.policy}
        if self.sequence is not None:
            config["opt_start_seq"] = self.sequence
        if self.time is not None:
            config["opt_start_time"] = self.time
        return config

    @classmethod
    def at(cls, sequence: int) -> "Start":
        """From a sequence, inclusive."""
        return cls("by_start_sequence", max(1, sequence))

    @classmethod
    def following(cls, position: Position) -> "Start":
        """After a position; the reader verifies it first."""
        return cls("by_start_sequence", position.sequence + 1, after=position)


class Consumer(ABC):
    """What consumers share: a position in a stream, and filter subjects."""

    def __init__(self, connection: Connection, stream: str, filters: Sequence[str], start: Start) -> None:
        self._connection = connection
        self._stream = stream
        self._filters = list(filters)
        self._start = start
        # The sequence of the last message that was returned; 0 before the first.
        self.position = 0
        self.caught_up = False

    @abstractmethod
    async def __aenter__(self) -> Self: ...

    @abstractmethod
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def __aiter__(self) -> AsyncIterator[StreamMessage]:
        while True:
            yield await self.next()

    @property
    @abstractmethod
    def at(self) -> Position:
        """The position of the last message that was returned; before the first, that where the reader begins."""

    @abstractmethod
    async def next(self) -> StreamMessage:
        """The next message; waits without a timeout."""

    def take(self) -> StreamMessage | None:
        """The next message if it is already here; None if the caller has to wait for it with `next`."""
        return None

    async def check(self) -> None:
        """Raise `ServerUnusable` if the stream cannot be read at all."""
        await stream_info.check_stream(self._connection, self._stream)

    async def last_position(self) -> int:
        """The sequence of the stream's last message that matches the filters, at the leader; 0 if there is none."""
        positions = [
            await stream_info.last_position(self._connection, self._stream, subject) for subject in self._filters
        ]
        return max(positions, default=0)


def decoded(message: StreamMessage | StoredMessage, decode: Callable[[bytes, Encoding], T], complaint: str) -> T | None:
    """The decoded message; None if its type is unknown or, after logging the complaint, if it is malformed."""
    try:
        return decode(message.data, codec.encoding_of(message.headers.get(CONTENT_TYPE)))
    except codec.DecodeError as error:
        data = {"subject": message.subject, "sequence": message.sequence, "error": str(error)}
        log.warning(complaint, extra=data)
        return None


def status_of(message: Message) -> str | None:
    """The status of a pull request, such as `408`; None for a message of the stream."""
    if message.reply or message.data or not message.headers:
        return None
    return message.headers.get("Status")


def parse_ack_subject(reply: str) -> tuple[int, int, int, int]:
    """(stream sequence, consumer sequence, time in ns, pending) of a delivered message's reply subject.

    Raises `ValueError` for any other subject.

    ADR-15: `$JS.ACK.[<domain>.<account>.]<stream>.<consumer>.<delivered>.<sequence in the stream>.<in the
    consumer>.<time>.<pending>[.<token>]`.
    """
    tokens = reply.split(".")
    if not reply.startswith("$JS.ACK.") or len(tokens) < 9:
        raise ValueError(f"{reply!r} is not the reply subject of a consumer's message")
    if len(tokens) >= 11:
        del tokens[2:4]
    return int(tokens[5]), int(tokens[6]), int(tokens[7]), int(tokens[8])


async def pull(connection: Connection, stream: str, consumer: str, inbox: str, batch: int) -> None:
    """Request the next `batch` messages, to be sent to `inbox`."""
    request = {"batch": batch, "expires": PULL_EXPIRES_S * NS_PER_S, "idle_heartbeat": HEARTBEAT_S * NS_PER_S}
    subject = f"{connection.js_api_prefix}.CONSUMER.MSG.NEXT.{stream}.{consumer}"
    await connection.publish(subject, msgspec.json.encode(request), reply=inbox)


def filter_config(filters: list[str]) -> dict[str, Any]:
    """The fields of a consumer configuration that hold its filter subjects."""
    return {"filter_subject": filters[0]} if len(filters) == 1 else {"filter_subjects": filters}


async def create_consumer(
    connection: Connection, stream: str, config: dict[str, Any], filters: list[str], *, action: str = ""
) -> "ConsumerInfo":
    """Create a consumer, or find the same one existing; retries until there is an answer. `action`: as in the API.

    Raises `ConsumerLimitReached`, `ServerUnusable`.
    """
    suffix = f".{filters[0]}" if len(filters) == 1 else ""
    subject = f"CONSUMER.CREATE.{stream}.{config['name']}{suffix}"
    request = {"stream_name": stream, "config": config, "action": action}
    try:
        return await settled(connection, lambda: api(connection, subject, request, kind=ConsumerInfo))
    except JetStreamError as error:
        kind = ConsumerLimitReached if error.code in CONSUMERS_EXHAUSTED else ServerUnusable
        raise kind(f"the stream {stream} cannot be read: {error.description}") from error


async def delete_consumer(connection: Connection, stream: str, name: str) -> None:
    """Delete a consumer; does nothing if there is none. Raises `ServerUnusable`."""
    try:
        await settled(connection, lambda: api(connection, f"CONSUMER.DELETE.{stream}.{name}"))
    except JetStreamError as error:
        if error.code != CONSUMER_NOT_FOUND:
            raise ServerUnusable(f"the consumer {name} cannot be deleted: {error.description}") from error


class Delivered(msgspec.Struct, frozen=True):
    """How far a consumer has come: its own sequence, and that of the stream."""

    consumer_seq: int = 0
    stream_seq: int = 0


class ConsumerInfo(msgspec.Struct, frozen=True):
    """What the server reports about a consumer."""

    name: str
    created: str
    config: dict[str, Any]
    delivered: Delivered
    ack_floor: Delivered
    num_pending: int = 0
    num_ack_pending: int = 0
