"""A program, in any language, as a worker: each session is one process group that talks in lines of JSON."""

import asyncio
import contextlib
import logging
import os
import shlex
import shutil
import signal
import sys
from collections import deque
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, Final

import msgspec

from jido_nats.core import codec
from jido_nats.core.codec import DecodeError
from jido_nats.core.session import SessionRecord, Status
from jido_nats.core.settings import Settings
from jido_nats.errors import CommandError, ConfigurationError
from jido_nats.worker.process_group import LivingGroups, ProcessGroup
from jido_nats.worker.protocol import (
    LINE_BYTES_MAX,
    Activate,
    Done,
    Failed,
    Flush,
    FromProgram,
    Idle,
    Next,
    OutputLine,
    Ready,
    Refused,
    RoundRobin,
    Say,
    SessionLine,
    StatusLine,
    Touch,
    lines_of,
)
from jido_nats.worker.reaper_handle import ReaperHandle
from jido_nats.worker.run import ERROR_LENGTH_MAX, WorkerFailed, WorkerKilled
from jido_nats.worker.session import Session, host_of

STOP_TIMEOUT_S: Final = 3.0
# How long what the program has written last may take to be taken in, once it is gone.
DRAIN_S: Final = 5.0
ERROR_LINES_MAX: Final = 20
ERROR_LINE_BYTES_MAX: Final = 2000
ERROR_LINES_LOGGED_PER_S: Final = 100
WARNINGS_MAX: Final = 20
ENV_VALUE_BYTES_MAX: Final = 100 * 1024
# What a program does not inherit: credentials of the manager, and settings of its own.
_NOT_INHERITED: Final = ("NATS_", "JIDO_")

log = logging.getLogger(__name__)
stderr_log = logging.getLogger("jido_nats.stderr")


class Program:
    """A worker that runs a program for each session.

    The program gets its session as the first line on standard input and in `JIDO_SESSION_ID`, `JIDO_METADATA` and
    `JIDO_LLM_CONFIG`, then messages as lines, and says what it wants in lines (`jido_nats.worker.protocol`).
    Exit code 0 is `completed`, anything else `crashed`. A session that ends takes the whole process group with it:
    SIGTERM, and SIGKILL after `stop_timeout_s` (seconds).
    """

    def __init__(
        self,
        command: str | Sequence[str],
        *,
        stop_timeout_s: float = STOP_TIMEOUT_S,
        wait_ready: bool = False,
        python_worker: bool = False,
    ) -> None:
        """`command`: a command line (no shell reads it) or its words. Raises `ConfigurationError` where it is none.

        `wait_ready`: as the manager is set. `python_worker`: the program asks for each message with a line `next`,
        and is told of every change of its status.
        """
        try:
            self._argv = shlex.split(command) if isinstance(command, str) else list(command)
        except ValueError as error:
            raise ConfigurationError(f"the command {command!r} cannot be read: {error}") from error
        if not self._argv or shutil.which(self._argv[0]) is None:
            raise ConfigurationError(f"there is no program {self._argv[0] if self._argv else ''!r} that can be run")
        self._stop_timeout_s = stop_timeout_s
        self._wait_ready = wait_ready
        self._python_worker = python_worker
        self._reaper = ReaperHandle()
        self._living = LivingGroups()
        self._turns = RoundRobin()

    async def __call__(self, session: Session) -> None:
        """Run the program for this session, to its end."""
        host = host_of(session)
        try:
            group = ProcessGroup(self._argv, environment(host.record, os.environ), self._living)
        except OSError as error:
            raise WorkerFailed(f"{self._argv[0]} cannot be started: {error.strerror or error}") from error
        try:
            self._reaper.add(group.id)
            await self._run(session, group)
        finally:
            self._reaper.remove(group.id)
            group.close()

    async def _run(self, session: Session, group: ProcessGroup) -> None:
        exchange = _Exchange(session, group, self._turns, python_worker=self._python_worker)
        cancelled, trouble = False, None
        try:
            await group.connect()
            exchange.start(self._wait_ready)
            await group.wait_exited()
        except asyncio.CancelledError:
            cancelled = True
        except Exception as error:  # no descriptor is free, say, or no thread: what has started is ended
            trouble = f"{self._argv[0]} cannot be talked to: {getattr(error, 'strerror', None) or error}"
        forced = await _uninterrupted(self._end(group, exchange))
        if forced and cancelled:
            raise WorkerKilled
        if trouble:
            raise WorkerFailed(trouble)
        if group.returncode and (exchange.failure or not cancelled):
            raise WorkerFailed(exchange.failure or _how_it_ended(group.returncode, exchange.last_errors()))
        if cancelled:
            raise asyncio.CancelledError

    async def _end(self, group: ProcessGroup, exchange: "_Exchange") -> bool:
        """Return when nothing of the group is left, and all that it said is read; whether it had to be killed."""
        gone = asyncio.create_task(group.wait_gone())
        if not await _done_within(gone, 0.0):
            group.signal(signal.SIGTERM)
        forced = not await _done_within(gone, self._stop_timeout_s)
        if forced:
            group.signal(signal.SIGKILL)
            await gone
        await exchange.end()
        return forced


