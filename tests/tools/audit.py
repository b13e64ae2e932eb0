"""An independent checker of what sessions promise. It knows the design, and nothing of our code.

It reads what any operator can: the three streams, the two buckets, and a log of commands and their answers.
The stream has to be whole, so run it within its retention. `python -m tests.tools.audit --server URL` runs it.
"""

import argparse
import asyncio
import gc
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig
from nats.js.errors import NotFoundError

STREAM: Final = "JIDO_CLIENT"
OUTPUT_STREAM: Final = "JIDO_OUTPUT"
JOURNAL_STREAM: Final = "JIDO_JOURNAL"
SESSIONS_BUCKET: Final = "JIDO_SESSIONS"
MANAGERS_BUCKET: Final = "JIDO_MANAGERS"

EVENTS: Final = "jido.client.events"
SESSION: Final = "jido.client.session."
FENCE: Final = "jido.fence."
OUTPUT: Final = ".output"
JOURNAL: Final = "jido.journal."

# The design's table of the lifecycle, written out again.
MAY_BECOME: Final[Mapping[str | None, frozenset[str]]] = {
    "initializing": frozenset({"active", "terminated"}),
    "active": frozenset({"idle", "terminating", "terminated"}),
    "idle": frozenset({"active", "terminating", "terminated"}),
    "terminating": frozenset({"terminated"}),
    "terminated": frozenset(),
}
# What a session with a restart policy may become as well.
MAY_BECOME_WITH_A_POLICY: Final[Mapping[str | None, frozenset[str]]] = {
    "initializing": frozenset({"initializing", "terminating"}),
    "active": frozenset({"initializing"}),
    "idle": frozenset({"initializing"}),
}
THROUGH_TERMINATING: Final = frozenset({"requested", "timed_out", "manager_stopped"})
STRAIGHT_FROM_THE_START: Final = frozenset({"start_failed", "owner_lost"})
STRAIGHT_FROM_RUNNING: Final = frozenset({"completed", "crashed", "owner_lost"})
# What the last status, the end and the record have in common.
ENDING_FIELDS: Final = ("reason", "error", "detail", "forced", "output_incomplete", "updated_at", "attempt")
FAILURES: Final = frozenset({"crashed", "start_failed", "owner_lost"})

CREATED, STATUS, ENDED = "session_created", "session_status", "session_terminated"
ORDER: Final = {CREATED: 0, STATUS: 1, ENDED: 2}
# What an answered command leaves its session in; a read and a create leave it in any.
LEFT_IN: Final = {"terminate": "terminated", "idle": "idle", "activate": "active"}
READS: Final = frozenset({"get", "list"})

BATCH: Final = 5000
ANSWER_TIMEOUT_S: Final = 5.0
CATCH_UP_S: Final = 30.0
POLL_S: Final = 0.05
REMOVAL_S: Final = 5.0
SHOWN_MAX: Final = 50


class Violation(NamedTuple):
    """One broken promise: which rule, of which session ("" where there is none), and what was seen."""

    kind: str
    session_id: str
    detail: str


class Message(NamedTuple):
    """One message as a stream holds it."""

    subject: str
    sequence: int
    headers: Mapping[str, str]
    data: bytes


class Event(msgspec.Struct, frozen=True, gc=False):
    """An event as it was told; which fields it has depends on its type."""

    type: str
    session_id: str
    version: int
    created_at: datetime | None = None
    updated_at: datetime | None = None
    metadata: dict[str, Any] | None = None
    worker: str = "default"
    labels: dict[str, str] = {}
    status: str | None = None
    previous_status: str | None = None
    reason: str | None = None
    error: str | None = None
    detail: str | None = None
    forced: bool = False
    output_incomplete: bool = False
    attempt: int | None = None
    cause: str | None = None


class Run(msgspec.Struct, frozen=True, gc=False):
    """Which attempt a record is in."""

    attempt: int
    cause: str | None = None


class Record(msgspec.Struct, frozen=True, gc=False):
    """A record, from the bucket or from an answer."""

    session_id: str
    status: str
    version: int
    owner: str
    created_at: datetime
    updated_at: datetime
    metadata: dict[str, Any]
    worker: str = "default"
    labels: dict[str, str] = {}
    previous_status: str | None = None
    reason: str | None = None
    error: str | None = None
    detail: str | None = None
    forced: bool = False
    output_incomplete: bool = False
    sealed: bool = False
    run: Run | None = None

    @property
    def attempt(self) -> int | None:
        """The number of its attempt, if the session has a restart policy."""
        return None if self.run is None else self.run.attempt


class Output(msgspec.Struct, frozen=True, gc=False):
    """What a worker said, or was told."""

    type: str
    session_id: str
    number: int
    attempt: int | None = None


