"""One process group: started, signalled, and known to be gone."""

import asyncio
import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Final

POLL_S: Final = 0.02
POLL_MAX_S: Final = 0.5
# A look at all processes takes milliseconds: not before this, nor more often.
LOOK_S: Final = 0.2
BUFFER_BYTES: Final = 16 * 1024


class ProcessGroup:
    """A program in a process group of its own, with pipes to its standard streams."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], living: "LivingGroups") -> None:
        """Start it. Raises `OSError` where the program cannot be run."""
        self._living = living
        pipe = subprocess.PIPE
        # It takes milliseconds; asyncio's own way needs a thread for each child on Python 3.11.
        self._process = subprocess.Popen(
            argv, stdin=pipe, stdout=pipe, stderr=pipe, env=dict(env), process_group=0, bufsize=0
        )
        self._exited: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._writing: asyncio.WriteTransport | None = None
        self._reading: dict[IO[bytes], tuple[asyncio.ReadTransport, asyncio.StreamReader]] = {}
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
        """Return when nothing of the group is left, but for zombies: those are somebody's to reap, and do nothing."""
        await self.wait_exited()
        exited_at, wait_s = time.monotonic(), POLL_S
        while self._exists() and (time.monotonic() < exited_at + LOOK_S or self._living.has(self.id, since=exited_at)):
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, POLL_MAX_S)

    def signal(self, number: signal.Signals) -> None:
        """Signal the whole group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.id, number)

    def hang_up(self) -> None:
        """Take in what the group has written, and no more: who has left the group may hold the pipes open."""
        self._let_go_of_stdin()
        for pipe, (transport, reader) in self._reading.items():
            if transport.is_closing():
                continue
            transport.pause_reading()
            if left := int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder):
                reader.feed_data(os.read(pipe.fileno(), left))
            transport.close()  # the reader's end

    def close(self) -> None:
        """Let go of the pipes, also with what nobody has read."""
        self._let_go_of_stdin()
        for pipe in (self._process.stdout, self._process.stderr):
            assert pipe is not None
            (self._reading[pipe][0] if pipe in self._reading else pipe).close()

    def _let_go_of_stdin(self) -> None:
        assert self._process.stdin is not None
        if self._writing is None:
            self._process.stdin.close()
        elif not self._writing.is_closing():
            self._writing.abort()

    def _exists(self) -> bool:
        """Whether the group has members, be they zombies."""
        try:
            os.killpg(self.id, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        with contextlib.suppress(ChildProcessError):  # where this process is the one that orphans are given to
            while os.waitpid(-self.id, os.WNOHANG) != (0, 0):
                pass
        return True

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
        reader = asyncio.StreamReader(BUFFER_BYTES)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), pipe
        )
        self._reading[pipe] = transport, reader
        return reader

    async def _writer(self, pipe: IO[bytes]) -> asyncio.StreamWriter:
        loop = asyncio.get_running_loop()
        nothing = asyncio.StreamReader()
        transport, protocol = await loop.connect_write_pipe(lambda: asyncio.StreamReaderProtocol(nothing), pipe)
        self._writing = transport
        return asyncio.StreamWriter(transport, protocol, None, loop)


class LivingGroups:
    """The process groups that have a member which is no zombie, as /proc shows them: one look serves all who ask."""

    def __init__(self) -> None:
        self._looked_at = 0.0
        self._groups: frozenset[int] = frozenset()

    def has(self, group: int, *, since: float) -> bool:
        """Whether it was so within the last `LOOK_S`, and after `since` (monotonic); True where /proc does not tell."""
        now = time.monotonic()
        if self._looked_at < max(since, now - LOOK_S):
            self._groups, self._looked_at = _living_groups(), now
        return not self._groups or group in self._groups


def _living_groups() -> frozenset[int]:
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, group = stat.read_text().rpartition(")")[2].split()[:3]
        except (OSError, ValueError):  # it has gone meanwhile
            continue
        if state not in "ZX":
            found.add(int(group))
    return frozenset(found)