def isolated(name: str, settings: Settings) -> Program:
    """The Python worker of that name (`package.module:callable`), each session in a process of its own."""
    return Program(
        [sys.executable, "-m", "jido_nats.worker.child", name],
        stop_timeout_s=settings.stop_timeout_s,
        wait_ready=settings.wait_ready,
        python_worker=True,
    )


class _Exchange:
    """What goes back and forth between one session and its program."""

    def __init__(self, session: Session, group: ProcessGroup, turns: RoundRobin, *, python_worker: bool) -> None:
        self._session = session
        self._host = host_of(session)
        self._group = group
        self._turns = turns
        self._asked = asyncio.Semaphore(0) if python_worker else None
        self._tasks: list[asyncio.Task[None]] = []
        self._errors: deque[str] = deque(maxlen=ERROR_LINES_MAX)
        self._warnings = 0
        self.failure: str | None = None

    def start(self, wait_ready: bool) -> None:
        """Begin with the session's line, and relay from now on."""
        host = self._host
        self._write(SessionLine(**msgspec.structs.asdict(host.record), wait_ready=wait_ready))
        if self._asked is not None:
            host.on_change = self._write_status
        self._tasks = [
            asyncio.create_task(work, name=f"{name} of {host.record.session_id}")
            for name, work in (
                ("stdout", self._hear()),
                ("stderr", self._hear_errors()),
                ("stdin", self._deliver()),
            )
        ]
        for task in self._tasks:
            task.add_done_callback(_report)

    def last_errors(self) -> str:
        """The last lines of standard error."""
        return "\n".join(self._errors)

    async def end(self) -> None:
        """The program is gone: take in what it said last."""
        self._host.on_change = None
        if not self._tasks:
            return
        *hearing, delivering = self._tasks
        delivering.cancel()
        self._host.stop_waiting_for_room()
        self._group.hang_up()
        _, left = await asyncio.wait(hearing, timeout=DRAIN_S)
        if left:
            data = {"session_id": self._session.session_id}
            log.error("what a program said last could not be taken in within %g s", DRAIN_S, extra=data)
        for task in left:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _deliver(self) -> None:
        async for message in self._session.messages():
            if self._asked is not None:
                await self._asked.acquire()
            self._write(message)
            try:
                await self._group.stdin.drain()
            except OSError:
                log.info("the program takes no more messages", extra={"session_id": self._session.session_id})
                return

    async def _hear(self) -> None:
        async for line, whole in lines_of(self._group.stdout, LINE_BYTES_MAX, self._turns):
            if not line.strip():
                continue
            try:
                if not whole:
                    raise DecodeError(f"a line of more than {LINE_BYTES_MAX} bytes")
                said: FromProgram = codec.decode(line, FromProgram)  # type: ignore[arg-type]
            except DecodeError as error:
                sentence = "a program printed what is no line of its protocol, passing it over"
                self._warn(sentence, line=repr(line[:100]), error=str(error))
                continue
            await self._obey(said)

    async def _obey(self, said: FromProgram) -> None:
        try:
            number = await self._carry_out(said)
        except CommandError as error:
            if said.id is None:
                self._warn("what a program asked for was refused", error=str(error))
            else:
                await self._answer(Refused(said.id, error.code, str(error)))
        else:
            if said.id is not None:
                await self._answer(Done(said.id, number))

    async def _carry_out(self, said: FromProgram) -> int | None:
        session = self._session
        match said:
            case Ready():
                await session.ready()
            case Idle():
                await session.idle()
            case Activate():
                await session.activate()
            case Touch():
                await session.touch()
            case Flush():
                await session.flush()
            case Next():
                if self._asked is not None:
                    self._asked.release()
            case Failed(error=error):
                self.failure = error
            case OutputLine():
                return await session.emit(said.name, said.data, ephemeral=said.ephemeral)
            case Say():
                return await session.say(said.content, role=said.role)
        return None

    async def _hear_errors(self) -> None:
        loop = asyncio.get_running_loop()
        second, logged = loop.time(), 0
        data = {"session_id": self._session.session_id}
        async for line, _ in lines_of(self._group.stderr, ERROR_LINE_BYTES_MAX, self._turns):
            text = line.decode("utf-8", "replace").rstrip()
            self._errors.append(text)
            if loop.time() - second >= 1:
                if logged > ERROR_LINES_LOGGED_PER_S:
                    left_out = logged - ERROR_LINES_LOGGED_PER_S
                    stderr_log.warning("lines of standard error were left out", extra=data | {"lines": left_out})
                second, logged = loop.time(), 0
            logged += 1
            if logged <= ERROR_LINES_LOGGED_PER_S:
                stderr_log.info(text, extra=data)

    async def _answer(self, answer: Done | Refused) -> None:
        self._write(answer)
        if self._asked is not None:  # ours, which asks for few things at once: it may be writing, and read nothing yet
            return
        with contextlib.suppress(OSError):
            await self._group.stdin.drain()

    def _write_status(self, record: SessionRecord) -> None:
        if record.status in (Status.ACTIVE, Status.IDLE):
            self._write(StatusLine(record.status, record.version))

    def _write(self, line: msgspec.Struct) -> None:
        if not self._group.stdin.is_closing():
            self._group.stdin.write(codec.encode(line) + b"\n")

    def _warn(self, sentence: str, **data: str) -> None:
        self._warnings += 1
        if self._warnings <= WARNINGS_MAX:
            log.warning(sentence, extra={"session_id": self._session.session_id, **data})


