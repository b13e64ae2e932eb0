"""Check that a sequence of events conforms to the contract, for teams that write their own manager or consumer.

It reads `{"sequence", "subject", "event"}` rows, from a file or from the stream itself. After a violation it takes the
event as it is and continues from there, so that one bug is reported once.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, Final

import msgspec

from jido_nats.broker.connection import Connection
from jido_nats.broker.consumer import Start, StreamMessage
from jido_nats.broker.jetstream import CONTENT_TYPE, MESSAGE_ID
from jido_nats.broker.options import ConnectOptions
from jido_nats.broker.ordered import OrderedConsumer
from jido_nats.broker.stream_info import stream_state
from jido_nats.contract.rules import Copies, Finding, Life, Place
from jido_nats.core import codec, subjects
from jido_nats.core.events import Event, KnownEvent, SessionStatus, UnknownEvent
from jido_nats.core.session import Cause, Reason, Status

# A version's messages are published one by one: how long to wait at the end of the stream for those still missing.
REST_WAIT_S: Final = 5.0
PROGRESS_EVERY: Final = 100
_KINDS: Final[dict[object, type[Any]]] = {kind.__struct_config__.tag: kind for kind in KnownEvent.__args__}
_STATUS: Final = str(SessionStatus.__struct_config__.tag)


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One recorded event."""

    event: dict[str, Any]
    subject: str
    sequence: int = 0


class Checker:
    """Checks rows one by one and reports what is wrong; `finish` reports what is missing.

    `partial`: the recording may begin and end in the middle of a session's life.
    """

    def __init__(self, *, partial: bool = False) -> None:
        self.partial = partial
        self._sequences: dict[str, int] = {}
        self._lives: dict[str, Life] = {}
        self._copies: dict[str, Copies] = {}
        self.messages = 0
        self.violations = 0

    @property
    def sessions(self) -> int:
        """The number of sessions seen so far."""
        return len(self._lives | self._copies)

    @property
    def incomplete(self) -> bool:
        """Whether messages are still missing of a version seen so far."""
        return any(True for _ in self._missing())

    def line(self, line: bytes, number: int) -> Iterator[Finding]:
        """Check a line of a recording."""
        try:
            row = codec.decode(line, Row)
        except codec.DecodeError as error:
            yield from self._count([Place(number, 0).finding("not_a_row", f"not a row of a recording: {error}")])
            return
        yield from self.row(row, line=number)

    def message(self, message: StreamMessage) -> Iterator[Finding]:
        """Check a message of the stream, including its headers."""
        place = Place(None, message.sequence)
        try:
            encoding = codec.encoding_of(message.headers.get(CONTENT_TYPE))
            event = codec.decode(message.data, dict[str, Any], encoding)
        except codec.DecodeError as error:
            yield from self._count([place.finding("not_an_event", f"on {message.subject}: {error}")])
            return
        row = Row(event=event, subject=message.subject, sequence=message.sequence)
        yield from self._count(_check_headers(row, message.headers, place))
        yield from self.row(row)

    def row(self, row: Row, *, line: int | None = None) -> Iterator[Finding]:
        """Check a row, by itself and against the rows before it."""
        self.messages += 1
        yield from self._count(self._check(row, Place(line, row.sequence)))

    def finish(self) -> Iterator[Finding]:
        """Report what is missing at the end."""
        if not self.partial:
            yield from self._count(self._missing())

    def _check(self, row: Row, place: Place) -> Iterator[Finding]:
        yield from self._check_sequence(row, place)
        kind = _kind(row.event)
        if kind is None:
            yield from self._check_unknown(row, place)
            return
        wrong = [*_check_fields(row.event, kind, place), *_check_subject(row, place)]
        yield from wrong
        yield from _unknown_values(row.event, place)
        if wrong:
            self._lose_track(row.event.get("session_id"))
            return
        yield from self._check_life(msgspec.convert(row.event, kind), row, place)

    def _check_unknown(self, row: Row, place: Place) -> Iterator[Finding]:
        """An event of a type that this version does not know: it counts as its version, if it has one."""
        yield _unknown(row, place)
        try:
            event = msgspec.convert(row.event, UnknownEvent)
        except msgspec.ValidationError:
            self._lose_track(row.event.get("session_id"))
            return
        yield from self._check_life(event, row, place)

    def _check_life(self, event: Event, row: Row, place: Place) -> Iterator[Finding]:
        if row.subject == subjects.EVENTS:
            life = self._lives.setdefault(event.session_id, Life(self.partial))
            yield from life.check(event, place)
        elif isinstance(event, SessionStatus | UnknownEvent):
            copies = self._copies.setdefault(event.session_id, Copies(self.partial))
            yield from copies.check(event, place, self._lives.get(event.session_id))

    def _lose_track(self, session_id: object) -> None:
        """An event could not be read, so the session's next event cannot be checked against earlier ones."""
        if isinstance(session_id, str):
            self._lives.setdefault(session_id, Life(self.partial)).lose_track()
            self._copies.setdefault(session_id, Copies(self.partial)).lose_track()

    def _check_sequence(self, row: Row, place: Place) -> Iterator[Finding]:
        last = self._sequences.get(row.subject, 0)
        if row.sequence and row.sequence <= last:
            yield place.finding("sequence", f"sequence {row.sequence} comes after {last} on {row.subject}")
        self._sequences[row.subject] = max(last, row.sequence)

    def _missing(self) -> Iterator[Finding]:
        for session_id, life in self._lives.items():
            yield from life.missing()
            if (copies := self._copies.get(session_id)) is not None:
                yield from copies.missing(life)

    def _count(self, findings: Iterable[Finding]) -> Iterator[Finding]:
        for finding in findings:
            self.violations += not finding.note
            yield finding


