"""The whole error tree: each class answers "what do I do now?".

JidoError
├── CommandError              a command was answered with an error (has .status and .code)
│   ├── BadRequest            400  fix the request
│   ├── NotFound              404  no such session, or its record has expired
│   ├── NoSuchWorker          404  no manager runs that kind of worker with these labels
│   ├── InvalidTransition     409  the session's status does not allow it
│   ├── AlreadyExists         409  choose another session id
│   ├── TooLarge              413  send less
│   ├── Overloaded            429  retry later
│   ├── StartFailed           500  the worker did not start; see .session_id
│   ├── InternalError         500  a bug; the manager logged it under the id in the message
│   ├── Unavailable           503  not done, or outcome unknown: retry with the same id
│   └── StopTimeout           504  stopping continues; `terminated` follows
├── ServerUnusable            no server, too old, no JetStream, no stream, or credentials refused
│   └── ConsumerLimitReached  the stream takes no more consumers: too many readers
├── ConfigurationError        a wrong setting, or a stream configured differently
├── PositionUnavailable       a reader cannot resume from that position in the stream: start over
├── ConsumerNotFound          the durable consumer that a reader uses was deleted
├── JournalUnreadable         inside jido_nats: a session cannot go on from what is stored
└── BrokerError               inside jido_nats; only NotAllowed reaches a caller
    ├── NotAllowed            the server's permissions deny it to this user; not done
    ├── Conflict              a compare-and-set lost; not stored
    ├── NotSent               the connection was down; not sent: wait for it, then retry
    │   └── NoResponders      nothing subscribes to the subject; not done
    ├── OutcomeUnknown        it may have been stored: check before you retry
    └── Fenced                another manager owns the session now: stop writing it
"""

from typing import ClassVar, Final


class JidoError(Exception):
    """The base of every error of jido_nats; the message says what to do.

    Attributes: `session_id` (of the session that it is about, or None).
    """

    session_id: str | None = None


class CommandError(JidoError):
    """A command failed.

    Attributes: `status` (HTTP-like number, sent as `Nats-Service-Error-Code`), `code` (stable token), `session_id`.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"

    def __init__(self, message: str, *, session_id: str | None = None) -> None:
        super().__init__(message)
        self.session_id = session_id


class BadRequest(CommandError):
    """The request is malformed; the message says what is wrong."""

    status = 400
    code = "bad_request"


class NotFound(CommandError):
    """There is no session with that id, or its record has expired (`history` may still have its events)."""

    status = 404
    code = "not_found"


class NoSuchWorker(CommandError):
    """No manager runs that kind of worker with these labels; the message names what there is."""

    status = 404
    code = "no_such_worker"


class InvalidTransition(CommandError):
    """The lifecycle does not allow this transition; the session is unchanged."""

    status = 409
    code = "invalid_transition"


class AlreadyExists(CommandError):
    """A session with that id exists and was created with different content; choose another id."""

    status = 409
    code = "already_exists"


class TooLarge(CommandError):
    """The request is larger than the manager accepts; send less."""

    status = 413
    code = "too_large"


class Overloaded(CommandError):
    """A limit was reached and nothing was done; retry later."""

    status = 429
    code = "overloaded"


class StartFailed(CommandError):
    """The session's worker ended before the session was active, or was not ready in time."""

    code = "start_failed"


class InternalError(CommandError):
    """A bug in the manager; its log has the details under the id in the message."""


class Unavailable(CommandError):
    """Not done, or the outcome is unknown: retry with the same session id, which is safe."""

    status = 503
    code = "unavailable"


class StopTimeout(CommandError):
    """The worker has not stopped yet; stopping continues, and `terminated` follows."""

    status = 504
    code = "stop_timeout"


class ServerUnusable(JidoError):
    """The NATS server cannot be used; the message says why."""


class ConsumerLimitReached(ServerUnusable):
    """The stream or the account takes no more consumers: too many readers."""


class ConfigurationError(JidoError):
    """A setting is wrong, or an existing stream or bucket is configured differently."""


class PositionUnavailable(JidoError):
    """The stream no longer has what follows a reader's position, or is not the stream that it was: start over.

    Attributes (stream sequences): `wanted`; `first` and `last`, the stored range, or None if it is irrelevant.
    """

    def __init__(self, wanted: int, first: int | None, last: int | None, *, why: str | None = None) -> None:
        """`why`: the end of the sentence "position N ..."; None: derive it from the range."""
        super().__init__(f"position {wanted} {why or _why_unavailable(wanted, first, last)}")
        self.wanted = wanted
        self.first = first
        self.last = last

    @classmethod
    def of_another_life(cls, wanted: int) -> "PositionUnavailable":
        """The stream was deleted and made again, or restored from an older backup."""
        why = "belongs to another life of the stream, which was made again or restored from a backup; start over"
        return cls(wanted, None, None, why=why)


def _why_unavailable(wanted: int, first: int | None, last: int | None) -> str:
    if first is None or last is None:
        return "is too old: later messages may have been removed; start over with a snapshot"
    if wanted > last + 1:
        return (
            f"is beyond the end of the stream ({last}); was the stream deleted, or restored from a backup? "
            f"Start over with a snapshot, or at {first}"
        )
    return f"is too old: the stream starts at {first}; start over with a snapshot, or from there"


class ConsumerNotFound(JidoError):
    """The durable consumer that a reader uses was deleted; a new reader creates it again, from its own start.

    Attributes: `stream`, `durable` (names).
    """

    def __init__(self, stream: str, durable: str) -> None:
        super().__init__(
            f"the durable consumer {durable} of {stream} was deleted while it was being read; reading with that name "
            "again creates a new one"
        )
        self.stream = stream
        self.durable = durable


class JournalUnreadable(JidoError):
    """The journal of a session cannot be read: its next attempt must not begin with less than was accepted."""

    def __init__(self, message: str, *, session_id: str) -> None:
        super().__init__(message)
        self.session_id = session_id


PositionTooOld = PositionUnavailable  # the former name


class BrokerError(JidoError):
    """An operation on NATS failed."""


class Conflict(BrokerError):
    """The server rejected a compare-and-set: nothing was stored."""


class NotSent(BrokerError):
    """The connection was down: nothing was sent."""


class NoResponders(NotSent):
    """Nothing subscribes to that subject: nothing was done."""


class NotAllowed(BrokerError):
    """The permissions of this program's NATS user deny it: nothing was done.

    Attributes: `subject` (the subject that was denied).
    """

    def __init__(self, what: str, subject: str) -> None:
        super().__init__(f"the NATS user of this program may not {what}")
        self.subject = subject


class OutcomeUnknown(BrokerError):
    """No acknowledgement arrived: it may or may not have been stored. Check before you retry."""


class Fenced(BrokerError):
    """Another manager has claimed or written this session: stop writing it."""


def command_error(code: str, message: str, session_id: str | None) -> CommandError:
    """The error for a reply's `code`; `InternalError` for an unknown code."""
    return _BY_CODE.get(code, InternalError)(message, session_id=session_id)


# The errors of the API; programs built on it may define their own subclasses.
COMMAND_ERRORS: Final[tuple[type[CommandError], ...]] = tuple(CommandError.__subclasses__())
_BY_CODE: Final[dict[str, type[CommandError]]] = {kind.code: kind for kind in COMMAND_ERRORS}
