"""The lines between a manager and a program: JSON objects, distinguished by `type`.

To the program: first `session` (the whole record, and what its last checkpoint says), then `message`, and for each
line with an `id` either `done` or `refused`; a Python worker's program (`python_worker`) also gets `status` when the
session's status changes.
From the program: see `FromProgram`.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any, Final, NamedTuple, Protocol, get_args

import msgspec

from jido_nats.core.output import ConversationAdded
from jido_nats.core.requests import CONVERSATION_LIMIT_MAX
from jido_nats.core.session import SessionRecord, Status
from jido_nats.worker.line_id import IdFinder

LINE_BYTES_MAX: Final = 1024 * 1024
_CHUNK_BYTES: Final = 16 * 1024
LINES_AT_ONCE: Final = 32
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"

Id = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] | str | None


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


class Checkpoint(FromProgramBase, tag="checkpoint"):
    """Store a `state` for the next attempt; all messages up to that with the id `handled` are in it, and handled."""

    state: Any
    handled: str | None = None


class Handled(FromProgramBase, tag="handled"):
    """All messages up to that with the id `handled` are handled: the next attempt does not get them."""

    handled: str


class Conversation(FromProgramBase, tag="conversation"):
    """Answered with the last `limit` messages of the conversation, as stored."""

    limit: int = CONVERSATION_LIMIT_MAX


class Next(FromProgramBase, tag="next"):
    """Request one more message; only from a Python worker's program."""


class Failed(FromProgramBase, tag="failed"):
    """The session's `error` if the program ends with an exit code other than 0; `traceback`: for the manager's log."""

    error: str
    traceback: str | None = None


FromProgram = (
    Ready | Idle | Activate | Touch | OutputLine | Say | Flush | Checkpoint | Handled | Conversation | Next | Failed
)
TYPES: Final = tuple(str(kind.__struct_config__.tag) for kind in get_args(FromProgram) if kind is not Next)


class SessionLine(SessionRecord, tag="session", frozen=True, kw_only=True, omit_defaults=True):
    """The first line to a program: the record; `wait_ready`: whether it has to report that it is ready.

    Of a session with a restart policy, `attempt`: which run of its worker this is; `state`: what the last checkpoint
    has stored, by whichever attempt.
    """

    wait_ready: bool = False
    attempt: int | None = None
    state: Any = None


class StatusLine(msgspec.Struct, tag="status"):
    """The session's status has changed."""

    status: Status
    version: int


class Done(msgspec.Struct, tag="done", omit_defaults=True):
    """The request with this `id` is done; `number`: that of the output; `conversation`: what was asked for."""

    id: Id
    number: int | None = None
    conversation: list[ConversationAdded] | None = None


class Refused(msgspec.Struct, tag="refused"):
    """The request with this `id`, whatever it was, was refused, with an API error's code and message."""

    id: Any
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


class Line(NamedTuple):
    """A line without its newline. One that is not `whole` was too long: `data` is its beginning.

    `id`: what a line that is not whole has as its `id` (see `IdFinder`), if that was asked for.
    """

    data: bytes
    whole: bool = True
    id: bytes | None = None


async def lines_of(
    stream: Readable, bytes_max: int, turns: RoundRobin, *, find_ids: bool = False
) -> AsyncIterator[Line]:
    """The lines of a stream; one above `bytes_max` is truncated. A byte order mark at the start is dropped."""
    line, start, count = _Building(bytes_max, find_ids), _BYTE_ORDER_MARK, 0
    while chunk := await stream.read(_CHUNK_BYTES):
        for number, part in enumerate(chunk.split(b"\n")):
            if number:  # a newline came before this part
                yield line.end(start)
                line, start, count = _Building(bytes_max, find_ids), b"", count + 1
                if count % LINES_AT_ONCE == 0:
                    await turns.next()
            line.add(part)
        if line.too_long:
            await turns.next()  # its rest is read, however long
    if line.data:
        yield line.end(start)


class _Building:
    """A line that is being read."""

    def __init__(self, bytes_max: int, find_id: bool) -> None:
        self.data = bytearray()
        self._bytes_max = bytes_max
        self._finder = IdFinder() if find_id else None
        self.too_long = False

    def add(self, part: bytes) -> None:
        """Add what was read of it."""
        room = self._bytes_max - len(self.data)
        self.data += part[:room]
        if len(part) <= room and not self.too_long:
            return
        if not self.too_long and self._finder is not None:
            self._finder.feed(bytes(self.data.removeprefix(_BYTE_ORDER_MARK)))
        if self._finder is not None:
            self._finder.feed(part[room:])
        self.too_long = True

    def end(self, start: bytes) -> Line:
        """The line, without what it may start with."""
        found = self._finder.found() if self.too_long and self._finder is not None else None
        return Line(bytes(self.data.removeprefix(start)), not self.too_long, found)
