"""Turns: of what many parties want at once, a few things are done at a time, and the parties take turns.

Asyncio runs everything that is ready. Without turns a party with a thousand requests would get a thousand times the
share of a party with one.
"""

import asyncio
import math
from collections import Counter, deque
from contextvars import ContextVar
from typing import Final, NamedTuple


class Party(NamedTuple):
    """On whose behalf something is done: who asked for it, and for which of its purposes, for example a session."""

    caller: str = ""
    purpose: str = ""


NOBODY: Final = Party()
PARTY: Final[ContextVar[Party]] = ContextVar("PARTY", default=NOBODY)
"""On whose behalf a task works; nobody's: the program's own work. Tasks inherit it from the task that starts them."""


class Turns:
    """An `async with` block of which at most `at_once` run, at most `each` of them for the same party.

    `each_caller`: the same for all parties of one caller. The others wait; the callers take turns, and so do the
    parties of each caller. The program's own work counts, but is not limited to less than `at_once`.
    """

    def __init__(self, at_once: float = math.inf, *, each: float = math.inf, each_caller: float = math.inf) -> None:
        self._free = at_once
        self._each = each
        self._each_caller = each_caller
        self._running = Counter[Party]()
        self._callers = Counter[str]()
        # Whose turn comes next is first.
        self._waiting: dict[str, dict[Party, deque[asyncio.Future[None]]]] = {}

    async def __aenter__(self) -> None:
        await self.acquire()

    async def __aexit__(self, *_: object) -> None:
        self.release()

    async def acquire(self) -> None:
        """Wait for a turn of the current task's party, and take it until `release`."""
        party = PARTY.get()
        if self._has_room(party):  # else those that wait have none, or have their turn already
            self._take(party)
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(party.caller, {}).setdefault(party, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it was this one's turn
                self._release(party)
            raise

    def release(self) -> None:
        """The turn is over; call it in a context with the same party."""
        self._release(PARTY.get())

    def _has_room(self, party: Party) -> bool:
        if party == NOBODY:
            return self._free > 0
        return self._caller_has_room(party.caller) and self._running[party] < self._each

    def _caller_has_room(self, caller: str) -> bool:
        return self._free > 0 and (not caller or self._callers[caller] < self._each_caller)

    def _take(self, party: Party) -> None:
        self._free -= 1
        self._running[party] += 1
        self._callers[party.caller] += 1

    def _release(self, party: Party) -> None:
        self._free += 1
        self._running[party] -= 1
        if not self._running[party]:
            del self._running[party]
        self._callers[party.caller] -= 1
        if not self._callers[party.caller]:
            del self._callers[party.caller]
        while (following := self._next()) is not None:
            self._wake(following)

    def _next(self) -> Party | None:
        """The party whose turn it is; None if none that waits has room."""
        for caller, parties in self._waiting.items():
            if self._caller_has_room(caller):
                for party in parties:
                    if self._has_room(party):
                        return party
        return None

    def _wake(self, party: Party) -> None:
        """Give the party its turn, and queue its caller, and it among the caller's parties, after the others."""
        parties = self._waiting.pop(party.caller)
        waiting = parties.pop(party)
        while waiting:
            turn = waiting.popleft()
            if not turn.done():  # else its task was cancelled
                self._take(party)
                turn.set_result(None)
                break
        if waiting:
            parties[party] = waiting
        if parties:
            self._waiting[party.caller] = parties