class Entry(msgspec.Struct, frozen=True, gc=False):
    """An entry of a journal."""

    type: str
    attempt: int
    created_at: datetime


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One command and its answer: `started` and `at` are when it was sent and answered, on one clock."""

    at: float
    started: float
    verb: str
    session_id: str
    ok: bool
    code: str | None = None
    record: Record | None = None


class Restore(NamedTuple):
    """An older copy of the server's store was put back; on the clock of the answers.

    `copied`: when the copy was made, with the server stopped. `back`: just before the server was started on it.
    What was stored between the two is lost, and only an answer that was given between the two is excused for it:
    what was answered before is in the copy, and what was answered after is about the store that was put back.
    """

    copied: float
    back: float

    def took(self, at: float) -> bool:
        """Whether what was answered then is lost."""
        return self.copied <= at < self.back


class Told(NamedTuple):
    """An event and the message that told it."""

    message: Message
    event: Event

    @property
    def sequence(self) -> int:
        """Where the stream holds it."""
        return self.message.sequence


class Said(NamedTuple):
    """An output and the message that has it."""

    message: Message
    output: Output


class History:
    """What the stream says of one session, in the order of the stream."""

    def __init__(self, session_id: str) -> None:
        self.session_id = session_id
        self.events: list[Told] = []
        self.copies: list[Told] = []
        self.claims: list[int] = []
        self.output: list[Said] = []
        self.journal: list[Entry] = []

    @cached_property
    def steps(self) -> dict[int, Event]:
        """The event that says what each version is, by version; the first where there are several."""
        steps: dict[int, Event] = {}
        for told in self.events:
            if told.event.type != ENDED:
                steps.setdefault(told.event.version, told.event)
        return dict(sorted(steps.items()))

    @cached_property
    def last(self) -> int:
        """The highest version of which anything is stored, 0 where nothing is."""
        return max((told.event.version for told in self.events + self.copies), default=0)

    @cached_property
    def ended(self) -> bool:
        """Whether the session has become `terminated`."""
        return any(event.status == "terminated" for event in self.steps.values())

    @cached_property
    def counted(self) -> list[Said]:
        """Its output without what readers drop: what an older attempt says after a newer one has spoken."""
        counted: list[Said] = []
        newest = 0
        for said in self.output:
            attempt = said.output.attempt or 0
            newest = max(newest, attempt)
            if attempt == newest:
                counted.append(said)
        return counted

    def violation(self, kind: str, detail: str) -> Violation:
        """A violation by this session."""
        return Violation(kind, self.session_id, detail)


class Case(NamedTuple):
    """All that is known, sorted by session."""

    histories: Mapping[str, History]
    records: Mapping[str, Record]
    leases: Collection[str]
    answers: Sequence[Answer]
    restores: Sequence[Restore] = ()


class Evidence(NamedTuple):
    """What `read` collects: what the streams hold, the records' bytes by id, the managers that have a lease."""

    messages: list[Message]
    records: dict[str, bytes]
    leases: set[str]
    output: Sequence[Message] = ()
    journals: Sequence[Message] = ()


def audit(
    messages: Iterable[Message],
    records: Mapping[str, bytes],
    leases: Collection[str],
    output: Iterable[Message] = (),
    journals: Iterable[Message] = (),
    answers: Sequence[Answer] = (),
    *,
    quiet: bool = False,
    all_ended: bool = False,
    restores: Sequence[Restore] = (),
) -> list[Violation]:
    """Every violation. `quiet`: nothing was under way when it was read, and whatever had to be repaired had time.

    `all_ended`: every session should have ended. The answers have to be from before the reading of the stream,
    and the stream from before the reading of the buckets. `restores`: when older stores were put back, in order.
    """
    with _without_gc():
        histories, violations = _sort(messages, output, journals)
        decoded, undecodable = _decode_records(records)
        case = Case(histories, decoded, leases, answers, restores)
        return violations + undecodable + _audit(case, quiet=quiet, all_ended=all_ended)


def _audit(case: Case, *, quiet: bool, all_ended: bool) -> list[Violation]:
    histories, decoded, answers, restores = case.histories, case.records, case.answers, case.restores
    violations: list[Violation] = []
    for history in histories.values():
        for rule in HISTORY_RULES:
            violations += rule(history)
        violations += missing_events(history, quiet=quiet)
        if not restores:
            violations += output_is_complete(history)
    for session_id, record in decoded.items():
        violations += record_against_events(record, histories.get(session_id) or History(session_id), quiet=quiet)
    for answer in answers:
        violations += answer_fits_its_command(answer)
        if not _is_lost(answer, restores):
            violations += answer_against_events(answer, case, quiet=quiet)
            violations += false_refusals(answer, case)
    violations += false_not_found(case)
    violations += stale_answers(case)
    if quiet:
        for quiet_rule in QUIET_RULES:
            violations += quiet_rule(case)
    if all_ended:
        violations += not_ended(case)
    return violations


