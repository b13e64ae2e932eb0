"""Latencies; all are kept, so percentiles are exact."""

import math
from collections.abc import Sequence


class Samples:
    """The durations of single operations, and the time that all of them took together."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.elapsed_s = 0.0

    @property
    def rate(self) -> float:
        """Operations per second."""
        return len(self.seconds) / self.elapsed_s

    def add(self, seconds: Sequence[float], elapsed_s: float) -> None:
        """Add one round."""
        self.seconds += seconds
        self.elapsed_s += elapsed_s

    def percentile_ms(self, percent: float) -> float:
        """The latency that this percentage of the operations did not exceed (nearest rank)."""
        return 1000 * percentile(self.seconds, percent)


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile of some values."""
    rank = math.ceil(len(values) * percent / 100)
    return sorted(values)[max(0, rank - 1)]
