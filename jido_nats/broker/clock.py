"""The clock of leases: seconds that also pass while the machine sleeps."""

import time
from typing import Final

# CLOCK_MONOTONIC stands still while a Linux VM sleeps; macOS' CLOCK_MONOTONIC does not.
_CLOCK: Final[int] = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def boottime() -> float:
    """Seconds since some fixed moment, counting sleep (`clock_gettime(2)`, CLOCK_BOOTTIME)."""
    return time.clock_gettime(_CLOCK)
