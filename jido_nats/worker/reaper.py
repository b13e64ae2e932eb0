"""The reaper: ends the process groups of a manager that was killed. Run as a program; standard library only.

It reads lines from its standard input: `+PGID` and `-PGID`. EOF means that the manager is gone, however it died:
the groups that are still registered get SIGTERM, and SIGKILL a moment later. It runs in its own session, so that
signals to the manager's process group or terminal do not reach it.
"""

import os
import signal
import sys
import time

TERM_WAIT_S = 1.0
POLL_S = 0.05


def main() -> None:
    """Keep the list of groups until EOF, then end them all."""
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
    """Signal a group; whether it has any members."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


if __name__ == "__main__":
    main()
