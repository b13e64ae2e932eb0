"""JetStream in four calls: store a message under a condition, read a last message at the leader, call the API, retry.

A failed condition is error 10071 with one replica and 10164 with several; both are `Conflict`.
Every other error on a write is `OutcomeUnknown`: reading what is stored is always safe, guessing is not. An error in
the server's answer proves little more than silence: an earlier attempt may still be stored, and with several replicas
a leader that could not store a message may have passed it on. All of them are reported (`troubles`), and retried at
the pace of that.
"""

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar, overload

import msgspec
from nats.aio.client import Client

from jido_nats.broker.backoff import Backoff
from jido_nats.broker.connection import JS_API_PREFIX, Connection, Message
from jido_nats.core.position import nanoseconds
from jido_nats.errors import BrokerError, Conflict, NoResponders, NotAllowed, NotSent, OutcomeUnknown

EXPECTED_SEQUENCE: Final = "Nats-Expected-Last-Subject-Sequence"
EXPECTED_SUBJECT: Final = "Nats-Expected-Last-Subject-Sequence-Subject"
EXPECTED_STREAM: Final = "Nats-Expected-Stream"
# No stream is called `none`: a message that expects it reaches plain subscribers, and no stream stores it (measured).
NOT_STORED: Final[dict[str, str]] = {EXPECTED_STREAM: "none"}
MESSAGE_ID: Final = "Nats-Msg-Id"
MESSAGE_TTL: Final = "Nats-TTL"
MARKER_REASON: Final = "Nats-Marker-Reason"
CONTENT_TYPE: Final = "Content-Type"

WRONG_LAST_SEQUENCE: Final = frozenset({10071, 10164})
# How the server describes, under a code that has other meanings too, that a stream takes no more.
FULL: Final = frozenset(
    {"maximum bytes exceeded", "maximum messages exceeded", "maximum messages per subject exceeded"}
)
NO_MESSAGE_FOUND: Final = 10037
STREAM_NOT_FOUND: Final = 10059
CONSUMER_NOT_FOUND: Final = 10014
TOO_MANY_CONSUMERS: Final = 10026
NOT_ENABLED_FOR_ACCOUNT: Final = 10039
CONSUMERS_EXHAUSTED: Final = frozenset({TOO_MANY_CONSUMERS, 10002})  # of a stream, of an account

# A lost connection fails requests in flight at once; a timeout means a server that is overloaded or stuck, and every
# unknown outcome adds to its load (a claim, a look), so be patient.
STORE_TIMEOUT_S: Final = 5.0
RETRY_WAIT_S: Final = 0.05
RETRY_WAIT_MAX_S: Final = 1.0

# Under which an account without streams of its own imports the API of the account that has them (`nats.conf`).
IMPORTED_API: Final = "jido.js"
# There, managers answer this: without responders it is to be asked again.
CREATE_CONSUMER: Final = "CONSUMER.CREATE."

T = TypeVar("T")


class JetStreamError(BrokerError):
    """The JetStream API refused a request; `.code` is its `err_code`, `.transient` means that a retry may help."""

    def __init__(self, status: int, code: int, description: str) -> None:
        super().__init__(f"{description} ({code})")
        self.transient = status >= 500 and code != NOT_ENABLED_FOR_ACCOUNT
        self.code = code
        self.description = description


class StreamFull(OutcomeUnknown):
    """A stream that refuses new messages when it is full did so. An earlier attempt may still be stored."""


class StoredMessage(NamedTuple):
    """One message as a stream holds it."""

    subject: str
    sequence: int
    data: bytes
    headers: Mapping[str, str]
    time_ns: int


async def store(
    connection: Connection,
    stream: str,
    subject: str,
    payload: bytes,
    headers: dict[str, str],
    *,
    timeout_s: float = STORE_TIMEOUT_S,
) -> int:
    """Store one message; its sequence in the stream (that of the first copy if this one is a duplicate).

    It names its stream, so that no other stream takes it, not even as a copy that a push consumer delivers.
    Raises `Conflict` (not stored), `NotSent` (not stored), `OutcomeUnknown`.
    """
    return (await acknowledged(connection, stream, subject, payload, headers, timeout_s=timeout_s)).sequence


class Acknowledgement(NamedTuple):
    """Where a message is stored; `duplicate`: the stream had one with that message id, and stored nothing."""

    sequence: int
    duplicate: bool


