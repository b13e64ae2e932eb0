"""What the operating system knows about processes, in /proc, and what a process can ask of it (prctl). Linux."""

import asyncio
import os
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

# Scans of /proc, which take milliseconds, may take one part in this many of the event loop's time.
SCAN_SHARE: Final = 10
SCAN_INTERVAL_MIN_S: Final = 0.02
# Options of prctl(2).
_PR_SET_DUMPABLE: Final = 4
_PR_SET_CHILD_SUBREAPER: Final = 36
_PR_SET_NO_NEW_PRIVS: Final = 38
_DEAD: Final = "ZX"


class Process(NamedTuple):
    """One process, as proc(5) describes it."""

    alive: bool  # not a zombie
    parent: int
    group: int
    session: int


Processes = Mapping[int, Process]


class ProcessTable:
    """The processes of this machine, by id: one scan serves all callers."""

    def __init__(self) -> None:
        self._began_at = float("-inf")
        self._next_at = float("-inf")
        self._processes: Processes = {}

    def newer_than(self, moment: float) -> tuple[float, Processes] | None:
        """A scan that began after `moment` (monotonic), and when; None while it is too soon for another one."""
        if self._began_at <= moment:
            if time.monotonic() < self._next_at:
                return None
            self._scan()
        return self._began_at, self._processes

    async def next(self, moment: float) -> tuple[float, Processes]:
        """The first scan that began after `moment`."""
        while (scanned := self.newer_than(moment)) is None:
            await asyncio.sleep(max(0.0, self._next_at - time.monotonic()))
        return scanned

    def _scan(self) -> None:
        self._began_at = time.monotonic()
        self._processes = scan()
        took_s = time.monotonic() - self._began_at
        self._next_at = time.monotonic() + max(SCAN_INTERVAL_MIN_S, (SCAN_SHARE - 1) * took_s)


def scan() -> Processes:
    """All processes; none if there is no /proc."""
    return dict(_scan())


def _scan() -> Iterator[tuple[int, Process]]:
    try:
        names = os.listdir("/proc")
    except OSError:
        return
    for name in names:
        if name.isdigit() and (process := _read(name)) is not None:
            yield int(name), process


def _read(name: str) -> Process | None:
    try:
        with open(f"/proc/{name}/stat", "rb", buffering=0) as file:
            state, parent, group, session = file.read().rpartition(b")")[2].split()[:4]
    except (OSError, ValueError):  # it has ended meanwhile
        return None
    return Process(state.decode() not in _DEAD, int(parent), int(group), int(session))


def descendants(processes: Processes, *ancestors: int) -> list[int]:
    """The living descendants of these processes, without themselves, nearest first."""
    children: dict[int, list[int]] = {}
    for pid, process in processes.items():
        children.setdefault(process.parent, []).append(pid)
    found, seen = list(ancestors), set(ancestors)
    for ancestor in found:  # grows meanwhile
        new = [pid for pid in children.get(ancestor, ()) if pid not in seen]
        seen.update(new)
        found += new
    return [pid for pid in found[len(ancestors) :] if processes[pid].alive]


def environment_value(pid: int, name: str) -> str | None:
    """A variable of the environment that a process was started with.

    None if it has no such variable, has overwritten its environment, may not be inspected, or is a zombie.
    """
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            variables = file.read().split(b"\0")
    except OSError:
        return None
    prefix = name.encode() + b"="
    values = (variable[len(prefix) :] for variable in variables if variable.startswith(prefix))
    return next((value.decode("utf-8", "replace") for value in values), None)


def command_of(pid: int) -> str:
    """The name of a process's program, for a log."""
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            return file.read().decode("utf-8", "replace").rstrip("\n")
    except OSError:
        return ""


def become_subreaper() -> bool:
    """Have descendants that lose their parent become children of this process, as they do of PID 1.

    Whether that worked: it needs Linux, /proc and ctypes.
    """
    return _read("self") is not None and _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def become_undumpable() -> bool:
    """Keep other processes of the same user from this one's memory, environment and file descriptors; no core dumps.

    Whether that worked. It lasts until an `exec`, so the programs that this process starts are not affected.
    """
    return _prctl(_PR_SET_DUMPABLE, 0)


def forbid_new_privileges() -> bool:
    """Let nothing that *this thread* starts gain privileges, as by `sudo` and other setuid programs.

    Whether that worked. It cannot be undone.
    """
    return _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def _prctl(option: int, value: int) -> bool:
    """Whether Linux has done it."""
    if sys.platform != "linux":
        return False
    try:
        import ctypes  # fails where memory may not be made executable, with some versions of libffi

        return bool(ctypes.CDLL(None).prctl(option, value, 0, 0, 0) == 0)
    except (ImportError, MemoryError, OSError, AttributeError):
        return False
