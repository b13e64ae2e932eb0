"""When each key is next due: one heap for any number of keys.

An entry is only a time to check again: activity that postpones a deadline costs nothing here, and is noticed at the
old time. The clock includes time for which the machine is suspended.
"""

import asyncio
import contextlib
import heapq
from typing import Final

from jido_nats.broker.clock import boottime

# How long `next` sleeps at most: the loop's timers stop while the machine is suspended.
SLEEP_MAX_S: Final = 1.0
HEAP_MIN: Final = 1000


class Deadlines:
    """The times (of `boottime`) at which keys are due."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, str]] = []
        self._due: dict[str, float] = {}
        self._earlier = asyncio.Event()

    def watch(self, key: str, due: float | None) -> None:
        """Return the key from `next` at `due`, or earlier if it is already watched for an earlier time.

        None adds nothing; an earlier call stays in force.
        """
        if due is None or due >= self._due.get(key, float("inf")):
            return
        self._due[key] = due
        heapq.heappush(self._heap, (due, key))
        self._shrink()
        if self._heap[0][1] == key:
            self._earlier.set()

    def forget(self, key: str) -> None:
        """Stop watching the key."""
        if self._due.pop(key, None) is not None:
            self._shrink()

    async def next(self) -> str:
        """The next key that is due, once it is; the key is then no longer watched."""
        while True:
            while self._heap and self._heap[0][0] <= boottime():
                due, key = heapq.heappop(self._heap)
                if self._due.get(key) == due:  # otherwise an earlier entry has replaced it
                    del self._due[key]
                    return key
            await self._sleep()

    async def _sleep(self) -> None:
        """Return when the first entry may be due, or when another entry becomes the first."""
        wait_s = max(0.0, self._heap[0][0] - boottime()) if self._heap else SLEEP_MAX_S
        self._earlier.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(wait_s, SLEEP_MAX_S)):
                await self._earlier.wait()

    def _shrink(self) -> None:
        """Remove stale entries once they are half of the heap: their times may be years away."""
        if len(self._heap) > 2 * len(self._due) + HEAP_MIN:
            self._heap = [(due, key) for key, due in self._due.items()]
            heapq.heapify(self._heap)
