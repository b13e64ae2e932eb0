"""An ordered consumer: an ephemeral consumer that is recreated whenever a message may have been missed.

That is after a reconnect, a missed heartbeat, a gap in the consumer sequence, or the deletion of the consumer. It
resumes after the last message delivered, if the stream is still the one that it was: a server may come back with an
older store.
"""

import asyncio
import contextlib
import itertools
import math
import secrets
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

from jido_nats.broker.clock import boottime
from jido_nats.broker.connection import Connection, Message, Subscription
from jido_nats.broker.consumer import (
    BATCH,
    NS_PER_S,
    RECREATE_WAIT_S,
    SILENCE_MAX_S,
    Consumer,
    Start,
    StreamMessage,
    create_consumer,
    filter_config,
    parse_ack_subject,
    pull,
    status_of,
)
from jido_nats.broker.life import RecentChanges, StreamLife
from jido_nats.broker.retention import RetentionGuard
from jido_nats.core.position import Position
from jido_nats.errors import NotSent, PositionUnavailable

INACTIVE_S: Final = 30
# The status of a heartbeat.
HEARTBEAT: Final = "100"


class OrderedConsumer(Consumer):
    """Every message of a stream on some subjects, in order, once; an async context manager and iterator.

    `next` raises `PositionUnavailable` if the stream is no longer the one that it was: deleted and made again, or
    restored from an older backup. `strict`: raise it also if the stream has removed messages before they were
    received. `recent`: given if the stream keeps only the last message of each subject (a bucket), so that it cannot
    be read strictly. `silence_max_s`: raise it also after receiving nothing for longer, since the marker of an expired
    entry may have expired as well. `linger_s`: how long to gather messages after the first one, so that a reader that
    is in no hurry wakes once for many.
    """

    def __init__(
        self,
        connection: Connection,
        stream: str,
        filters: Sequence[str],
        start: Start,
        *,
        strict: bool = False,
        recent: RecentChanges | None = None,
        headers_only: bool = False,
        silence_max_s: float = math.inf,
        linger_s: float = 0.0,
    ) -> None:
        super().__init__(connection, stream, filters, start)
        self._linger_s = linger_s
        self._strict = strict
        self._life = StreamLife(connection, stream, recent=recent)
        self._retention = RetentionGuard(connection, stream)
        self._headers_only = headers_only
        self._silence_max_s = silence_max_s
        self._received_at = boottime()
        # When the consumer last sent anything, or was last sent a request.
        self._alive_at = boottime()
        self._name = ""
        self._names = (f"ordered_{secrets.token_hex(6)}_{n}" for n in itertools.count(1))
        self._inbox: Subscription | None = None
        self._queue: deque[Message] = deque()
        self._arrived = asyncio.Event()
        self._expected = 1
        self._outstanding = 0
        self._broken = False
        self._recreating: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._connection.on_up(self._on_up)
        try:
            self._start, state = await self._life.begin(self._start)
            if self._strict and self._start.sequence is not None:
                self._retention.opened(self._start.sequence - 1, state)
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
        """The next message; waits without a timeout. A caller that was cancelled may call it again."""
        if self._recreating is not None:
            await self._recreate()  # begun by an earlier call
        while True:
            message = await self._next_message()
            if message is None:
                await self._recreate()
            elif (delivered := self._accept(message)) is not None:
                return delivered

    @property
    def at(self) -> Position:
        """See `Consumer.at`."""
        return self._life.at

    def take(self) -> StreamMessage | None:
        """See `Consumer.take`."""
        if self._retention.pending:
            return None
        while self._queue and not self._broken and self._recreating is None and self._outstanding > BATCH // 2:
            if (delivered := self._accept(self._queue.popleft())) is not None:
                return delivered
        return None

    async def _next_message(self) -> Message | None:
        """A message, or None if the consumer has to be recreated."""
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
        if self._retention.pending:
            await self._retention.settle()
        if self._broken:
            return None
        await self._refill()  # the next ones arrive while these are read
        return self._queue.popleft()

    async def _refill(self) -> None:
        if self._outstanding > BATCH // 2:
            return
        batch = BATCH - self._outstanding
        if self._strict:
            first = self._expected + self._outstanding
            self._retention.pulled(first, ended_at=None if self._outstanding else self.position)
        self._outstanding += batch
        self._alive_at = boottime()
        assert self._inbox is not None
        try:
            await pull(self._connection, self._stream, self._name, self._inbox.subject, batch)
        except NotSent:
            self._broken = True

    def _accept(self, message: Message) -> StreamMessage | None:
        if (status := status_of(message)) is not None:
            self._on_status(status, message.headers or {})
            return None
        try:
            sequence, consumer_sequence, time_ns, pending = parse_ack_subject(message.reply)
        except ValueError:
            return None  # it is not from a consumer: another client has published to this inbox
        if consumer_sequence != self._expected:
            self._broken = True
            return None
        self._expected += 1
        self._outstanding -= 1
        self.position = sequence
        self._life.passed(message.subject, sequence, time_ns)
        self.caught_up = self.caught_up or pending == 0
        return StreamMessage(message.subject, sequence, message.data, message.headers or {}, time_ns, pending)

    def _on_status(self, status: str, headers: dict[str, str]) -> None:
        if status == HEARTBEAT:
            self._retention.idle()
            return
        if status in ("404", "408"):  # one pull has ended; what it did not deliver is no longer outstanding
            self._outstanding = max(0, self._outstanding - int(headers.get("Nats-Pending-Messages", BATCH)))
            return
        self._broken = True

    async def _recreate(self) -> None:
        """Recreate the consumer, in a task of its own, so that a reader that is cancelled does not restart it."""
        task = self._recreating
        if task is None:
            task = self._recreating = asyncio.create_task(
                self._drop_and_create(), name=f"recreate a consumer of {self._stream}"
            )
        await asyncio.wait({task})
        if self._recreating is task:
            self._recreating = None
        task.result()

    async def _drop_and_create(self) -> None:
        self._broken = True
        await self._retention.close()
        await self._drop()
        await asyncio.sleep(RECREATE_WAIT_S)
        await self._connection.wait_up()
        if boottime() - self._received_at > self._silence_max_s:
            raise PositionUnavailable(self.position, None, None)
        state = await self._life.check()
        if self._strict and (self.position or self._start.sequence is not None):
            self._retention.check(max(self._life.at.sequence, self._retention.through), state)
        if self.position:
            self._start = Start.at(self.position + 1)
        await self._create()

    async def _create(self) -> None:
        self._name = next(self._names)
        self._queue.clear()
        self._retention.began(None if self._start.sequence is None else self._start.sequence - 1)
        self._expected, self._outstanding, self._broken = 1, 0, False
        self._inbox = await self._connection.subscribe(self._connection.new_inbox(), self._on_message)
        config = {
            "name": self._name,
            "ack_policy": "none",
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": INACTIVE_S * NS_PER_S,
            "headers_only": self._headers_only,
            **filter_config(self._filters),
            **self._start.config(),
        }
        created = await create_consumer(self._connection, self._stream, config, self._filters)
        # The consumer may be on a replica that lags: this proves nothing about the leader's last message.
        self.caught_up = self.caught_up or created.num_pending == 0
        self._alive_at = boottime()

    async def _leave(self) -> None:
        self._connection.off_up(self._on_up)
        try:
            if self._recreating is not None:
                self._recreating.cancel()
                await asyncio.gather(self._recreating, return_exceptions=True)
        finally:
            await self._retention.close()
            await self._drop()

    async def _drop(self) -> None:
        inbox, self._inbox = self._inbox, None
        if inbox is not None:
            await inbox.unsubscribe()
        name, self._name = self._name, ""
        if not name:
            return
        with contextlib.suppress(NotSent):  # then the server removes it after INACTIVE_S
            subject = f"{self._connection.js_api_prefix}.CONSUMER.DELETE.{self._stream}.{name}"
            await self._connection.publish(subject, reply=self._connection.new_inbox())

    def _on_message(self, message: Message) -> None:
        self._received_at = self._alive_at = boottime()
        if self._strict and message.reply.startswith("$JS.ACK."):
            self._retention.received(message.reply)
        elif self._strict and status_of(message) == HEARTBEAT:
            self._retention.heartbeat()
        self._queue.append(message)
        self._arrived.set()

    def _on_up(self) -> None:
        self._broken = True
        self._arrived.set()
