"""Reading a stream from a position on, without a gap and without a repeat, through every reconnect.

Consumers pull: the server sends only what was asked for, so memory is bounded on this side.
An ordered consumer is an ephemeral that is made again behind the last message seen whenever anything is
in doubt (a reconnect, a missed heartbeat, a gap in the consumer's own sequence, a deleted consumer).
A durable one is in `durable`.
"""

import asyncio
import contextlib
import itertools
import logging
import math
import secrets
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Final, NamedTuple, Self, TypeVar

import msgspec
from nats.aio.msg import Msg

from jido_nats.broker.clock import boottime
from jido_nats.broker.connection import Connection, Subscription
from jido_nats.broker.jetstream import (
    CONTENT_TYPE,
    STREAM_NOT_FOUND,
    JetStreamError,
    api,
    last_message,
    settled,
)
from jido_nats.core import codec
from jido_nats.core.codec import Encoding
from jido_nats.errors import NoResponders, NotSent, OutcomeUnknown, PositionTooOld, ServerUnusable

BATCH: Final = 512
PULL_EXPIRES_S: Final = 20
HEARTBEAT_S: Final = 1
SILENCE_MAX_S: Final = 3.0
INACTIVE_S: Final = 30
RECREATE_WAIT_S: Final = 0.2
CHECK_ATTEMPTS: Final = 5
_NS: Final = 1_000_000_000

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


async def last_position(connection: Connection, stream: str, subject: str) -> int:
    """The sequence of the last message there is on a subject (wildcards allowed), at the leader; 0 for none.

    Unlike the stream's last sequence, which may have expired, whoever reads on gets to this one.
    """
    message = await settled(connection, lambda: last_message(connection, stream, subject))
    return 0 if message is None else message.sequence


async def check_stream(connection: Connection, stream: str) -> None:
    """`ServerUnusable` where there is no JetStream or no such stream; a server that is just starting is waited for."""
    for attempt in range(CHECK_ATTEMPTS):
        try:
            await api(connection, f"STREAM.INFO.{stream}")
            return
        except NoResponders as error:
            if attempt == CHECK_ATTEMPTS - 1:
                raise ServerUnusable("the NATS server has no JetStream: start it with -js") from error
            await asyncio.sleep(RECREATE_WAIT_S)
        except JetStreamError as error:
            if error.code == STREAM_NOT_FOUND:
                raise ServerUnusable(f"there is no stream {stream}; a manager makes it: 'jido-nats serve'") from error
            raise ServerUnusable(f"the stream {stream} cannot be read: {error.description}") from error
        except (NotSent, OutcomeUnknown):
            await connection.wait_up()
            return


async def stream_state(connection: Connection, stream: str) -> tuple[int, int]:
    """The first and last sequence of a stream, as its leader knows them."""
    state = (await _stream_info(connection, stream))["state"]
    return state["first_seq"], state["last_seq"]


async def stream_memory(connection: Connection, stream: str) -> tuple[int, datetime]:
    """What the stream still has: (its first sequence, a moment before which all was removed by age).

    Where nothing is removed by age, the moment is that of the first message.
    """
    info = await _stream_info(connection, stream)
    first, now = (codec.decode(b'"%s"' % at.encode(), datetime) for at in (info["state"]["first_ts"], info["ts"]))
    age_max = timedelta(microseconds=info["config"].get("max_age", 0) / 1000)
    return info["state"]["first_seq"], min(first, now - age_max) if age_max else first


async def _stream_info(connection: Connection, stream: str) -> dict[str, Any]:
    return await settled(connection, lambda: api(connection, f"STREAM.INFO.{stream}"))


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
        await check_stream(self._connection, self._stream)

    async def last_position(self) -> int:
        """The sequence of the last message there is for this consumer now, at the leader; 0 for none."""
        return max(
            [await last_position(self._connection, self._stream, subject) for subject in self._filters], default=0
        )