@contextmanager
def _without_gc() -> Iterator[None]:
    """Nothing here is cyclic, and looking for cycles among a million objects takes half of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


# Sorting the stream by session


def _sort(
    messages: Iterable[Message], output: Iterable[Message], journals: Iterable[Message]
) -> tuple[dict[str, History], list[Violation]]:
    histories: dict[str, History] = {}
    violations: list[Violation] = []
    for stored, sort in ((messages, _sort_one), (output, _sort_output), (journals, _sort_entry)):
        for message in sorted(stored, key=lambda message: message.sequence):
            violations += sort(message, histories)
    return histories, violations


def _sort_output(message: Message, histories: dict[str, History]) -> Iterator[Violation]:
    token = message.subject.removeprefix(SESSION).removesuffix(OUTPUT)
    output = _decode(message, _OUTPUT_DECODERS)
    if output is None:
        yield Violation("undecodable", token, f"output at {message.sequence}: {message.data[:80]!r}")
    elif output.session_id != token:
        yield Violation("wrong_subject", token, f"output at {message.sequence} is of {output.session_id}")
    else:
        _history(histories, token).output.append(Said(message, output))


def _sort_entry(message: Message, histories: dict[str, History]) -> Iterator[Violation]:
    token = message.subject.removeprefix(JOURNAL)
    try:
        _history(histories, token).journal.append(_ENTRY_DECODER.decode(message.data))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        yield Violation("undecodable", token, f"entry of its journal at {message.sequence}: {error}")


def _sort_one(message: Message, histories: dict[str, History]) -> Iterator[Violation]:
    where = f"{message.subject} at {message.sequence}"
    if message.subject.startswith(FENCE):
        _history(histories, message.subject.removeprefix(FENCE)).claims.append(message.sequence)
        return
    token = message.subject.removeprefix(SESSION) if message.subject.startswith(SESSION) else None
    if token is None and message.subject != EVENTS:
        yield Violation("unknown_subject", "", where)
        return
    event = _decode(message, _EVENT_DECODERS)
    if event is None:
        yield Violation("undecodable", token or "", f"{where}: {message.data[:80]!r}, {message.headers}")
    elif event.type not in ORDER:
        yield Violation("unknown_type", event.session_id, f"{where}: {event.type}")
    elif token is None:
        _history(histories, event.session_id).events.append(Told(message, event))
    elif event.session_id != token or event.type != STATUS:
        yield Violation("wrong_subject", event.session_id, f"{where}: {_name(event)} does not belong here")
    else:
        _history(histories, token).copies.append(Told(message, event))


def _history(histories: dict[str, History], session_id: str) -> History:
    history = histories.get(session_id)
    if history is None:
        history = histories[session_id] = History(session_id)
    return history


def _decode(message: Message, decoders: Mapping[str, Any]) -> Any:
    """The message as one of ours, None if it is not."""
    decoder = decoders.get(message.headers.get("Content-Type", ""))
    try:
        return None if decoder is None else decoder.decode(message.data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _decode_records(records: Mapping[str, bytes]) -> tuple[dict[str, Record], list[Violation]]:
    decoded: dict[str, Record] = {}
    violations: list[Violation] = []
    for session_id, data in records.items():
        try:
            decoded[session_id] = _RECORD_DECODER.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            violations.append(Violation("undecodable", session_id, f"its record: {error}"))
    return decoded, violations


_EVENT_DECODERS: Final[Mapping[str, Any]] = {
    "application/json": msgspec.json.Decoder(Event),
    "application/msgpack": msgspec.msgpack.Decoder(Event),
}
_OUTPUT_DECODERS: Final[Mapping[str, Any]] = {
    "application/json": msgspec.json.Decoder(Output),
    "application/msgpack": msgspec.msgpack.Decoder(Output),
}
_ENTRY_DECODER: Final = msgspec.json.Decoder(Entry)
_RECORD_DECODER: Final = msgspec.json.Decoder(Record)


# Rules about one session's events


def versions_are_contiguous(history: History) -> Iterator[Violation]:
    """Versions grow by one, from 1."""
    if missing := set(range(1, history.last + 1)) - history.steps.keys():
        yield history.violation("missing_version", f"{sorted(missing)} of {history.last} on {EVENTS}")
    if wrong := [version for version in history.steps if version < 1]:
        yield history.violation("missing_version", f"versions start at 1: {wrong}")


def events_are_told_once(history: History) -> Iterator[Violation]:
    """Each event is once on each subject."""
    for where, told in ((EVENTS, history.events), (SESSION + history.session_id, history.copies)):
        for name, number in Counter(_name(one.event) for one in told).items():
            if number > 1:
                yield history.violation("repeated_event", f"{name} is {number} times on {where}")


def missing_events(history: History, *, quiet: bool) -> Iterator[Violation]:
    """Each event is on each subject it belongs to; the last version may still be under way before quiet time."""
    on_events = {(told.event.version, told.event.type) for told in history.events}
    on_session = {told.event.version for told in history.copies}
    for version in history.steps:
        if version == history.last and not quiet:
            continue
        for kind in _owed(history, version):
            if (version, kind) not in on_events:
                yield history.violation("missing_event", f"v{version} {kind} is not on {EVENTS}")
        if version > 1 and version not in on_session:
            yield history.violation("missing_event", f"v{version} is not on the session's own subject")


def copies_are_identical(history: History) -> Iterator[Violation]:
    """The session's own subject carries the bytes that the common one carries."""
    payloads = {_name(told.event): told.message.data for told in history.events}
    for copy in history.copies:
        if payloads.get(_name(copy.event), copy.message.data) != copy.message.data:
            yield history.violation("copy_differs", f"{_name(copy.event)} at {copy.sequence}")