async def acknowledged(
    connection: Connection,
    stream: str,
    subject: str,
    payload: bytes,
    headers: dict[str, str],
    *,
    timeout_s: float = STORE_TIMEOUT_S,
    may_be_full: bool = False,
) -> Acknowledgement:
    """As `store`; also whether it is a duplicate.

    `may_be_full`: that the stream is full is no trouble, but an answer for the caller: `StreamFull`.
    """
    what = f"cannot store in {stream}"
    headers = headers | {EXPECTED_STREAM: stream}
    try:
        reply = await _request(connection, what, subject, payload, headers, timeout_s)
    except NotAllowed as error:
        # A manager whose permissions were revoked waits for them to return: giving up would strand its sessions.
        connection.troubles.refused(what, str(error))
        raise NotSent(str(error)) from error
    try:
        ack = _ACK.decode(reply.data)
    except (msgspec.MsgspecError, ValueError) as error:
        raise OutcomeUnknown(f"the answer on {subject} is not an acknowledgement") from error
    if ack.error is None:
        if ack.stream != stream or ack.seq < 1:
            raise OutcomeUnknown(
                f"the answer on {subject} is not an acknowledgement of {stream}, but of {ack.stream!r}"
            )
        connection.troubles.done(what)
        return Acknowledgement(ack.seq, ack.duplicate)
    if ack.error.err_code in WRONG_LAST_SEQUENCE:
        raise Conflict(ack.error.description)
    refusal = f"{ack.error.description} ({ack.error.err_code})"
    if may_be_full and ack.error.description in FULL:
        raise StreamFull(f"{subject}: {refusal}")
    connection.troubles.refused(what, refusal)
    raise OutcomeUnknown(f"{subject}: {refusal}")


async def _request(
    connection: Connection, what: str, subject: str, payload: bytes, headers: dict[str, str] | None, timeout_s: float
) -> Message:
    """The reply, in turn while `what` is in trouble; without a `what` no trouble is reported."""
    if what:
        await connection.troubles.turn(what)
    try:
        async with connection.gate:
            return await connection.request(subject, payload, headers=headers, timeout_s=timeout_s)
    except (NoResponders, OutcomeUnknown):
        if what and connection.connected:  # a lost connection reports itself
            connection.troubles.unanswered(what, "no answer; is its disk full, or a leader missing?")
        raise


async def last_message(connection: Connection, stream: str, subject: str) -> StoredMessage | None:
    """The last message on a subject (wildcards allowed), read at the stream's leader, or None."""
    return await get_message(connection, stream, {"last_by_subj": subject})


async def get_message(connection: Connection, stream: str, request: Mapping[str, Any]) -> StoredMessage | None:
    """The message of a request of `STREAM.MSG.GET`, read at the stream's leader, or None."""
    try:
        answer = await api(connection, f"STREAM.MSG.GET.{stream}", request, kind=_MessageReply)
    except JetStreamError as error:
        if error.code == NO_MESSAGE_FOUND:
            return None
        raise
    message = answer.message
    try:
        time_ns = nanoseconds(message.time)
    except ValueError as error:
        raise OutcomeUnknown(f"a message of {stream} has no time: {error}") from error
    headers = Client._parse_header_lines(message.hdrs.partition(b"\r\n")[2])
    return StoredMessage(message.subject, message.seq, message.data, headers, time_ns)


@overload
async def api(
    connection: Connection, subject: str, request: Mapping[str, Any] | None = None, *, timeout_s: float = ...
) -> dict[str, Any]: ...
@overload
async def api(
    connection: Connection,
    subject: str,
    request: Mapping[str, Any] | None = None,
    *,
    kind: type[T],
    timeout_s: float = ...,
) -> T: ...
async def api(
    connection: Connection,
    subject: str,
    request: Mapping[str, Any] | None = None,
    *,
    kind: Any = dict,
    timeout_s: float = STORE_TIMEOUT_S,
) -> Any:
    """The answer of the JetStream API on a subject such as `STREAM.INFO.<stream>`, as a `kind`.

    Raises `JetStreamError` if the answer is an error, `OutcomeUnknown` if it is not one of the JetStream API, and
    `NotAllowed` if the account of this user neither has JetStream nor imports that part of it.
    """
    payload = msgspec.json.encode(request) if request is not None else b""
    ask = partial(_ask_api, connection, subject, payload, kind, timeout_s)
    try:
        return await ask(connection.js_api_prefix)
    except (NoResponders, NotAllowed, JetStreamError) as error:
        if connection.options.js_api_prefix is not None or not _is_elsewhere(error):
            raise
        first: BrokerError = error
    other = JS_API_PREFIX if connection.js_api_prefix == IMPORTED_API else IMPORTED_API
    try:
        answer = await ask(other)
    except (NoResponders, NotAllowed, JetStreamError) as second:
        if not _is_elsewhere(second):
            raise
        raise _nowhere(subject, first, second) from None
    connection.js_api_prefix = other
    return answer


