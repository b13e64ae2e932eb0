"""Failpoints that end or freeze the process, and `jido-nats` with such failpoints as a program.

    JIDO_FAILPOINTS=PLACE:ACTION:WHEN[,…] python -m tests.tools.failpoints serve …

PLACE: a name of `jido_nats.manager.failpoints.PLACES` or `*`; ACTION: `die` (SIGKILL) or `freeze` (SIGSTOP, until
somebody sends SIGCONT); WHEN: 1, 2, … for the first, second, … time that the place is reached, or a probability below
1, drawn from `JIDO_FAILPOINTS_SEED`.
"""

import os
import random
import signal
from collections import Counter
from typing import Final, NamedTuple

from jido_nats import SessionManager
from jido_nats.cli.main import main
from jido_nats.manager.failpoints import PLACES, Failpoints

_SIGNALS: Final = {"die": signal.SIGKILL, "freeze": signal.SIGSTOP}


class _Failpoint(NamedTuple):
    place: str
    signal: signal.Signals
    when: float


class SignallingFailpoints(Failpoints):
    """Failpoints that send this process a signal."""

    def __init__(self, text: str, seed: int) -> None:
        self._armed = [_parse(part) for part in text.split(",") if part]
        self._random = random.Random(seed)
        self._reached: Counter[str] = Counter()

    def reach(self, place: str) -> None:
        """End or freeze the process if that was asked for here and now."""
        self._reached[place] += 1
        for failpoint in self._armed:
            if failpoint.place in (place, "*") and self._is_due(failpoint, self._reached[place]):
                os.kill(os.getpid(), failpoint.signal)

    def _is_due(self, failpoint: _Failpoint, reached: int) -> bool:
        return self._random.random() < failpoint.when if failpoint.when < 1 else reached == int(failpoint.when)


def _parse(text: str) -> _Failpoint:
    place, action, when = text.split(":")
    if place != "*" and place not in PLACES:
        raise ValueError(f"JIDO_FAILPOINTS: {place!r} is not one of {', '.join(PLACES)}")
    return _Failpoint(place, _SIGNALS[action], float(when))


if __name__ == "__main__":
    SessionManager.failpoints = SignallingFailpoints(
        os.environ.get("JIDO_FAILPOINTS", ""), int(os.environ.get("JIDO_FAILPOINTS_SEED", "0"))
    )
    main()
