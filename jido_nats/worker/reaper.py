"""The reaper: ends what a manager that was killed has left. Run as a program; standard library only.

It reads lines from its standard input: `+PGID RUN_ID` and `-PGID`. EOF means that the manager is gone, however it
died: the groups that are still registered, and every process that has one of their runs' ids in the environment it
was started with (on Linux), get SIGTERM, and SIGKILL a moment later. It runs in its own session, so that signals to
the manager's process group or terminal do not reach it.
"""

import contextlib
import os
import signal
import sys
import time

RUN_ID = b"JIDO_RUN_ID="
TERM_WAIT_S = 1.0
POLL_S = 0.05
# How often what was started meanwhile is looked for, at the end.
KILL_ROUNDS_MAX = 20


def main() -> None:
    """Keep the list of groups until EOF, then end them all."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: dict[int, bytes] = {}
    for line in sys.stdin.buffer:
        group, _, run_id = line[1:].strip().partition(b" ")
        if line[:1] == b"+":
            groups[int(group)] = run_id
        else:
            groups.pop(int(group), None)
    _end(set(groups), {RUN_ID + run_id for run_id in groups.values()})


def _end(groups: set[int], runs: set[bytes]) -> None:
    """End these groups, and what was started for these runs."""
    deadline = time.monotonic() + TERM_WAIT_S
    left = _signal(groups, runs, signal.SIGTERM, signal.SIGCONT)  # one that is stopped handles no signal
    while left and time.monotonic() < deadline:
        time.sleep(POLL_S)
        left = _signal(groups, runs, 0)
    for _ in range(KILL_ROUNDS_MAX):
        if not _signal(groups, runs, signal.SIGKILL):
            return
        time.sleep(POLL_S)


def _signal(groups: set[int], runs: set[bytes], *numbers: int) -> bool:
    """Signal these groups and runs; whether there is anything left of them."""
    groups &= {group for group in groups if _exists(group)}
    found = _started_for(runs) if runs else []
    for number in numbers:
        for send, who in ((os.killpg, groups), (os.kill, found)):
            for one in who:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    send(one, number)
    return bool(groups or found)


def _exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _started_for(runs: set[bytes]) -> list[int]:
    """The processes that have one of these variables in the environment that they were started with."""
    found = []
    try:
        names = os.listdir("/proc")
    except OSError:
        return []
    for name in names:
        if name.isdigit():
            try:
                with open(f"/proc/{name}/environ", "rb") as file:
                    if not runs.isdisjoint(file.read().split(b"\0")):
                        found.append(int(name))
            except OSError:
                continue
    return found


if __name__ == "__main__":
    main()
