"""Programs that tests run: `jido-nats` as a user starts it, and what it said."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from tests.tools.support import DEADLINE_S

ROOT = Path(__file__).parents[2]
JIDO_NATS = Path(sys.executable).parent / "jido-nats"
RUN_TIMEOUT_S = 60.0


class Version(NamedTuple):
    """A version of jido_nats: its command line, the command that takes `serve …`, and the folder of its workers.

    The folder is where its programs run, and has `tests.tools.agents` as that version has it.
    """

    name: str
    jido_nats: Path
    manager: tuple[str, ...]
    folder: Path


NEW = Version("new", JIDO_NATS, (sys.executable, "-m", "tests.tools.failpoints"), ROOT)


class Finished(NamedTuple):
    """How a program ended."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        """What it printed with --json."""
        return [msgspec.json.decode(line) for line in self.out.splitlines()]


class Program:
    """A program that runs; what it says is read all the time."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.out = ""
        self.err = ""
        self._readers = [asyncio.create_task(self._read_out()), asyncio.create_task(self._read_err())]

    async def said(self, text: str, *, within_s: float = DEADLINE_S) -> None:
        """Wait until the text was printed, on stdout or stderr."""
        async with asyncio.timeout(within_s):
            while text not in self.out + self.err:
                assert self.process.returncode is None or not all(r.done() for r in self._readers), self.out + self.err
                await asyncio.sleep(0.01)

    async def finished(self, *, within_s: float = RUN_TIMEOUT_S) -> Finished:
        """How it ended; it has to, within the time."""
        async with asyncio.timeout(within_s):
            await asyncio.gather(*self._readers)
            return Finished(await self.process.wait(), self.out, self.err)

    def send(self, number: signal.Signals) -> None:
        """Signal it."""
        self.process.send_signal(number)

    async def end(self, number: signal.Signals) -> Finished:
        """How it ended after a signal."""
        self.process.send_signal(number)
        return await self.finished()

    async def kill(self) -> None:
        """Leave nothing behind."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()
        await asyncio.gather(*self._readers, return_exceptions=True)

    async def _read_out(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.out += line.decode()

    async def _read_err(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.err += line.decode()


@contextlib.asynccontextmanager
async def running(
    *arguments: str, cwd: Path | None = None, env: Mapping[str, str] | None = None, version: Version = NEW
) -> AsyncIterator[Program]:
    """`jido-nats` with these arguments; killed in the end where it still runs."""
    clean = {name: value for name, value in os.environ.items() if name not in ("NATS_URL", "COLUMNS", "FORCE_COLOR")}
    process = await asyncio.create_subprocess_exec(
        str(version.jido_nats),
        *arguments,
        cwd=cwd or version.folder,
        env=clean | dict(env or {}),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    program = Program(process)
    try:
        yield program
    finally:
        await program.kill()


async def run(
    *arguments: str, within_s: float = RUN_TIMEOUT_S, env: Mapping[str, str] | None = None, version: Version = NEW
) -> Finished:
    """How `jido-nats` with these arguments ended."""
    async with running(*arguments, env=env, version=version) as program:
        return await program.finished(within_s=within_s)


@contextlib.asynccontextmanager
async def serving(url: str, *arguments: str, env: Mapping[str, str] | None = None) -> AsyncIterator[Program]:
    """`jido-nats serve` that has said that it serves."""
    async with running("serve", "--server", url, *arguments, env=env) as program:
        await program.said(" serves on ")
        yield program
