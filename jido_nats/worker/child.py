"""The child side of `--isolation process`: runs a Python worker as a program that speaks the line protocol.

    python -m jido_nats.worker.child package.module:callable STOP_TIMEOUT_S

What the worker prints goes to standard error: standard output is reserved for the protocol.
"""

import asyncio
import contextlib
import itertools
import os
import signal
import sys
from collections.abc import Callable
from typing import IO, Any, Final

import msgspec

from jido_nats import trace
from jido_nats.core import codec
from jido_nats.core.output import ConversationAdded
from jido_nats.core.requests import check_emitted, check_said, check_state
from jido_nats.core.session import SessionRecord, Status
from jido_nats.errors import ConfigurationError, command_error
from jido_nats.worker import protocol
from jido_nats.worker.crash import error_text, traceback_text
from jido_nats.worker.inbox import Inbox, Message
from jido_nats.worker.init import run_under_init
from jido_nats.worker.loader import load_worker
from jido_nats.worker.protocol import Done, FromProgram, Refused, RoundRobin, SessionLine, StatusLine, lines_of
from jido_nats.worker.run import Outcome, WorkerRun
from jido_nats.worker.session import Session

# With more, the answers could fill the pipe to a worker that blocks in a write and so reads nothing: a deadlock.
REQUESTS_MAX: Final = 100

ToProgram = SessionLine | Message | StatusLine | Done | Refused


class _PullInbox(Inbox):
    """An inbox that requests its messages one by one: those that the worker has not taken wait at the manager."""

    __slots__ = ("_parent", "_requested")

    def __init__(self, parent: "Parent") -> None:
        super().__init__()
        self._parent = parent
        self._requested = False

    def add(self, message: Message) -> None:
        self._requested = False
        super().add(message)

    async def _wait(self) -> None:
        if not self._requested:
            self._requested = True
            self._parent.write(protocol.Next())
        await super()._wait()


class Parent:
    """The manager at the other end of the pipe, as the worker's host."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self.record: SessionRecord
        self.inbox: Inbox = _PullInbox(self)
        self.on_change: Callable[[SessionRecord], None] | None = None
        self._pipe = pipe
        self._ids = itertools.count(1)
        self._pending: dict[int, asyncio.Future[Done]] = {}
        self._gate = asyncio.Semaphore(REQUESTS_MAX)

    def write(self, line: FromProgram) -> None:
        """Write one line. It blocks while the pipe is full, which holds up this worker only."""
        with contextlib.suppress(OSError):  # the manager is gone, and this process will soon end
            self._pipe.write(codec.encode(line) + b"\n")
            self._pipe.flush()

    async def request(self, line: FromProgram) -> Done:
        """Write one line and wait for its answer; raises the error with which it was refused."""
        async with self._gate:
            line.id = number = next(self._ids)
            future: asyncio.Future[Done] = asyncio.get_running_loop().create_future()
            self._pending[number] = future
            self.write(line)
            try:
                return await future
            finally:
                del self._pending[number]

    def answered(self, answer: Done | Refused) -> None:
        """Pass an answer to the request that waits for it."""
        future = self._pending.get(answer.id) if isinstance(answer.id, int) else None
        if future is None or future.done():
            return
        if isinstance(answer, Done):
            future.set_result(answer)
        else:
            future.set_exception(command_error(answer.code, answer.message, None))

    def changed(self, status: Status, version: int) -> None:
        """The manager has reported a change of the session."""
        self.record = msgspec.structs.replace(self.record, status=status, version=version)
        if self.on_change is not None:
            self.on_change(self.record)

    async def ready(self) -> None:
        """See `Session.ready`."""
        self.write(protocol.Ready())

    async def step(self, status: Status) -> None:
        """See `Session.idle` and `Session.activate`."""
        await self.request(protocol.Idle() if status is Status.IDLE else protocol.Activate())

    async def emit(self, name: str, data: Any, *, ephemeral: bool) -> int:
        """See `Session.emit`."""
        check_emitted(name, data)  # check before encoding, which would change data that is not JSON
        return (await self.request(protocol.OutputLine(name=name, data=data, ephemeral=ephemeral))).number or 0

    async def say(self, role: str, content: Any) -> int:
        """See `Session.say`."""
        check_said(role, content)
        return (await self.request(protocol.Say(role=role, content=content))).number or 0

    async def flush(self) -> None:
        """See `Session.flush`."""
        await self.request(protocol.Flush())

    async def checkpoint(self, state: Any, handled: str | None) -> None:
        """See `Session.checkpoint`."""
        check_state(state)
        await self.request(protocol.Checkpoint(state=state, handled=handled))

    async def conversation_so_far(self, limit: int) -> list[ConversationAdded]:
        """See `Session.conversation`."""
        return (await self.request(protocol.Conversation(limit=limit))).conversation or []

    def handled_taken(self) -> None:
        """Nothing to do: the line `next` says so."""

    def touch(self) -> None:
        """See `Session.touch`."""
        self.write(protocol.Touch())

    def lose_output(self) -> None:
        """Nothing to do: the manager knows what it has read."""

    def stop_waiting_for_room(self) -> None:
        """Nothing to do: the manager has the queue."""


async def run(name: str, pipe: IO[bytes]) -> int:
    """Run the worker of that name for the session in the first line of standard input; the exit code."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    incoming = lines_of(reader, sys.maxsize, RoundRobin())
    line = codec.decode((await anext(incoming)).data, SessionLine)
    trace.CURRENT.set(line.traceparent)
    parent = Parent(pipe)
    parent.record = line
    ended: asyncio.Future[tuple[Outcome, BaseException | None]] = loop.create_future()
    work = WorkerRun(load_worker(name), Session(parent, line.state))
    work.start(lambda *end: ended.set_result(end))
    loop.add_signal_handler(signal.SIGTERM, work.cancel)
    reading = asyncio.create_task(_read(incoming, parent, work))
    outcome, raised = await ended
    reading.cancel()
    if outcome.error is None:
        return 0
    parent.write(_failed(outcome.error, raised))
    return 1


async def _read(incoming: Any, parent: Parent, work: WorkerRun) -> None:
    """Handle lines until the manager is gone; then stop the worker."""
    async for line in incoming:
        match codec.decode(line.data, ToProgram):  # type: ignore[arg-type]
            case Message() as message:
                parent.inbox.add(message)
            case StatusLine(status=status, version=version):
                parent.changed(status, version)
            case Done() | Refused() as answer:
                parent.answered(answer)
    work.cancel()


def _failed(error: str, raised: BaseException | None) -> protocol.Failed:
    """The line with which this program fails; the manager logs the traceback."""
    return protocol.Failed(error=error, traceback=None if raised is None else traceback_text(raised))


def main() -> None:
    """Run under an init of our own, with standard output reserved for the protocol."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored by inheritance, it would hide the exit codes of children
    run_under_init(float(sys.argv[2]))
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        code = asyncio.run(run(sys.argv[1], pipe))
    except ConfigurationError as error:  # the worker cannot be loaded: its own mistake is the cause
        Parent(pipe).write(_failed(str(error), error.__cause__))
        code = 1
    except (Exception, SystemExit) as error:
        Parent(pipe).write(_failed(error_text(error), error))
        code = 1
    sys.stdout.flush()
    os._exit(code)  # a thread that the worker has left running must not keep the session open


if __name__ == "__main__":
    main()
