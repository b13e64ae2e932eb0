"""The guard: ends the process groups of a manager that was killed. Run as a program; only the standard library.

It reads lines from its standard input: `+PGID` and `-PGID`. When the input ends, its manager is gone, however it
died: what is still registered gets SIGTERM, and SIGKILL a moment later. It lives in a session of its own, so that
what is sent to the manager's group or terminal does not reach it.
"""

import os
import signal
import sys
import time

TERM_WAIT_S = 1.0
POLL_S = 0.05


def main() -> None:
    """Serve until standard input ends, then leave nothing behind."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: set[int] = set()
    for line in sys.stdin.buffer:
        group = int(line[1:])
        (groups.add if line[:1] == b"+" else groups.discard)(group)
    deadline = time.monotonic() + TERM_WAIT_S
    groups = {group for group in groups if _signal(group, signal.SIGTERM)}
    while groups and time.monotonic() < deadline:
        time.sleep(POLL_S)
        groups = {group for group in groups if _signal(group, 0)}
    for group in groups:
        _signal(group, signal.SIGKILL)


def _signal(group: int, number: int) -> bool:
    """Whether there is anybody in the group to signal."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


if __name__ == "__main__":
    main()
