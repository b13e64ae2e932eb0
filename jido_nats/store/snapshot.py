"""Read a bucket from its beginning to its end, although entries move while they are read."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from jido_nats.broker.consumer import Consumer, StreamMessage

PASSES: Final = 2
WAIT_S: Final = 1.0


async def snapshot(consumer: Consumer, last_position: Callable[[], Awaitable[int]]) -> AsyncIterator[StreamMessage]:
    """Every message up to the end of the bucket as its leader has it, and then up to its end again.

    An entry that is written while the bucket is read moves to its end. After the first pass the reader has every
    entry that has not moved, and the second one brings those that have. An entry that moves in both was changed after
    the snapshot had begun; changes are events, except for a seal, and that is the last change of an entry.
    """
    for _ in range(PASSES):
        until = await last_position()
        while consumer.position < until:
            try:
                async with asyncio.timeout(WAIT_S):
                    message = consumer.take() or await consumer.next()
            except TimeoutError:
                until = await last_position()  # the last entry may have expired meanwhile
            else:
                yield message
