"""The whole error tree: each class answers "what do I do now?".

JidoError
├── CommandError              a command was answered with an error (has .status and .code)
│   ├── BadRequest            400  mend the request
│   ├── NotFound              404  no such session, or its record has expired
│   ├── InvalidTransition     409  the session is not in a status that allows it
│   ├── AlreadyExists         409  choose another session id
│   ├── TooLarge              413  send less
│   ├── Overloaded            429  ask again later
│   ├── StartFailed           500  the worker did not start; see .session_id
│   ├── InternalError         500  a defect; the log has it under the id in the message
│   ├── Unavailable           503  not done, or not known: ask again with the same id
│   └── StopTimeout           504  stopping goes on; `terminated` follows
├── ServerUnusable            no server, too old, no JetStream, refused credentials
├── ConfigurationError        a setting, or a stream that differs from the design
├── PositionTooOld            the stream no longer has what a reader wants to resume from
└── BrokerError               inside jido_nats; only NotAllowed reaches a caller
    ├── NotAllowed            the server's permissions forbid it to this user: known not to be done
    ├── Conflict              refused, known not to be stored: somebody else was first
    ├── NotSent               known not to be sent: wait for the connection, then again
    │   └── NoResponders      sent, and nobody was there to take it
    ├── OutcomeUnknown        it may be stored: look before you retry
    └── Fenced                another manager has this session now: stop
"""

from typing import ClassVar, Final


class JidoError(Exception):
    """Something that jido_nats reports; the message says what to do."""


class CommandError(JidoError):
    """A command was not carried out.

    Attributes: `status` (HTTP-like number, sent as `Nats-Service-Error-Code`), `code` (stable token),
    `session_id` (str or None).
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"

    def __init__(self, message: str, *, session_id: str | None = None) -> None:
        super().__init__(message)
        self.session_id = session_id


class BadRequest(CommandError):
    """The request is not well formed; the message names what is wrong."""

    status = 400
    code = "bad_request"


class NotFound(CommandError):
    """No session of that id, or its record has expired (`history` may still have its events)."""

    status = 404
    code = "not_found"


class InvalidTransition(CommandError):
    """The lifecycle does not allow this step; the session is unchanged."""

    status = 409
    code = "invalid_transition"


class AlreadyExists(CommandError):
    """That session id is taken by a session with other content; choose another."""

    status = 409
    code = "already_exists"


class TooLarge(CommandError):
    """The request is larger than the manager accepts; send less."""

    status = 413
    code = "too_large"


class Overloaded(CommandError):
    """A limit is reached; nothing was done, ask again later."""

    status = 429
    code = "overloaded"


class StartFailed(CommandError):
    """The session's worker ended, or was not ready in time, before the session was active."""

    code = "start_failed"


class InternalError(CommandError):
    """A defect of the manager; its log has the details under the id in the message."""


class Unavailable(CommandError):
    """Not done, or not known to be done: ask again with the same session id, nothing happens twice."""

    status = 503
    code = "unavailable"


class StopTimeout(CommandError):
    """The worker has not stopped yet; stopping goes on and `terminated` follows."""

    status = 504
    code = "stop_timeout"


class ServerUnusable(JidoError):
    """The NATS server cannot be used as it is; the message says why."""


class ConfigurationError(JidoError):
    """A setting is wrong, or an existing stream or bucket differs from the design."""


class PositionTooOld(JidoError):
    """The stream no longer holds the position that a reader wants to resume from: start anew.

    Attributes, sequences all: `wanted`, and `first` and `last` of what is stored, None where that does not matter.
    """

    def __init__(self, wanted: int, first: int | None, last: int | None) -> None:
        if first is None or last is None:
            why = "is too old: what came behind it may have gone again; start anew with a snapshot"
        elif wanted > last + 1:
            why = f"is none of this stream, which ends at {last} (was it deleted, or restored from a backup?)"
            why += f"; start anew with a snapshot, or at {first}"
        else:
            why = f"is too old: what is stored starts at {first}; start anew with a snapshot, or there"
        super().__init__(f"the position {wanted} {why}")
        self.wanted = wanted
        self.first = first
        self.last = last


class BrokerError(JidoError):
    """An operation on NATS did not succeed."""


class Conflict(BrokerError):
    """A compare-and-set was refused: known not to be stored."""


class NotSent(BrokerError):
    """The connection was down: known not to be sent."""


class NoResponders(NotSent):
    """Nobody listens on that subject: known not to be done."""


class NotAllowed(BrokerError):
    """The permissions of the user that this program connects as forbid it: known not to be done.

    Attributes: `subject` (what was refused).
    """

    def __init__(self, what: str, subject: str) -> None:
        super().__init__(f"the NATS user of this program may not {what}")
        self.subject = subject


class OutcomeUnknown(BrokerError):
    """No answer came: it may or may not be stored. Look before you retry."""


class Fenced(BrokerError):
    """Another manager has claimed or written this session: stop writing it."""


def command_error(code: str, message: str, session_id: str | None) -> CommandError:
    """The error that a reply's `code` stands for; an unknown code gives `InternalError`."""
    return _BY_CODE.get(code, InternalError)(message, session_id=session_id)


# What the API answers with; programs that stand on it may have errors of their own.
COMMAND_ERRORS: Final[tuple[type[CommandError], ...]] = tuple(CommandError.__subclasses__())
_BY_CODE: Final[dict[str, type[CommandError]]] = {kind.code: kind for kind in COMMAND_ERRORS}
