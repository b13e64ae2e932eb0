"""One process group: start it, signal it, and know when it is gone."""

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
# Scanning /proc takes milliseconds: wait this long before the first scan, and between scans.
SCAN_INTERVAL_S: Final = 0.2
BUFFER_BYTES: Final = 16 * 1024


class ProcessGroup:
    """A program in its own process group, with pipes to its standard streams."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], live: "LiveGroups") -> None:
        """Start it. Raises `OSError` if the program cannot be run."""
        self._live = live
        pipe = subprocess.PIPE
        # This blocks for milliseconds; asyncio's subprocesses need a thread for each child on Python 3.11.
        self._process = subprocess.Popen(
            argv, stdin=pipe, stdout=pipe, stderr=pipe, env=dict(env), process_group=0, bufsize=0
        )
        self._is_status_lost = False
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
        """The exit code of the first process, or minus the number of the signal that ended it.

        None while it runs, and if it is unknown: another part of this process has taken the status, or SIGCHLD is
        ignored.
        """
        return None if self._is_status_lost else self._process.returncode

    async def wait_exited(self) -> None:
        """Return when the first process has ended."""
        await asyncio.shield(self._exited)

    async def wait_gone(self) -> None:
        """Return when only zombies are left of the group: they do nothing, and their parent has to reap them."""
        await self.wait_exited()
        exited_at, wait_s = time.monotonic(), POLL_S
        while self._exists() and (
            time.monotonic() < exited_at + SCAN_INTERVAL_S or self._live.has(self.id, since=exited_at)
        ):
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, POLL_MAX_S)

    def signal(self, number: signal.Signals) -> None:
        """Signal the whole group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.id, number)

    def finish_reading(self) -> None:
        """Read what is in the pipes, and close them: a process that has left the group may hold them open."""
        self._close_stdin()
        for pipe, (transport, reader) in self._reading.items():
            if transport.is_closing():
                continue
            transport.pause_reading()
            if left := int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder):
                reader.feed_data(os.read(pipe.fileno(), left))
            transport.close()  # EOF for the reader

    def close(self) -> None:
        """Close the pipes, including what has not been read."""
        self._close_stdin()
        for pipe in (self._process.stdout, self._process.stderr):
            assert pipe is not None
            (self._reading[pipe][0] if pipe in self._reading else pipe).close()

    def _close_stdin(self) -> None:
        assert self._process.stdin is not None
        if self._writing is None:
            self._process.stdin.close()
        elif not self._writing.is_closing():
            self._writing.abort()

    def _exists(self) -> bool:
        """Whether the group has members, zombies included."""
        try:
            os.killpg(self.id, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        with contextlib.suppress(ChildProcessError):  # reap orphans, if this process is their subreaper
            while os.waitpid(-self.id, os.WNOHANG) != (0, 0):
                pass
        return True

    def _watch_exit(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            fd = os.pidfd_open(self.id)
        except (AttributeError, OSError):  # not Linux, an old kernel, or no free file descriptor
            threading.Thread(target=self._wait_in_thread, args=(loop,), name=f"wait {self.id}", daemon=True).start()
            return

        def on_exit() -> None:
            loop.remove_reader(fd)
            os.close(fd)
            self._reap()
            self._set_exited()

        loop.add_reader(fd, on_exit)

    def _wait_in_thread(self, loop: asyncio.AbstractEventLoop) -> None:
        self._reap()
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(self._set_exited)

    def _reap(self) -> None:
        """Wait for the first process. `Popen.wait` would report 0 for a status that it does not get."""
        try:
            _, status = os.waitpid(self.id, 0)
        except ChildProcessError:
            self._is_status_lost = True
            self._process.wait()  # for its own bookkeeping: there is nothing to wait for
        else:
            self._process.returncode = os.waitstatus_to_exitcode(status)

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


class LiveGroups:
    """The process groups that have a member that is not a zombie, according to /proc: one scan serves all callers."""

    def __init__(self) -> None:
        self._scanned_at = 0.0
        self._groups: frozenset[int] = frozenset()

    def has(self, group: int, *, since: float) -> bool:
        """Whether the group was live within the last `SCAN_INTERVAL_S` and after `since` (monotonic).

        True if there is no /proc.
        """
        now = time.monotonic()
        if self._scanned_at < max(since, now - SCAN_INTERVAL_S):
            self._groups, self._scanned_at = _live_groups(), now
        return not self._groups or group in self._groups


def _live_groups() -> frozenset[int]:
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, group = stat.read_text().rpartition(")")[2].split()[:3]
        except (OSError, ValueError):  # the process has ended meanwhile
            continue
        if state not in "ZX":
            found.add(int(group))
    return frozenset(found)
