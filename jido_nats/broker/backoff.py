"""How long to wait before the next try."""

import asyncio
import random
from collections.abc import Callable


class Backoff:
    """A growing wait between tries, in seconds: `first_s`, then twice as long each time, up to `max_s`.

    Jitter: each wait is multiplied by a random factor from 0.5 to 1.0, so that callers that failed together do not
    all retry together, and no wait is longer than `max_s`. `uniform` returns a number from 0.0 to 1.0.
    """

    __slots__ = ("_first_s", "_max_s", "_uniform", "_wait_s")

    def __init__(self, first_s: float, max_s: float, *, uniform: Callable[[], float] = random.random) -> None:
        assert 0 <= first_s <= max_s
        self._first_s = first_s
        self._max_s = max_s
        self._uniform = uniform
        self._wait_s = first_s

    def next_s(self) -> float:
        """Return the next wait, and double the one after it. Does not sleep."""
        wait_s = self._wait_s
        self._wait_s = min(2 * wait_s, self._max_s)
        return wait_s * (0.5 + self._uniform() / 2)

    async def wait(self) -> None:
        """Wait for `next_s`."""
        await asyncio.sleep(self.next_s())

    def reset(self) -> None:
        """Start from `first_s` again, after a success."""
        self._wait_s = self._first_s
