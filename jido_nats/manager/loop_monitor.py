"""Detects a worker that blocks the manager's event loop, and logs its session and line of code.

The lease is not affected: it is renewed in its own thread.
"""

import asyncio
import logging
import sys
import threading
import time
from types import FrameType
from typing import Final

from jido_nats.manager.live_session import LiveSession
from jido_nats.manager.running import RunningSessions

BEAT_S: Final = 0.25
BLOCKED_AFTER_S: Final = 1.0

log = logging.getLogger(__name__)


class LoopMonitor:
    """A thread that checks whether the loop still runs."""

    def __init__(self, running: RunningSessions[LiveSession]) -> None:
        self._running = running
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._beat_at = time.monotonic()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="jido_nats loop watch", daemon=True)

    async def run(self) -> None:
        """Watch until cancelled."""
        self._thread.start()
        try:
            while True:
                self._beat_at = time.monotonic()
                await asyncio.sleep(BEAT_S)
        finally:
            self._stopped.set()

    def _watch(self) -> None:
        reported_at = 0.0
        while not self._stopped.wait(BEAT_S):
            beat_at = self._beat_at
            if beat_at != reported_at and time.monotonic() - beat_at > BLOCKED_AFTER_S:
                reported_at = beat_at  # once each time the loop is blocked
                self._report()

    def _report(self) -> None:
        task = asyncio.current_task(self._loop)
        name = task.get_name() if task is not None else "no task"
        data = {"at": _where(sys._current_frames().get(self._loop_thread)), "task": name}
        if name in self._running:
            data["session_id"] = data.pop("task")
            log.warning("a worker blocks the manager's event loop; run it with --isolation process", extra=data)
        else:
            log.warning("the manager's event loop is blocked", extra=data)


def _where(frame: FrameType | None) -> str:
    return "" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"
