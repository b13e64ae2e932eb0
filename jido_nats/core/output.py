"""A worker's output and its conversation: a tagged union like the events, but not status changes."""

from datetime import datetime
from typing import Any

import msgspec

from jido_nats.core.subjects import output


class SessionOutput(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="session_output"):
    """Output that the worker published with `session.emit(name, data)`.

    `number` counts a session's stored output and conversation from 1; ephemeral output has a count of its own.
    A number that a reader has seen before is a duplicate. `ephemeral` output is not stored, only published live.
    """

    session_id: str
    number: int
    name: str
    data: Any
    created_at: datetime
    ephemeral: bool = False


class ConversationAdded(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="conversation_added"):
    """A message of the conversation, sent to or by the worker. `number`: see `SessionOutput`."""

    session_id: str
    number: int
    role: str
    content: Any
    created_at: datetime
    message_id: str


Output = SessionOutput | ConversationAdded


class OutputPublication(msgspec.Struct, frozen=True):
    """One message to publish: its subject, its payload and its `Nats-Msg-Id` (None: not stored)."""

    subject: str
    output: Output
    message_id: str | None


def publication_of(output_: Output) -> OutputPublication:
    """The message that publishes one output."""
    kept = isinstance(output_, ConversationAdded) or not output_.ephemeral
    message_id = f"{output_.session_id}.{output_.number}.output" if kept else None
    return OutputPublication(output(output_.session_id), output_, message_id)
