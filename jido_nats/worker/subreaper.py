"""The manager's process as the subreaper of its programs: it adopts what they orphan, reaps it, and finds its session.

On Linux, and only in a process that starts nothing but these programs (`jido-nats serve`): each of its children that
it has not started itself is an orphan then. It never waits for "any child", so it takes no exit status away from
others, and an orphan is attributed to a run of a program by

1. its process group or session, if that is the program's own,
2. otherwise the variable `JIDO_RUN_ID` in the environment that it was started with.

A process that has left both behind is logged, and left alone.
"""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator
from typing import Final

from jido_nats.worker.processes import (
    Process,
    Processes,
    ProcessTable,
    become_subreaper,
    command_of,
    descendants,
    environment_value,
)

RUN_ID: Final = "JIDO_RUN_ID"
SWEEP_INTERVAL_S: Final = 0.5
LOOKS_BEFORE_LOG: Final = 2

log = logging.getLogger(__name__)


class Subreaper:
    """The children of this process that it has not started."""

    def __init__(self, table: ProcessTable, own: set[int]) -> None:
        """`own`: the children that this process has started and not waited for yet; its callers keep it up to date."""
        self._table = table
        self._own = own
        self._leaders: dict[str, int] = {}
        self._adopted: dict[int, int] = {}
        self._strange: dict[int, int] = {}  # adopted, and of no known run: how often it was looked at

    def add(self, run_id: str, leader: int) -> None:
        """A program runs: its first process leads a process group and a session."""
        self._leaders[run_id] = leader

    def remove(self, run_id: str) -> None:
        """It is gone, with all that was attributed to it."""
        leader = self._leaders.pop(run_id, None)
        self._adopted = {pid: of for pid, of in self._adopted.items() if of != leader}

    def left_of(self, leader: int, *, newer_than: float) -> tuple[float, set[int]] | None:
        """What lives of a run whose leader has ended, and when that was found out.

        None if it is too soon for a look that is newer than `newer_than` (monotonic).
        """
        scanned = self._table.newer_than(newer_than)
        if scanned is None:
            return None
        began_at, processes = scanned
        if not processes:  # no free file descriptor, for example
            return None
        return began_at, self._left_of(leader, processes)

    def _left_of(self, leader: int, processes: Processes) -> set[int]:
        """The run's group, and what was adopted of it, with its descendants."""
        self._adopt(processes)
        roots = [pid for pid, of in self._adopted.items() if of == leader]
        group = (pid for pid, process in processes.items() if process.group == leader)
        return {pid for pid in (*roots, *group) if processes[pid].alive} | set(descendants(processes, *roots))

    @classmethod
    @contextlib.asynccontextmanager
    async def adopting(cls, table: ProcessTable, own: set[int]) -> AsyncIterator["Subreaper | None"]:
        """Make this process a subreaper, and reap what dies from now on; None if that is not possible here."""
        if not become_subreaper():
            log.info("this system has no subreapers: what leaves the process group of a program is not followed")
            yield None
            return
        subreaper = cls(table, own)
        sweeping = asyncio.create_task(subreaper._sweep(), name="reap orphans")
        try:
            yield subreaper
        finally:
            sweeping.cancel()
            await asyncio.gather(sweeping, return_exceptions=True)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_INTERVAL_S)
            if _a_child_has_ended() or any(looks < LOOKS_BEFORE_LOG for looks in self._strange.values()):
                scanned = self._table.newer_than(time.monotonic() - SWEEP_INTERVAL_S)
                if scanned is not None and scanned[1]:
                    self._adopt(scanned[1])

    def _adopt(self, processes: Processes) -> None:
        """Attribute each orphan among the children of this process, and reap those that have ended."""
        me = os.getpid()
        orphans = {pid: p for pid, p in processes.items() if p.parent == me and pid not in self._own}
        self._adopted = {pid: leader for pid, leader in self._adopted.items() if pid in orphans}
        self._strange = {pid: looks for pid, looks in self._strange.items() if pid in orphans}
        for pid, process in orphans.items():
            leader = self._adopted.get(pid) or self._leader_of(pid, process)
            if leader is not None:
                self._adopted[pid] = leader
            elif process.alive:
                self._log_strange(pid)
            if not process.alive:
                with contextlib.suppress(ChildProcessError):  # reaped since the scan
                    os.waitpid(pid, os.WNOHANG)

    def _leader_of(self, pid: int, process: Process) -> int | None:
        """The leader of the run that an orphan belongs to."""
        for candidate in (process.group, process.session):
            if candidate in self._leaders.values():
                return candidate
        return self._leaders.get(environment_value(pid, RUN_ID) or "")

    def _log_strange(self, pid: int) -> None:
        """Log an orphan of no known session, at the second look: one that is being started has no environment yet."""
        self._strange[pid] = looks = self._strange.get(pid, 0) + 1
        if looks == LOOKS_BEFORE_LOG:
            log.warning(
                "adopted a process that belongs to no known session, leaving it",
                extra={"pid": pid, "command": command_of(pid)},
            )


def _a_child_has_ended() -> bool:
    """Whether this process has a zombie, whichever; it stays one."""
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return False
