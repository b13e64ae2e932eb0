"""Every subject, stream and bucket name, built from checked tokens; the wildcard stands beside each builder."""

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from jido_nats.core.events import Event, SessionStatus, event_type
from jido_nats.core.lifecycle import events_of
from jido_nats.core.session import SessionRecord
from jido_nats.errors import BadRequest

EVENTS: Final = "jido.client.events"
ALL_SESSIONS: Final = "jido.client.session.*"
ALL_OUTPUT: Final = "jido.client.session.*.output"
ALL_FENCES: Final = "jido.fence.*"

CREATE: Final = "jido.session.create"
LIST: Final = "jido.session.list"

EVENTS_STREAM: Final = "JIDO_CLIENT"
OUTPUT_STREAM: Final = "JIDO_OUTPUT"
SESSIONS_BUCKET: Final = "JIDO_SESSIONS"
MANAGERS_BUCKET: Final = "JIDO_MANAGERS"

_TOKEN: Final = re.compile(r"\A[A-Za-z0-9_-]{1,64}\Z")
# What a requester's reply subject has to look like: an inbox, or the server's own for another account.
_INBOX: Final = re.compile(r"\A(?:_INBOX|_R_)\.[^\s*>]{1,256}\Z")


class Publication(NamedTuple):
    """One message that a version of a session owes: where it goes, what it says, its `Nats-Msg-Id`."""

    subject: str
    event: Event
    message_id: str
    traceparent: str | None = None


def check_session_id(session_id: str) -> str:
    """The id itself, or `BadRequest`: one token of letters, digits, `_` and `-`, at most 64 long."""
    if not isinstance(session_id, str) or not _TOKEN.match(session_id):
        raise BadRequest("a session id is 1 to 64 letters, digits, '_' or '-'")
    return session_id


def is_token(text: str) -> bool:
    """Whether the text can be one token of a subject."""
    return _TOKEN.match(text) is not None


def is_inbox(subject: str) -> bool:
    """Whether a reply subject is an inbox, the only kind that is ever answered."""
    return _INBOX.match(subject) is not None


def session(session_id: str) -> str:
    """The subject of one session's `session_status` events; all: `ALL_SESSIONS`."""
    return f"jido.client.session.{check_session_id(session_id)}"


def output(session_id: str) -> str:
    """The subject of what one session's worker says; all: `ALL_OUTPUT`."""
    return f"jido.client.session.{check_session_id(session_id)}.output"


def fence(session_id: str) -> str:
    """The subject of the claims on one session; all: `ALL_FENCES`."""
    return f"jido.fence.{check_session_id(session_id)}"


def session_of(subject: str) -> str:
    """The session id in a fence's, a session's or a key's subject (its last token)."""
    return subject.rpartition(".")[2]


def all_commands(verb: str) -> str:
    """The subject pattern of a command about one session; the table `commands.COMMANDS` has that of every command."""
    return f"jido.session.{verb}.*"


def forwarded(manager_id: str, verb: str, session_id: str) -> str:
    """The subject of a command that is forwarded to another manager; all: `all_forwarded`."""
    return f"jido.manager.{manager_id}.{verb}.{check_session_id(session_id)}"


def all_forwarded(manager_id: str) -> str:
    """The subject on which a manager receives the commands that others forward to it."""
    return f"jido.manager.{manager_id}.*.*"


def key(bucket: str, name: str) -> str:
    """The subject of one key (a session's or a manager's id) of a bucket; all: `all_keys`."""
    return f"$KV.{bucket}.{check_session_id(name)}"


def all_keys(bucket: str) -> str:
    """The subject of every key of a bucket."""
    return f"$KV.{bucket}.*"


def bucket_subjects(bucket: str) -> str:
    """What the stream that a bucket is has to take, as every NATS client makes it."""
    return f"$KV.{bucket}.>"


def bucket_stream(bucket: str) -> str:
    """The stream that a bucket is."""
    return f"KV_{bucket}"


def publications(record: SessionRecord) -> Iterator[Publication]:
    """The messages of the record's version, in the order in which they have to be stored.

    The copy on the session's own subject comes last, so that a stored one proves the version complete.
    """
    copy: Publication | None = None
    for event in events_of(record):
        message_id = f"{record.session_id}.{event.version}.{event_type(event)}"
        yield Publication(EVENTS, event, message_id, record.traceparent)
        if isinstance(event, SessionStatus):
            copy = Publication(session(record.session_id), event, f"{message_id}.session", record.traceparent)
    if copy is not None:
        yield copy


def last_message_id(record: SessionRecord) -> str:
    """The `Nats-Msg-Id` of the last message that the record's version owes."""
    *_, last = publications(record)
    return last.message_id
