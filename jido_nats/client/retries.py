"""When a command is retried: while its outcome is unknown and its timeout has not expired. Repeating it is safe."""

import asyncio
from typing import Final

from jido_nats.broker.backoff import Backoff
from jido_nats.errors import NoResponders, NotSent, OutcomeUnknown, Unavailable

ATTEMPT_TIMEOUT_S: Final = 5.0
ATTEMPT_TIMEOUT_MIN_S: Final = 0.05
RETRY_WAIT_S: Final = 0.1
RETRY_WAIT_MAX_S: Final = 2.0
NO_MANAGER_WAIT_S: Final = 3.0


class Tries:
    """The time left for one command. `in_doubt`: an attempt may have been carried out although its reply was lost."""

    def __init__(self, timeout_s: float) -> None:
        self._ends_at = asyncio.get_running_loop().time() + timeout_s
        self._backoff = Backoff(RETRY_WAIT_S, RETRY_WAIT_MAX_S)
        self._no_manager_since: float | None = None
        # What a manager last answered: it says more than that the last attempt had no reply in the time left for it.
        self._answer: Unavailable | None = None
        self.in_doubt = False

    def attempt_s(self) -> float:
        """The timeout of the next attempt, in seconds."""
        return max(ATTEMPT_TIMEOUT_MIN_S, min(ATTEMPT_TIMEOUT_S, self._left_s()))

    async def after(self, error: NotSent | OutcomeUnknown | Unavailable) -> None:
        """Wait, longer each time, before the next attempt; raises `Unavailable` if no time is left for one."""
        if isinstance(error, NoResponders):
            await self._wait_for_manager(error)
            return
        self._no_manager_since = None
        self.in_doubt = self.in_doubt or not isinstance(error, NotSent)
        if isinstance(error, Unavailable):
            self._answer = error
        await self._wait(self._answer or _no_answer(), error, self._left_s())

    async def _wait_for_manager(self, error: NoResponders) -> None:
        """Wait for a manager that restarts, but not for long."""
        now = asyncio.get_running_loop().time()
        self._no_manager_since = self._no_manager_since or now
        left_s = min(self._left_s(), self._no_manager_since + NO_MANAGER_WAIT_S - now)
        await self._wait(_no_manager(), error, left_s)

    async def _wait(self, final: Unavailable, error: Exception, left_s: float) -> None:
        if left_s < RETRY_WAIT_S:
            raise final from (error if error is not final else None)
        await asyncio.sleep(min(self._backoff.next_s(), left_s))

    def _left_s(self) -> float:
        return self._ends_at - asyncio.get_running_loop().time()


def _no_answer() -> Unavailable:
    return Unavailable("no reply in time: the command may or may not have been carried out; try again")


def _no_manager() -> Unavailable:
    return Unavailable("no session manager is running on this server: start one with 'jido-nats serve'")
