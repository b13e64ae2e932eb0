"""Reading a stream from a position on, without a gap and without a repeat, through every reconnect.

Consumers pull: the server sends only what was asked for, so memory is bounded on this side. Here is what they share;
an ephemeral one is in `ordered`, one that the server keeps in `durable`.
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
from jido_nats.broker.jetstream import CONTENT_TYPE, api
from jido_nats.core import codec
from jido_nats.core.codec import Encoding

BATCH: Final = 512
PULL_EXPIRES_S: Final = 20
HEARTBEAT_S: Final = 1
SILENCE_MAX_S: Final = 3.0
RECREATE_WAIT_S: Final = 0.2
NS_PER_S: Final = 1_000_000_000

log = logging.getLogger(__name__)

T = TypeVar("T")


class StreamMessage(NamedTuple):
    """One message of a stream; `pending` says how many more the stream had for this consumer then."""

    subject: str
    sequence: int
    data: bytes
    headers: dict[str, str]
    time_ns: int
    pending: int


class Start(NamedTuple):
    """Where to begin: a JetStream deliver policy, and what it needs."""

    policy: str = "all"
    sequence: int | None = None
    time: datetime | None = None

    def config(self) -> dict[str, Any]:
        """The fields of a consumer configuration that say this."""
        config: dict[str, Any] = {"deliver_policy": self.policy}
        if self.sequence is not None:
            config["opt_start_seq"] = self.sequence
        if self.time is not None:
            config["opt_start_time"] = self.time
        return config

    @classmethod
    def at(cls, sequence: int) -> "Start":
        """From a sequence on, that message included."""
        return cls("by_start_sequence", max(1, sequence))


class Consumer(ABC):
    """What consumers share: a position in a stream, on some subjects."""

    def __init__(self, connection: Connection, stream: str, filters: Sequence[str], start: Start) -> None:
        self._connection = connection
        self._stream = stream
        self._filters = list(filters)
        self._start = start
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

    @abstractmethod
    async def next(self) -> StreamMessage:
        """The next message; waits for it as long as it takes."""

    def take(self) -> StreamMessage | None:
        """The next message where it can be had at once; None where it has to be waited for, with `next`."""
        return None

    async def check(self) -> None:
        """`ServerUnusable` where its stream cannot be read at all."""
        await stream_info.check_stream(self._connection, self._stream)

    async def last_position(self) -> int:
        """The sequence of the last message there is for this consumer now, at the leader; 0 for none."""
        positions = [
            await stream_info.last_position(self._connection, self._stream, subject) for subject in self._filters
        ]
        return max(positions, default=0)


def decoded(message: StreamMessage, decode: Callable[[bytes, Encoding], T], complaint: str) -> T | None:
    """What a message says; None for what is not known here, and, logging the complaint, for what is malformed."""
    try:
        return decode(message.data, codec.encoding_of(message.headers.get(CONTENT_TYPE)))
    except codec.DecodeError as error:
        data = {"subject": message.subject, "sequence": message.sequence, "error": str(error)}
        log.warning(complaint, extra=data)
        return None


def status_of(message: Message) -> str | None:
    """What the server says about a pull request, such as `408`; None for a message of the stream."""
    if message.reply or message.data or not message.headers:
        return None
    return message.headers.get("Status")


def parse_ack_subject(reply: str) -> tuple[int, int, int, int]:
    """(stream sequence, consumer sequence, time in ns, pending) of a delivered message's reply subject.

    ADR-15: `$JS.ACK.[<domain>.<account>.]<stream>.<consumer>.<delivered>.<sequence in the stream>.<in the
    consumer>.<time>.<pending>[.<token>]`.
    """
    tokens = reply.split(".")
    if len(tokens) >= 11:
        del tokens[2:4]
    return int(tokens[5]), int(tokens[6]), int(tokens[7]), int(tokens[8])


async def pull(connection: Connection, stream: str, consumer: str, inbox: str, batch: int) -> None:
    """Ask for the next `batch` messages, to be sent to `inbox`."""
    request = {"batch": batch, "expires": PULL_EXPIRES_S * NS_PER_S, "idle_heartbeat": HEARTBEAT_S * NS_PER_S}
    await connection.publish(
        f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}", msgspec.json.encode(request), reply=inbox
    )


def filter_config(filters: list[str]) -> dict[str, Any]:
    """The fields of a consumer configuration that name its subjects."""
    return {"filter_subject": filters[0]} if len(filters) == 1 else {"filter_subjects": filters}


async def create_consumer(
    connection: Connection, stream: str, config: dict[str, Any], filters: list[str]
) -> dict[str, Any]:
    """Make a consumer, or find it as it is; the API's answer."""
    suffix = f".{filters[0]}" if len(filters) == 1 else ""
    return await api(
        connection,
        f"CONSUMER.CREATE.{stream}.{config['name']}{suffix}",
        {"stream_name": stream, "config": config, "action": ""},
    )
