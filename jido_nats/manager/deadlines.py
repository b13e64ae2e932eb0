"""When something is next due: one heap and one task for any number of keys.

An entry is only a moment at which to ask again: activity costs nothing here, and a moment that has moved on is
found out when the old one comes. The clock counts the time that the machine sleeps.
"""

import asyncio
import contextlib
import heapq
from collections.abc import Callable
from typing import Final

from jido_nats.broker.clock import boottime

# How long the task sleeps at most: a timer of the loop stands still while the machine sleeps.
SLEEP_MAX_S: Final = 1.0
HEAP_MIN: Final = 1000


class Deadlines:
    """Calls `on_due(key)` once the moment `due_at(key)` (of `boottime`; None: never) has come."""

    def __init__(self, due_at: Callable[[str], float | None], on_due: Callable[[str], None]) -> None:
        self._due_at = due_at
        self._on_due = on_due
        self._heap: list[tuple[float, str]] = []
        self._asked_at: dict[str, float] = {}
        self._earlier = asyncio.Event()

    def watch(self, key: str) -> None:
        """Begin to ask about a key, or ask earlier: to be called where `due_at` may have come nearer."""
        due = self._due_at(key)
        if due is None or due >= self._asked_at.get(key, float("inf")):
            return
        self._push(key, due)
        if self._heap[0][1] == key:
            self._earlier.set()

    def forget(self, key: str) -> None:
        """Ask no more about a key."""
        if self._asked_at.pop(key, None) is not None:
            self._shrink()

    async def run(self) -> None:
        """Call what is due, for ever."""
        while True:
            self._call_due()
            wait_s = max(0.0, self._heap[0][0] - boottime()) if self._heap else SLEEP_MAX_S
            self._earlier.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(wait_s, SLEEP_MAX_S)):
                    await self._earlier.wait()

    def _call_due(self) -> None:
        now = boottime()
        while self._heap and self._heap[0][0] <= now:
            asked_at, key = heapq.heappop(self._heap)
            if self._asked_at.get(key) != asked_at:
                continue  # an earlier entry has replaced it
            del self._asked_at[key]
            due = self._due_at(key)
            if due is None:
                continue
            if due > now:
                self._push(key, due)
            else:
                self._on_due(key)

    def _push(self, key: str, due: float) -> None:
        self._asked_at[key] = due
        heapq.heappush(self._heap, (due, key))
        self._shrink()

    def _shrink(self) -> None:
        """What was replaced or forgotten goes with half of the heap, not at its moment, which may be years away."""
        if len(self._heap) > 2 * len(self._asked_at) + HEAP_MIN:
            self._heap = [(at, key) for key, at in self._asked_at.items()]
            heapq.heapify(self._heap)
