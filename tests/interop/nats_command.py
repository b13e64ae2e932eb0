"""The real `nats` command against a server: run to its end, or left to run."""

import asyncio
import contextlib
import copy
import os
import pty
import shlex
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Self

import msgspec

from tests.tools.programs import Finished, Program

RUN_TIMEOUT_S = 60.0


class NatsCommand:
    """The command, with a home of its own, and the server in its environment."""

    def __init__(self, binary: Path, url: str, folder: Path) -> None:
        on_path = folder / "bin"
        on_path.mkdir(parents=True)
        (on_path / "nats").symlink_to(binary)
        clean = {name: value for name, value in os.environ.items() if not name.startswith("NATS_")}
        path = f"{on_path}{os.pathsep}{os.environ['PATH']}"
        self._env = clean | {"PATH": path, "HOME": str(folder), "XDG_CONFIG_HOME": str(folder), "NATS_URL": url}

    def having(self, **environment: str) -> Self:
        """The same command, with more in its environment."""
        other = copy.copy(self)
        other._env = self._env | environment
        return other

    async def __call__(self, *arguments: str) -> str:
        """What it printed; it has to succeed."""
        return await self.shell(shlex.join(("nats", *arguments)))

    async def json(self, *arguments: str) -> object:
        """What it printed, as JSON."""
        return msgspec.json.decode(await self(*arguments))

    async def shell(self, line: str) -> str:
        """What a line of a shell printed; it has to succeed."""
        async with self.running(line) as program:
            finished: Finished = await program.finished(within_s=RUN_TIMEOUT_S)
        assert finished.code == 0, f"{line}\n{finished.out}{finished.err}"
        return finished.out + finished.err

    async def on_terminal(self, line: str) -> str:
        """What it printed on a terminal: some commands want one."""
        ours, its = pty.openpty()
        try:
            process = await asyncio.create_subprocess_shell(line, env=self._env, stdin=its, stdout=its, stderr=its)
        finally:
            os.close(its)
        try:
            async with asyncio.timeout(RUN_TIMEOUT_S):
                text = await asyncio.to_thread(_read_all, ours)
                assert await process.wait() == 0, text
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            os.close(ours)
        return text

    @contextlib.asynccontextmanager
    async def running(self, line: str) -> AsyncIterator[Program]:
        """A line of a shell that runs; killed in the end where it still does."""
        process = await asyncio.create_subprocess_shell(
            f"exec {line}",
            env=self._env,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        program = Program(process)
        try:
            yield program
        finally:
            await program.kill()


def _read_all(terminal: int) -> str:
    text = b""
    with contextlib.suppress(OSError):  # how a terminal says that nobody writes any more
        while chunk := os.read(terminal, 65536):
            text += chunk
    return text.decode().replace("\r\n", "\n")
