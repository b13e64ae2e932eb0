"""Every subject, stream and bucket name, built from checked tokens; each builder names its wildcard."""

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
ALL_JOURNALS: Final = "jido.journal.*"

# Requests for consumers, as other accounts import them: `jido.consumer.<role>.` and what follows `CONSUMER.` in the
# subject of the JetStream API.
CONSUMER_REQUESTS: Final = "jido.consumer.>"

CREATE: Final = "jido.session.create"
LIST: Final = "jido.session.list"

# Every subject of a stream of ours begins with this.
ROOT: Final = "jido."
# Commands: no stream may store them, since JetStream would answer each with an acknowledgement of its own.
COMMANDS: Final = ("jido.session.>", "jido.manager.>", "jido.admin.>", CONSUMER_REQUESTS)

EVENTS_STREAM: Final = "JIDO_CLIENT"
OUTPUT_STREAM: Final = "JIDO_OUTPUT"
JOURNAL_STREAM: Final = "JIDO_JOURNAL"
SESSIONS_BUCKET: Final = "JIDO_SESSIONS"
MANAGERS_BUCKET: Final = "JIDO_MANAGERS"

_TOKEN: Final = re.compile(r"\A[A-Za-z0-9_-]{1,64}\Z")
_LITERAL: Final = re.compile(r"\A[^\s.*>]+(?:\.[^\s.*>]+)*\Z")
# Reply subjects that are answered: inboxes, and the server's own for requests from another account.
_INBOX: Final = re.compile(r"\A(?:_INBOX|_R_)\.[^\s*>]{1,256}\Z")


class Publication(NamedTuple):
    """One message of a session's version: its subject, its event and its `Nats-Msg-Id`."""

    subject: str
    event: Event
    message_id: str
    traceparent: str | None = None


def check_session_id(session_id: str) -> str:
    """Return the id. Raises `BadRequest` unless it is one token: 1 to 64 letters, digits, `_` or `-`."""
    if not isinstance(session_id, str) or not _TOKEN.match(session_id):
        raise BadRequest("a session id must be 1 to 64 letters, digits, '_' or '-'")
    return session_id


def is_token(text: str) -> bool:
    """Whether the text is a valid token for a subject."""
    return _TOKEN.match(text) is not None


def is_literal(subject: str) -> bool:
    """Whether the text is a subject of NATS without wildcards."""
    return _LITERAL.match(subject) is not None


def is_inbox(subject: str) -> bool:
    """Whether a reply subject is an inbox; no other reply subject is answered."""
    return _INBOX.match(subject) is not None


def session(session_id: str) -> str:
    """The subject of one session's `session_status` events; all: `ALL_SESSIONS`."""
    return f"jido.client.session.{check_session_id(session_id)}"


def output(session_id: str) -> str:
    """The subject of one session's output and conversation; all: `ALL_OUTPUT`."""
    return f"jido.client.session.{check_session_id(session_id)}.output"


def fence(session_id: str) -> str:
    """The subject of the claims on one session; all: `ALL_FENCES`."""
    return f"jido.fence.{check_session_id(session_id)}"


def journal(session_id: str) -> str:
    """The subject of one session's journal; all: `ALL_JOURNALS`."""
    return f"jido.journal.{check_session_id(session_id)}"


def session_of(subject: str) -> str:
    """The session id in the subject of a fence, a journal, a session or a key: its last token."""
    return subject.rpartition(".")[2]


def all_commands(verb: str) -> str:
    """The subject pattern of a command about one session, for the table `commands.COMMANDS`."""
    return f"jido.session.{verb}.*"


def forwarded(manager_id: str, verb: str, session_id: str) -> str:
    """The subject of a command that is forwarded to another manager; all: `all_forwarded`."""
    return f"jido.manager.{manager_id}.{verb}.{check_session_id(session_id)}"


def all_forwarded(manager_id: str) -> str:
    """The subject on which a manager receives commands that other managers forward to it."""
    return f"jido.manager.{manager_id}.*.*"


def key(bucket: str, name: str) -> str:
    """The subject of one key (a session's or a manager's id) of a bucket; all: `all_keys`."""
    return f"$KV.{bucket}.{check_session_id(name)}"


def all_keys(bucket: str) -> str:
    """The subject of every key of a bucket."""
    return f"$KV.{bucket}.*"


def bucket_subjects(bucket: str) -> str:
    """The subjects of a bucket's stream, the same as every NATS client configures."""
    return f"$KV.{bucket}.>"


def bucket_stream(bucket: str) -> str:
    """The name of a bucket's stream."""
    return f"KV_{bucket}"


def matches(pattern: str, subject: str) -> bool:
    """Whether a subject matches a pattern with the wildcards `*` (one token) and `>` (one or more, at the end)."""
    wanted, tokens = pattern.split("."), subject.split(".")
    if wanted[-1] == ">":
        wanted.pop()
        if len(tokens) <= len(wanted):
            return False
    elif len(tokens) != len(wanted):
        return False
    return all(w in ("*", token) for w, token in zip(wanted, tokens, strict=False))


def covers(pattern: str, other: str) -> bool:
    """Whether every subject that matches `other` (a subject or a pattern) matches `pattern`, too."""
    tokens, others = pattern.split("."), other.split(".")
    for number, token in enumerate(tokens):
        if number == len(others):
            return False
        if token == ">":  # a token of a subject  # nosec B105
            return True
        if others[number] == ">" or token not in ("*", others[number]):
            return False
    return len(tokens) == len(others)


def overlap(one: str, other: str) -> bool:
    """Whether some subject matches both patterns."""
    tokens, others = one.split("."), other.split(".")
    for token, facing in zip(tokens, others, strict=False):
        if ">" in (token, facing):
            return True
        if token != facing and "*" not in (token, facing):
            return False
    return len(tokens) == len(others)


def publications(record: SessionRecord) -> Iterator[Publication]:
    """The messages of the record's version, in the order in which they must be stored.

    The copy on the session's own subject is last: once it is stored, the version is complete.
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
    """The `Nats-Msg-Id` of the last message of the record's version."""
    *_, last = publications(record)
    return last.message_id
