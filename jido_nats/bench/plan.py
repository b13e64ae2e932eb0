"""The plan of a bench and its results: measures, units and goals."""

from datetime import datetime
from enum import StrEnum
from typing import Any, Final, NamedTuple

import msgspec

SESSIONS: Final = 2000
CONCURRENCY: Final = 128


class Part(StrEnum):
    """What can be measured separately (`--only`)."""

    COMMANDS = "commands"
    TRANSITION = "transition"
    HEARD = "heard"
    JOURNAL = "journal"
    REPLAY = "replay"
    RECOVER = "recover"


class Plan(NamedTuple):
    """What to measure, and the size of the run."""

    sessions: int = SESSIONS
    concurrency: int = CONCURRENCY
    parts: frozenset[Part] = frozenset(Part)


class Measure(NamedTuple):
    """One figure's name and unit. `goal`: a ratio to the baseline, the minimum if more is better, else a maximum."""

    name: str
    statistic: str
    unit: str
    more_is_better: bool
    label: str
    goal: float | None = None

    def meets(self, ratio: float) -> bool | None:
        """Whether a ratio meets the goal; None without a goal."""
        if self.goal is None:
            return None
        return ratio >= self.goal if self.more_is_better else ratio <= self.goal


def rate(name: str, label: str, *, unit: str = "sessions/s", goal: float | None = None) -> Measure:
    """A measure of a rate per second."""
    return Measure(name, "rate", unit, True, label, goal)


def latency(name: str, statistic: str, label: str, *, goal: float | None = None) -> Measure:
    """A measure of a latency, in milliseconds."""
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
