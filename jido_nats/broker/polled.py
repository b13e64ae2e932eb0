"""Read a stream without a consumer, by batched direct gets (ADR-31): what a manager does when no consumer is left.

A stream takes a limited number of consumers, and readers may use them all. A direct get needs none. It may be
answered by a replica that lags: then the messages come later, still in order and without a gap.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

from jido_nats.broker.connection import Connection
from jido_nats.broker.consumer import Consumer, Start, StreamMessage
from jido_nats.broker.direct import get_batch
from jido_nats.broker.jetstream import settled
from jido_nats.broker.life import RecentChanges, StreamLife
from jido_nats.core.position import Position
from jido_nats.core.subjects import matches

BATCH: Final = 500
POLL_S: Final = 0.25


class PolledConsumer(Consumer):
    """Every message of a stream on some subjects, in order, from a sequence; async context manager and iterator.

    Start policies: those with a sequence; any other begins with the first message that the stream has. `batch`: how
    many messages are read at a time. `recent`: as of `OrderedConsumer`.
    `next` raises `PositionUnavailable` as `OrderedConsumer.next` does.
    """

    def __init__(
        self,
        connection: Connection,
        stream: str,
        filters: Sequence[str],
        start: Start,
        *,
        recent: RecentChanges | None = None,
        batch: int = BATCH,
    ) -> None:
        super().__init__(connection, stream, filters, start)
        self._batch = batch
        self._messages: deque[StreamMessage] = deque()
        self._wanted = 1  # the sequence from which to ask for more
        self._life = StreamLife(connection, stream, recent=recent)
        # Whether the last batch reached the end of the stream.
        self._exhausted = False

    @property
    def at(self) -> Position:
        """See `Consumer.at`."""
        return self._life.at

    async def __aenter__(self) -> Self:
        start, _ = await self._life.begin(self._start)
        self._wanted = start.sequence or 1
        await self._look_ahead()
        self.caught_up = not self._messages
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._messages.clear()

    async def next(self) -> StreamMessage:
        """See `Consumer.next`."""
        while not self._messages:
            if self._life.reconnected:
                await self._life.check()
            await self._look_ahead()
            if not self._messages:
                await asyncio.sleep(POLL_S)
                self._exhausted = False
        if len(self._messages) == 1:
            await self._look_ahead()
        return self._returned(self._messages.popleft())

    def take(self) -> StreamMessage | None:
        """See `Consumer.take`."""
        return self._returned(self._messages.popleft()) if len(self._messages) > 1 else None

    def _returned(self, message: StreamMessage) -> StreamMessage:
        self.position = message.sequence
        self._life.passed(message.subject, message.sequence, message.time_ns)
        self.caught_up = self.caught_up or (self._exhausted and not self._messages)
        return message

    async def _look_ahead(self) -> None:
        """Fetch until there is another message, so that the last one is known to be the last."""
        wanted = len(self._messages) + 1
        while len(self._messages) < wanted and not self._exhausted:
            await self._fetch()

    async def _fetch(self) -> None:
        """Ask for the next batch."""
        single = self._filters[0] if len(self._filters) == 1 else ">"
        request = {"seq": self._wanted, "batch": self._batch, "next_by_subj": single}
        messages = await settled(self._connection, lambda: get_batch(self._connection, self._stream, request))
        self._exhausted = not messages or messages[-1].pending == 0
        for message in messages:
            self._wanted = message.sequence + 1
            if any(matches(pattern, message.subject) for pattern in self._filters):
                self._messages.append(message)
