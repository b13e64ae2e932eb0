"""What a session's worker says and what is said to it; a tagged union like the events, but no transitions."""

from datetime import datetime
from typing import Any

import msgspec

from jido_nats.core.subjects import output


class SessionOutput(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="session_output"):
    """Something that the worker said: `session.emit(name, data)`.

    `number` counts a session's kept output (with its conversation) from 1, and its ephemeral output apart:
    a number that was seen before is a repeat. `ephemeral` output is heard live only.
    """

    session_id: str
    number: int
    name: str
    data: Any
    created_at: datetime
    ephemeral: bool = False


class ConversationAdded(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="conversation_added"):
    """A message of the conversation: sent to the worker, or said by it. `number` as of `SessionOutput`."""

    session_id: str
    number: int
    role: str
    content: Any
    created_at: datetime
    message_id: str


Output = SessionOutput | ConversationAdded


class OutputPublication(msgspec.Struct, frozen=True):
    """One message about a session's output: where it goes, what it says, and its `Nats-Msg-Id` (None: not kept)."""

    subject: str
    output: Output
    message_id: str | None


def publication_of(output_: Output) -> OutputPublication:
    """The message of one output."""
    kept = isinstance(output_, ConversationAdded) or not output_.ephemeral
    message_id = f"{output_.session_id}.{output_.number}.output" if kept else None
    return OutputPublication(output(output_.session_id), output_, message_id)
