"""A reader that does not depend on a free consumer: ordered, or polled while the stream takes no more consumers.

No reader's consumption may cost a manager its work. A stream that has all the consumers that it takes refuses the
next one; its messages can still be read by direct gets.
"""

import logging
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Final, Self

from jido_nats.broker.connection import Connection
from jido_nats.broker.consumer import Consumer, Start, StreamMessage
from jido_nats.broker.life import RecentChanges
from jido_nats.broker.ordered import OrderedConsumer
from jido_nats.broker.polled import PolledConsumer
from jido_nats.core.position import Position
from jido_nats.errors import ConsumerLimitReached

# How often to try whether the stream takes a consumer again.
RETRY_S: Final = 30.0

log = logging.getLogger(__name__)


class FollowingConsumer(Consumer):
    """An `OrderedConsumer` (same options), replaced by a `PolledConsumer` while the stream takes no more consumers."""

    def __init__(
        self, connection: Connection, stream: str, filters: Sequence[str], start: Start, **options: Any
    ) -> None:
        super().__init__(connection, stream, filters, start)
        self._ordered: Callable[[Start], OrderedConsumer] = lambda begin: OrderedConsumer(
            connection, stream, filters, begin, **options
        )
        self._recent: RecentChanges | None = options.get("recent")
        self._inner: Consumer = self._ordered(start)
        self._retry_at = 0.0

    @property
    def is_polled(self) -> bool:
        """Whether the stream takes no more consumers, so that it is read by direct gets."""
        return isinstance(self._inner, PolledConsumer)

    @property
    def at(self) -> Position:
        """See `Consumer.at`."""
        return self._inner.at

    async def __aenter__(self) -> Self:
        try:
            await self._inner.__aenter__()
        except ConsumerLimitReached as error:
            await self._poll(error)
        self.caught_up = self._inner.caught_up
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._inner.__aexit__(kind, error, trace)

    async def next(self) -> StreamMessage:
        """See `Consumer.next`."""
        if self.is_polled and self.caught_up and time.monotonic() > self._retry_at:
            await self._stop_polling()
        try:
            message = await self._inner.next()
        except ConsumerLimitReached as error:  # of a consumer that had to be created again
            await self._inner.__aexit__(None, None, None)
            await self._poll(error)
            message = await self._inner.next()
        return self._returned(message)

    def take(self) -> StreamMessage | None:
        """See `Consumer.take`."""
        message = self._inner.take()
        return None if message is None else self._returned(message)

    def _returned(self, message: StreamMessage) -> StreamMessage:
        self.position, self.caught_up = self._inner.position, self._inner.caught_up
        return message

    async def _poll(self, error: ConsumerLimitReached) -> None:
        log.error("no consumer is free; reading by direct gets", extra={"stream": self._stream, "error": str(error)})
        self._retry_at = time.monotonic() + RETRY_S
        begin = Start.at(self.position + 1) if self.position else self._start
        polled = PolledConsumer(self._connection, self._stream, self._filters, begin, recent=self._recent)
        self._inner = await polled.__aenter__()

    async def _stop_polling(self) -> None:
        """Use a consumer again if the stream takes one."""
        self._retry_at = time.monotonic() + RETRY_S
        ordered = self._ordered(Start.following(self.at) if self.position else self._start)
        try:
            await ordered.__aenter__()
        except ConsumerLimitReached:
            return
        log.warning("a consumer is free again", extra={"stream": self._stream})
        self._inner = ordered
