"""The lines between a manager and a program: JSON objects, told apart by `type`.

To the program: first `session` (the whole record), then `message`, and for a line that had an `id` either `done` or
`refused`; a program that was started to speak the whole protocol also gets `status` when its status changed.
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
    """A line with an `id` is answered with it."""

    id: Id = None


class Ready(FromProgramBase, tag="ready"):
    """The start is done (`--wait-ready`)."""


class Idle(FromProgramBase, tag="idle"):
    """`active` → `idle`."""


class Activate(FromProgramBase, tag="activate"):
    """`idle` → `active`."""


class Touch(FromProgramBase, tag="touch"):
    """At work: `idle_after_s` begins anew."""


class OutputLine(FromProgramBase, tag="output"):
    """Tell of `data`, under a name."""

    data: Any = None
    name: str = "output"
    ephemeral: bool = False


class Say(FromProgramBase, tag="say"):
    """Add to the conversation."""

    content: Any
    role: str = "assistant"


class Flush(FromProgramBase, tag="flush"):
    """Answered when all output is stored."""


class Next(FromProgramBase, tag="next"):
    """One more message may come; only for programs that were started to ask."""


class Failed(FromProgramBase, tag="failed"):
    """What the session's `error` will be if the program ends with another exit code than 0."""

    error: str


FromProgram = Ready | Idle | Activate | Touch | OutputLine | Say | Flush | Next | Failed


class SessionLine(SessionRecord, tag="session", frozen=True, kw_only=True, omit_defaults=True):
    """The first line to a program: the record; `wait_ready` where it has to say that it is ready."""

    wait_ready: bool = False


class StatusLine(msgspec.Struct, tag="status"):
    """The session's status is another one now."""

    status: Status
    version: int


class Done(msgspec.Struct, tag="done", omit_defaults=True):
    """What the line with this `id` asked for is done; `number` of the output."""

    id: Id
    number: int | None = None


class Refused(msgspec.Struct, tag="refused"):
    """What the line with this `id` asked for was refused: an API error's code and message."""

    id: Id
    code: str
    message: str


class Readable(Protocol):
    """What lines are read from."""

    async def read(self, n: int) -> bytes:
        """Up to `n` bytes; none at the end."""


class RoundRobin:
    """Those who have much to say take turns: together they have one turn in each round of the event loop."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def next(self) -> None:
        """Let the others go first."""
        async with self._lock:
            await asyncio.sleep(0)


async def lines_of(stream: Readable, bytes_max: int, turns: RoundRobin) -> AsyncIterator[tuple[bytes, bool]]:
    """(line, whole) of a stream, without the newline; of a line beyond `bytes_max` only the beginning, not whole."""
    line, whole, count = bytearray(), True, 0
    while chunk := await stream.read(_CHUNK_BYTES):
        for number, part in enumerate(chunk.split(b"\n")):
            if number:  # a newline stood before this part
                yield bytes(line), whole
                line, whole, count = bytearray(), True, count + 1
                if count % LINES_AT_ONCE == 0:
                    await turns.next()
            room = bytes_max - len(line)
            line += part[:room]
            whole = whole and len(part) <= room
    if line:
        yield bytes(line), whole
