"""The table of commands. Everything else about a command is derived from it, or checked against it by a test.

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
    NoSuchWorker,
    NotFound,
    Overloaded,
    StartFailed,
    StopTimeout,
    TooLarge,
    Unavailable,
)

ERRORS_OF_EVERY_COMMAND: Final = (BadRequest, TooLarge, Overloaded, InternalError, Unavailable)


class About(StrEnum):
    """What a command is about; the id of that session or manager is the last token of its subject."""

    NOTHING = "nothing"
    SESSION = "session"
    MANAGER = "manager"


class RunsAt(StrEnum):
    """Which manager carries out a command; other managers forward it there."""

    OWNER = "owner"
    ANYBODY = "anybody"


class Replies(StrEnum):
    """How many replies a command has; a service export in `nats.conf` must declare it if there are several."""

    ONE = "one"
    STREAM = "stream"


class Role(StrEnum):
    """A user in `nats.conf` that may send commands (a guest: about one session). The operator may send all of them."""

    CLIENT = "client"
    OBSERVER = "observer"
    GUEST = "guest"


class Admission(StrEnum):
    """How a manager treats a command under load.

    A full manager leaves the queue group of commands that CREATE a session. A READ writes nothing and is cancelled if
    it takes too long; a SCAN is a READ that looks at many records or events. A CHANGE runs to its end, even if its
    caller no longer waits. Each class has its own room, so that a flood of one does not starve the others.
    """

    CREATE = "create"
    CHANGE = "change"
    READ = "read"
    SCAN = "scan"


class Command(NamedTuple):
    """One row. `subject` has a `*` for the session's or manager's id; `errors` excludes `ERRORS_OF_EVERY_COMMAND`."""

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
        """The subject for one session or manager; `target` is ignored by a command that is about neither.

        Raises `BadRequest` if the target is not a valid token.
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
        errors=(NoSuchWorker, AlreadyExists, StartFailed),
        about=About.NOTHING,
        runs_at=RunsAt.ANYBODY,
        roles=frozenset({Role.CLIENT}),
        admission=Admission.CREATE,
        summary="Create a session; the reply comes once it is active. Safe to retry with the same session_id.",
    ),
    "list": Command(
        subject=subjects.LIST,
        request=ListRequest,
        reply=ListReply,
        errors=(),
        about=About.NOTHING,
        runs_at=RunsAt.ANYBODY,
        roles=_TRUSTED,
        admission=Admission.SCAN,
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
        summary="Get the record of a session.",
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
        summary="End a session. If it has already ended, the reply is the same record and no event is published.",
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
        summary="Send a message to the worker of an active or idle session; an idle one becomes active. "
        "Safe to retry with the same message_id.",
    ),
    "history": Command(
        subject=subjects.all_commands("history"),
        request=HistoryRequest,
        reply=HistoryReply,
        errors=(NotFound,),
        about=About.SESSION,
        runs_at=RunsAt.ANYBODY,
        roles=_EVERYBODY,
        admission=Admission.SCAN,
        summary="Get every event of a session by request-reply, also after its record has expired.",
    ),
}
