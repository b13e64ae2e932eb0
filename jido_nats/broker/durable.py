"""A durable consumer: the server keeps it, and it resumes where its last reader stopped.

One message is outstanding at a time, so that after a reader was killed the next one gets the same message again,
and none out of order.
"""

import asyncio
import contextlib
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
    Start,
    StreamMessage,
    create_consumer,
    filter_config,
    parse_ack_subject,
    pull,
    status_of,
)
from jido_nats.broker.jetstream import CONSUMER_NOT_FOUND, JetStreamError, api, settled
from jido_nats.errors import ConfigurationError, NotFound, NotSent, OutcomeUnknown

ACK_WAIT_S: Final = 6


class DurableConsumer(Consumer):
    """A durable consumer, read in order; `next` acknowledges the previous message. Async context manager."""

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
        self._keep_alive_task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        info = await settled(self._connection, self._open)
        self.position = info["ack_floor"]["stream_seq"]
        self.caught_up = info["num_pending"] == 0 and info["num_ack_pending"] == 0
        self._inbox = await self._connection.subscribe(self._connection.new_inbox(), self._on_message)
        self._connection.on_up(self._on_up)
        self._keep_alive_task = asyncio.create_task(self._keep_alive(), name=f"durable {self._durable}: in progress")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.off_up(self._on_up)
        if self._keep_alive_task is not None:
            self._keep_alive_task.cancel()
            await asyncio.gather(self._keep_alive_task, return_exceptions=True)
        await self._answer(b"-NAK")  # redelivered at once, to the next reader; what still arrives is NAKed below
        if self._inbox is not None:
            await self._inbox.unsubscribe()
        with contextlib.suppress(NotSent, OutcomeUnknown):
            await self._connection.flush()
        for message in self._queue:
            if message.reply:
                self._unacknowledged = message
                await self._answer(b"-NAK")

    async def next(self) -> StreamMessage:
        """Acknowledge the previous message, and wait for the next."""
        await self._answer(b"+ACK")
        while True:
            message = await self._next_message()
            if (status := status_of(message)) is not None:
                await self._on_status(status)
                continue
            sequence, _, time_ns, pending = parse_ack_subject(message.reply)
            self._outstanding -= 1
            self._unacknowledged = message
            if sequence <= self.position:  # delivered before; its acknowledgement was lost
                await self._answer(b"+ACK")
                continue
            self.position = sequence
            self.caught_up = pending == 0
            return StreamMessage(message.subject, sequence, message.data, message.headers or {}, time_ns, pending)

    async def acknowledge(self) -> None:
        """Acknowledge the last message, and wait for the server to confirm it."""
        message, self._unacknowledged = self._unacknowledged, None
        if message is not None:
            with contextlib.suppress(NotSent, OutcomeUnknown):  # then it is redelivered, and recognized
                await self._connection.request(message.reply, b"+ACK")

    async def _next_message(self) -> Message:
        while not self._queue:
            if self._outstanding <= 0:
                await self._pull()
            self._arrived.clear()
            try:
                async with asyncio.timeout(self._alive_at + SILENCE_MAX_S - boottime()):
                    await self._arrived.wait()
            except TimeoutError:
                await settled(self._connection, self._check)
                self._alive_at, self._outstanding = boottime(), 0
        return self._queue.popleft()

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
            await settled(self._connection, self._check)
            await asyncio.sleep(RECREATE_WAIT_S)

    async def _open(self) -> dict[str, Any]:
        config = {
            "name": self._durable,
            "durable_name": self._durable,
            "ack_policy": "explicit",
            "ack_wait": ACK_WAIT_S * NS_PER_S,
            "max_ack_pending": 1,
            **filter_config(self._filters),
        }
        try:
            found = await self._check()
        except NotFound:
            config |= self._start.config()
        else:
            self._check_same_config(config, found["config"])
            return found
        return await create_consumer(self._connection, self._stream, config, self._filters)

    def _check_same_config(self, wanted: dict[str, Any], found: dict[str, Any]) -> None:
        """Raise `ConfigurationError` if the durable of that name has other filters or another ack policy."""
        fields = ("filter_subject", "filter_subjects", "ack_policy", "max_ack_pending")
        differing = [f"{name} {found.get(name)!r}" for name in fields if found.get(name) != wanted.get(name)]
        if differing:
            raise ConfigurationError(
                f"the durable consumer {self._durable} exists with another configuration ({', '.join(differing)}); "
                f"choose another name, or delete it: nats consumer rm {self._stream} {self._durable}"
            )

    async def _check(self) -> dict[str, Any]:
        try:
            return await api(self._connection, f"CONSUMER.INFO.{self._stream}.{self._durable}")
        except JetStreamError as error:
            if error.code == CONSUMER_NOT_FOUND:
                raise NotFound(f"the durable consumer {self._durable} no longer exists") from error
            raise

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

    def _on_message(self, message: Message) -> None:
        self._alive_at = boottime()
        self._queue.append(message)
        self._arrived.set()

    def _on_up(self) -> None:
        self._outstanding = 0
        self._arrived.set()
