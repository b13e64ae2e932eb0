"""What a session with a restart policy needs to go on: its journal, on one subject of the stream, entry by entry.

`fold` makes one state of the entries. Its rules and those of who may append when are searched for flaws in
`tests/model/durable.py`.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Any, NamedTuple

import msgspec

from jido_nats.core import codec


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What every entry says: which attempt wrote it, and when its session was created; others are not of this one."""

    attempt: int
    created_at: datetime


class Claim(Entry, frozen=True, kw_only=True, tag="claim"):
    """An attempt begins, at another manager than the one before, which may write nothing from here on."""


class AcceptedMessage(Entry, frozen=True, kw_only=True, omit_defaults=True, tag="message"):
    """A message to the session; its sender is answered when this is stored. `number`: of its `conversation_added`."""

    role: str
    content: Any
    message_id: str
    number: int
    accepted_at: datetime
    traceparent: str | None = None


class KnownMessage(msgspec.Struct, frozen=True, array_like=True):
    """What is left of a message that was purged: by its id, its `number` and a digest a repeated send is recognized."""

    message_id: str
    number: int
    digest: str


class Checkpoint(Entry, frozen=True, kw_only=True, omit_defaults=True, tag="checkpoint"):
    """All messages up to `handled`, the sequence of an entry, are handled; with `state`, that is in it.

    Without a `state` it only counts what a worker has taken, which has never stored one. With `known`, the newest
    messages in order, what lies before it is about to be purged, as far as it is handled.
    """

    handled: int
    state: Any | msgspec.UnsetType = msgspec.UNSET
    known: tuple[KnownMessage, ...] = ()


JournalEntry = Claim | AcceptedMessage | Checkpoint


class Stored(NamedTuple):
    """An entry and its sequence in the stream."""

    sequence: int
    entry: JournalEntry


class JournalState(msgspec.Struct):
    """What a journal says: see `fold`.

    `last`: the sequence of the last entry, 0 without any; `attempt`: the newest; `handled`: see `Checkpoint`;
    `state`, `known`: of the last checkpoint that has them; `messages`: those that the journal still has, in order.
    """

    last: int = 0
    attempt: int = 0
    handled: int = 0
    state: Any | msgspec.UnsetType = msgspec.UNSET
    known: tuple[KnownMessage, ...] = ()
    messages: list[tuple[int, AcceptedMessage]] = []


def entry_type(entry: JournalEntry) -> str:
    """The value of `type` on the wire, such as `checkpoint`."""
    return str(type(entry).__struct_config__.tag)


def encode(entry: JournalEntry) -> bytes:
    """The entry as it is stored, JSON."""
    return codec.encode(entry)


def decode(data: bytes) -> JournalEntry:
    """The entry. Raises `DecodeError`, also for a type that this version does not know."""
    return codec.decode(data, JournalEntry)  # type: ignore[arg-type]


def fold(entries: Iterable[Stored], created_at: datetime) -> JournalState:
    """The state of the journal of the session that was created at that time, from its entries in order."""
    found = JournalState()
    for sequence, entry in entries:
        found.last = sequence
        if entry.created_at != created_at:
            continue
        found.attempt = max(found.attempt, entry.attempt)
        match entry:
            case AcceptedMessage():
                found.messages.append((sequence, entry))
            case Checkpoint(handled=handled, state=state):
                found.handled, found.known = max(found.handled, min(handled, sequence)), entry.known or found.known
                if state is not msgspec.UNSET:
                    found.state = state
    return found
