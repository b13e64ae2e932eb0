"""One program: start it in a session and process group of its own, signal all of it, and know when it is gone."""

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Final

from jido_nats.worker.processes import ProcessTable, command_of, descendants, forbid_new_privileges
from jido_nats.worker.reaper_handle import ReaperHandle
from jido_nats.worker.subreaper import Subreaper

POLL_S: Final = 0.02
POLL_MAX_S: Final = 0.5
# A group that still exists is mostly one that is about to end: look at its members only after this long.
ZOMBIES_AFTER_S: Final = 0.2
# How often what a killed program has started meanwhile is looked for, before the program itself is killed.
KILL_ROUNDS_MAX: Final = 5
BUFFER_BYTES: Final = 16 * 1024

log = logging.getLogger(__name__)


class Supervision:
    """What the programs of one process share: the table of processes, which of them are its own, and the reaper.

    `subreaper`: this process's, if it is one; then what leaves a program's process group is followed.
    """

    def __init__(self) -> None:
        self.table = ProcessTable()
        self.own: set[int] = set()
        self.reaper = ReaperHandle(self.own)
        self.subreaper: Subreaper | None = None
        # Programs inherit from the thread that starts them that they cannot gain privileges; the others keep theirs.
        self._starter = ThreadPoolExecutor(1, "jido_nats program starter", initializer=forbid_new_privileges)

    def start(self, argv: Sequence[str], env: Mapping[str, str]) -> "subprocess.Popen[bytes]":
        """A program in a session of its own, with pipes. Raises `OSError`.

        This blocks for milliseconds; asyncio's subprocesses need a thread for each child on Python 3.11.
        """
        try:
            return self._starter.submit(_start, argv, env).result()
        except RuntimeError as error:  # no more threads
            raise OSError(errno.EAGAIN, str(error)) from error


class ProcessGroup:
    """A program in its own session and process group, with pipes to its standard streams."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], run_id: str, supervision: Supervision) -> None:
        """Start it. `env` holds the `run_id`. Raises `OSError` if the program cannot be run."""
        self._supervision = supervision
        self._run_id = run_id
        self._process = supervision.start(argv, env)
        self._is_status_lost = False
        supervision.own.add(self.id)
        if supervision.subreaper is not None:
            supervision.subreaper.add(run_id, self.id)
        self._number: signal.Signals | None = None  # what it is being ended with
        self._signalled: set[int] = set()  # the adopted processes that have got it
        self._out_of_reach: set[int] = set()  # those that have become another user's
        self._looked_at = 0.0
        self.gone = False
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
        """Return when only zombies are left of it: they do nothing, and their parent has to reap them.

        "It" is the process group or, if this process is a subreaper, all that the program has started and that can be
        recognized. What is adopted after `terminate` or `kill` gets the same signal.
        """
        await self.wait_exited()
        exited_at, wait_s = time.monotonic(), POLL_S
        while self._group_left(exited_at) if self._supervision.subreaper is None else self._run_left(exited_at):
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, POLL_MAX_S)
        self.gone = True

    def terminate(self) -> None:
        """Ask all of it to end: the group at once, what has left the group after the program itself has ended."""
        self._number = signal.SIGTERM
        self._signal_group(signal.SIGTERM, signal.SIGCONT)  # one that is stopped handles no signal

    async def kill(self) -> None:
        """End all of it: first what has left the group, as long as it can be found by its ancestor."""
        self._number = signal.SIGKILL
        self._signalled.clear()
        if not self._exited.done():
            self._signal_group(signal.SIGSTOP)  # it starts nothing more
            await self._kill_emigrants()
        self._signal_group(signal.SIGKILL)

    def kill_group(self) -> None:
        """End the group at once, and nothing else; for a process that is ending itself."""
        self._signal_group(signal.SIGKILL)

    async def _kill_emigrants(self) -> None:
        looked_at = time.monotonic()
        for _ in range(KILL_ROUNDS_MAX):
            looked_at, processes = await self._supervision.table.next(looked_at)
            started = [pid for pid in descendants(processes, self.id) if processes[pid].group != self.id]
            if not started:
                return
            for pid in started:
                _signal(pid, signal.SIGKILL)

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
        if self._supervision.subreaper is not None:
            self._supervision.subreaper.remove(self._run_id)
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

    def _group_left(self, exited_at: float) -> bool:
        """Whether the group has a living member; zombies count for a moment, and while nobody can say."""
        if not self._group_exists():
            return False
        if time.monotonic() < exited_at + ZOMBIES_AFTER_S:
            return True
        scanned = self._supervision.table.newer_than(max(exited_at, self._looked_at))
        if scanned is None:
            return True
        self._looked_at, processes = scanned
        return not processes or any(p.alive and p.group == self.id for p in processes.values())

    def _run_left(self, exited_at: float) -> bool:
        """Whether anything lives that this process has adopted of this run, or nobody can say yet."""
        assert self._supervision.subreaper is not None
        found = self._supervision.subreaper.left_of(self.id, newer_than=max(exited_at, self._looked_at))
        if found is None:
            return True
        self._looked_at, left = found
        if self._number is not None:
            self._signal_new(left, self._number)
        return bool(left - self._out_of_reach)

    def _signal_new(self, pids: set[int], number: signal.Signals) -> None:
        """Signal those that have not got the signal that the run is being ended with."""
        for pid in pids - self._signalled - self._out_of_reach:
            if not _signal(pid, number):
                log.warning(
                    "a process may not be signalled, leaving it", extra={"pid": pid, "command": command_of(pid)}
                )
                self._out_of_reach.add(pid)
            _signal(pid, signal.SIGCONT)
        self._signalled.update(pids)

    def _signal_group(self, *numbers: signal.Signals) -> None:
        for number in numbers:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.id, number)

    def _group_exists(self) -> bool:
        """Whether the group of a program that has ended has members, zombies included."""
        try:
            os.killpg(self.id, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        with contextlib.suppress(ChildProcessError):  # reap orphans, if this process is PID 1
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
        self._supervision.own.discard(self.id)
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


def _start(argv: Sequence[str], env: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    pipe = subprocess.PIPE
    # A session of its own has no controlling terminal: nothing that it starts can ask there, and be stopped.
    return subprocess.Popen(  # the operator's program, without a shell  # nosec B603
        argv, stdin=pipe, stdout=pipe, stderr=pipe, env=dict(env), start_new_session=True, bufsize=0
    )


def _signal(pid: int, number: signal.Signals) -> bool:
    """Signal a process; whether that is allowed."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return True
