"""One process group: started, signalled, and known to be gone."""

import asyncio
import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Final

POLL_S: Final = 0.02
POLL_MAX_S: Final = 0.5


class ProcessGroup:
    """A program in a process group of its own, with pipes to its standard streams."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str]) -> None:
        """Start it. Raises `OSError` where the program cannot be run."""
        pipe = subprocess.PIPE
        # It takes milliseconds; asyncio's own way needs a thread for each child on Python 3.11.
        self._process = subprocess.Popen(
            argv, stdin=pipe, stdout=pipe, stderr=pipe, env=dict(env), process_group=0, bufsize=0
        )
        self._exited: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transports: dict[IO[bytes], asyncio.BaseTransport] = {}
        self.stdin: asyncio.StreamWriter
        self.stdout: asyncio.StreamReader
        self.stderr: asyncio.StreamReader
        self._watch_exit()

    async def connect(self) -> None:
        """Make `stdin`, `stdout` and `stderr` usable."""
        process = self._process
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        self.stdin = await self._writer(process.stdin)
        self.stdout = await self._reader(process.stdout)
        self.stderr = await self._reader(process.stderr)

    @property
    def id(self) -> int:
        """The id of the group, and of its first process."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code of the first process, minus the signal's number where one ended it; None while it runs."""
        return self._process.returncode

    async def wait_exited(self) -> None:
        """Return when the first process has ended."""
        await asyncio.shield(self._exited)

    async def wait_gone(self) -> None:
        """Return when nothing of the group is left."""
        await self.wait_exited()
        wait_s = POLL_S
        while self._is_alive():
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, POLL_MAX_S)

    def signal(self, number: signal.Signals) -> None:
        """Signal the whole group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.id, number)

    def close(self) -> None:
        """Let go of the pipes."""
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe is not None
            (self._transports.get(pipe) or pipe).close()

    def _is_alive(self) -> bool:
        """Whether a process of the group is left that is no zombie: those are somebody's to reap, and do nothing."""
        try:
            os.killpg(self.id, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        with contextlib.suppress(ChildProcessError):  # where this process is the one that orphans are given to
            while os.waitpid(-self.id, os.WNOHANG) != (0, 0):
                pass
        return _has_live_member(self.id)

    def _watch_exit(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            fd = os.pidfd_open(self.id)
        except (AttributeError, OSError):  # not Linux, or an old one, or no descriptor is free
            threading.Thread(target=self._wait_in_thread, args=(loop,), name=f"wait {self.id}", daemon=True).start()
            return

        def on_exit() -> None:
            loop.remove_reader(fd)
            os.close(fd)
            self._process.wait()
            self._set_exited()

        loop.add_reader(fd, on_exit)

    def _wait_in_thread(self, loop: asyncio.AbstractEventLoop) -> None:
        self._process.wait()
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(self._set_exited)

    def _set_exited(self) -> None:
        if not self._exited.done():
            self._exited.set_result(None)

    async def _reader(self, pipe: IO[bytes]) -> asyncio.StreamReader:
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), pipe
        )
        self._transports[pipe] = transport
        return reader

    async def _writer(self, pipe: IO[bytes]) -> asyncio.StreamWriter:
        loop = asyncio.get_running_loop()
        nothing = asyncio.StreamReader()
        transport, protocol = await loop.connect_write_pipe(lambda: asyncio.StreamReaderProtocol(nothing), pipe)
        self._transports[pipe] = transport
        return asyncio.StreamWriter(transport, protocol, None, loop)


def _has_live_member(group: int) -> bool:
    """Whether /proc shows a process of the group that is no zombie; True where there is no /proc to ask."""
    processes = Path("/proc")
    if not (processes / "self" / "stat").exists():
        return True
    for process in processes.iterdir():
        if not process.name.isdigit():
            continue
        try:
            state, _, its_group = (process / "stat").read_text().rpartition(")")[2].split()[:3]
        except (OSError, ValueError):
            continue
        if int(its_group) == group and state not in "ZX":
            return True
    return False
