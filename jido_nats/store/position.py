"""How far a follower has read, and waiting for it to reach a position."""

import asyncio

from jido_nats.errors import PositionUnavailable


class StreamPosition:
    """A follower's position in a stream: a sequence that only grows."""

    def __init__(self) -> None:
        self.sequence = 0
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []

    def moved_to(self, sequence: int) -> None:
        """Everything up to `sequence` has been applied: wake the callers that wait for it."""
        self.sequence = max(self.sequence, sequence)
        for wanted, waiter in self._waiters:
            if wanted <= self.sequence and not waiter.done():
                waiter.set_result(None)
        self._waiters = [(wanted, waiter) for wanted, waiter in self._waiters if not waiter.done()]

    async def reached(self, sequence: int) -> None:
        """Return when the follower is at `sequence` or later.

        Raises `PositionUnavailable` if it starts over: that sequence may be one of a stream that is no more.
        """
        if self.sequence < sequence:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append((sequence, waiter))
            try:
                await waiter
            finally:
                self._waiters = [(wanted, other) for wanted, other in self._waiters if other is not waiter]

    def restart(self) -> None:
        """The follower starts over; what a caller waits for may never come."""
        if self.sequence:
            for wanted, waiter in self._waiters:
                if not waiter.done():
                    waiter.set_exception(PositionUnavailable(wanted, None, None))
        self.sequence = 0
