"""Managers as processes of their own, to be killed and frozen."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.tools.programs import NEW, Version
from tests.tools.support import DEADLINE_S, eventually

SHORT_LEASE_S = 1


class ManagerProcess:
    """`jido-nats serve` as a process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.serving = asyncio.Event()
        self.manager_id = ""

    @property
    def frozen(self) -> bool:
        """Whether it is stopped (SIGSTOP), by the kernel's word."""
        return is_frozen(self._process.pid)

    @property
    def gone(self) -> bool:
        """Whether it has ended, or is a zombie."""
        return self._process.returncode is not None or set(states(self._process.pid)) <= {"Z"}

    def send(self, number: signal.Signals) -> None:
        """Signal it, if it is still there."""
        if self._process.returncode is None:
            self._process.send_signal(number)

    async def end(self) -> int:
        """Its exit code, after whatever ends it."""
        self.send(signal.SIGCONT)
        self.send(signal.SIGKILL)
        return await self._process.wait()

    async def exit_code(self, within_s: float = DEADLINE_S) -> int:
        """Its exit code, when it ends by itself."""
        async with asyncio.timeout(within_s):
            return await self._process.wait()

    async def freeze(self) -> None:
        """Stop it; returns when it is."""
        await freeze(self._process.pid)


async def freeze(pid: int) -> None:
    """Stop a process (SIGSTOP); returns when not one of its threads runs any more."""
    os.kill(pid, signal.SIGSTOP)
    await eventually(lambda: is_frozen(pid))


def is_frozen(pid: int) -> bool:
    """Whether every thread of a process is stopped, by the kernel's word."""
    return set(states(pid)) == {"T"}


def states(pid: int) -> list[str]:
    """The states of a process's threads, as proc(5) names them; empty when there is no such process."""
    found = []
    with contextlib.suppress(OSError):  # it has ended
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):  # this one has
                found.append(Path(f"/proc/{pid}/task/{thread}/stat").read_text().rpartition(")")[2].split()[0])
    return found


@asynccontextmanager
async def manager_process(
    url: str,
    *,
    worker: str = "tests.tools.agents:waiting",
    failpoints: str = "",
    lease_s: int = SHORT_LEASE_S,
    extra: tuple[str, ...] = (),
    version: Version = NEW,
) -> AsyncIterator[ManagerProcess]:
    """A manager process that serves when the block is entered."""
    process = await asyncio.create_subprocess_exec(
        *version.manager,
        *("serve", "--server", url, "--worker", worker, "--lease-s", str(lease_s), *extra),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        cwd=version.folder,
        env=os.environ | {"JIDO_FAILPOINTS": failpoints},
    )
    manager = ManagerProcess(process)
    assert process.stderr is not None
    reader = asyncio.create_task(_read(process.stderr, manager))
    try:
        async with asyncio.timeout(DEADLINE_S):
            await manager.serving.wait()
        yield manager
    finally:
        await manager.end()
        await reader


async def _read(stream: asyncio.StreamReader, manager: ManagerProcess) -> None:
    """Read the log to its end, so that the process is never stalled by a full pipe."""
    async for line in stream:
        before, found, _ = line.partition(b" serves on ")
        if found:
            manager.manager_id = before.split()[-1].decode()
            manager.serving.set()
    manager.serving.set()
