"""The commands' requests and replies, and the checks of a request beyond its types.

A request with an unknown field is rejected: a misspelled name must not be ignored.
"""

from typing import Any, Final, TypeVar

import msgspec

from jido_nats.core.codec import DecodeError, Encoding, check_plain, decode, encode
from jido_nats.core.events import KnownEvent
from jido_nats.core.placement import Wanted, check_labels
from jido_nats.core.restarts import BACKOFF_MAX_S, BACKOFF_MIN_S
from jido_nats.core.session import DEFAULT_WORKER, Cause, RestartPolicy, SessionRecord, Status
from jido_nats.core.settings import Settings
from jido_nats.core.subjects import check_session_id, is_token
from jido_nats.errors import BadRequest, TooLarge

LIST_LIMIT: Final = 100
LIST_LIMIT_MAX: Final = 1000
OUTPUT_NAME_LENGTH_MAX: Final = 64
LIST_BYTES_MAX: Final = 512 * 1024
HISTORY_LIMIT: Final = 100
HISTORY_LIMIT_MAX: Final = 1000
CONVERSATION_LIMIT_MAX: Final = 1000
DETAIL_LENGTH_MAX: Final = 1000
ROLE_LENGTH_MAX: Final = 64
MESSAGE_ID_LENGTH_MAX: Final = 128
STATE_BYTES_MAX: Final = 512 * 1024
ATTEMPTS_MAX: Final = 1_000_000
LIMITS: Final = ("idle_after_s", "idle_timeout_s", "max_lifetime_s")
LIMIT_MAX_S: Final = 10 * 365 * 24 * 3600

R = TypeVar("R", bound="Request")


