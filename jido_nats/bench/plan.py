"""What a bench is asked to do, and what it reports: the measures, their units and their goals."""

from datetime import datetime
from enum import StrEnum
from typing import Any, Final, NamedTuple

import msgspec

SESSIONS: Final = 2000
CONCURRENCY: Final = 128


class Part(StrEnum):
    """What can be measured by itself (`--only`)."""

    COMMANDS = "commands"
    TRANSITION = "transition"
    HEARD = "heard"
    REPLAY = "replay"
    RECOVER = "recover"


class Plan(NamedTuple):
    """How much of what."""

    sessions: int = SESSIONS
    concurrency: int = CONCURRENCY
    parts: frozenset[Part] = frozenset(Part)


class Measure(NamedTuple):
    """One figure's name and unit. `goal` is a ratio to the baseline: at least it where more is better, else at most."""

    name: str
    statistic: str
    unit: str
    more_is_better: bool
    label: str
    goal: float | None = None

    def meets(self, ratio: float) -> bool | None:
        """Whether a ratio reaches the goal; None where there is none."""
        if self.goal is None:
            return None
        return ratio >= self.goal if self.more_is_better else ratio <= self.goal


def rate(name: str, label: str, *, unit: str = "sessions/s", goal: float | None = None) -> Measure:
    """A measure of how many a second."""
    return Measure(name, "rate", unit, True, label, goal)


def latency(name: str, statistic: str, label: str, *, goal: float | None = None) -> Measure:
    """A measure of how long, in milliseconds."""
    return Measure(name, statistic, "ms", False, label, goal)


class Result(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One figure, ours and the baseline's: a line of `--json`."""

    measure: str
    statistic: str
    label: str
    unit: str
    more_is_better: bool
    ours: float
    baseline: float
    ratio: float
    samples: int
    concurrency: int
    sessions: int
    managers: int
    sync_interval: str | None
    server_version: str
    jido_nats: str
    machine: dict[str, Any]
    at: datetime
    goal: float | None = None
    met: bool | None = None
    more: dict[str, float] = {}
