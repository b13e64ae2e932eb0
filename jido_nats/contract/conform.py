"""Whether a row of events keeps the contract: what a checker says to teams who write a manager or a consumer.

It reads `{"sequence", "subject", "event"}` rows, from a file or from the stream itself. After a violation it goes on
from what it saw, so that one defect is told once.
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
from jido_nats.core.events import Event, SessionStatus

# How long the rest of a version, which is published message by message, is waited for at the end of the stream.
REST_WAIT_S: Final = 5.0
TELL_EVERY: Final = 100
_KINDS: Final[dict[object, type[Any]]] = {kind.__struct_config__.tag: kind for kind in Event.__args__}
_STATUS: Final = str(SessionStatus.__struct_config__.tag)


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One event as it was recorded."""

    event: dict[str, Any]
    subject: str
    sequence: int = 0


class Checker:
    """Takes rows in, one by one, and says what is wrong; `finish` says what is missing.

    `partial`: the recording may begin, and end, in the middle of a session's life.
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
        """How many sessions were seen."""
        return len(self._lives | self._copies)

    @property
    def incomplete(self) -> bool:
        """Whether something that was seen has a rest that is still to come."""
        return any(True for _ in self._missing())

    def line(self, line: bytes, number: int) -> Iterator[Finding]:
        """What is wrong with a line of a recording."""
        try:
            row = codec.decode(line, Row)
        except codec.DecodeError as error:
            yield from self._count([Place(number, 0).finding("not_a_row", f"not a row of a recording: {error}")])
            return
        yield from self.row(row, line=number)

    def message(self, message: StreamMessage) -> Iterator[Finding]:
        """What is wrong with a message of the stream; its headers too."""
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
        """What is wrong with a row, by itself and after those before it."""
        self.messages += 1
        yield from self._count(self._check(row, Place(line, row.sequence)))

    def finish(self) -> Iterator[Finding]:
        """What is missing at the end."""
        if not self.partial:
            yield from self._count(self._missing())

    def _check(self, row: Row, place: Place) -> Iterator[Finding]:
        yield from self._check_sequence(row, place)
        kind = _kind(row.event)
        if kind is None:
            unknown = _unknown(row, place)
            if not unknown.note:
                self._lose_track(row.event.get("session_id"))
            yield unknown
            return
        wrong = [*_check_fields(row.event, kind, place), *_check_subject(row, place)]
        yield from wrong
        if wrong:
            self._lose_track(row.event.get("session_id"))
            return
        event = msgspec.convert(row.event, kind)
        if row.subject == subjects.EVENTS:
            life = self._lives.setdefault(event.session_id, Life(self.partial))
            yield from life.take(event, place)
        elif isinstance(event, SessionStatus):
            copies = self._copies.setdefault(event.session_id, Copies(self.partial))
            yield from copies.take(event, place, self._lives.get(event.session_id))

    def _lose_track(self, session_id: object) -> None:
        """An event could not be read: what its session told before says nothing about the next one."""
        if isinstance(session_id, str):
            self._lives.setdefault(session_id, Life(self.partial)).lose_track()
            self._copies.setdefault(session_id, Copies(self.partial)).lose_track()

    def _check_sequence(self, row: Row, place: Place) -> Iterator[Finding]:
        last = self._sequences.get(row.subject, 0)
        if row.sequence and row.sequence <= last:
            yield place.finding("sequence", f"sequence {row.sequence} comes behind {last} on {row.subject}")
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
    """Fields that are missing or of the wrong type; unknown ones are nobody's business."""
    session_id = event.get("session_id")
    about = session_id if isinstance(session_id, str) else None
    told = event["type"]
    for field in msgspec.structs.fields(kind):
        if field.encode_name not in event:
            if field.required:
                yield place.finding("field_missing", f"{told} has no {field.encode_name}", about)
        elif (wrong := _wrong(event[field.encode_name], field)) is not None:
            yield place.finding("field_type", f"{told}: {field.encode_name}: {wrong}", about)


def _wrong(value: object, field: msgspec.structs.FieldInfo) -> str | None:
    """What is wrong with a field's value."""
    try:
        taken = msgspec.convert(value, field.type)
    except msgspec.ValidationError as error:
        return f"{error}"
    if field.name == "session_id" and not subjects.is_token(taken):
        return "it has to be 1 to 64 letters, digits, '_' or '-'"
    if field.name == "version" and taken < 1:
        return f"it is {taken}, and versions start at 1"
    if isinstance(taken, datetime) and (taken.tzinfo is None or taken.utcoffset()):
        return f"{value!r} is not in UTC"
    return None


def _check_subject(row: Row, place: Place) -> Iterator[Finding]:
    session_id = row.event.get("session_id")
    if row.subject == subjects.EVENTS or not isinstance(session_id, str) or not subjects.is_token(session_id):
        return
    if row.subject != subjects.session(session_id):
        wanted = f"{subjects.EVENTS} or {subjects.session(session_id)}"
        yield place.finding("subject", f"it is on {row.subject}, and belongs on {wanted}", session_id)
    elif row.event["type"] != _STATUS:
        yield place.finding(
            "subject", f"a {row.event['type']} is on {row.subject}, where {_STATUS} alone belongs", session_id
        )


def _check_headers(row: Row, headers: Mapping[str, str], place: Place) -> Iterator[Finding]:
    if _kind(row.event) is None:
        return
    suffix = "" if row.subject == subjects.EVENTS else ".session"
    wanted = f"{row.event.get('session_id')}.{row.event.get('version')}.{row.event['type']}{suffix}"
    if headers.get(MESSAGE_ID) != wanted:
        yield place.finding("header", f"{MESSAGE_ID} is {headers.get(MESSAGE_ID)!r}, and should be {wanted!r}")
    if CONTENT_TYPE not in headers:
        yield place.finding("header", f"{CONTENT_TYPE} is missing")


def _kind(event: Mapping[str, Any]) -> type[Any] | None:
    name = event.get("type")
    return _KINDS.get(name) if isinstance(name, str) else None


def _unknown(row: Row, place: Place) -> Finding:
    name = row.event.get("type")
    if isinstance(name, str):
        return place.finding("unknown_type", f"an event of the type {name!r}, which is not known here", note=True)
    return place.finding("field_missing" if name is None else "field_type", "an event has to have a type, as text")


def check_file(lines: Iterable[bytes], checker: Checker) -> Iterator[Finding]:
    """What is wrong in a recording; empty lines do not count."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield from checker.line(line, number)
    yield from checker.finish()


async def check_server(
    options: ConnectOptions, stream: str, checker: Checker, tell: Callable[[int, int], None]
) -> AsyncIterator[Finding]:
    """What is wrong in what the stream holds now; one that has lost its beginning to its limits is partial.

    `tell` is called now and then with how many sequences have been read, and of how many.
    """
    connection = await Connection.open(options, "jido-nats conform")
    try:
        first, until = await stream_state(connection, stream)
        checker.partial = checker.partial or first > 1
        wanted = [subjects.EVENTS, subjects.ALL_SESSIONS]
        async with OrderedConsumer(connection, stream, wanted, Start("all")) as consumer:
            async for message in _until_settled(consumer, checker, until):
                for finding in checker.message(message):
                    yield finding
                if checker.messages % TELL_EVERY == 0:
                    tell(message.sequence - first + 1, max(until, message.sequence) - first + 1)
        for finding in checker.finish():
            yield finding
    finally:
        await connection.close()


async def _until_settled(consumer: OrderedConsumer, checker: Checker, until: int) -> AsyncIterator[StreamMessage]:
    """The messages that there are, and the rest of what is just being published."""
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
