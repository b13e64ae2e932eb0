"""The programs of this folder as workers, and which processes of a session there are."""

import contextlib
import os
import secrets
import shlex
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from jido_nats.worker.program import Program

HERE = Path(__file__).parent
INTERPRETERS = {".sh": ["sh"], ".js": ["node"], ".py": [sys.executable, "-I", "-S"]}


def child(name: str, *arguments: str, **options: Any) -> Program:
    """A program of this folder, as a worker that has a second to stop."""
    return Program([*words(name), *arguments], **{"stop_timeout_s": 1.0, **options})


def words(name: str) -> list[str]:
    """How it is run."""
    return [*INTERPRETERS[Path(name).suffix], str(HERE / name)]


def command(name: str, *arguments: str) -> str:
    """The same as one would type it."""
    return shlex.join([*words(name), *arguments])


def new_id() -> str:
    """A session id that no other test has: `kin_of` finds the session's processes by it."""
    return f"s{secrets.token_hex(6)}"


def kin_of(prefix: str) -> list[int]:
    """The processes that were started for sessions whose id begins so, wherever they went; without zombies."""
    wanted = f"JIDO_SESSION_ID={prefix}".encode()
    found = []
    for process in Path("/proc").iterdir():
        try:
            environment = (process / "environ").read_bytes() if process.name.isdigit() else b""
        except OSError:
            continue
        if any(value.startswith(wanted) for value in environment.split(b"\0")):
            found.append(int(process.name))
    return sorted(found)


def that_run(*words: str) -> list[int]:
    """The processes with exactly this command line, wherever they came from; without zombies."""
    line = b"".join(word.encode() + b"\0" for word in words)
    return sorted(pid for pid in _pids() if _read(f"/proc/{pid}/cmdline") == line)


def children_of(parent: int) -> list[int]:
    """The children of a process, zombies too."""
    return [pid for pid in _pids() if _stat(pid)[1:2] == [str(parent)]]


def zombies(parent: int) -> list[int]:
    """The children of a process that have ended, and that it has not waited for."""
    return [pid for pid in children_of(parent) if _stat(pid)[:1] == ["Z"]]


def leaders(prefix: str) -> list[int]:
    """Of these, those that lead a process group."""
    return [pid for pid in kin_of(prefix) if _group_of(pid) == pid]


def reapers(parent: int) -> list[int]:
    """The reapers of that process, zombies too."""
    mine = {pid: stat[0] for pid in _pids() if (stat := _stat(pid))[1:2] == [str(parent)]}
    return [pid for pid, state in mine.items() if state == "Z" or b"reaper.py" in _read(f"/proc/{pid}/cmdline")]


def open_files() -> Counter[str]:
    """The file descriptors of this process, by what they are: `pipe:[4711]`, `anon_inode:[pidfd]`, …

    Take an earlier count from a later one for what is new: what tests before this one have left to the garbage
    collector may be closed meanwhile.
    """
    found: Counter[str] = Counter()
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # that of this listing is closed by now
            found[os.readlink(descriptor)] += 1
    return found


def kill(pids: list[int]) -> None:
    """Leave nothing behind of what escaped."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def _group_of(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return 0


def _pids() -> list[int]:
    return [int(process.name) for process in Path("/proc").iterdir() if process.name.isdigit()]


def _stat(pid: int) -> list[str]:
    """State, parent, group, … of a process; nothing of one that is gone."""
    return _read(f"/proc/{pid}/stat").decode().rpartition(")")[2].split()


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""
