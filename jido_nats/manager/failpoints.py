"""Places where a test can make this process die or freeze. Nothing happens unless `JIDO_FAILPOINTS` asks.

`JIDO_FAILPOINTS=PLACE:ACTION:WHEN[,…]`, with PLACE a name below or `*`, ACTION `die` (SIGKILL) or `freeze`
(SIGSTOP, until somebody sends SIGCONT), WHEN the how-manieth time that the place is reached (1, 2, …) or a
probability below 1, drawn from `JIDO_FAILPOINTS_SEED`.
"""

import os
import random
import signal
from collections import Counter
from typing import Final, NamedTuple

PLACES: Final = (
    "before commit",
    "committed",
    "before message 1",
    "before message 2",
    "before message 3",
    "published",
    "before seal",
    "sealed",
    "before claim",
    "claimed",
    "looked",
)
_SIGNALS: Final = {"die": signal.SIGKILL, "freeze": signal.SIGSTOP}


class _Failpoint(NamedTuple):
    place: str
    signal: signal.Signals
    when: float


class Failpoints:
    """The failpoints of a process, from what the environment says."""

    def __init__(self, text: str, seed: int) -> None:
        self._armed = [_parse(part) for part in text.split(",") if part]
        self._random = random.Random(seed)
        self._reached: Counter[str] = Counter()

    def reach(self, place: str) -> None:
        """This place of the write path is reached: end or freeze the process if that was asked for."""
        if not self._armed:
            return
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


_process = Failpoints(os.environ.get("JIDO_FAILPOINTS", ""), int(os.environ.get("JIDO_FAILPOINTS_SEED", "0")))
reach = _process.reach