def copies_come_last(history: History) -> Iterator[Violation]:
    """The copy on the session's own subject is stored after the version's events."""
    stored: defaultdict[int, list[Told]] = defaultdict(list)
    for told in history.events:
        stored[told.event.version].append(told)
    for copy in history.copies:
        version = copy.event.version
        before = {told.event.type for told in stored[version] if told.sequence < copy.sequence}
        if late := [kind for kind in _owed(history, version) if kind not in before]:
            yield history.violation("copy_before_event", f"v{version} at {copy.sequence} is before {', '.join(late)}")


def versions_do_not_overlap(history: History) -> Iterator[Violation]:
    """A version begins when the one before it is stored on both subjects."""
    complete = {copy.event.version: copy.sequence for copy in reversed(history.copies)}
    for told in history.events:
        if complete.get(told.event.version - 1, 0) > told.sequence:
            yield history.violation("versions_overlap", f"{_name(told.event)} at {told.sequence}")


def order_is_that_of_versions(history: History) -> Iterator[Violation]:
    """On each subject the stream's order is version order, and `session_terminated` follows its status."""
    for told in (history.events, history.copies):
        for one, other in pairwise(told):
            if _place(other.event) < _place(one.event):
                yield history.violation("out_of_order", f"{_name(other.event)} at {other.sequence}")


def creation_is_first(history: History) -> Iterator[Violation]:
    """`session_created` is version 1, and nothing is before it."""
    for position, told in enumerate(history.events):
        event = told.event
        if (event.type == CREATED) != (position == 0) or (event.type == CREATED) != (event.version == 1):
            yield history.violation("created_not_first", f"{_name(event)} at {told.sequence}")


def end_is_last(history: History) -> Iterator[Violation]:
    """Nothing follows the `terminated` version."""
    ends = [version for version, event in history.steps.items() if event.status == "terminated"]
    ends += [told.event.version for told in history.events if told.event.type == ENDED]
    if ends and history.last > min(ends):
        yield history.violation("after_end", f"v{history.last} after the end, v{min(ends)}")


def end_is_told_twice_alike(history: History) -> Iterator[Violation]:
    """`session_terminated` says what the `terminated` status of its version says."""
    for told in history.events:
        if told.event.type != ENDED:
            continue
        step = history.steps.get(told.event.version)
        if step is None or step.status != "terminated":
            yield history.violation("end_without_status", f"{_name(told.event)} at {told.sequence}")
        elif different := _differences(told.event, step, ENDING_FIELDS):
            yield history.violation("end_differs", f"v{step.version}: {different}")


def transitions_are_legal(history: History) -> Iterator[Violation]:
    """Only what the table allows, from the status that was."""
    for version, event in history.steps.items():
        if event.type != STATUS:
            continue
        before = history.steps.get(version - 1)
        if before is not None and _status(before) != event.previous_status:
            yield history.violation(
                "wrong_previous_status", f"v{version}: {event.previous_status}, it was {_status(before)}"
            )
        allowed = MAY_BECOME.get(event.previous_status, frozenset())
        if event.attempt is not None:
            allowed |= MAY_BECOME_WITH_A_POLICY.get(event.previous_status, frozenset())
        if event.status not in allowed:
            yield history.violation("illegal_transition", f"v{version}: {event.previous_status} → {event.status}")


def reasons_are_legal(history: History) -> Iterator[Violation]:
    """Which reason goes through `terminating` and which straight; the first one stays."""
    for version, event in history.steps.items():
        if event.type == STATUS and event.reason not in _reasons(event, history.steps.get(version - 1)):
            yield history.violation(
                "wrong_reason", f"v{version}: {event.previous_status} → {event.status} for {event.reason}"
            )


def attempts_grow_by_one(history: History) -> Iterator[Violation]:
    """The first is 1; where a session becomes `initializing` again the next one begins, and nowhere else."""
    for version, event in history.steps.items():
        before = history.steps.get(version - 1)
        if event.type != STATUS or before is None:
            continue
        attempt = 1 if before.type == CREATED and event.attempt is not None else before.attempt
        if attempt is not None:
            attempt += event.status == "initializing"
        if event.attempt != attempt:
            yield history.violation("wrong_attempt", f"v{version} {event.status}: {event.attempt}, not {attempt}")


def attempts_have_a_cause(history: History) -> Iterator[Violation]:
    """Where an attempt begins, and nowhere else."""
    for version, event in history.steps.items():
        begins = event.type == STATUS and event.status == "initializing"
        if (event.cause is not None) != begins:
            yield history.violation("wrong_cause", f"v{version} {event.status}: {event.cause}")


def output_is_of_an_attempt(history: History) -> Iterator[Violation]:
    """Output says of which attempt it is, if the session has any; and that has begun."""
    attempts = {event.attempt for event in history.steps.values() if event.type == STATUS}
    for message, output in history.output:
        if attempts and output.attempt not in attempts:
            yield history.violation("wrong_attempt", f"output at {message.sequence}: {output.attempt}, not {attempts}")


