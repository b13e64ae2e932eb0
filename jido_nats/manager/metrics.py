"""The counters of a manager since it started: plain numbers, which `health_server` and the CLI read."""

from bisect import bisect_left
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Final

from jido_nats.core.session import Status

# Upper bounds in seconds: from one quiet transition to the longest that a command may take.
BOUNDS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Durations:
    """A histogram: how many took up to each of `BOUNDS_S` (and longer), and their sum in seconds."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.sum_s = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.sum_s += seconds


class Stats:
    """The counters of one manager."""

    def __init__(self) -> None:
        # (from, to, reason, kind of worker), "" if there is none.
        self.transitions: Counter[tuple[str, str, str, str]] = Counter()
        self.events_published = 0
        self.versions_unpublished = 0
        self.takeovers = 0
        self.commands: defaultdict[str, Durations] = defaultdict(Durations)
        # (verb, error code)
        self.command_errors: Counter[tuple[str, str]] = Counter()


@dataclass(frozen=True)
class Snapshot:
    """The state of a manager at one moment."""

    manager_id: str
    version: str
    sessions: dict[Status, int]
    # The same by kind of worker.
    workers: dict[str, dict[Status, int]]
    stats: Stats
    lease_age_s: float
    reconnects: int
    # How many sessions only managers of newer versions may write.
    foreign: int
    # What is followed by direct gets, because a stream takes no more consumers.
    without_consumer: list[str]
    # The reasons why it is not ready; empty if it is.
    not_ready: list[str]
