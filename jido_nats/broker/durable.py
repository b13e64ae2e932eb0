"""A durable consumer: the server keeps it, and it resumes where its last reader stopped.

One message is outstanding at a time, so that after a reader was killed the next one gets the same message again,
and none out of order. An acknowledgement may be lost, so that a message comes twice: only such a message is dropped.
Whatever else the server delivers is returned, also if its sequence was seen before: then an operator has reset the
consumer, or the server came back with an older store.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final, Self

from jido_nats.broker.clock import boottime
from jido_nats.broker.connection import Connection, Message, Subscription
from jido_nats.broker.consumer import (
    BATCH,
    NS_PER_S,
    RECREATE_WAIT_S,
    SILENCE_MAX_S,
    Consumer,
    ConsumerInfo,
    Start,
    StreamMessage,
    create_consumer,
    filter_config,
    parse_ack_subject,
    pull,
    status_of,
)
from jido_nats.broker.jetstream import CONSUMER_NOT_FOUND, JetStreamError, api, settled
from jido_nats.broker.retention import RetentionGuard
from jido_nats.broker.stream_info import StreamState, check_position, stream_state
from jido_nats.core.position import Position, is_position_token, parse_position
from jido_nats.errors import (
    ConfigurationError,
    ConsumerNotFound,
    JidoError,
    NotAllowed,
    NotSent,
    OutcomeUnknown,
    PositionUnavailable,
    ServerUnusable,
)

ACK_WAIT_S: Final = 6
# How many messages are read between two looks at the retention, and how near to its edge each one needs its own.
LOOK_EVERY: Final = 64
EDGE: Final = 1024
# A message that is acknowledged within this time does not keep the server from delivering the next one.
PROMPT_S: Final = 0.5
# The key of the consumer's metadata with the position up to which its reader has everything, and how often to store it.
READ_THROUGH: Final = "jido_read_through"
RECORD_EVERY_S: Final = 60.0
RECORD_TIMEOUT_S: Final = 2.0
# An operator who makes a consumer again deletes it first.
GONE_WAIT_S: Final = 2.0

log = logging.getLogger(__name__)


class DurableConsumer(Consumer):
    """A durable consumer, read in order; `next` acknowledges the previous message. Async context manager.

    Raises `PositionUnavailable` if the stream has removed messages that were not delivered yet, also while nobody
    read; `ConsumerNotFound` if the consumer is deleted; `ConfigurationError` if it exists with other filters.
    """

    def __init__(self, connection: Connection, stream: str, durable: str, filters: Sequence[str], start: Start) -> None:
        super().__init__(connection, stream, filters, start)
        self._durable = durable
        self._inbox: Subscription | None = None
        self._queue: deque[Message] = deque()
        self._arrived = asyncio.Event()
        self._unacknowledged: Message | None = None
        self._outstanding = 0
        # When the server last sent anything, or was last sent a request.
        self._alive_at = boottime()
        self._tasks: list[asyncio.Task[None]] = []
        self._created = ""
        self._at = Position(0)
        self._consumer_sequence = 0
        self._returned_at = boottime()
        self._is_live = False
        self._reconnected = False
        self._server_id = ""
        # The server was restarted: it may have forgotten several acknowledgements.
        self._acks_in_doubt = False
        self._retention = RetentionGuard(connection, stream)
        self._since_look = 0
        self._first = 0  # sequence of the stream, at the last look

    @property
    def at(self) -> Position:
        """See `Consumer.at`."""
        return self._at

    async def __aenter__(self) -> Self:
        info = await self._open()
        self._created, self._server_id = info.created, self._connection.server_id
        self.caught_up = info.num_pending == 0 and info.num_ack_pending == 0
        self._inbox = await self._connection.subscribe(self._connection.new_inbox(), self._on_message)
        self._connection.on_up(self._on_up)
        for work in (self._keep_alive, self._keep_recorded):
            self._tasks.append(asyncio.create_task(work(), name=f"durable {self._durable}: {work.__name__}"))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.off_up(self._on_up)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._unacknowledged is None:
            await self._wait_for_delivery()
        if self._inbox is not None:
            await self._inbox.unsubscribe()
        with contextlib.suppress(NotSent, OutcomeUnknown, NotAllowed):
            await self._connection.flush()
        await self._answer(b"-NAK")  # redelivered at once, to the next reader: nobody listens here any more
        for message in self._queue:
            if message.reply:
                self._unacknowledged = message
                await self._answer(b"-NAK")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RECORD_TIMEOUT_S):
                await self._record()

    async def next(self) -> StreamMessage:
        """Acknowledge the previous message, and wait for the next."""
        self._is_live = self.caught_up and boottime() - self._returned_at < PROMPT_S
        await self._answer(b"+ACK")
        while True:
            message = await self._arrival()
            if (status := status_of(message)) is not None:
                self._queue.popleft()
                await self._on_status(status)
                continue
            try:
                sequence, consumer_sequence, time_ns, pending = parse_ack_subject(message.reply)
            except ValueError:  # it is not from a consumer: another client has published to this inbox
                self._queue.popleft()
                continue
            await self._check_complete(sequence)  # it stays in the queue: the caller may be cancelled here
            self._unacknowledged = self._queue.popleft()
            self._outstanding -= 1
            if self._is_repeat(sequence, consumer_sequence, time_ns):
                await self._answer(b"+ACK")
                continue
            self.position, self._returned_at = sequence, boottime()
            self._at = Position(sequence, time_ns, self._at.created_ns)
            self.caught_up = pending == 0
            return StreamMessage(message.subject, sequence, message.data, message.headers or {}, time_ns, pending)

    async def acknowledge(self) -> None:
        """Acknowledge the last message, and wait for the server to confirm it."""
        message, self._unacknowledged = self._unacknowledged, None
        if message is not None:
            with contextlib.suppress(NotSent, OutcomeUnknown):  # then it is redelivered, and recognized
                await self._connection.request(message.reply, b"+ACK")

    def _is_repeat(self, sequence: int, consumer_sequence: int, time_ns: int) -> bool:
        """Whether a message was returned before, and comes again because its acknowledgement was lost.

        A consumer that was reset or made again counts from 1 again: then whatever it delivers is wanted. A server that
        was restarted may have forgotten the acknowledgements, and its count with them.
        """
        if consumer_sequence == 1 and self._consumer_sequence and not self._acks_in_doubt:
            self._start_over()
        self._consumer_sequence = consumer_sequence
        is_repeat = sequence <= self.position and time_ns <= self._at.stored_ns
        self._acks_in_doubt = self._acks_in_doubt and is_repeat
        return is_repeat

    def _start_over(self) -> None:
        """The consumer was reset or made again: nothing that it delivers is a repeat."""
        log.warning("the durable consumer was reset or made again", extra={"durable": self._durable})
        self.position, self._at = 0, Position(0, 0, self._at.created_ns)
        self._retention.through, self._consumer_sequence, self._acks_in_doubt = 0, 0, False

    async def _check_complete(self, sequence: int) -> None:
        """Raise `PositionUnavailable` if the stream may have removed messages between the last one and this one."""
        through, self._since_look = self._retention.through, self._since_look + 1
        if not through or self._is_live or sequence <= through + 1:
            self._retention.through = max(through, sequence)
        elif self._since_look >= LOOK_EVERY or through <= self._first + EDGE:
            state = await stream_state(self._connection, self._stream)
            self._retention.check(through, state)
            self._retention.through, self._first, self._since_look = sequence, state.first, 0

    async def _arrival(self) -> Message:
        """The first message of the queue, once there is one."""
        while not self._queue or self._reconnected:
            if self._reconnected:
                await self._examine()
                continue
            if self._outstanding <= 0:
                await self._pull()
            self._arrived.clear()
            try:
                async with asyncio.timeout(self._alive_at + SILENCE_MAX_S - boottime()):
                    await self._arrived.wait()
            except TimeoutError:
                await self._examine()
        return self._queue[0]

    async def _pull(self) -> None:
        assert self._inbox is not None
        try:
            await pull(self._connection, self._stream, self._durable, self._inbox.subject, BATCH)
            self._alive_at, self._outstanding = boottime(), BATCH
        except NotSent:
            await self._connection.wait_up()

    async def _on_status(self, status: str) -> None:
        if status == "100":
            return
        self._outstanding = 0
        if status not in ("404", "408"):
            await self._examine()
            await asyncio.sleep(RECREATE_WAIT_S)

    async def _examine(self) -> None:
        """After an interruption: the consumer may be gone, made again or reset, and the stream another one."""
        self._reconnected = False
        info = await self._info_soon()
        if self._connection.server_id != self._server_id:
            self._server_id, self._acks_in_doubt = self._connection.server_id, True
        if info.created != self._created:
            self._created = info.created
            self._start_over()
        await self._check_life(info)
        self._alive_at, self._outstanding = boottime(), 0

    async def _info_soon(self) -> ConsumerInfo:
        """As `_info`; waits a moment for a consumer that is just being made again."""
        deadline = boottime() + GONE_WAIT_S
        while True:
            try:
                return await self._info()
            except ConsumerNotFound:
                if boottime() > deadline:
                    raise
                await asyncio.sleep(RECREATE_WAIT_S)

    async def _wait_for_delivery(self) -> None:
        """Wait for a message that the server is just sending here, so that it can be returned to it.

        Otherwise the next reader would have to wait for it until the server's ack wait is over.
        """
        with contextlib.suppress(JidoError, TimeoutError):
            async with asyncio.timeout(PROMPT_S):
                while self._outstanding > 0 and not any(message.reply for message in self._queue):
                    self._arrived.clear()
                    info = await self._info()
                    if not info.num_pending and not info.num_ack_pending:
                        return
                    await self._arrived.wait()

    async def _check_life(self, info: ConsumerInfo) -> None:
        """Raise `PositionUnavailable` if the stream has removed messages while nothing could be delivered."""
        try:
            state = await check_position(self._connection, self._stream, self._at)
        except PositionUnavailable as error:
            log.warning("the stream is not what it was", extra={"durable": self._durable, "error": str(error)})
            state = await stream_state(self._connection, self._stream)
            self._retention.through = min(self._retention.through, info.ack_floor.stream_seq, state.last)
            self._at = self._at._replace(created_ns=state.end.created_ns)
        if self._retention.through:
            self._retention.check(self._retention.through, state)

    async def _open(self) -> ConsumerInfo:
        """Find the consumer, or create it; then check that nothing was removed while nobody read it."""
        state = await check_position(self._connection, self._stream, self._start.after or Position(0))
        config = {
            "name": self._durable,
            "durable_name": self._durable,
            "ack_policy": "explicit",
            "ack_wait": ACK_WAIT_S * NS_PER_S,
            "max_ack_pending": 1,
            **filter_config(self._filters),
        }
        try:
            info = await self._info()
        except ConsumerNotFound:
            config |= self._start.config() | {"metadata": self._first_metadata(state)}
            info = await create_consumer(self._connection, self._stream, config, self._filters)
        self._check_same_config(config, info.config)
        self.position = info.ack_floor.stream_seq
        self._at = Position(self.position, 0, state.end.created_ns)
        self._retention.through = max(self.position, _read_through(info, state))
        if self._retention.through:
            self._retention.check(self._retention.through, state)
        return info

    def _first_metadata(self, state: StreamState) -> dict[str, str]:
        """What the metadata of a new consumer says about where it begins."""
        match self._start.policy:
            case "new":
                before = state.last
            case "all":
                before = state.first - 1
            case "by_start_sequence":
                before = (self._start.sequence or 1) - 1
            case _:
                return {}
        return {READ_THROUGH: Position(before, 0, state.end.created_ns).token}

    def _check_same_config(self, wanted: dict[str, Any], found: dict[str, Any]) -> None:
        """Raise `ConfigurationError` if the durable of that name has other filters or another ack policy."""
        fields = ("filter_subject", "filter_subjects", "ack_policy", "max_ack_pending")
        differing = [f"{name} {found.get(name)!r}" for name in fields if found.get(name) != wanted.get(name)]
        if differing:
            raise ConfigurationError(
                f"the durable consumer {self._durable} exists with another configuration ({', '.join(differing)}); "
                f"choose another name, or delete it: nats consumer rm {self._stream} {self._durable}"
            )

    async def _info(self) -> ConsumerInfo:
        """Raises `ConsumerNotFound`, `ServerUnusable`."""
        subject = f"CONSUMER.INFO.{self._stream}.{self._durable}"
        try:
            return await settled(self._connection, lambda: api(self._connection, subject, kind=ConsumerInfo))
        except JetStreamError as error:
            if error.code == CONSUMER_NOT_FOUND:
                raise ConsumerNotFound(self._stream, self._durable) from error
            raise ServerUnusable(f"the durable consumer {self._durable} cannot be read: {error.description}") from error

    async def _record(self) -> None:
        """If nothing is left to read: store with the consumer up to where its reader has everything.

        Without that a week of silence, after which the stream has removed its last messages, would look like a loss.
        """
        with contextlib.suppress(JidoError):
            state = await stream_state(self._connection, self._stream)
            info = await self._info()
            if info.num_pending or info.num_ack_pending or _read_through(info, state) == state.last:
                return
            metadata = info.config.get("metadata", {}) | {READ_THROUGH: state.end.token}
            config = info.config | {"metadata": metadata}
            await create_consumer(self._connection, self._stream, config, self._filters, action="update")
            self._retention.through = max(self._retention.through, state.last)

    async def _answer(self, answer: bytes) -> None:
        message, self._unacknowledged = self._unacknowledged, None
        if message is None:
            return
        with contextlib.suppress(NotSent):  # then it is redelivered, and recognized by its sequence
            await self._connection.publish(message.reply, answer)

    async def _keep_alive(self) -> None:
        """Report to the server that the current message is still in progress."""
        while True:
            await asyncio.sleep(ACK_WAIT_S / 3)
            if self._unacknowledged is not None:
                with contextlib.suppress(NotSent):
                    await self._connection.publish(self._unacknowledged.reply, b"+WPI")

    async def _keep_recorded(self) -> None:
        """Store from time to time up to where the reader has everything: it may be killed."""
        while True:
            await asyncio.sleep(RECORD_EVERY_S)
            await self._record()

    def _on_message(self, message: Message) -> None:
        self._alive_at = boottime()
        self._queue.append(message)
        self._arrived.set()

    def _on_up(self) -> None:
        self._outstanding, self._reconnected = 0, True
        self._arrived.set()


def _read_through(info: ConsumerInfo, state: StreamState) -> int:
    """Up to where an earlier reader had everything, as it stored with the consumer; 0 if that is not known."""
    text = str(info.config.get("metadata", {}).get(READ_THROUGH, ""))
    if not is_position_token(text):
        return 0
    position = parse_position(text)
    return position.sequence if position.created_ns == state.end.created_ns and position.sequence <= state.last else 0