def environment(record: SessionRecord, inherited: Mapping[str, str]) -> dict[str, str]:
    """What a session's program finds in its environment: the manager's, without its credentials, and the session."""
    env = {name: value for name, value in inherited.items() if not name.startswith(_NOT_INHERITED)}
    env["JIDO_SESSION_ID"] = record.session_id
    for name, value in (("JIDO_METADATA", record.metadata), ("JIDO_LLM_CONFIG", record.llm_config)):
        text = codec.encode(value)
        if value is not None and len(text) <= ENV_VALUE_BYTES_MAX:  # the kernel takes no longer ones
            env[name] = text.decode()
    if record.traceparent is not None:
        env["TRACEPARENT"] = record.traceparent
    return env


def _how_it_ended(returncode: int, errors: str) -> str:
    """Such as `exit code 3: no such model`; of what is too long, the end."""
    if returncode > 0:
        how = f"exit code {returncode}"
    else:
        try:
            how = f"killed by {signal.Signals(-returncode).name}"
        except ValueError:
            how = f"killed by signal {-returncode}"
    return f"{how}: {errors[-(ERROR_LENGTH_MAX - len(how) - 2) :]}" if errors else how


def _report(task: "asyncio.Task[None]") -> None:
    """A defect of ours must not end in silence."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("a program is not listened to any more", exc_info=error, extra={"task": task.get_name()})


async def _done_within(task: "asyncio.Task[None]", timeout_s: float) -> bool:
    await asyncio.wait({task}, timeout=timeout_s)
    return task.done()


async def _uninterrupted(work: Coroutine[Any, Any, bool]) -> bool:
    """The result of `work`, which has to come to its end whoever cancels meanwhile."""
    task = asyncio.create_task(work)
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait({task})
    return task.result()