class OrderedConsumer(Consumer):
    """Every message of a stream on some subjects, in order, once; an async context manager and iterator.

    `strict`: raise `PositionTooOld` where the stream has lost messages behind the last one seen
    (a bucket loses superseded entries all the time and is read without). `silence_max_s`: raise it also after
    hearing nothing for longer, when the marker of an entry that expired may have gone as well. `linger_s`: how long
    messages are gathered after the first one, so that a reader who is in no hurry wakes once for many.
    """

    def __init__(
        self,
        connection: Connection,
        stream: str,
        filters: Sequence[str],
        start: Start,
        *,
        strict: bool = False,
        headers_only: bool = False,
        silence_max_s: float = math.inf,
        linger_s: float = 0.0,
    ) -> None:
        super().__init__(connection, stream, filters, start)
        self._linger_s = linger_s
        self._strict = strict
        self._headers_only = headers_only
        self._silence_max_s = silence_max_s
        self._heard_at = boottime()
        # When the consumer last showed a sign of life, or was asked for one.
        self._alive_at = boottime()
        self._name = ""
        self._names = (f"ordered_{secrets.token_hex(6)}_{n}" for n in itertools.count(1))
        self._inbox: Subscription | None = None
        self._queue: deque[Msg] = deque()
        self._arrived = asyncio.Event()
        self._expected = 1
        self._outstanding = 0
        self._broken = False
        self._recreating: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._connection.on_up(self._on_up)
        try:
            if self._start.policy == "new":
                self._start = Start.at((await stream_state(self._connection, self._stream))[1] + 1)
            await self._create()
        except BaseException:
            await self._leave()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._leave()

    async def next(self) -> StreamMessage:
        """The next message; waits for it as long as it takes. Whoever gives up waiting may ask again."""
        if self._recreating is not None:
            await self._recreate()  # which an earlier call began
        while True:
            message = await self._next_message()
            if message is None:
                await self._recreate()
            elif (delivered := self._accept(message)) is not None:
                return delivered

    def take(self) -> StreamMessage | None:
        """See `Consumer.take`: what is here already."""
        while self._queue and not self._broken and self._recreating is None and self._outstanding > BATCH // 2:
            if (delivered := self._accept(self._queue.popleft())) is not None:
                return delivered
        return None

    async def _next_message(self) -> Msg | None:
        """A message, or None when the consumer has to be made again."""
        while not self._queue:
            if self._broken:
                return None
            await self._refill()
            self._arrived.clear()
            try:
                async with asyncio.timeout(self._alive_at + SILENCE_MAX_S - boottime()):
                    await self._arrived.wait()
            except TimeoutError:
                return None
            if self._linger_s:
                await asyncio.sleep(self._linger_s)
        if self._broken:
            return None
        await self._refill()  # the next come while these are read
        return self._queue.popleft()

    async def _refill(self) -> None:
        if self._outstanding > BATCH // 2:
            return
        batch = BATCH - self._outstanding
        self._outstanding += batch
        self._alive_at = boottime()
        assert self._inbox is not None
        try:
            await pull(self._connection, self._stream, self._name, self._inbox.subject, batch)
        except NotSent:
            self._broken = True

    def _accept(self, message: Msg) -> StreamMessage | None:
        if (status := status_of(message)) is not None:
            self._on_status(status, message.headers or {})
            return None
        sequence, consumer_sequence, time_ns, pending = parse_ack_subject(message.reply)
        if consumer_sequence != self._expected:
            self._broken = True
            return None
        self._expected += 1
        self._outstanding -= 1
        self.position = max(self.position, sequence)
        self.caught_up = self.caught_up or pending == 0
        return StreamMessage(message.subject, sequence, message.data, message.headers or {}, time_ns, pending)

    def _on_status(self, status: str, headers: dict[str, str]) -> None:
        if status == "100":
            return
        if status in ("404", "408"):  # one request has ended; what it did not get is no longer outstanding
            self._outstanding = max(0, self._outstanding - int(headers.get("Nats-Pending-Messages", BATCH)))
            return
        self._broken = True

    async def _recreate(self) -> None:
        """Make the consumer again, in a task of its own: a reader who gives up waiting does not begin it anew."""
        making = self._recreating
        if making is None:
            making = self._recreating = asyncio.create_task(
                self._make_again(), name=f"recreate a consumer of {self._stream}"
            )
        await asyncio.wait({making})
        if self._recreating is making:
            self._recreating = None
        making.result()

    async def _make_again(self) -> None:
        self._broken = True
        await self._drop()
        await asyncio.sleep(RECREATE_WAIT_S)
        await self._connection.wait_up()
        if boottime() - self._heard_at > self._silence_max_s:
            raise PositionTooOld(self.position, None, None)
        if self.position:
            self._start = Start.at(self.position + 1)
        await self._create()

    async def _create(self) -> None:
        await self._check_position()
        self._name = next(self._names)
        self._queue.clear()
        self._expected, self._outstanding, self._broken = 1, 0, False
        self._inbox = await self._connection.subscribe(self._connection.new_inbox(), self._on_message)
        config = {
            "name": self._name,
            "ack_policy": "none",
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": INACTIVE_S * _NS,
            "headers_only": self._headers_only,
            **filter_config(self._filters),
            **self._start.config(),
        }
        created = await settled(
            self._connection, lambda: create_consumer(self._connection, self._stream, config, self._filters)
        )
        # The consumer may live on a replica that is behind: this proves nothing about the leader's last message.
        self.caught_up = self.caught_up or created["num_pending"] == 0
        self._alive_at = boottime()

    async def _check_position(self) -> None:
        wanted = self._start.sequence
        if not self._strict or wanted is None:
            return
        first, last = await stream_state(self._connection, self._stream)
        # One that had caught up lost nothing but what came and expired while it was away, other subjects' mostly.
        if wanted > last + 1 or (wanted < first and not self.caught_up):
            raise PositionTooOld(wanted, first, last)

    async def _leave(self) -> None:
        self._connection.off_up(self._on_up)
        try:
            if self._recreating is not None:
                self._recreating.cancel()
                await asyncio.gather(self._recreating, return_exceptions=True)
        finally:
            await self._drop()

    async def _drop(self) -> None:
        inbox, self._inbox = self._inbox, None
        if inbox is not None:
            await inbox.unsubscribe()
        name, self._name = self._name, ""
        if not name:
            return
        with contextlib.suppress(NotSent):  # else the server drops it after INACTIVE_S
            await self._connection.publish(
                f"$JS.API.CONSUMER.DELETE.{self._stream}.{name}", reply=self._connection.new_inbox()
            )

    def _on_message(self, message: Msg) -> None:
        self._heard_at = self._alive_at = boottime()
        self._queue.append(message)
        self._arrived.set()

    def _on_up(self) -> None:
        self._broken = True
        self._arrived.set()


def decoded(message: StreamMessage, decode: Callable[[bytes, Encoding], T], complaint: str) -> T | None:
    """What a message says; None for what is not known here, and, with the complaint in the log, for what is none."""
    try:
        return decode(message.data, codec.encoding_of(message.headers.get(CONTENT_TYPE)))
    except codec.DecodeError as error:
        data = {"subject": message.subject, "sequence": message.sequence, "error": str(error)}
        log.warning(complaint, extra=data)
        return None


def status_of(message: Msg) -> str | None:
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
    request = {"batch": batch, "expires": PULL_EXPIRES_S * _NS, "idle_heartbeat": HEARTBEAT_S * _NS}
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