class Request(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """The base of every request, so that any of them can be checked the same way."""

    def check(self) -> None:
        """Raise `BadRequest` for values that no manager accepts, whatever its settings."""


class Empty(Request, frozen=True):
    """A request without fields: its subject says everything."""


class RestartRequest(RestartPolicy, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A restart policy as it is asked for: unlike one in a record, with no field that this version does not know."""

    @property
    def policy(self) -> RestartPolicy:
        """As it is in the record."""
        return RestartPolicy(on=self.on, attempts_max=self.attempts_max, backoff_s=self.backoff_s)


class CreateRequest(Request, frozen=True, kw_only=True):
    """`jido.session.create`: every field is optional.

    The session runs at a manager that has this kind of `worker`, and all of the `labels`.

    Time limits, in seconds: an `active` session becomes `idle` after `idle_after_s` without a message, output or
    `touch()`; an `idle` one ends after `idle_timeout_s`; any session ends `max_lifetime_s` after its creation.
    0: no limit; None: the manager's setting.
    `restart`: goes on with a new attempt after these ends of its worker; None: it ends.
    """

    session_id: str | None = None
    metadata: dict[str, Any] = {}
    llm_config: dict[str, Any] | None = None
    worker: str = DEFAULT_WORKER
    labels: dict[str, str] = {}
    idle_after_s: float | None = None
    idle_timeout_s: float | None = None
    max_lifetime_s: float | None = None
    restart: RestartRequest | None = None

    def __post_init__(self) -> None:
        if self.worker == DEFAULT_WORKER:  # msgspec omits what *is* the default, not what is equal to it
            msgspec.structs.force_setattr(self, "worker", DEFAULT_WORKER)

    def check(self) -> None:
        """Raise `BadRequest` unless a session can be created from it, sizes apart: see `check_size`."""
        if self.session_id is not None:
            check_session_id(self.session_id)
        for name in ("metadata", "llm_config"):
            _check_plain(getattr(self, name), name, self.session_id)
        check_worker(self.worker)
        try:
            check_labels(self.labels)
        except ValueError as error:
            raise BadRequest(str(error), session_id=self.session_id) from error
        for name in LIMITS:
            limit = getattr(self, name)
            if limit is not None and not (isinstance(limit, int | float) and 0 <= limit <= LIMIT_MAX_S):
                raise BadRequest(f"{name} must be 0 (no limit) to {LIMIT_MAX_S} seconds", session_id=self.session_id)
        if self.restart is not None:
            check_restart(self.restart, self.session_id)

    @property
    def wanted(self) -> Wanted:
        """What its session needs of a manager."""
        return Wanted(self.worker, self.labels)

    def check_size(self, bytes_max: int) -> None:
        """Raise `TooLarge` if `metadata` and `llm_config` together exceed the limit in JSON or in MessagePack.

        Call `check` first: only plain values can be encoded.
        """
        size = max(len(encode([self.metadata, self.llm_config], encoding)) for encoding in Encoding)
        if size > bytes_max:
            raise TooLarge(
                f"metadata and llm_config are {size} bytes together, the limit is {bytes_max}: "
                "store large data elsewhere and send references",
                session_id=self.session_id,
            )


class ListRequest(Request, frozen=True, kw_only=True):
    """`jido.session.list`: live sessions by default; `metadata` selects those that have all of these pairs.

    `worker`: only those with this kind of worker.
    """

    status: Status | None = None
    metadata: dict[str, Any] = {}
    worker: str | None = None
    include_terminated: bool = False
    limit: int = LIST_LIMIT
    cursor: str | None = None

    def check(self) -> None:
        """Raise `BadRequest` for a value out of range."""
        if not 1 <= self.limit <= LIST_LIMIT_MAX:
            raise BadRequest(f"limit must be 1 to {LIST_LIMIT_MAX}")
        if self.status is not None:
            status_named(self.status)
        if self.worker is not None:
            check_worker(self.worker)
        if self.cursor is not None:
            try:
                check_session_id(self.cursor)
            except BadRequest as error:
                raise BadRequest(f"cursor must be the next_cursor of an earlier reply: {error}") from error


class TerminateRequest(Request, frozen=True):
    """`jido.session.terminate.<id>`: `detail` is stored in the record and published in the events."""

    detail: str | None = None

    def check(self) -> None:
        """Raise `BadRequest` unless `detail` fits into an event."""
        if self.detail is None:
            return
        if len(self.detail) > DETAIL_LENGTH_MAX:
            raise BadRequest(f"detail must be at most {DETAIL_LENGTH_MAX} characters")
        _check_plain(self.detail, "detail")


class SendRequest(Request, frozen=True, kw_only=True):
    """`jido.session.send.<id>`: a message for the worker; `content` is any JSON value except null.

    With a `message_id` it is safe to retry: the worker receives the message once.
    """

    role: str
    content: Any
    message_id: str | None = None

    def check(self) -> None:
        """Raise `BadRequest` unless the message can be delivered and published."""
        check_said(self.role, self.content)
        if self.message_id is not None:
            check_text("message_id", self.message_id, MESSAGE_ID_LENGTH_MAX)


class SendReply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The message is in the worker's inbox, and stored: as the `conversation_added` with this `number`.

    A session with a restart policy has it in its journal instead, and the `conversation_added` follows.

    `replayed`: an earlier request with this `message_id` did that, and this one did nothing.
    """

    session_id: str
    message_id: str
    number: int
    replayed: bool = False


class CreateReply(SessionRecord, frozen=True, kw_only=True, omit_defaults=True):
    """The session's record; `replayed` if an earlier, equal request created the session."""

    replayed: bool = False


class ListReply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The sessions, ordered by id; `next_cursor` if there are more.

    `position`: a sequence of the event stream. The list reflects every event up to it, so a reader that follows the
    events after it, and ignores versions that are not greater than those in the list, misses nothing. With several
    pages, use the position of the first. `position_token`: the same, opaque, with which life of the stream it is of.
    """

    sessions: list[SessionRecord]
    position: int = 0
    next_cursor: str | None = None
    position_token: str | None = None


class HistoryRequest(Request, frozen=True, kw_only=True):
    """`jido.session.history.<id>`: the events of the versions after `after`, about `limit` of them."""

    after: int = 0
    limit: int = HISTORY_LIMIT

    def check(self) -> None:
        """Raise `BadRequest` for a value out of range."""
        if not 1 <= self.limit <= HISTORY_LIMIT_MAX:
            raise BadRequest(f"limit must be 1 to {HISTORY_LIMIT_MAX}")
        if self.after < 0:
            raise BadRequest("after must be a version: 0, or the `next` of an earlier reply")


class HistoryReply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The events, in order; if there are more, `next` is the value for `after` in the next request."""

    events: list[KnownEvent]
    next: int | None = None


class HistoryPage(msgspec.Struct, frozen=True):
    """A `HistoryReply` as a caller reads it: a newer manager may return events of types that are unknown here."""

    events: list[msgspec.Raw]
    next: int | None = None


class ErrorDetail(msgspec.Struct, frozen=True, omit_defaults=True):
    """What went wrong: a stable code, a message, and the id of the session if it is about one."""

    code: str
    message: str
    session_id: str | None = None


class ErrorReply(msgspec.Struct, frozen=True):
    """The payload of every error reply."""

    error: ErrorDetail


def checked(request: R) -> R:
    """A checked deep copy of a request from Python, as it would arrive over NATS: later changes do not affect it.

    Raises `BadRequest` if it cannot be encoded, or no manager would accept it (limits in settings apart).
    """
    try:
        for name, value in msgspec.structs.asdict(request).items():
            if not isinstance(value, msgspec.Struct):  # whose fields have types
                check_plain(value, name)
        copy = decode(encode(request), type(request))
    except DecodeError as error:
        raise BadRequest(str(error)) from error
    copy.check()
    return copy


def status_named(name: Status | str) -> Status:
    """The status of that name. Raises `BadRequest` for an unknown one."""
    if name not in tuple(Status):
        raise BadRequest(f"unknown status {str(name)!r}; use {', '.join(Status)}")
    return Status(name)


def check_worker(name: str) -> None:
    """Raise `BadRequest` unless it can be the name of a kind of worker."""
    if not is_token(name):
        raise BadRequest("worker must be 1 to 64 letters, digits, '_' or '-'")


def check_restart(policy: RestartPolicy, session_id: str | None = None) -> None:
    """Raise `BadRequest` unless it is a restart policy that a manager can follow."""
    if not policy.on or set(policy.on) - set(Cause) or len(set(policy.on)) < len(policy.on):
        names = ", ".join(str(cause) for cause in Cause)
        raise BadRequest(f"restart.on must name one or more of {names}, each once", session_id=session_id)
    if not 0 <= policy.attempts_max <= ATTEMPTS_MAX:
        raise BadRequest(f"restart.attempts_max must be 0 (no limit) to {ATTEMPTS_MAX}", session_id=session_id)
    if not BACKOFF_MIN_S <= policy.backoff_s <= BACKOFF_MAX_S:
        raise BadRequest(f"restart.backoff_s must be {BACKOFF_MIN_S:g} to {BACKOFF_MAX_S:g}", session_id=session_id)


def limits_of(asked: "CreateRequest | SessionRecord | Settings") -> dict[str, float | None]:
    """The time limits of a request, a record or the settings, by name; None if not set there."""
    limits = {name: getattr(asked, name) for name in LIMITS}
    return {name: None if limit is None else float(limit) for name, limit in limits.items()}


def check_said(role: str, content: Any) -> None:
    """Raise `BadRequest` unless this can be a message of a conversation."""
    check_text("role", role, ROLE_LENGTH_MAX)
    if content is None:
        raise BadRequest("content must not be null")
    _check_plain(content, "content")


def check_emitted(name: str, data: Any) -> None:
    """Raise `BadRequest` unless this can be a worker's output."""
    check_text("the output's name", name, OUTPUT_NAME_LENGTH_MAX)
    _check_plain(data, "the output's data")


def check_state(state: Any) -> None:
    """Raise `BadRequest`, or `TooLarge`, unless this can be the state in a checkpoint."""
    _check_plain(state, "the state")
    if (size := len(encode(state))) > STATE_BYTES_MAX:
        raise TooLarge(
            f"the state is {size} bytes, the limit is {STATE_BYTES_MAX}: store it elsewhere and keep a reference"
        )


def check_conversation_limit(limit: int) -> None:
    """Raise `BadRequest` unless a worker may ask for so much of the conversation at once."""
    if not 1 <= limit <= CONVERSATION_LIMIT_MAX:
        raise BadRequest(f"limit must be 1 to {CONVERSATION_LIMIT_MAX}")


def check_text(name: str, text: str, length_max: int) -> None:
    """Raise `BadRequest` unless it is a string of 1 to `length_max` characters."""
    if not isinstance(text, str) or not 1 <= len(text) <= length_max:
        raise BadRequest(f"{name} must be 1 to {length_max} characters")
    _check_plain(text, name)


def same_content(request: CreateRequest, record: SessionRecord) -> bool:
    """Whether this request, or an equal one, created the record."""
    asked, made = [
        [r.metadata, r.llm_config, r.worker, r.labels, limits_of(r), _restart_of(r)] for r in (request, record)
    ]
    # In Python 1 equals True and 1.0, in JSON it does not.
    return asked == made and deterministic(asked) == deterministic(made)


def _restart_of(asked: CreateRequest | SessionRecord) -> list[Any]:
    policy = asked.restart
    return [] if policy is None else [sorted(policy.on), policy.attempts_max, float(policy.backoff_s)]


def deterministic(value: Any) -> bytes:
    """The value as JSON; equal values give equal bytes."""
    return msgspec.json.encode(value, order="deterministic")


def as_answered(record: SessionRecord) -> SessionRecord:
    """The record without `sealed`, as in the reply to the command that ended it: it is sealed only later."""
    return msgspec.structs.replace(record, sealed=False)


def reply_of(record: SessionRecord, *, replayed: bool) -> CreateReply:
    """The reply to a create."""
    return CreateReply(**msgspec.structs.asdict(as_answered(record)), replayed=replayed)


def _check_plain(value: Any, name: str, session_id: str | None = None) -> None:
    try:
        check_plain(value, name)
    except DecodeError as error:
        raise BadRequest(str(error), session_id=session_id) from error
