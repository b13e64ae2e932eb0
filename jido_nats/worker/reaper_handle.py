"""The manager's side of the guard: started with the first process group, ended with the last."""

import asyncio
import contextlib
import logging
import subprocess
import sys
import threading
from pathlib import Path
from typing import Final

_GUARD: Final = str(Path(__file__).with_name("reaper.py"))

SUCCESSOR_WAIT_S: Final = 0.1

log = logging.getLogger(__name__)


class ReaperHandle:
    """Tells the guard which process groups there are."""

    def __init__(self) -> None:
        self._groups: set[int] = set()
        self._guard: subprocess.Popen[bytes] | None = None

    def add(self, group: int) -> None:
        """From now on the group does not outlive this process."""
        self._groups.add(group)
        if not self._tell(f"+{group}\n"):
            self._start()

    def remove(self, group: int) -> None:
        """The group is gone."""
        self._groups.discard(group)
        told = self._tell(f"-{group}\n")
        if not self._groups:
            self._stop()
        elif not told:
            self._start()

    def _start(self) -> None:
        """Start a guard, also in the place of one that was killed, and tell it all."""
        self._stop()
        try:
            self._guard = subprocess.Popen(
                [sys.executable, "-I", "-S", _GUARD],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                env={},
            )
        except OSError as error:  # tried again with the next group
            log.error("no guard: if this manager is killed, its programs may live on", extra={"error": str(error)})
            return
        watching = threading.Thread(
            target=self._watch,
            args=(self._guard, asyncio.get_running_loop()),
            name="jido_nats guard's end",
            daemon=True,
        )
        try:
            watching.start()
        except RuntimeError as error:  # no more threads: it guards all the same
            log.error("nobody would see the guard end", extra={"error": str(error)})
        for group in self._groups:
            self._tell(f"+{group}\n")

    def _watch(self, guard: "subprocess.Popen[bytes]", loop: asyncio.AbstractEventLoop) -> None:
        """In a thread: reap the guard when it ends, whoever ended it."""
        guard.wait()
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(loop.call_later, SUCCESSOR_WAIT_S, self._on_end, guard)

    def _on_end(self, guard: "subprocess.Popen[bytes]") -> None:
        """One that was killed has a successor."""
        if guard is self._guard:
            self._start()

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
        """Let the guard end, which takes milliseconds that nobody waits for."""
        if self._guard is not None:
            assert self._guard.stdin is not None
            for group in self._groups:  # of a guard that is replaced: nothing is left for it to end
                self._tell(f"-{group}\n")
            with contextlib.suppress(OSError):
                self._guard.stdin.close()
            self._guard = None
