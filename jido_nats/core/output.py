"""A worker's output and its conversation: a tagged union like the events, but not status changes."""

from datetime import datetime
from typing import Any, Final

import msgspec

from jido_nats.core.subjects import output

# How many sessions a reader remembers the newest attempt of.
SESSIONS_MAX: Final = 100_000


class SessionOutput(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="session_output"):
    """Output that the worker published with `session.emit(name, data)`.

    `number` counts a session's stored output and conversation from 1; ephemeral output has a count of its own.
    A number that a reader has seen before is a duplicate. `ephemeral` output is not stored, only published live.
    `attempt`: which run of its worker said it, for a session with a restart policy; see `Attempts`.
    """

    session_id: str
    number: int
    name: str
    data: Any
    created_at: datetime
    ephemeral: bool = False
    attempt: int | None = None


class ConversationAdded(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="conversation_added"):
    """A message of the conversation, sent to or by the worker. `number`, `attempt`: see `SessionOutput`."""

    session_id: str
    number: int
    role: str
    content: Any
    created_at: datetime
    message_id: str
    attempt: int | None = None


Output = SessionOutput | ConversationAdded


class OutputPublication(msgspec.Struct, frozen=True):
    """One message to publish: its subject, its payload and its `Nats-Msg-Id` (None: not stored)."""

    subject: str
    output: Output
    message_id: str | None


def publication_of(output_: Output) -> OutputPublication:
    """The message that publishes one output."""
    kept = isinstance(output_, ConversationAdded) or not output_.ephemeral
    numbers = f"{output_.number}" if output_.attempt is None else f"{output_.attempt}.{output_.number}"
    message_id = f"{output_.session_id}.{numbers}.output" if kept else None
    return OutputPublication(output(output_.session_id), output_, message_id)


class Attempts:
    """The newest attempt of each session that a reader has heard of, so that it can drop what an older one says late.

    Output is not fenced as events are: a worker that was replaced may still be heard. Of more than `SESSIONS_MAX`
    sessions, the one that was heard of first is forgotten.
    """

    def __init__(self) -> None:
        self._newest: dict[str, int] = {}

    def is_late(self, output_: Output) -> bool:
        """Whether a newer attempt of its session has spoken before."""
        if output_.attempt is None:
            return False
        newest = self._newest.get(output_.session_id, 0)
        self._newest[output_.session_id] = max(newest, output_.attempt)
        if len(self._newest) > SESSIONS_MAX:
            del self._newest[next(iter(self._newest))]
        return output_.attempt < newest