def output_is_the_same_again(history: History) -> Iterator[Violation]:
    """What counts under one number of an attempt is one output, even if it is stored again."""
    first: dict[tuple[int | None, int], Message] = {}
    for message, output in history.counted:
        known = first.setdefault((output.attempt, output.number), message)
        if known.data != message.data:
            detail = f"number {output.number} of attempt {output.attempt} at {known.sequence} and {message.sequence}"
            yield history.violation("output_differs", detail)


def output_is_complete(history: History) -> Iterator[Violation]:
    """Where the end says so, no number is missing in between; the oldest may have been removed."""
    if not history.ended or any(event.output_incomplete for event in history.steps.values()):
        return
    numbers = {said.output.number for said in history.counted}
    if missing := set(range(min(numbers, default=0), max(numbers, default=0))) - numbers:
        yield history.violation("missing_output", f"{sorted(missing)}, and the end says that it is complete")


def output_has_its_message_id(history: History) -> Iterator[Violation]:
    """`Nats-Msg-Id` names the attempt, if there is one, and the number."""
    for message, output in history.output:
        numbers = [str(number) for number in (output.attempt, output.number) if number is not None]
        found = message.headers.get("Nats-Msg-Id")
        if found != ".".join([output.session_id, *numbers, "output"]):
            yield history.violation("wrong_message_id", f"output at {message.sequence}: {found}")


def journals_are_of_the_newest_attempt(history: History) -> Iterator[Violation]:
    """Once an attempt has written to the journal, an older one does not."""
    first = history.steps.get(1)
    mine = [entry for entry in history.journal if first is None or entry.created_at == first.created_at]
    for one, other in pairwise(mine):
        if other.attempt < one.attempt:
            yield history.violation("old_attempt_wrote", f"{other.type} of {other.attempt} after {one.attempt}")


def errors_say_what_failed(history: History) -> Iterator[Violation]:
    """Where something failed there is an error; a session that completed, or runs, has none."""
    for version, event in history.steps.items():
        if event.reason in FAILURES and not event.error:
            yield history.violation("wrong_error", f"v{version}: {event.reason} without an error")
        if event.cause in FAILURES and not event.error:
            yield history.violation("wrong_error", f"v{version}: {event.cause} without an error")
        if event.error and event.cause is None and event.reason in (None, "completed"):
            yield history.violation("wrong_error", f"v{version}: {event.reason} with the error {event.error}")


def message_ids_are_as_designed(history: History) -> Iterator[Violation]:
    """`Nats-Msg-Id` names the event, and the subject where it is the session's."""
    for suffix, all_told in (("", history.events), (".session", history.copies)):
        for told in all_told:
            event, found = told.event, told.message.headers.get("Nats-Msg-Id")
            if found != f"{event.session_id}.{event.version}.{event.type}{suffix}":
                yield history.violation("wrong_message_id", f"{_name(event)} at {told.sequence}: {found}")


def events_assert_the_fence(history: History) -> Iterator[Violation]:
    """Every event asserts the last claim on its session that is stored before it, 0 where there is none."""
    subject = FENCE + history.session_id
    for told in history.events + history.copies:
        fence = max((claim for claim in history.claims if claim < told.sequence), default=0)
        headers = told.message.headers
        asserted = headers.get("Nats-Expected-Last-Subject-Sequence")
        if asserted != str(fence) or headers.get("Nats-Expected-Last-Subject-Sequence-Subject") != subject:
            yield history.violation("wrong_fence", f"{_name(told.event)} at {told.sequence}: {asserted}, not {fence}")


HISTORY_RULES: Final[Sequence[Callable[[History], Iterator[Violation]]]] = (
    versions_are_contiguous,
    events_are_told_once,
    copies_are_identical,
    copies_come_last,
    versions_do_not_overlap,
    order_is_that_of_versions,
    creation_is_first,
    end_is_last,
    end_is_told_twice_alike,
    transitions_are_legal,
    reasons_are_legal,
    attempts_grow_by_one,
    attempts_have_a_cause,
    output_is_of_an_attempt,
    output_is_the_same_again,
    output_has_its_message_id,
    journals_are_of_the_newest_attempt,
    errors_say_what_failed,
    message_ids_are_as_designed,
    events_assert_the_fence,
)


# Rules about records


def record_against_events(record: Record, history: History, *, quiet: bool) -> Iterator[Violation]:
    """The record equals its events; it may be ahead of them only while something is under way."""
    ended = record.status == "terminated"
    if record.sealed and not ended:
        yield history.violation("sealed_early", f"sealed while {record.status}, v{record.version}")
    if quiet and ended and not record.sealed:
        yield history.violation("not_sealed", f"terminated, v{record.version}, and never sealed")
    if record.version < history.last:
        yield history.violation("record_behind", f"v{record.version}, the stream has v{history.last}")
    if quiet and record.version > history.last:
        yield history.violation("record_ahead", f"v{record.version}, the stream has v{history.last}")
    if different := _unlike(record, history):
        yield history.violation("record_differs", different)


