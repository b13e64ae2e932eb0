"""Requests and replies of the commands, and what a request has to keep beyond its types.

Unknown fields of a request are refused: a typing error must not be ignored.
"""

from typing import Any, Final, TypeVar

import msgspec

from jido_nats.core.codec import DecodeError, Encoding, check_plain, decode, encode
from jido_nats.core.events import Event
from jido_nats.core.session import SessionRecord, Status
from jido_nats.core.settings import Settings
from jido_nats.core.subjects import check_session_id
from jido_nats.errors import BadRequest, TooLarge

LIST_LIMIT: Final = 100
LIST_LIMIT_MAX: Final = 1000
OUTPUT_NAME_LENGTH_MAX: Final = 64
LIST_BYTES_MAX: Final = 512 * 1024
HISTORY_LIMIT: Final = 100
HISTORY_LIMIT_MAX: Final = 1000
DETAIL_LENGTH_MAX: Final = 1000
ROLE_LENGTH_MAX: Final = 64
MESSAGE_ID_LENGTH_MAX: Final = 128
LIMITS: Final = ("idle_after_s", "idle_timeout_s", "max_lifetime_s")
LIMIT_MAX_S: Final = 10 * 365 * 24 * 3600

R = TypeVar("R", bound="Request")


class Request(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What a command takes. The base of every request, so that each can be checked without knowing which it is."""

    def check(self) -> None:
        """`BadRequest` unless the values are such as a manager, whatever its settings, can act on."""


class Empty(Request, frozen=True):
    """A request that says all it has to say by its subject."""


class CreateRequest(Request, frozen=True, kw_only=True):
    """`jido.session.create`: all of it is optional.

    Seconds: an `active` session becomes `idle` after `idle_after_s` without a message, output or `touch()`; one that
    is `idle` ends after `idle_timeout_s`, and any one `max_lifetime_s` after its creation. 0: never; None: as the
    manager is set.
    """

    session_id: str | None = None
    metadata: dict[str, Any] = {}
    llm_config: dict[str, Any] | None = None
    idle_after_s: float | None = None
    idle_timeout_s: float | None = None
    max_lifetime_s: float | None = None

    def check(self) -> None:
        """`BadRequest` unless a session can be made of it; `check_size` is the rest."""
        if self.session_id is not None:
            check_session_id(self.session_id)
        for name in ("metadata", "llm_config"):
            _check_plain(getattr(self, name), name, self.session_id)
        for name in LIMITS:
            limit = getattr(self, name)
            if limit is not None and not (isinstance(limit, int | float) and 0 <= limit <= LIMIT_MAX_S):
                raise BadRequest(f"{name} is seconds, from 0 (none) to {LIMIT_MAX_S}", session_id=self.session_id)

    def check_size(self, bytes_max: int) -> None:
        """`TooLarge` where `metadata` and `llm_config` have more bytes together, in the encoding that is longer.

        To be called after `check`: only plain values can be encoded.
        """
        size = max(len(encode([self.metadata, self.llm_config], encoding)) for encoding in Encoding)
        if size > bytes_max:
            raise TooLarge(
                f"metadata and llm_config are {size} bytes, at most {bytes_max} are taken: "
                "keep references to large data",
                session_id=self.session_id,
            )


class ListRequest(Request, frozen=True, kw_only=True):
    """`jido.session.list`: live sessions by default; `metadata` keeps those that have all these pairs."""

    status: Status | None = None
    metadata: dict[str, Any] = {}
    include_terminated: bool = False
    limit: int = LIST_LIMIT
    cursor: str | None = None

    def check(self) -> None:
        """`BadRequest` unless it can be answered."""
        if not 1 <= self.limit <= LIST_LIMIT_MAX:
            raise BadRequest(f"limit is 1 to {LIST_LIMIT_MAX}")
        if self.cursor is not None:
            try:
                check_session_id(self.cursor)
            except BadRequest as error:
                raise BadRequest(f"cursor is what next_cursor said: {error}") from error


class TerminateRequest(Request, frozen=True):
    """`jido.session.terminate.<id>`: `detail` is kept in the record and told in the events."""

    detail: str | None = None

    def check(self) -> None:
        """`BadRequest` unless `detail` fits into an event."""
        if self.detail is None:
            return
        if len(self.detail) > DETAIL_LENGTH_MAX:
            raise BadRequest(f"detail is at most {DETAIL_LENGTH_MAX} characters")
        _check_plain(self.detail, "detail")


class SendRequest(Request, frozen=True, kw_only=True):
    """`jido.session.send.<id>`: a message for the worker; `content` is any JSON value but null.

    With a `message_id` it is safe to repeat: the worker gets it once.
    """

    role: str
    content: Any
    message_id: str | None = None

    def check(self) -> None:
        """`BadRequest` unless the message can be delivered and published."""
        check_said(self.role, self.content)
        if self.message_id is not None:
            check_text("message_id", self.message_id, MESSAGE_ID_LENGTH_MAX)


class SendReply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The message is in the worker's inbox, and stored as `conversation_added` under `number`."""

    session_id: str
    message_id: str
    number: int
    replayed: bool = False


class CreateReply(SessionRecord, frozen=True, kw_only=True, omit_defaults=True):
    """The record; `replayed` where the same request had been carried out before."""

    replayed: bool = False


class ListReply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The sessions, ordered by id; `next_cursor` where there are more.

    `position`: a sequence of the event stream. Every event up to it is in the list; who follows the events
    behind it, and ignores versions that are not greater than the list's, misses nothing. Of several pages, the
    first one's counts.
    """

    sessions: list[SessionRecord]
    position: int = 0
    next_cursor: str | None = None


class HistoryRequest(Request, frozen=True, kw_only=True):
    """`jido.session.history.<id>`: the events of the versions behind `after`, at most `limit` of them."""

    after: int = 0
    limit: int = HISTORY_LIMIT

    def check(self) -> None:
        """`BadRequest` unless it can be answered."""
        if not 1 <= self.limit <= HISTORY_LIMIT_MAX:
            raise BadRequest(f"limit is 1 to {HISTORY_LIMIT_MAX}")
        if self.after < 0:
            raise BadRequest("after is a version: 0, or what `next` said")


class HistoryReply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The events, in order; `next`, where there are more, goes into the next request's `after`."""

    events: list[Event]
    next: int | None = None


class ErrorDetail(msgspec.Struct, frozen=True, omit_defaults=True):
    """What went wrong: a stable code, a sentence, and the session if there is one."""

    code: str
    message: str
    session_id: str | None = None


class ErrorReply(msgspec.Struct, frozen=True):
    """The body of every error."""

    error: ErrorDetail


def checked(request: R) -> R:
    """A copy of a request that was made in Python, as it comes over NATS: what its maker changes later is not in it.

    `BadRequest` where it cannot be sent, or no manager could carry it out (whatever its settings have room for).
    """
    try:
        for name, value in msgspec.structs.asdict(request).items():
            check_plain(value, name)
        copy = decode(encode(request), type(request))
    except DecodeError as error:
        raise BadRequest(str(error)) from error
    copy.check()
    return copy


def limits_of(asked: "CreateRequest | SessionRecord | Settings") -> dict[str, float | None]:
    """The time limits of a request, a record or the settings, by name."""
    limits = {name: getattr(asked, name) for name in LIMITS}
    return {name: None if limit is None else float(limit) for name, limit in limits.items()}


def check_said(role: str, content: Any) -> None:
    """`BadRequest` unless this can be a message of a conversation."""
    check_text("role", role, ROLE_LENGTH_MAX)
    if content is None:
        raise BadRequest("content is null: say something")
    _check_plain(content, "content")


def check_emitted(name: str, data: Any) -> None:
    """`BadRequest` unless this can be a worker's output."""
    check_text("the output's name", name, OUTPUT_NAME_LENGTH_MAX)
    _check_plain(data, "the output's data")


def check_text(name: str, text: str, length_max: int) -> None:
    """`BadRequest` unless it is text of that length at most, and not empty."""
    if not isinstance(text, str) or not 1 <= len(text) <= length_max:
        raise BadRequest(f"{name} is 1 to {length_max} characters")
    _check_plain(text, name)


def same_content(request: CreateRequest, record: SessionRecord) -> bool:
    """Whether the record was made by this request, or one that asks for the same."""
    asked, made = [[r.metadata, r.llm_config, limits_of(r)] for r in (request, record)]
    return asked == made and deterministic(asked) == deterministic(
        made
    )  # Python's 1 equals True and 1.0, JSON's does not


def deterministic(value: Any) -> bytes:
    """The value as JSON, the same for the same value."""
    return msgspec.json.encode(value, order="deterministic")


def as_answered(record: SessionRecord) -> SessionRecord:
    """The record as the command that ended it was answered: the seal came later and is nobody's business there."""
    return msgspec.structs.replace(record, sealed=False)


def reply_of(record: SessionRecord, *, replayed: bool) -> CreateReply:
    """The answer to a create."""
    return CreateReply(**msgspec.structs.asdict(as_answered(record)), replayed=replayed)


def _check_plain(value: Any, name: str, session_id: str | None = None) -> None:
    try:
        check_plain(value, name)
    except DecodeError as error:
        raise BadRequest(str(error), session_id=session_id) from error
