"""The clock of leases: seconds that also pass while the machine sleeps."""

import time
from typing import Final

# Linux's CLOCK_MONOTONIC stops while the machine is suspended; macOS' does not.
_CLOCK: Final[int] = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def boottime() -> float:
    """Seconds since a fixed moment, including suspended time (`clock_gettime(2)`, CLOCK_BOOTTIME)."""
    return time.clock_gettime(_CLOCK)