def _unlike(record: Record, history: History) -> str:
    """In what a record differs from the events of its version and of its creation; "" where it does not."""
    step, first = history.steps.get(record.version), history.steps.get(1)
    differences = []
    if record.session_id != history.session_id:
        differences.append(f"session_id: {record.session_id}")
    if step is not None and record.status != _status(step):
        differences.append(f"v{record.version} status: {record.status}, told {_status(step)}")
    if step is not None and step.type == STATUS:
        fields = ("previous_status", "worker", *ENDING_FIELDS)
        differences.append(_differences(record, step, fields))
        cause = record.run.cause if record.run is not None and step.status == "initializing" else None
        if cause != step.cause:
            differences.append(f"cause: {cause}, told {step.cause}")
    if first is not None and first.type == CREATED:
        differences.append(_differences(record, first, ("created_at", "metadata", "worker", "labels")))
    return "; ".join(filter(None, differences))


# Rules about answers


def answer_fits_its_command(answer: Answer) -> Iterator[Violation]:
    """A command leaves its session in the status that it is for."""
    if not answer.ok or answer.record is None:
        return
    status = answer.record.status
    if status == "initializing" if answer.verb == "create" else status != LEFT_IN.get(answer.verb, status):
        yield Violation("wrong_answer", answer.session_id, f"{answer.verb} was answered with {status}")


def answer_against_events(answer: Answer, case: Case, *, quiet: bool) -> Iterator[Violation]:
    """What was answered with "done" is stored. (What was read may be one version ahead, until quiet time.)"""
    record = answer.record
    if not answer.ok or (answer.verb == "list" and record is None):
        return
    history = case.histories.get(answer.session_id) or History(answer.session_id)
    if record is None:
        if not history.steps:
            yield history.violation("answer_without_effect", f"{answer.verb} was answered, nothing is stored")
        return
    ahead = record.version == history.last + 1 and answer.verb in READS and not quiet
    if not ahead and not {1, record.version} <= history.steps.keys():
        yield history.violation(
            "answer_without_effect", f"{answer.verb} was answered with v{record.version}, stored: {list(history.steps)}"
        )
    if different := _unlike(record, history):
        yield history.violation("answer_differs", f"{answer.verb}: {different}")


def false_refusals(answer: Answer, case: Case) -> Iterator[Violation]:
    """A refusal that says something about the session says what is so."""
    history = case.histories.get(answer.session_id) or History(answer.session_id)
    steps = history.steps.values()
    true = {
        "start_failed": any(event.reason == "start_failed" for event in steps),
        "stop_timeout": any(event.status == "terminating" for event in steps),
        "already_exists": bool(steps) or answer.session_id in case.records,
    }
    if not answer.ok and not true.get(answer.code or "", True):
        yield history.violation("false_refusal", f"{answer.verb} was answered with {answer.code}")


def false_not_found(case: Case) -> Iterator[Violation]:
    """Nobody is told `not_found` about what somebody had been told exists, and still does."""
    for answers, known in _by_store(case):
        since: dict[str, float] = {}
        for answer in known:
            since[answer.session_id] = min(answer.at, since.get(answer.session_id, answer.at))
        for answer in answers:
            if answer.code != "not_found" or answer.session_id not in case.records:
                continue
            if since.get(answer.session_id, answer.started) < answer.started:
                yield Violation("false_refusal", answer.session_id, f"{answer.verb} was answered with not_found")


def stale_answers(case: Case) -> Iterator[Violation]:
    """Who asks after an answer was given is not told of an older version."""
    for answers, known in _by_store(case):
        told: defaultdict[str, list[tuple[float, int]]] = defaultdict(list)
        for answer in known:
            told[answer.session_id].append((answer.at, _version(answer)))
        asked: defaultdict[str, list[Answer]] = defaultdict(list)
        for answer in answers:
            if answer.ok and answer.record is not None:
                asked[answer.session_id].append(answer)
        for session_id, of_session in asked.items():
            yield from _stale(of_session, sorted(told[session_id]))


def _stale(answers: Iterable[Answer], told: Sequence[tuple[float, int]]) -> Iterator[Violation]:
    """Of one session; `told`: which version was told when, in order."""
    known, position = 0, 0
    for answer in sorted(answers, key=lambda answer: answer.started):
        while position < len(told) and told[position][0] < answer.started:
            known = max(known, told[position][1])
            position += 1
        if (version := _version(answer)) < known:
            detail = f"{answer.verb} was answered with v{version} after v{known} had been told"
            yield Violation("stale_answer", answer.session_id, detail)


def _by_store(case: Case) -> Iterator[tuple[list[Answer], list[Answer]]]:
    """For each store that there was: the answers from it, and those with a record that hold for it.

    An answer does not hold any more after a restore that took what it was about.
    """
    known = [answer for answer in case.answers if answer.ok and answer.record is not None]
    starts = [float("-inf"), *(restore.back for restore in case.restores), float("inf")]
    for number, (start, end) in enumerate(pairwise(starts)):
        past = case.restores[:number]
        answers = [answer for answer in case.answers if start <= answer.at < end]
        yield answers, [answer for answer in known if not _is_lost(answer, past)]


def _is_lost(answer: Answer, restores: Iterable[Restore]) -> bool:
    """Whether a restore took what it is about."""
    return any(restore.took(answer.at) for restore in restores)


