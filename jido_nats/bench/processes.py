"""Manager processes that the bench starts with `jido-nats serve`, stops, and kills."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Final

from jido_nats.errors import ServerUnusable

SERVES: Final = b" serves on "
START_TIMEOUT_S: Final = 20.0
STOP_TIMEOUT_S: Final = 60.0  # a manager ends its sessions first


class ManagerProcess:
    """One manager; `running_manager` starts it."""

    def __init__(self, process: asyncio.subprocess.Process, manager_id: str, reader: "asyncio.Task[None]") -> None:
        self._process = process
        self._reader = reader
        self.manager_id = manager_id

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    async def kill(self) -> None:
        """Kill it, as `kill -9` does."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> None:
        """Shut it down gracefully."""
        await self._end(signal.SIGTERM)

    async def _end(self, number: signal.Signals) -> None:
        _send(self._process, number)
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await self._process.wait()
        except TimeoutError:
            _send(self._process, signal.SIGKILL)
            await self._process.wait()
        await self._reader


@contextlib.asynccontextmanager
async def running_manager(url: str, *, lease_s: int, config_file: Path | None) -> AsyncIterator[ManagerProcess]:
    """A manager that serves inside the block. Raises `ServerUnusable`, with its last output, if it does not start."""
    config = ["--config", str(config_file)] if config_file is not None else []
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "jido_nats", "serve"),
        *("--server", url, "--lease-s", str(lease_s), *config),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if not name.startswith("NATS_")},
        start_new_session=True,  # Ctrl-C is for the bench, which stops its managers
    )
    try:
        manager_id = await _wait_serving(process)
    except BaseException:
        _send(process, signal.SIGKILL)
        await process.wait()
        raise
    manager = ManagerProcess(process, manager_id, asyncio.create_task(_drain(process)))
    try:
        yield manager
    finally:
        await asyncio.shield(manager.stop())


def cpu_s(pids: Iterable[int]) -> float | None:
    """The CPU time that processes have used; None if the system does not report it."""
    total = 0.0
    try:
        for pid in pids:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except OSError:
        return None
    return total


async def _wait_serving(process: asyncio.subprocess.Process) -> str:
    """The manager's id, which it prints when it serves."""
    assert process.stderr is not None
    last = b"it printed nothing"
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(START_TIMEOUT_S):
            while line := await process.stderr.readline():
                if SERVES in line:
                    return line.split(SERVES)[0].decode().strip()
                last = line
    raise ServerUnusable(f"a manager did not start: {last.decode(errors='replace').strip()}")


def _send(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    """Signal it. Not with `send_signal`: that may reap a process that has just ended, and asyncio then warns."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)


async def _drain(process: asyncio.subprocess.Process) -> None:
    """Read its stderr, so that it never blocks on a full pipe."""
    assert process.stderr is not None
    while await process.stderr.read(65536):
        pass
