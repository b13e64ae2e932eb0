"""Many calls, with bounded concurrency, each of them timed."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, TypeVar

from jido_nats.bench.samples import Samples

FINISH_TIMEOUT_S: Final = 10.0

T = TypeVar("T")


async def drive(
    items: Iterable[T], call: Callable[[T], Awaitable[object]], *, at_once: int, into: Samples, step: Callable[[], None]
) -> None:
    """Call for every item, with `at_once` calls in flight; `step` is called after each.

    The first error or a cancellation ends it; calls in flight are awaited, so that nothing happens later.
    """
    seconds: list[float] = []
    begun = time.perf_counter()
    waiting = iter(items)
    stopped = False

    async def worker() -> None:
        for item in waiting:
            started = time.perf_counter()
            await call(item)
            seconds.append(time.perf_counter() - started)
            step()
            if stopped:
                return

    workers = [asyncio.create_task(worker()) for _ in range(at_once)]
    try:
        await asyncio.gather(*map(asyncio.shield, workers))
    finally:
        stopped = True
        await asyncio.wait(workers, timeout=FINISH_TIMEOUT_S)
        for task in workers:
            task.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    into.add(seconds, time.perf_counter() - begun)


def rounds(items: Sequence[T], at_once: int, count: int) -> list[Sequence[T]]:
    """The items in at most `count` parts, each long enough to keep `at_once` calls in flight."""
    parts = max(1, min(count, len(items) // (4 * at_once)))
    size = -(-len(items) // parts)
    return [items[begin : begin + size] for begin in range(0, len(items), size)]
