"""What NATS does not do for a connection: one log line when it begins, few while it lasts, one when it is over.

A full disk, a stream that is full or sealed, an account without storage and a permission that was taken away all look
alike to a writer: the same request is refused, or not answered, until an operator does something. All writers retry;
this module reports it once for all of them, and lets one retry pass at a time while the rest wait.

Safe: a request that waits for its turn has not been sent. Live: the turn is passed on at intervals of at most
`TURN_WAIT_MAX_S` while the trouble lasts, and every request passes as soon as one was carried out.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Final

from jido_nats.broker.backoff import Backoff
from jido_nats.broker.clock import boottime

# One request without an answer may be bad luck, and many at once may be one pause; after this it is trouble.
SILENT_AFTER_S: Final = 1.0
REPORT_AFTER_S: Final = 60.0
REPORT_MAX_S: Final = 900.0
# How long after a line about it a trouble that comes back is not logged again.
QUIET_S: Final = 10.0
TURN_WAIT_S: Final = 0.1
TURN_WAIT_MAX_S: Final = 2.0
# A trouble that nobody has met for so long is forgotten: nobody retries any more.
FORGOTTEN_AFTER_S: Final = 120.0

log = logging.getLogger(__name__)


class Troubles:
    """The troubles of one connection. `what` is what is not done: "cannot store in JIDO_CLIENT"."""

    def __init__(self, name: str, *, clock: Callable[[], float] = boottime) -> None:
        self._name = name
        self._clock = clock
        self._troubles: dict[str, _Trouble] = {}
        # When a trouble was last logged, by what is not done.
        self._logged: dict[str, float] = {}

    def __iter__(self) -> Iterator[str]:
        """A sentence for each trouble that there is; may be read in another thread."""
        now = self._clock()
        for trouble in list(self._troubles.values()):
            if trouble.begun and now - trouble.last < FORGOTTEN_AFTER_S:
                yield f"{trouble.what}: {trouble.why}"

    async def turn(self, what: str) -> None:
        """Return at once if all is well, else when it is this request's turn to be tried."""
        trouble = self._troubles.get(what)
        if trouble is not None and trouble.begun:
            await trouble.turn()

    def refused(self, what: str, why: str) -> None:
        """The server has answered with an error, or this user may not do it."""
        self._failed(what, why, is_answer=True)

    def unanswered(self, what: str, why: str) -> None:
        """No answer came in time, or nobody was there to answer."""
        self._failed(what, why, is_answer=False)

    def done(self, what: str) -> None:
        """It was done."""
        if not self._troubles or (trouble := self._troubles.pop(what, None)) is None:
            return
        trouble.over.set()
        if trouble.logged:
            self._logged[what] = self._clock()
            log.warning("no longer degraded", extra=self._data(trouble))

    def _failed(self, what: str, why: str, *, is_answer: bool) -> None:
        now = self._clock()
        trouble = self._troubles.get(what)
        if trouble is None or now - trouble.last >= FORGOTTEN_AFTER_S:
            trouble = self._troubles[what] = _Trouble(what, now)
        trouble.why, trouble.last = why, now
        trouble.begun = trouble.begun or is_answer or now - trouble.since >= SILENT_AFTER_S
        if trouble.begun and now >= max(trouble.report_at, self._logged.get(what, -QUIET_S) + QUIET_S):
            self._logged[what] = now
            text = "still degraded" if trouble.logged else "degraded: NATS refuses this or does not answer; retrying"
            log.warning(text, extra=self._data(trouble))
            trouble.on_logged(now)

    def _data(self, trouble: "_Trouble") -> dict[str, object]:
        data: dict[str, object] = {"what": trouble.what, "why": trouble.why, "connection": self._name}
        return data | ({"for_s": round(self._clock() - trouble.since)} if trouble.logged else {})


class _Trouble:
    """Something that is not done; `begun` once that is certain."""

    def __init__(self, what: str, now: float) -> None:
        self.what = what
        self.why = ""
        self.since = self.last = self.report_at = now
        self.begun = self.logged = False
        self.over = asyncio.Event()
        self._report_s = REPORT_AFTER_S
        self._waiting = asyncio.Lock()
        self._backoff = Backoff(TURN_WAIT_S, TURN_WAIT_MAX_S)

    async def turn(self) -> None:
        """Return when it is this caller's turn, or when it is over; callers come one after the other."""
        async with self._waiting:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._backoff.next_s()):
                    await self.over.wait()

    def on_logged(self, now: float) -> None:
        """It was logged: again after a while, each time a longer one."""
        self.logged = True
        self.report_at = now + self._report_s
        self._report_s = min(2 * self._report_s, REPORT_MAX_S)
