"""Many calls, so many at a time, each of them timed."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from jido_nats.tools.bench.samples import Samples

T = TypeVar("T")


async def drive(
    items: Sequence[T], call: Callable[[T], Awaitable[object]], *, at_once: int, into: Samples, step: Callable[[], None]
) -> None:
    """Call for every item, `at_once` at a time, as fast as they are answered; `step` is called after each."""
    waiting = iter(items)
    seconds: list[float] = []

    async def work_off() -> None:
        for item in waiting:
            started = time.perf_counter()
            await call(item)
            seconds.append(time.perf_counter() - started)
            step()

    started = time.perf_counter()
    workers = [asyncio.create_task(work_off()) for _ in range(min(at_once, len(items)))]
    try:
        await asyncio.gather(*workers)  # the first error is the one to tell
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    into.add(seconds, time.perf_counter() - started)


def rounds(items: Sequence[T], at_once: int, count: int) -> list[Sequence[T]]:
    """The items in at most `count` parts, each long enough for `at_once` to run full."""
    parts = max(1, min(count, len(items) // (4 * at_once)))
    size = -(-len(items) // parts)
    return [items[begin : begin + size] for begin in range(0, len(items), size)]
