"""A program, in any language, as a worker: each session is one process group that speaks JSON lines."""

import asyncio
import contextlib
import logging
import os
import secrets
import shlex
import shutil
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from jido_nats.core import codec
from jido_nats.core.codec import DecodeError
from jido_nats.core.session import SessionRecord, Status
from jido_nats.core.settings import Settings
from jido_nats.errors import BadRequest, CommandError, ConfigurationError, TooLarge
from jido_nats.worker.confinement import Confinement
from jido_nats.worker.crash import ERROR_LENGTH_MAX
from jido_nats.worker.line_id import id_of
from jido_nats.worker.process_group import ProcessGroup, Supervision
from jido_nats.worker.protocol import (
    LINE_BYTES_MAX,
    TYPES,
    Activate,
    Checkpoint,
    Conversation,
    Done,
    Failed,
    Flush,
    FromProgram,
    Handled,
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
from jido_nats.worker.run import WorkerFailed, WorkerKilled
from jido_nats.worker.session import Session, host_of
from jido_nats.worker.subreaper import RUN_ID, Subreaper

STOP_TIMEOUT_S: Final = 3.0
NO_PROGRAM: Final = "there is no executable program"
# How long reading a program's last output may take, after it has ended.
DRAIN_S: Final = 5.0
ERROR_LINES_MAX: Final = 20
ERROR_LINE_BYTES_MAX: Final = 2000
ERROR_LINES_LOGGED_PER_S: Final = 100
WARNINGS_MAX: Final = 20
ENV_VALUE_BYTES_MAX: Final = 100 * 1024

log = logging.getLogger(__name__)
stderr_log = logging.getLogger("jido_nats.stderr")


class Program:
    """A worker that runs a program for each session.

    The program gets its session as the first line on standard input and in `JIDO_SESSION_ID`, `JIDO_METADATA` and
    `JIDO_LLM_CONFIG`, then messages as lines, and writes its own requests as lines (`jido_nats.worker.protocol`).
    Exit code 0 is `completed`, anything else `crashed`. It runs in a session of its own, without a terminal. The end
    of a session ends the whole process group: SIGTERM, and SIGKILL after `stop_timeout_s` (seconds). Under
    `jido-nats serve` and in isolated workers, what has left the group ends with it.
    """

    def __init__(
        self,
        command: str | Sequence[str],
        *,
        stop_timeout_s: float = STOP_TIMEOUT_S,
        wait_ready: bool = False,
        user: str | None = None,
        limit: str | None = None,
        env: Sequence[str] | None = None,
        python_worker: bool = False,
    ) -> None:
        """`command`: a command line (not run by a shell) or its words. Raises `ConfigurationError` if it cannot be run.

        `wait_ready`: the manager's setting. `user`, `limit`, `env`: as the settings `worker_user`, `worker_limit` and
        `worker_env`. `python_worker`: the program requests each message with a line `next`, and gets a line `status`
        for each change of its session's status.
        """
        try:
            self._argv = shlex.split(command) if isinstance(command, str) else list(command)
        except ValueError as error:
            raise ConfigurationError(f"the command {command!r} cannot be parsed: {error}") from error
        if not self._argv or shutil.which(self._argv[0]) is None:
            raise ConfigurationError(f"{NO_PROGRAM} {self._argv[0] if self._argv else ''!r}")
        self.confinement: Final = Confinement(user, limit, env)
        self._stop_timeout_s = stop_timeout_s
        self._wait_ready = wait_ready
        self._python_worker = python_worker
        self._supervision = Supervision()
        self._turns = RoundRobin()

    async def __call__(self, session: Session) -> None:
        """Run the program for this session, to its end."""
        run_id = secrets.token_hex(16)
        inherited = self.confinement.environment(os.environ)
        env = inherited | variables_of(host_of(session).record, inherited) | {RUN_ID: run_id}
        try:
            group = ProcessGroup(self.confinement.command(self._argv), env, run_id, self._supervision)
        except OSError as error:
            raise WorkerFailed(f"{self._argv[0]} cannot be started: {error.strerror or error}") from error
        try:
            self._supervision.reaper.add(group.id, run_id)
            await self._run(session, group)
        finally:
            if group.gone:
                self._supervision.reaper.remove(group.id)
            else:  # the event loop is being closed: the reaper ends what is left
                group.kill_group()
            group.close()

    async def _run(self, session: Session, group: ProcessGroup) -> None:
        exchange = _Exchange(session, group, self._turns, python_worker=self._python_worker)
        cancelled, problem = False, None
        try:
            await group.connect()
            exchange.start(self._wait_ready)
            await group.wait_exited()
        except asyncio.CancelledError:
            cancelled = True
        except Exception as error:  # no free file descriptor or thread, for example: end what has started
            problem = f"the pipes to {self._argv[0]} failed: {getattr(error, 'strerror', None) or error}"
        forced = await _uninterrupted(self._end(group, exchange))
        if forced and cancelled:
            raise WorkerKilled
        if problem:
            raise WorkerFailed(problem)
        if group.returncode != 0 and (exchange.failure or not cancelled):
            failure = exchange.failure or _how_it_ended(group.returncode, exchange.last_errors())
            raise WorkerFailed(failure, traceback=exchange.traceback)
        if cancelled:
            raise asyncio.CancelledError

    async def _end(self, group: ProcessGroup, exchange: "_Exchange") -> bool:
        """Return when the group is gone and its output is read; whether it had to be killed."""
        gone = asyncio.create_task(group.wait_gone())
        if not await _done_within(gone, 0.0):
            group.terminate()
        forced = not await _done_within(gone, self._stop_timeout_s)
        if forced:
            await group.kill()
            await gone
        await exchange.end()
        return forced


@contextlib.asynccontextmanager
async def adopting_orphans(workers: Iterable[Program]) -> AsyncIterator[None]:
    """Inside, this process is a subreaper, and a session ends with all that its program has started.

    Only for a process that starts nothing but these workers' programs: every other child counts as an orphan.
    """
    supervision = Supervision()
    for worker in workers:
        worker._supervision = supervision
    async with Subreaper.adopting(supervision.table, supervision.own) as supervision.subreaper:
        yield


def isolated(name: str, settings: Settings) -> Program:
    """The Python worker of that name (`package.module:callable`), each session in its own process."""
    command = [sys.executable, "-m", "jido_nats.worker.child", name, str(settings.stop_timeout_s)]
    return configured(command, settings, python_worker=True)


def configured(command: str | Sequence[str], settings: Settings, *, python_worker: bool = False) -> Program:
    """A program with the settings of its kind of worker. Raises `ConfigurationError`."""
    return Program(
        command,
        stop_timeout_s=settings.stop_timeout_s,
        wait_ready=settings.wait_ready,
        user=settings.worker_user,
        limit=settings.worker_limit,
        env=settings.worker_env,
        python_worker=python_worker,
    )


class _Exchange:
    """The lines between one session and its program."""

    def __init__(self, session: Session, group: ProcessGroup, turns: RoundRobin, *, python_worker: bool) -> None:
        self._session = session
        self._host = host_of(session)
        self._group = group
        self._turns = turns
        self._requested = asyncio.Semaphore(0) if python_worker else None
        self._tasks: list[asyncio.Task[None]] = []
        self._errors: deque[str] = deque(maxlen=ERROR_LINES_MAX)
        self._warnings = 0
        self.failure: str | None = None
        self.traceback: str | None = None

    def start(self, wait_ready: bool) -> None:
        """Write the session's line, and relay from now on."""
        host = self._host
        state, self._session.state = self._session.state, None  # it may be large, and only the program needs it
        record = msgspec.structs.asdict(host.record)
        self._write(SessionLine(**record, wait_ready=wait_ready, attempt=host.record.attempt, state=state))
        if self._requested is not None:
            host.on_change = self._write_status
        self._tasks = [
            asyncio.create_task(work, name=f"{name} of {host.record.session_id}")
            for name, work in (
                ("stdout", self._read_stdout()),
                ("stderr", self._read_stderr()),
                ("stdin", self._deliver()),
            )
        ]
        for task in self._tasks:
            task.add_done_callback(_log_failure)

    def last_errors(self) -> str:
        """The last lines of standard error."""
        return "\n".join(self._errors)

    async def end(self) -> None:
        """The program is gone: read its last output."""
        self._host.on_change = None
        if not self._tasks:
            return
        *reading, delivering = self._tasks
        delivering.cancel()
        self._host.stop_waiting_for_room()
        self._group.finish_reading()
        _, left = await asyncio.wait(reading, timeout=DRAIN_S)
        if left:
            data = {"session_id": self._session.session_id, "timeout_s": DRAIN_S}
            log.error("the last output of a program was not read in time", extra=data)
            self._host.lose_output()
        for task in left:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _deliver(self) -> None:
        inbox = self._host.inbox  # unlike `Session.messages`: what is written is not handled yet
        while True:
            if self._requested is not None:
                await self._requested.acquire()
            self._write(await inbox.take())
            try:
                await self._group.stdin.drain()
            except OSError:
                log.info("a program has closed its standard input", extra={"session_id": self._session.session_id})
                return

    async def _read_stdout(self) -> None:
        async for line in lines_of(self._group.stdout, LINE_BYTES_MAX, self._turns, find_ids=True):
            if not line.data.strip():
                continue
            if not line.whole:
                await self._refuse_line(line.data, line.id, TooLarge(f"a line has at most {LINE_BYTES_MAX} bytes"))
                continue
            try:
                request: FromProgram = codec.decode(line.data, FromProgram)  # type: ignore[arg-type]
            except DecodeError as error:
                await self._refuse_line(line.data, id_of(line.data), BadRequest(_what_is_wrong(error)))
                continue
            await self._handle(request)

    async def _refuse_line(self, line: bytes, line_id: bytes | None, error: CommandError) -> None:
        """Refuse what is not in the protocol; answer it if it has an id."""
        sentence = "a program printed a line that is not in its protocol, skipping it"
        self._warn(sentence, line=repr(line[:100]), error=str(error))
        if line_id is not None:
            await self._answer(Refused(msgspec.Raw(line_id), error.code, str(error)))

    async def _handle(self, request: FromProgram) -> None:
        try:
            done = await self._carry_out(request)
        except CommandError as error:
            if request.id is None:
                self._warn("a program's request was refused", error=str(error))
            else:
                await self._answer(Refused(request.id, error.code, str(error)))
        else:
            if request.id is not None:
                done.id = request.id
                await self._answer(done)

    async def _carry_out(self, request: FromProgram) -> Done:
        """The answer, without its id."""
        session, host = self._session, self._host
        match request:
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
                if self._requested is not None:
                    host.handled_taken()
                    self._requested.release()
            case Checkpoint() | Handled():
                state = request.state if isinstance(request, Checkpoint) else msgspec.UNSET
                await host.checkpoint(state, request.handled)
            case Conversation(limit=limit):
                return Done(None, conversation=await session.conversation(limit))
            case Failed(error=error, traceback=traceback):
                self.failure, self.traceback = error, traceback
            case OutputLine():
                return Done(None, await session.emit(request.name, request.data, ephemeral=request.ephemeral))
            case Say():
                return Done(None, await session.say(request.content, role=request.role))
        return Done(None)

    async def _read_stderr(self) -> None:
        loop = asyncio.get_running_loop()
        second, logged = loop.time(), 0
        data = {"session_id": self._session.session_id}
        async for line in lines_of(self._group.stderr, ERROR_LINE_BYTES_MAX, self._turns):
            text = line.data.decode("utf-8", "replace").rstrip()
            self._errors.append(text)
            if loop.time() - second >= 1:
                if logged > ERROR_LINES_LOGGED_PER_S:
                    omitted = logged - ERROR_LINES_LOGGED_PER_S
                    stderr_log.warning("lines of standard error were omitted", extra=data | {"lines": omitted})
                second, logged = loop.time(), 0
            logged += 1
            if logged <= ERROR_LINES_LOGGED_PER_S:
                stderr_log.info(text, extra=data)

    async def _answer(self, answer: Done | Refused) -> None:
        self._write(answer)
        if self._requested is not None:  # `child`, with few requests in flight: it may be writing, and reading nothing
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


def variables_of(record: SessionRecord, inherited: Mapping[str, str]) -> dict[str, str]:
    """What a program finds in its environment about its session, in addition to what it has inherited.

    `PYTHONUNBUFFERED`: what a Python program prints would otherwise wait in its buffer, since stdout is a pipe.
    """
    env = {"PYTHONUNBUFFERED": inherited.get("PYTHONUNBUFFERED", "1"), "JIDO_SESSION_ID": record.session_id}
    for name, value in (("JIDO_METADATA", record.metadata), ("JIDO_LLM_CONFIG", record.llm_config)):
        text = codec.encode(value)
        if value is not None and len(text) <= ENV_VALUE_BYTES_MAX:  # the kernel accepts no longer ones
            env[name] = os.fsdecode(text)  # the same bytes in every locale
    if record.traceparent is not None:
        env["TRACEPARENT"] = record.traceparent
    return env


def _what_is_wrong(error: DecodeError) -> str:
    """Why a line cannot be decoded, in words for the program's author."""
    text = str(error)
    return f"{text}; the types are {', '.join(TYPES)}" if text.endswith("`$.type`") else text


def _how_it_ended(returncode: int | None, errors: str) -> str:
    """For example `exit code 3: no such model`; if that is too long, its end."""
    if returncode is None:
        how = "exit status unknown"
    elif returncode > 0:
        how = f"exit code {returncode}"
    else:
        try:
            how = f"killed by {signal.Signals(-returncode).name}"
        except ValueError:
            how = f"killed by signal {-returncode}"
    return f"{how}: {errors[-(ERROR_LENGTH_MAX - len(how) - 2) :]}" if errors else how


def _log_failure(task: "asyncio.Task[None]") -> None:
    """Log a bug of ours, which would otherwise stay silent."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("a task that relays a program's lines failed", exc_info=error, extra={"task": task.get_name()})


async def _done_within(task: "asyncio.Task[None]", timeout_s: float) -> bool:
    await asyncio.wait({task}, timeout=timeout_s)
    return task.done()


async def _uninterrupted(work: Coroutine[Any, Any, bool]) -> bool:
    """The result of `work`, which runs to its end even if the caller is cancelled meanwhile."""
    task = asyncio.create_task(work)
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait({task})
    return task.result()