def _is_elsewhere(error: BrokerError) -> bool:
    """Whether the API may be under another prefix: this account has no JetStream, or nothing answers here."""
    return not isinstance(error, JetStreamError) or error.code == NOT_ENABLED_FOR_ACCOUNT


def _nowhere(subject: str, first: BrokerError, second: BrokerError) -> BrokerError:
    """What it means that the API is under neither prefix."""
    awaits_manager = subject.startswith(CREATE_CONSUMER) and isinstance(first, NoResponders)
    has_no_jetstream = isinstance(first, JetStreamError) or isinstance(second, JetStreamError)
    if awaits_manager or not has_no_jetstream:
        return first
    return NotAllowed(f"use {IMPORTED_API}.{subject}", f"{IMPORTED_API}.{subject}")


async def _ask_api(
    connection: Connection, subject: str, payload: bytes, kind: Any, timeout_s: float, prefix: str
) -> Any:
    """As `api`, under a prefix; that the other prefix is not there is no trouble."""
    what = f"cannot use {prefix}.{_up_to_stream(subject)}" if prefix == connection.js_api_prefix else ""
    reply = await _request(connection, what, f"{prefix}.{subject}", payload, None, timeout_s)
    try:
        answer = decode_answer(reply.data, kind, f"{prefix}.{subject}")
    except JetStreamError as refusal:
        if not refusal.transient:
            connection.troubles.done(what)
        elif what:
            connection.troubles.refused(what, str(refusal))
        raise
    connection.troubles.done(what)
    return answer


def decode_answer(data: bytes, kind: type[T], subject: str) -> T:
    """The answer of the JetStream API on a subject, as a `kind`.

    Raises `JetStreamError` if it is an error, and `OutcomeUnknown` if it is not one of the JetStream API.
    """
    try:
        error = _API_ERROR.decode(data).error
        if error is None:
            return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, ValueError) as failure:  # not UTF-8 is a ValueError
        raise OutcomeUnknown(f"the answer on {subject} is not one of JetStream: {failure}") from failure
    raise JetStreamError(error.code, error.err_code, error.description)


async def settled(connection: Connection, attempt: Callable[[], Awaitable[T]]) -> T:
    """The result of an attempt that is safe to repeat, however long the server is unavailable.

    Ends with an answer, be it a `Conflict` or another refusal, or by cancellation; without an answer it is retried.
    """
    backoff = Backoff(RETRY_WAIT_S, RETRY_WAIT_MAX_S)
    while True:
        try:
            return await attempt()
        except (NotSent, OutcomeUnknown, JetStreamError) as error:
            if isinstance(error, JetStreamError) and not error.transient:
                raise
            await backoff.wait()
        await connection.wait_up()


def _up_to_stream(subject: str) -> str:
    """`STREAM.MSG.GET.<stream>`, `CONSUMER.CREATE.<stream>`: without what differs from request to request."""
    tokens = subject.split(".")
    return ".".join(tokens[: 4 if "MSG" in tokens else 3])


def timestamp(text: str) -> datetime:
    """A time in the format of the JetStream API."""
    return msgspec.convert(text, datetime)


class _Error(msgspec.Struct):
    code: int = 0
    err_code: int = 0
    description: str = ""


class _ApiError(msgspec.Struct):
    error: _Error | None = None


class _Ack(_ApiError):
    stream: str = ""
    seq: int = 0
    duplicate: bool = False


class _Message(msgspec.Struct):
    subject: str
    seq: int
    time: str
    data: bytes = b""
    hdrs: bytes = b""


class _MessageReply(msgspec.Struct):
    message: _Message


_API_ERROR: Final = msgspec.json.Decoder(_ApiError)
_ACK: Final = msgspec.json.Decoder(_Ack)
