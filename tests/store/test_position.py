"""How far a follower has read: callers wait for a sequence, and not for ever if the stream is no longer the same."""

import asyncio

import pytest

from jido_nats.errors import PositionUnavailable
from jido_nats.store.position import StreamPosition


async def test_a_caller_waits_until_the_follower_has_come_so_far() -> None:
    position = StreamPosition()
    waiting = asyncio.create_task(position.reached(5))
    position.moved_to(4)
    await asyncio.sleep(0)
    assert not waiting.done()

    position.moved_to(6)

    await waiting
    await position.reached(6)


async def test_a_caller_that_waits_is_not_left_waiting_when_the_follower_starts_over() -> None:
    position = StreamPosition()
    position.moved_to(4)
    waiting = asyncio.create_task(position.reached(5))
    await asyncio.sleep(0)

    position.restart()

    with pytest.raises(PositionUnavailable):
        await waiting


async def test_a_caller_may_wait_before_the_follower_has_begun() -> None:
    position = StreamPosition()
    waiting = asyncio.create_task(position.reached(1))
    await asyncio.sleep(0)

    position.restart()
    position.moved_to(1)

    await waiting