def _check_fields(event: Mapping[str, Any], kind: type[Any], place: Place) -> Iterator[Finding]:
    """Report fields that are missing or of the wrong type; unknown fields are allowed."""
    session_id = event.get("session_id")
    about = session_id if isinstance(session_id, str) else None
    name = event["type"]
    for field in msgspec.structs.fields(kind):
        if field.encode_name not in event:
            if field.required:
                yield place.finding("field_missing", f"{name} has no {field.encode_name}", about)
        elif (wrong := _wrong(event[field.encode_name], field)) is not None:
            yield place.finding("field_type", f"{name}: {field.encode_name}: {wrong}", about)


def _unknown_values(event: Mapping[str, Any], place: Place) -> Iterator[Finding]:
    """Note the values that only newer versions know: allowed, and not judged."""
    for name, kind in (("status", Status), ("previous_status", Status), ("reason", Reason), ("cause", Cause)):
        value = event.get(name)
        if isinstance(value, str) and not kind(value).is_known:
            yield place.finding("unknown_value", f"{name} is {value!r}, which this version does not know", note=True)


def _wrong(value: object, field: msgspec.structs.FieldInfo) -> str | None:
    """What is wrong with a field's value, None if it is valid."""
    try:
        converted = msgspec.convert(value, field.type)
    except msgspec.ValidationError as error:
        return f"{error}"
    if field.name == "session_id" and not subjects.is_token(converted):
        return "it must be 1 to 64 letters, digits, '_' or '-'"
    if field.name == "version" and converted < 1:
        return f"it is {converted}, but versions start at 1"
    if field.name == "attempt" and converted is not None and converted < 1:
        return f"it is {converted}, but attempts start at 1"
    if isinstance(converted, datetime) and (converted.tzinfo is None or converted.utcoffset()):
        return f"{value!r} is not in UTC"
    return None


def _check_subject(row: Row, place: Place) -> Iterator[Finding]:
    session_id = row.event.get("session_id")
    if row.subject == subjects.EVENTS or not isinstance(session_id, str) or not subjects.is_token(session_id):
        return
    if row.subject != subjects.session(session_id):
        wanted = f"{subjects.EVENTS} or {subjects.session(session_id)}"
        yield place.finding("subject", f"it is on {row.subject}, but belongs on {wanted}", session_id)
    elif row.event["type"] != _STATUS:
        yield place.finding(
            "subject", f"a {row.event['type']} is on {row.subject}, which is for {_STATUS} only", session_id
        )


def _check_headers(row: Row, headers: Mapping[str, str], place: Place) -> Iterator[Finding]:
    if _kind(row.event) is None:
        return
    suffix = "" if row.subject == subjects.EVENTS else ".session"
    wanted = f"{row.event.get('session_id')}.{row.event.get('version')}.{row.event['type']}{suffix}"
    if headers.get(MESSAGE_ID) != wanted:
        yield place.finding("header", f"{MESSAGE_ID} is {headers.get(MESSAGE_ID)!r}, but should be {wanted!r}")
    if CONTENT_TYPE not in headers:
        yield place.finding("header", f"{CONTENT_TYPE} is missing")


def _kind(event: Mapping[str, Any]) -> type[Any] | None:
    name = event.get("type")
    return _KINDS.get(name) if isinstance(name, str) else None


def _unknown(row: Row, place: Place) -> Finding:
    name = row.event.get("type")
    if isinstance(name, str):
        return place.finding("unknown_type", f"an event of an unknown type, {name!r}", note=True)
    return place.finding("field_missing" if name is None else "field_type", "an event must have a type, a string")


def check_file(lines: Iterable[bytes], checker: Checker) -> Iterator[Finding]:
    """Check a recording; empty lines are ignored."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield from checker.line(line, number)
    yield from checker.finish()


async def check_server(
    options: ConnectOptions, stream: str, checker: Checker, on_progress: Callable[[int, int], None]
) -> AsyncIterator[Finding]:
    """Check what is stored in the stream now; if its first messages have been removed, it counts as partial.

    `on_progress` is called from time to time with the number of sequences read so far, and their total.
    """
    connection = await Connection.open(options, "jido-nats conform")
    try:
        state = await stream_state(connection, stream)
        first, until = state.first, state.last
        checker.partial = checker.partial or first > 1
        wanted = [subjects.EVENTS, subjects.ALL_SESSIONS]
        async with OrderedConsumer(connection, stream, wanted, Start("all"), strict=True) as consumer:
            async for message in _until_settled(consumer, checker, until):
                for finding in checker.message(message):
                    yield finding
                if checker.messages % PROGRESS_EVERY == 0:
                    on_progress(message.sequence - first + 1, max(until, message.sequence) - first + 1)
        for finding in checker.finish():
            yield finding
    finally:
        await connection.close()


async def _until_settled(consumer: OrderedConsumer, checker: Checker, until: int) -> AsyncIterator[StreamMessage]:
    """The stored messages, and the rest of a version that is being published right now."""
    until = min(until, await consumer.last_position())
    while consumer.position < until:
        yield await consumer.next()
    loop = asyncio.get_running_loop()
    deadline = loop.time() + REST_WAIT_S
    while checker.incomplete:
        try:
            async with asyncio.timeout_at(deadline):
                message = await consumer.next()
        except TimeoutError:
            return
        yield message