def _is_lost_session(history: History, case: Case) -> bool:
    """Whether a restore took all of it: who ran it may have claimed it since, to find out."""
    return bool(case.restores) and history.last == 0 and history.session_id not in case.records


def _version(answer: Answer) -> int:
    return 0 if answer.record is None else answer.record.version


# Rules about all of it, after quiet time


def live_sessions_have_live_owners(case: Case) -> Iterator[Violation]:
    """No live session belongs to a manager without a lease."""
    for session_id, record in case.records.items():
        if record.status != "terminated" and record.owner not in case.leases:
            yield Violation("orphan", session_id, f"{record.status}, v{record.version}, its owner was {record.owner}")


def sessions_without_record_have_ended(case: Case) -> Iterator[Violation]:
    """Only sessions that have ended leave the bucket."""
    for session_id, history in case.histories.items():
        if session_id not in case.records and not history.ended and not _is_lost_session(history, case):
            yield Violation("lost_record", session_id, f"v{history.last} has not ended and is not in the bucket")


def journals_of_ended_sessions_are_gone(case: Case) -> Iterator[Violation]:
    """What no attempt will need any more is removed after the seal."""
    for session_id, history in case.histories.items():
        record = case.records.get(session_id)
        is_over = history.ended if record is None else record.sealed
        if history.journal and is_over:
            yield history.violation("journal_left", f"{len(history.journal)} entries")


QUIET_RULES: Final[Sequence[Callable[[Case], Iterator[Violation]]]] = (
    live_sessions_have_live_owners,
    sessions_without_record_have_ended,
    journals_of_ended_sessions_are_gone,
)


def not_ended(case: Case) -> Iterator[Violation]:
    """Every session has ended."""
    for session_id in sorted(case.histories.keys() | case.records.keys()):
        history = case.histories.get(session_id) or History(session_id)
        if not history.ended and not _is_lost_session(history, case):
            yield Violation("not_ended", session_id, f"v{history.last} is its last")


# What several rules need


def _owed(history: History, version: int) -> list[str]:
    """The types of event that a version owes to the common subject."""
    if version == 1:
        return [CREATED]
    step = history.steps.get(version)
    return [STATUS, ENDED] if step is not None and step.status == "terminated" else [STATUS]


def _reasons(event: Event, before: Event | None) -> Collection[str | None]:
    """The reasons that a `session_status` may give; `before` is the version before it, if that is known."""
    if event.status == "terminating":
        return THROUGH_TERMINATING
    if event.status != "terminated":
        return {None}
    if event.previous_status == "terminating":
        return THROUGH_TERMINATING if before is None else {before.reason}
    return STRAIGHT_FROM_THE_START if event.previous_status == "initializing" else STRAIGHT_FROM_RUNNING


def _status(event: Event) -> str | None:
    return "initializing" if event.type == CREATED else event.status


def _place(event: Event) -> tuple[int, int]:
    return event.version, ORDER[event.type]


def _name(event: Event) -> str:
    return f"v{event.version} {event.type}"


def _differences(one: msgspec.Struct, told: Event, fields: Iterable[str]) -> str:
    pairs = [(field, getattr(one, field), getattr(told, field)) for field in fields]
    return "; ".join(f"{field}: {value}, told {other}" for field, value, other in pairs if value != other)


# Reading


async def read(
    url: str,
    *,
    stream: str = STREAM,
    sessions_bucket: str = SESSIONS_BUCKET,
    managers_bucket: str = MANAGERS_BUCKET,
    output_stream: str = OUTPUT_STREAM,
    journal_stream: str = JOURNAL_STREAM,
) -> Evidence:
    """The output first, of whose attempts the events say more; then the events, the buckets, the journals.

    `url` may be several, with commas.
    """
    client = await nats.connect(servers=url.split(","))
    try:
        with _without_gc():
            output = await _read_if_there(client, output_stream)
            messages = await _read_stream(client, stream)
            records = await read_bucket(client, sessions_bucket)
        leases = await read_bucket(client, managers_bucket)
        journals = await _read_journals(client, journal_stream, records)
    finally:
        await client.close()
    return Evidence(messages, records, set(leases), output, journals)


async def _read_journals(client: Client, stream: str, records: Mapping[str, bytes]) -> list[Message]:
    """The journals, once those of sealed records are removed, which happens right after the seal, or after a while."""
    sealed = {JOURNAL + session_id for session_id, record in _decode_records(records)[0].items() if record.sealed}
    loop = asyncio.get_running_loop()
    deadline = loop.time() + REMOVAL_S
    while True:
        journals = await _read_if_there(client, stream)
        if loop.time() > deadline or not any(message.subject in sealed for message in journals):
            return journals
        await asyncio.sleep(POLL_S)


async def _read_if_there(client: Client, stream: str) -> list[Message]:
    """Every message of a stream that older deployments do not have, or that a test has deleted."""
    try:
        return await _read_stream(client, stream)
    except NotFoundError:
        return []


def read_answers(file: Path) -> list[Answer]:
    """The log of commands and answers; a last line that was cut off by a kill is left out."""
    lines = file.read_bytes().split(b"\n")
    return [_ANSWER_DECODER.decode(line) for line in lines[:-1] if line.strip()]


