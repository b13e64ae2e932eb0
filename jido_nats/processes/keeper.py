"""The manager's side of the guard: started with the first process group, ended with the last."""

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import Final

_GUARD: Final = str(Path(__file__).with_name("guard.py"))


class Keeper:
    """Tells the guard which process groups there are."""

    def __init__(self) -> None:
        self._groups: set[int] = set()
        self._guard: subprocess.Popen[bytes] | None = None
        self._ended: list[subprocess.Popen[bytes]] = []

    def add(self, group: int) -> None:
        """From now on the group does not outlive this process."""
        self._groups.add(group)
        if not self._tell(f"+{group}\n"):
            self._start()

    def remove(self, group: int) -> None:
        """The group is gone."""
        self._groups.discard(group)
        if not self._groups:
            self._stop()
        elif not self._tell(f"-{group}\n"):
            self._start()

    def _start(self) -> None:
        """Start a guard, also in the place of one that was killed, and tell it all."""
        self._stop()
        self._guard = subprocess.Popen(
            [sys.executable, "-I", "-S", _GUARD],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={},
        )
        for group in self._groups:
            self._tell(f"+{group}\n")

    def _tell(self, line: str) -> bool:
        if self._guard is None or self._guard.poll() is not None:
            return False
        assert self._guard.stdin is not None
        try:
            self._guard.stdin.write(line.encode())
            self._guard.stdin.flush()
        except OSError:
            return False
        return True

    def _stop(self) -> None:
        """Let the guard end, which takes milliseconds; it is reaped here or the next time."""
        if self._guard is not None:
            assert self._guard.stdin is not None
            for group in self._groups:  # of a guard that is replaced: nothing is left for it to end
                self._tell(f"-{group}\n")
            with contextlib.suppress(OSError):
                self._guard.stdin.close()
            self._ended.append(self._guard)
            self._guard = None
        self._ended = [guard for guard in self._ended if not _is_reaped(guard)]


def _is_reaped(guard: "subprocess.Popen[bytes]") -> bool:
    try:
        guard.wait(timeout=0.1)
    except subprocess.TimeoutExpired:
        return False
    return True
