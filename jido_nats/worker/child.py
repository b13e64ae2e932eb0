"""The other end of a worker's own process: runs a Python worker as a program that talks in lines.

    python -m jido_nats.worker.child package.module:callable

What the worker prints goes to standard error: standard output belongs to the lines.
"""

import asyncio
import contextlib
import itertools
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import IO, Any, Final

import msgspec

from jido_nats import trace
from jido_nats.core import codec
from jido_nats.core.requests import check_emitted, check_said
from jido_nats.core.session import SessionRecord, Status
from jido_nats.errors import JidoError, command_error
from jido_nats.worker import protocol
from jido_nats.worker.inbox import Inbox, Message
from jido_nats.worker.loader import load_worker
from jido_nats.worker.protocol import Done, FromProgram, Refused, RoundRobin, SessionLine, StatusLine, lines_of
from jido_nats.worker.run import Outcome, WorkerRun
from jido_nats.worker.session import Session

# More, and what is answered could fill the pipe to a worker that is just writing, with nobody left to read.
ASKED_AT_ONCE: Final = 100

ToProgram = SessionLine | Message | StatusLine | Done | Refused


class _AskingInbox(Inbox):
    """An inbox whose messages are asked for one by one: what nobody takes here waits, bounded, at the manager."""

    __slots__ = ("_ask", "_is_asked")

    def __init__(self, ask: "Parent") -> None:
        super().__init__()
        self._ask = ask
        self._is_asked = False

    def add(self, message: Message) -> None:
        self._is_asked = False
        super().add(message)

    async def _wait(self) -> None:
        if not self._is_asked:
            self._is_asked = True
            self._ask.write(protocol.Next())
        await super()._wait()


class Parent:
    """The manager at the other end of the pipe, as the worker's host."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self.record: SessionRecord
        self.inbox: Inbox = _AskingInbox(self)
        self.on_change: Callable[[SessionRecord], None] | None = None
        self._pipe = pipe
        self._ids = itertools.count(1)
        self._asked: dict[int, asyncio.Future[int | None]] = {}
        self._gate = asyncio.Semaphore(ASKED_AT_ONCE)

    def write(self, line: FromProgram) -> None:
        """Write one line. It waits for room in the pipe, which blocks the worker, and nobody else."""
        with contextlib.suppress(OSError):  # the manager is gone, and this process soon
            self._pipe.write(codec.encode(line) + b"\n")
            self._pipe.flush()

    async def ask(self, line: FromProgram) -> int | None:
        """Write one line and wait until it is done; raises the error with which it was refused."""
        async with self._gate:
            line.id = number = next(self._ids)
            future: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
            self._asked[number] = future
            self.write(line)
            try:
                return await future
            finally:
                del self._asked[number]

    def answered(self, answer: Done | Refused) -> None:
        """Give an answer to who waits for it."""
        future = self._asked.get(answer.id) if isinstance(answer.id, int) else None
        if future is None or future.done():
            return
        if isinstance(answer, Done):
            future.set_result(answer.number)
        else:
            future.set_exception(command_error(answer.code, answer.message, None))

    def changed(self, status: Status, version: int) -> None:
        """The session has changed, by the manager's word."""
        self.record = msgspec.structs.replace(self.record, status=status, version=version)
        if self.on_change is not None:
            self.on_change(self.record)

    async def ready(self) -> None:
        """See `Session.ready`."""
        self.write(protocol.Ready())

    async def step(self, status: Status) -> None:
        """See `Session.idle` and `Session.activate`."""
        await self.ask(protocol.Idle() if status is Status.IDLE else protocol.Activate())

    async def emit(self, name: str, data: Any, *, ephemeral: bool) -> int:
        """See `Session.emit`."""
        check_emitted(name, data)  # here: on the way, what is no JSON would become something else
        return await self.ask(protocol.OutputLine(name=name, data=data, ephemeral=ephemeral)) or 0

    async def say(self, role: str, content: Any) -> int:
        """See `Session.say`."""
        check_said(role, content)
        return await self.ask(protocol.Say(role=role, content=content)) or 0

    async def flush(self) -> None:
        """See `Session.flush`."""
        await self.ask(protocol.Flush())

    def touch(self) -> None:
        """See `Session.touch`."""
        self.write(protocol.Touch())

    def stop_waiting_for_room(self) -> None:
        """The manager has the queue."""


async def run(name: str, pipe: IO[bytes]) -> int:
    """Run the worker of that name for the session that standard input names; the exit code."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    incoming = lines_of(reader, sys.maxsize, RoundRobin())
    first, _ = await anext(incoming)
    line = codec.decode(first, SessionLine)
    trace.CURRENT.set(line.traceparent)
    parent = Parent(pipe)
    parent.record = line
    ended: asyncio.Future[Outcome] = loop.create_future()
    work = WorkerRun(load_worker(name), Session(parent))
    work.start(ended.set_result)
    loop.add_signal_handler(signal.SIGTERM, work.cancel)
    listening = asyncio.create_task(_listen(incoming, parent, work))
    outcome = await ended
    listening.cancel()
    if outcome.error is None:
        return 0
    parent.write(protocol.Failed(error=outcome.error))
    return 1


async def _listen(incoming: Any, parent: Parent, work: WorkerRun) -> None:
    """Take in lines until the manager is gone; then the worker has to stop too."""
    async for data, _ in incoming:
        match codec.decode(data, ToProgram):  # type: ignore[arg-type]
            case Message() as message:
                parent.inbox.add(message)
            case StatusLine(status=status, version=version):
                parent.changed(status, version)
            case Done() | Refused() as answer:
                parent.answered(answer)
    work.cancel()


def main() -> None:
    """Keep standard output for the lines, and run."""
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        code = asyncio.run(run(sys.argv[1], pipe))
    except JidoError as error:
        Parent(pipe).write(protocol.Failed(error=str(error)))
        code = 1
    except Exception as error:
        traceback.print_exc()
        Parent(pipe).write(protocol.Failed(error=f"{type(error).__name__}: {error}"))
        code = 1
    sys.stdout.flush()
    os._exit(code)  # a thread that the worker has left behind does not hold the session open


if __name__ == "__main__":
    main()
