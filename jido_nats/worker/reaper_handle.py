"""The manager's handle on its reaper, which is started with the first process group and ended with the last."""

import asyncio
import contextlib
import logging
import subprocess
import sys
import threading
from pathlib import Path
from typing import Final

_REAPER: Final = str(Path(__file__).with_name("reaper.py"))

RESTART_WAIT_S: Final = 0.1

log = logging.getLogger(__name__)


class ReaperHandle:
    """Registers process groups with the reaper, and keeps it running while there are any."""

    def __init__(self, own: set[int]) -> None:
        """`own`: the processes that this one has started, and not waited for yet; the reaper is one of them."""
        self._own = own
        self._groups: dict[int, str] = {}
        self._reaper: subprocess.Popen[bytes] | None = None

    def add(self, group: int, run_id: str) -> None:
        """Register a group, and all that has its run's id: from now on it does not outlive this process."""
        self._groups[group] = run_id
        if not self._write(f"+{group} {run_id}\n"):
            self._start()

    def remove(self, group: int) -> None:
        """Remove a group that is gone."""
        self._groups.pop(group, None)
        written = self._write(f"-{group}\n")
        if not self._groups:
            self._stop()
        elif not written:
            self._start()

    def _start(self) -> None:
        """Start a reaper, or replace one that was killed, and register every group."""
        self._stop()
        try:
            self._reaper = subprocess.Popen(  # our own program  # nosec B603
                [sys.executable, "-I", "-S", _REAPER],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                env={},
            )
        except OSError as error:  # retried with the next group
            log.error(
                "no reaper: if this manager is killed, its programs may keep running", extra={"error": str(error)}
            )
            return
        self._own.add(self._reaper.pid)
        for group, run_id in self._groups.items():  # first: until then, this process must not be killed
            self._write(f"+{group} {run_id}\n")
        watching = threading.Thread(
            target=self._watch,
            args=(self._reaper, asyncio.get_running_loop()),
            name="jido_nats reaper watch",
            daemon=True,
        )
        try:
            watching.start()
        except RuntimeError as error:  # no more threads: the reaper works, but is not restarted at once
            log.error("the end of the reaper would not be noticed", extra={"error": str(error)})

    def _watch(self, reaper: "subprocess.Popen[bytes]", loop: asyncio.AbstractEventLoop) -> None:
        """In a thread: wait for the end of the reaper, for whatever reason."""
        reaper.wait()
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(loop.call_later, RESTART_WAIT_S, self._on_end, reaper)

    def _on_end(self, reaper: "subprocess.Popen[bytes]") -> None:
        """Replace a reaper that was killed."""
        self._own.discard(reaper.pid)
        if reaper is self._reaper:
            self._start()

    def _write(self, line: str) -> bool:
        if self._reaper is None or self._reaper.poll() is not None:
            return False
        assert self._reaper.stdin is not None
        try:
            self._reaper.stdin.write(line.encode())
            self._reaper.stdin.flush()
        except OSError:
            return False
        return True

    def _stop(self) -> None:
        """Let the reaper end, without waiting for the milliseconds that this takes."""
        if self._reaper is not None:
            assert self._reaper.stdin is not None
            for group in self._groups:  # unregister all from a reaper that is replaced: it must end none of them
                self._write(f"-{group}\n")
            with contextlib.suppress(OSError):
                self._reaper.stdin.close()
            self._reaper = None
