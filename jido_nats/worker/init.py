"""The init of an isolated worker: its parent, which adopts everything that the worker starts. Linux.

The worker itself cannot adopt what its tools orphan: it could not tell an orphan from a child that it has started and
will wait for. So it runs in a child process, and its parent, which starts nothing else, is the subreaper. Whatever
becomes of their parents, environments, groups or sessions, all descendants stay in that tree, and end with it.
"""

import contextlib
import os
import resource
import signal
import sys
import time
from typing import Final, NoReturn

from jido_nats.worker.processes import become_subreaper, descendants, scan

POLL_S: Final = 0.02
# How long the kernel may take to end what was killed.
KILL_WAIT_S: Final = 5.0
# The manager sends these to the whole process group, the worker included; it is the worker that decides what to do.
_IGNORED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def run_under_init(stop_timeout_s: float) -> None:
    """Go on in a child process; the parent stays as its init, and ends as the worker does.

    What the worker leaves gets SIGTERM, and SIGKILL after `stop_timeout_s`. Without subreapers, this does
    nothing.
    """
    if not become_subreaper():
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, _IGNORED)  # until it is known who handles them
    worker = os.fork()
    if worker:
        for number in _IGNORED:
            signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _IGNORED)
    if worker:
        _be_init(worker, stop_timeout_s)


def _be_init(worker: int, stop_timeout_s: float) -> NoReturn:
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1):  # the pipes are the worker's: their other ends have to notice when it closes them
        os.dup2(null, descriptor)
    status = _wait_for(worker)
    _end_the_rest(stop_timeout_s)
    _end_like(status)


def _wait_for(worker: int) -> int:
    """The worker's wait status; orphans that end meanwhile are reaped."""
    while True:
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
        assert ended is not None
        _, status = os.waitpid(ended.si_pid, 0)
        if ended.si_pid == worker:
            return status


def _end_the_rest(stop_timeout_s: float) -> None:
    """End all descendants that are left; what may not be signalled, or does not die, stays."""
    kill_at = time.monotonic() + stop_timeout_s
    asked: set[int] = set()
    while _reap() and (left := descendants(scan(), os.getpid())):
        if time.monotonic() > kill_at + KILL_WAIT_S:
            print(f"processes that cannot be ended were left: {left}", file=sys.stderr)
            return
        if time.monotonic() > kill_at:
            _signal(left, signal.SIGKILL)
        else:
            _signal([pid for pid in left if pid not in asked], signal.SIGTERM, signal.SIGCONT)
            asked.update(left)
        time.sleep(POLL_S)


def _reap() -> bool:
    """Reap what has ended; whether there are any children left."""
    try:
        while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            os.waitpid(ended.si_pid, 0)
    except ChildProcessError:
        return False
    return True


def _signal(pids: list[int], *numbers: signal.Signals) -> None:
    for pid in pids:
        for number in numbers:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)


def _end_like(status: int) -> NoReturn:
    """End with the worker's exit code, or by the signal that ended it."""
    if os.WIFSIGNALED(status):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the worker has dumped its own core
        number = os.WTERMSIG(status)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 1)