_ANSWER_DECODER: Final = msgspec.json.Decoder(Answer)


async def read_bucket(client: Client, bucket: str) -> dict[str, bytes]:
    """The entries of a bucket by key; one that was deleted or has expired is none."""
    entries: dict[str, bytes] = {}
    for message in await _read_stream(client, f"KV_{bucket}"):
        key = message.subject.removeprefix(f"$KV.{bucket}.")
        gone = not message.data or "Nats-Marker-Reason" in message.headers or "KV-Operation" in message.headers
        if gone:
            entries.pop(key, None)
        else:
            entries[key] = message.data
    return entries


async def _read_stream(client: Client, stream: str) -> list[Message]:
    """Every message, up to what the stream's leader has now: a consumer may live on a replica that is behind."""
    js = client.jetstream()
    try:
        until = (await js.get_last_msg(stream, ">")).seq or 0
    except NotFoundError:
        await js.stream_info(stream)  # the stream itself has to be there
        return []
    reader = _Reader()
    inbox = await client.subscribe(client.new_inbox(), cb=reader.take, pending_msgs_limit=-1, pending_bytes_limit=-1)
    config = ConsumerConfig(ack_policy=AckPolicy.NONE, mem_storage=True, num_replicas=1, inactive_threshold=30.0)
    consumer = await js.add_consumer(stream, config)
    try:
        await _pull(client, f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer.name}", inbox.subject, reader, until)
    finally:
        await inbox.unsubscribe()
        await js.delete_consumer(stream, consumer.name)
    return reader.messages


async def _pull(client: Client, subject: str, inbox: str, reader: "_Reader", until: int) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + CATCH_UP_S
    request = msgspec.json.encode({"batch": BATCH, "no_wait": True})
    while reader.position < until:
        before = reader.position
        reader.begin()
        await client.publish(subject, request, reply=inbox)
        with suppress(TimeoutError):  # a server that is slow is asked again
            await asyncio.wait_for(reader.answered.wait(), ANSWER_TIMEOUT_S)
        if reader.lost:
            raise RuntimeError(f"{subject}: messages were lost on their way before {reader.position}; read again")
        if reader.position > before:
            deadline = loop.time() + CATCH_UP_S
        elif loop.time() > deadline:
            raise TimeoutError(f"{subject}: only {reader.position} of {until} could be read")
        else:
            await asyncio.sleep(POLL_S)


class _Reader:
    """Takes in what pull requests bring: messages, and the status that ends a request."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.position = 0
        self.lost = False
        self.answered = asyncio.Event()
        self._wanted = 0

    def begin(self) -> None:
        self._wanted = BATCH
        self.answered.clear()

    async def take(self, message: Msg) -> None:
        if not message.reply.startswith("$JS.ACK."):
            self.answered.set()
            return
        tokens = message.reply.split(".")
        sequence, count = tokens[5:7] if len(tokens) == 9 else tokens[7:9]
        self.position = int(sequence)
        self.lost = self.lost or int(count) != len(self.messages) + 1
        self.messages.append(Message(message.subject, self.position, message.headers or {}, message.data))
        self._wanted -= 1
        if self._wanted == 0:
            self.answered.set()


# The command line


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what was read and every violation; 1 where there are any."""
    parser = argparse.ArgumentParser(prog="python -m tests.tools.audit", description=__doc__)
    parser.add_argument("--server", required=True, metavar="URL", help="one or several, with commas")
    parser.add_argument("--answers", type=Path, metavar="FILE", help="commands and their answers, as JSON lines")
    parser.add_argument("--quiet", action="store_true", help="nothing is under way any more")
    parser.add_argument("--all-ended", action="store_true", help="every session should have ended")
    options = parser.parse_args(arguments)
    answers = read_answers(options.answers) if options.answers else []
    evidence = asyncio.run(read(options.server))
    violations = audit(*evidence, answers=answers, quiet=options.quiet, all_ended=options.all_ended)
    _print(evidence, answers, violations)
    return 1 if violations else 0


def _print(evidence: Evidence, answers: Sequence[Answer], violations: Sequence[Violation]) -> None:
    on_events = sum(message.subject == EVENTS for message in evidence.messages)
    copies = sum(message.subject.startswith(SESSION) for message in evidence.messages)
    claims = sum(message.subject.startswith(FENCE) for message in evidence.messages)
    print(f"{len(evidence.messages)} messages: {on_events} events, {copies} copies, {claims} claims")
    print(f"{len(evidence.output)} outputs, {len(evidence.journals)} entries of journals")
    print(f"{len(evidence.records)} records, {len(evidence.leases)} leases, {len(answers)} answers")
    for violation in violations[:SHOWN_MAX]:
        print(f"{violation.kind}: {violation.session_id}: {violation.detail}")
    if len(violations) > SHOWN_MAX:
        print(f"and {len(violations) - SHOWN_MAX} more")
    by_kind = Counter(violation.kind for violation in violations)
    print(f"{len(violations)} violations {dict(by_kind.most_common()) if by_kind else ''}".rstrip())


if __name__ == "__main__":
    sys.exit(main())
