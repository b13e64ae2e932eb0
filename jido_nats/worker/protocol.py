"""The lines between a manager and a program: JSON objects, distinguished by `type`.

To the program: first `session` (the whole record), then `message`, and for each line with an `id` either `done` or
`refused`; a Python worker's program (`python_worker`) also gets `status` when the session's status changes.
From the program: see `FromProgram`.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final, Protocol

import msgspec

from jido_nats.core.session import SessionRecord, Status

LINE_BYTES_MAX: Final = 1024 * 1024
_CHUNK_BYTES: Final = 16 * 1024
LINES_AT_ONCE: Final = 32

Id = int | str | None


class FromProgramBase(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A line with an `id` gets an answer with the same `id`."""

    id: Id = None


class Ready(FromProgramBase, tag="ready"):
    """The start is done (`--wait-ready`)."""


class Idle(FromProgramBase, tag="idle"):
    """`active` → `idle`."""


class Activate(FromProgramBase, tag="activate"):
    """`idle` → `active`."""


class Touch(FromProgramBase, tag="touch"):
    """The worker is busy: `idle_after_s` starts over."""


class OutputLine(FromProgramBase, tag="output"):
    """Publish `data`, under a name."""

    data: Any = None
    name: str = "output"
    ephemeral: bool = False


class Say(FromProgramBase, tag="say"):
    """Add to the conversation."""

    content: Any
    role: str = "assistant"


class Flush(FromProgramBase, tag="flush"):
    """Answered once all output is stored."""


class Next(FromProgramBase, tag="next"):
    """Request one more message; only from a Python worker's program."""


class Failed(FromProgramBase, tag="failed"):
    """The session's `error` if the program ends with an exit code other than 0; `traceback`: for the manager's log."""

    error: str
    traceback: str | None = None


FromProgram = Ready | Idle | Activate | Touch | OutputLine | Say | Flush | Next | Failed


class SessionLine(SessionRecord, tag="session", frozen=True, kw_only=True, omit_defaults=True):
    """The first line to a program: the record; `wait_ready`: whether it has to report that it is ready."""

    wait_ready: bool = False


class StatusLine(msgspec.Struct, tag="status"):
    """The session's status has changed."""

    status: Status
    version: int


class Done(msgspec.Struct, tag="done", omit_defaults=True):
    """The request with this `id` is done; `number`: that of the output."""

    id: Id
    number: int | None = None


class Refused(msgspec.Struct, tag="refused"):
    """The request with this `id` was refused, with an API error's code and message."""

    id: Id
    code: str
    message: str


class Readable(Protocol):
    """A source of bytes."""

    async def read(self, n: int) -> bytes:
        """Up to `n` bytes; none at EOF."""


class RoundRobin:
    """Busy readers take turns: together they get one turn in each iteration of the event loop."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def next(self) -> None:
        """Wait for this reader's turn."""
        async with self._lock:
            await asyncio.sleep(0)


async def lines_of(stream: Readable, bytes_max: int, turns: RoundRobin) -> AsyncIterator[tuple[bytes, bool]]:
    """(line, whole) for each line, without its newline; a line above `bytes_max` is truncated, and not `whole`."""
    line, whole, count = bytearray(), True, 0
    while chunk := await stream.read(_CHUNK_BYTES):
        for number, part in enumerate(chunk.split(b"\n")):
            if number:  # a newline came before this part
                yield bytes(line), whole
                line, whole, count = bytearray(), True, count + 1
                if count % LINES_AT_ONCE == 0:
                    await turns.next()
            room = bytes_max - len(line)
            line += part[:room]
            whole = whole and len(part) <= room
    if line:
        yield bytes(line), whole
