"""The table of commands: the one place that says which there are. Everything else is derived from it or checked by it.

A new command is one row here, one handler in `manager/handlers.py` and one method of `SessionApi`.
Requests and replies are in `requests.py`.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final, NamedTuple

from jido_nats.core import subjects
from jido_nats.core.requests import (
    CreateReply,
    CreateRequest,
    Empty,
    HistoryReply,
    HistoryRequest,
    ListReply,
    ListRequest,
    Request,
    SendReply,
    SendRequest,
    TerminateRequest,
)
from jido_nats.core.session import SessionRecord
from jido_nats.errors import (
    AlreadyExists,
    BadRequest,
    CommandError,
    InternalError,
    InvalidTransition,
    NotFound,
    Overloaded,
    StartFailed,
    StopTimeout,
    TooLarge,
    Unavailable,
)

ERRORS_OF_EVERY_COMMAND: Final = (BadRequest, TooLarge, Overloaded, InternalError, Unavailable)


class About(StrEnum):
    """What a command is about: its subject ends with the id of that."""

    NOTHING = "nothing"
    SESSION = "session"
    MANAGER = "manager"


class RunsAt(StrEnum):
    """Which manager carries a command out; any other forwards it there."""

    OWNER = "owner"
    ANYBODY = "anybody"


class Replies(StrEnum):
    """How many replies a command has; exports of a stream have to say so in `nats.conf`."""

    ONE = "one"
    STREAM = "stream"


class Role(StrEnum):
    """A user of `nats.conf` that sends commands (a guest: about one session). Its operator may send them all."""

    CLIENT = "client"
    OBSERVER = "observer"
    GUEST = "guest"


class Admission(StrEnum):
    """What a command costs a manager.

    A full manager leaves the queue group of what would CREATE a session. A READ writes nothing and is cancelled when
    it takes too long. A CHANGE goes on, whether its caller waits or not.
    """

    CREATE = "create"
    CHANGE = "change"
    READ = "read"


class Command(NamedTuple):
    """One row. `subject` has a `*` for the id of what it is about; `errors`: those of every command apart."""

    subject: str
    request: type[Request]
    reply: type[Any]
    errors: tuple[type[CommandError], ...]
    about: About
    runs_at: RunsAt
    roles: frozenset[Role]
    admission: Admission
    summary: str
    replies: Replies = Replies.ONE

    def subject_for(self, target: str) -> str:
        """The subject of this command about one session or manager; `target`: "" where it is about nothing.

        Raises `BadRequest` where the target is no token.
        """
        if self.about is About.NOTHING:
            return self.subject
        return self.subject.replace("*", subjects.check_session_id(target))


_EVERYBODY: Final = frozenset(Role)
_TRUSTED: Final = frozenset({Role.CLIENT, Role.OBSERVER})
_NO_OBSERVER: Final = frozenset({Role.CLIENT, Role.GUEST})

COMMANDS: Final[Mapping[str, Command]] = {
    "create": Command(
        subject=subjects.CREATE,
        request=CreateRequest,
        reply=CreateReply,
        errors=(AlreadyExists, StartFailed),
        about=About.NOTHING,
        runs_at=RunsAt.ANYBODY,
        roles=frozenset({Role.CLIENT}),
        admission=Admission.CREATE,
        summary="Create a session; answered once it is active. Safe to repeat with the same session_id.",
    ),
    "list": Command(
        subject=subjects.LIST,
        request=ListRequest,
        reply=ListReply,
        errors=(),
        about=About.NOTHING,
        runs_at=RunsAt.ANYBODY,
        roles=_TRUSTED,
        admission=Admission.READ,
        summary="List sessions, ordered by id.",
    ),
    "get": Command(
        subject=subjects.all_commands("get"),
        request=Empty,
        reply=SessionRecord,
        errors=(NotFound,),
        about=About.SESSION,
        runs_at=RunsAt.ANYBODY,
        roles=_EVERYBODY,
        admission=Admission.READ,
        summary="The record of a session.",
    ),
    "terminate": Command(
        subject=subjects.all_commands("terminate"),
        request=TerminateRequest,
        reply=SessionRecord,
        errors=(NotFound, StopTimeout),
        about=About.SESSION,
        runs_at=RunsAt.OWNER,
        roles=_NO_OBSERVER,
        admission=Admission.CHANGE,
        summary="End a session; again on one that has ended: the same record and no new event.",
    ),
    "idle": Command(
        subject=subjects.all_commands("idle"),
        request=Empty,
        reply=SessionRecord,
        errors=(NotFound, InvalidTransition),
        about=About.SESSION,
        runs_at=RunsAt.OWNER,
        roles=_NO_OBSERVER,
        admission=Admission.CHANGE,
        summary="Make an active session idle.",
    ),
    "activate": Command(
        subject=subjects.all_commands("activate"),
        request=Empty,
        reply=SessionRecord,
        errors=(NotFound, InvalidTransition),
        about=About.SESSION,
        runs_at=RunsAt.OWNER,
        roles=_NO_OBSERVER,
        admission=Admission.CHANGE,
        summary="Make an idle session active.",
    ),
    "send": Command(
        subject=subjects.all_commands("send"),
        request=SendRequest,
        reply=SendReply,
        errors=(NotFound, InvalidTransition, AlreadyExists),
        about=About.SESSION,
        runs_at=RunsAt.OWNER,
        roles=_NO_OBSERVER,
        admission=Admission.CHANGE,
        summary="Send a message to the worker of an active or idle session (which wakes it); "
        "safe to repeat with a message_id.",
    ),
    "history": Command(
        subject=subjects.all_commands("history"),
        request=HistoryRequest,
        reply=HistoryReply,
        errors=(NotFound,),
        about=About.SESSION,
        runs_at=RunsAt.ANYBODY,
        roles=_EVERYBODY,
        admission=Admission.READ,
        summary="Every event of a session, by request-reply, also after its record has expired.",
    ),
}
