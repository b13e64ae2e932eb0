"""The conformance checker accepts all that the lifecycle produces, and reports each planted violation once."""

from typing import Any, Final

import msgspec
import pytest
from hypothesis import given

from jido_nats.contract.conform import Checker, check_file
from jido_nats.contract.rules import Finding
from jido_nats.core import codec, subjects
from jido_nats.core.events import Event
from jido_nats.core.session import SessionRecord
from tests.core.samples import walks

Row = dict[str, Any]
Rows = list[Row]

EVENTS: Final = "jido.client.events"
OWN: Final = "jido.client.session.s1"


def status(version: int, previous: str, now: str, **fields: Any) -> Row:
    """A `session_status`."""
    event = {"type": "session_status", "session_id": "s1", "version": version, "status": now}
    return event | {"previous_status": previous, "updated_at": f"2025-01-24T10:30:0{version}Z"} | fields


def on(subject: str, sequence: int, event: Row) -> Row:
    """A row of a recording."""
    return {"sequence": sequence, "subject": subject, "event": event}


CREATED: Final[Row] = {
    "type": "session_created",
    "session_id": "s1",
    "version": 1,
    "created_at": "2025-01-24T10:30:01Z",
    "metadata": {},
}
ACTIVE: Final = status(2, "initializing", "active")
IDLE: Final = status(3, "active", "idle")
TERMINATING: Final = status(4, "idle", "terminating", reason="requested")
TERMINATED: Final = status(5, "terminating", "terminated", reason="requested")
ENDED: Final[Row] = {
    "type": "session_terminated",
    "session_id": "s1",
    "version": 5,
    "updated_at": "2025-01-24T10:30:05Z",
    "reason": "requested",
}
LIFE: Final = [CREATED, ACTIVE, IDLE, TERMINATING, TERMINATED, ENDED]
STEPS: Final = [ACTIVE, IDLE, TERMINATING, TERMINATED]


def published(events: Rows) -> Rows:
    """As `events --json` records them."""
    return [on(EVENTS, sequence, event) for sequence, event in enumerate(events, start=1)]


def copied(events: Rows) -> Rows:
    """As `events --session s1 --json` records them, after the originals."""
    return [on(OWN, sequence, event) for sequence, event in enumerate(events, start=11)]


def check(rows: Rows, *, partial: bool = False) -> list[Finding]:
    """The findings in a recording."""
    return list(check_file([msgspec.json.encode(row) for row in rows], Checker(partial=partial)))


def change(event: Row, **fields: Any) -> Row:
    """The event with other fields."""
    return event | fields


def without(event: Row, field: str) -> Row:
    """The event without that field."""
    return {name: value for name, value in event.items() if name != field}


def replaced(event: Row, **fields: Any) -> Rows:
    """The life, with one of its events changed."""
    return [change(event, **fields) if one is event else one for one in LIFE]


def dropped(*events: Row) -> Rows:
    """The life without some of its events."""
    return [one for one in LIFE if one not in events]


CRASHED: Final = status(3, "active", "terminated", reason="crashed", error="boom")
CRASH_ENDED: Final = change(ENDED, version=3, updated_at=CRASHED["updated_at"], reason="crashed", error="boom")

STRAIGHT: Final = change(CRASH_ENDED, reason="requested")
TIMED_OUT: Final = change(ENDED, reason="timed_out")

# A session with a restart policy: crashed, started again, then ended on request while it waited for a third attempt.
AGAIN: Final = status(3, "active", "initializing", attempt=2, cause="crashed", error="boom")
SECOND: Final = status(4, "initializing", "active", attempt=2)
THIRD: Final = status(5, "active", "initializing", attempt=3, cause="crashed", error="boom")
STOPPING: Final = status(6, "initializing", "terminating", attempt=3, reason="requested", error="boom")
STOPPED: Final = status(7, "terminating", "terminated", attempt=3, reason="requested", error="boom")
LAST: Final[Row] = {name: value for name, value in STOPPED.items() if not name.endswith("status")} | {
    "type": "session_terminated"
}
ATTEMPTS: Final = [CREATED, change(ACTIVE, attempt=1), AGAIN, SECOND, THIRD, STOPPING, STOPPED, LAST]


def attempts(event: Row, **fields: Any) -> Rows:
    """The life of several attempts up to that event, which is changed."""
    return [*ATTEMPTS[: ATTEMPTS.index(event)], change(event, **fields)]


# name, the events on jido.client.events, rule, what the message says, the line
PLANTED: Final[list[tuple[str, Rows, str, str, int]]] = [
    ("no created", dropped(CREATED), "first", "begins with version 2 session_status", 1),
    ("created late", [change(CREATED, version=2)], "version", "session_created is version 2, not 1", 1),
    ("a gap of one", dropped(IDLE), "gap", "version 4 comes after version 2: 3 missing", 3),
    ("a gap of two", dropped(ACTIVE, IDLE), "gap", "version 4 comes after version 1: 2 to 3 missing", 2),
    ("twice", [*LIFE[:2], ACTIVE, *LIFE[2:]], "repeated", "version 2 session_status was published already", 3),
    ("created twice", [*LIFE, CREATED], "repeated", "version 1 session_created was published already", 7),
    ("ended twice", [*LIFE, ENDED], "repeated", "version 5 session_terminated was published already", 7),
    ("backwards", [*LIFE[:3], change(ACTIVE, version=1)], "order", "session_status comes after version 3", 4),
    ("created again", [*LIFE[:2], change(CREATED, version=3)], "order", "session_created comes after", 3),
    ("a version for two", [CREATED, change(ACTIVE, version=1)], "version", "used for two changes: created and", 2),
    ("wrong step", [CREATED, change(ACTIVE, status="idle")], "transition", "initializing → idle is not allowed", 2),
    ("wrong start", [*LIFE[:3], change(TERMINATING, previous_status="active")], "transition", "session was idle", 4),
    ("wrong way", [*LIFE[:3], change(TERMINATING, reason="completed")], "reason", "has the reason completed", 4),
    ("straight", [*LIFE[:2], change(CRASHED, reason="requested"), STRAIGHT], "reason", "the reason requested, not", 3),
    (
        "another reason",
        [*LIFE[:4], change(TERMINATED, reason="timed_out"), TIMED_OUT],
        "reason",
        "requested became timed_out",
        5,
    ),
    ("no reason", [*LIFE[:3], without(TERMINATING, "reason")], "reason", "has the reason None", 4),
    ("early reason", [CREATED, change(ACTIVE, reason="requested")], "reason", "but the session is not ending", 2),
    (
        "no error",
        [*LIFE[:2], without(CRASHED, "error"), without(CRASH_ENDED, "error")],
        "field_missing",
        "requires the field error",
        3,
    ),
    ("no ended", dropped(ENDED), "end", "no session_terminated follows", 5),
    ("ended alone", dropped(TERMINATED), "end", "does not follow a session_status with terminated", 5),
    ("ended differs", replaced(ENDED, detail="enough"), "end", "differs from its session_status in detail", 6),
    ("another version ends", replaced(ENDED, version=6), "end", "differs from its session_status in version", 6),
    ("after the end", [*LIFE, status(6, "active", "idle")], "after_end", "comes after session_terminated", 7),
    ("after half an end", [*LIFE[:5], status(6, "active", "idle")], "after_end", "comes after the end, version 5", 6),
    ("time runs back", replaced(IDLE, updated_at=CREATED["created_at"]), "time", "is older than version 2", 3),
    (
        "an attempt too far",
        attempts(AGAIN, attempt=3),
        "attempt",
        "active → initializing is attempt 3, but should be 2",
        3,
    ),
    ("not a new attempt", attempts(AGAIN, attempt=1), "attempt", "is attempt 1, but should be 2", 3),
    ("a new one too late", attempts(SECOND, attempt=3), "attempt", "is attempt 3, but should be 2", 4),
    ("an attempt falls", attempts(SECOND, attempt=1), "attempt", "is attempt 1, after attempt 2", 4),
    ("a second one first", attempts(ATTEMPTS[1], attempt=2), "attempt", "is attempt 2, but should be 1", 2),
    ("no attempt", attempts(SECOND, attempt=None), "attempt", "has no attempt, but earlier ones have attempt 2", 4),
    (
        "an attempt at last",
        [*LIFE[:2], change(IDLE, attempt=1)],
        "attempt",
        "has attempt 1, but earlier ones have no attempt",
        3,
    ),
    ("no cause", [*ATTEMPTS[:2], without(AGAIN, "cause")], "attempt", "is a new attempt without a cause", 3),
    ("a cause too much", attempts(SECOND, cause="crashed", error="boom"), "attempt", "but is no new attempt", 4),
    ("a cause without error", attempts(AGAIN, error=None), "field_missing", "the cause crashed requires the field", 3),
    ("an error that stays", attempts(SECOND, error="boom"), "error", "has an error, but the session runs", 4),
    ("a reason to start", attempts(AGAIN, reason="crashed"), "reason", "but the session is not ending", 3),
    ("no policy", [*LIFE[:2], without(AGAIN, "attempt")], "transition", "active → initializing is not allowed", 3),
    ("attempt 0", attempts(AGAIN, attempt=0), "field_type", "attempt: it is 0", 3),
    ("ended in another one", [*ATTEMPTS[:-1], change(LAST, attempt=2)], "end", "differs from its session_status in", 8),
    ("a field missing", [*LIFE[:2], without(IDLE, "status"), *LIFE[3:]], "field_missing", "has no status", 3),
    ("a wrong type", replaced(ACTIVE, version="2"), "field_type", "version: Expected `int`, got `str`", 2),
    ("a wrong status", replaced(ACTIVE, status=7), "field_type", "status: Expected `str`", 2),
    ("version 0", replaced(CREATED, version=0), "field_type", "version: it is 0", 1),
    ("a wrong id", [change(CREATED, session_id="a.b")], "field_type", "session_id: it must be", 1),
    ("no zone", replaced(CREATED, created_at="2025-01-24T10:30:01"), "field_type", "is not in UTC", 1),
    ("not UTC", replaced(CREATED, created_at="2025-01-24T10:30:01+01:00"), "field_type", "is not in UTC", 1),
    ("no type", [without(CREATED, "type"), *LIFE[1:]], "field_missing", "must have a type", 1),
    ("a type that is no text", [change(CREATED, type=["x"])], "field_type", "must have a type", 1),
]


@pytest.mark.parametrize(("events", "rule", "says", "line"), [p[1:] for p in PLANTED], ids=[p[0] for p in PLANTED])
def test_a_violation_is_reported(events: Rows, rule: str, says: str, line: int) -> None:
    (finding,) = check(published(events))

    assert (finding.rule, finding.line, finding.sequence) == (rule, line, line)
    assert says in finding.message


COPIES_PLANTED: Final[list[tuple[str, Rows, str, str]]] = [
    ("it begins late", copied(STEPS[1:]), "first", "begins with version 3, not 2"),
    ("a gap", copied([ACTIVE, TERMINATING, TERMINATED]), "gap", "3 missing"),
    ("twice", copied([ACTIVE, ACTIVE]), "repeated", "version 2 was published already on jido.client.session.s1"),
    ("backwards", copied([*STEPS[:2], change(ACTIVE, version=1)]), "order", "version 1 comes after version 3"),
    ("wrong step", copied([change(ACTIVE, status="idle")]), "transition", "initializing → idle is not allowed"),
    ("after the end", copied([*STEPS, status(6, "active", "idle")]), "after_end", "comes after the end"),
    ("created", copied([CREATED]), "subject", "which is for session_status only"),
    ("another session's", [on("jido.client.session.s2", 1, ACTIVE)], "subject", "belongs on jido.client.events or"),
    ("another subject", [on("elsewhere", 1, ACTIVE)], "subject", "it is on elsewhere"),
    ("no copy", published(LIFE) + copied([ACTIVE, TERMINATING]), "gap", "3 missing"),
    ("no last copy", published(LIFE) + copied(STEPS[:3]), "copy", "version 5 has no copy"),
    ("no original", published([CREATED]) + copied([ACTIVE]), "copy", "was not on jido.client.events before it"),
    ("another copy", published(LIFE[:2]) + copied([change(ACTIVE, detail="x")]), "copy", "differs in detail"),
    (
        "a copy's attempt",
        copied([*ATTEMPTS[1:3], change(SECOND, attempt=3)]),
        "attempt",
        "should be 2 (on jido.client.",
    ),
    ("a late first", copied([change(ACTIVE, attempt=2)]), "attempt", "is attempt 2, but should be 1"),
    ("another attempt", published(ATTEMPTS[:2]) + copied([ACTIVE]), "copy", "differs in attempt"),
    ("the copy first", [*published([CREATED]), on(EVENTS, 3, ACTIVE), on(OWN, 2, ACTIVE)], "copy", "is stored before"),
]


@pytest.mark.parametrize(("rows", "rule", "says"), [p[1:] for p in COPIES_PLANTED], ids=[p[0] for p in COPIES_PLANTED])
def test_a_violation_on_the_sessions_own_subject_is_reported(rows: Rows, rule: str, says: str) -> None:
    finding = check(rows)[0]

    assert finding.rule == rule
    assert says in finding.message


@pytest.mark.parametrize(
    "rows",
    [
        published(LIFE),
        copied(STEPS),
        published(LIFE) + copied(STEPS),
        published(ATTEMPTS),
        published(ATTEMPTS) + copied(ATTEMPTS[1:-1]),
    ],
)
def test_a_whole_life_keeps_the_contract(rows: Rows) -> None:
    assert check(rows) == []


@given(walks())
def test_what_the_lifecycle_produces_keeps_the_contract(walk: list[tuple[SessionRecord, tuple[Event, ...]]]) -> None:
    publications = [publication for record, _ in walk for publication in subjects.publications(record)]
    rows = [
        on(publication.subject, sequence, msgspec.json.decode(codec.encode(publication.event)))
        for sequence, publication in enumerate(publications, start=1)
    ]

    assert check(rows) == []


@pytest.mark.parametrize(
    "rows",
    [published(LIFE)[n:] for n in range(1, 6)]
    + [copied(STEPS)[n:] for n in range(1, 4)]
    + [published(ATTEMPTS)[n:] for n in range(1, 8)],
)
def test_a_partial_recording_may_begin_anywhere(rows: Rows) -> None:
    assert check(rows) != []
    assert check(rows, partial=True) == []


@pytest.mark.parametrize("rows", [published(LIFE)[:-1], published(LIFE)[:-1] + copied(STEPS)[:-1]])
def test_a_partial_recording_may_end_anywhere(rows: Rows) -> None:
    assert check(rows) != []
    assert check(rows, partial=True) == []


def test_a_partial_recording_is_checked_from_where_it_begins() -> None:
    (finding,) = check(published([IDLE, change(TERMINATING, version=5)]), partial=True)

    assert finding.rule == "gap"


def test_sequences_must_grow() -> None:
    (finding,) = check([on(EVENTS, 2, CREATED), on(EVENTS, 1, ACTIVE)])

    assert (finding.rule, finding.message) == ("sequence", "sequence 1 comes after 2 on jido.client.events")


def test_a_live_recording_has_no_sequences() -> None:
    assert check([on(EVENTS, 0, event) for event in LIFE]) == []


def test_sessions_are_told_apart() -> None:
    others = [change(event, session_id="s2") for event in LIFE]

    assert check(published([event for both in zip(LIFE, others, strict=True) for event in both])) == []


def test_an_unknown_type_is_only_noted() -> None:
    unknown = {"type": "session_renamed", "session_id": "s1", "version": 3}
    checker = Checker()

    (finding,) = check_file([msgspec.json.encode(row) for row in published([CREATED, ACTIVE, unknown, IDLE])], checker)

    assert finding.note
    assert checker.violations == 0


def test_an_event_of_an_unknown_type_counts_as_its_version() -> None:
    unknown = {"type": "session_renamed", "session_id": "s1", "version": 3}
    later = [change(event, version=event["version"] + 1) for event in LIFE[2:]]

    findings = check(published([*LIFE[:2], unknown, *later]))

    assert [finding.rule for finding in findings if not finding.note] == []


def test_a_version_that_is_missing_after_an_event_of_an_unknown_type_is_reported() -> None:
    unknown = {"type": "session_renamed", "session_id": "s1", "version": 3}
    later = [change(event, version=event["version"] + 2) for event in LIFE[2:]]

    findings = check(published([*LIFE[:2], unknown, *later]))

    assert [(finding.rule, "4 missing" in finding.message) for finding in findings if not finding.note] == [
        ("gap", True)
    ]


@pytest.mark.parametrize(("attempt", "rules"), [(2, set()), (1, {"attempt"})])
def test_attempts_are_compared_across_an_event_of_an_unknown_type(attempt: int, rules: set[str]) -> None:
    unknown = {"type": "session_renamed", "session_id": "s1", "version": 4}

    findings = check(published([*ATTEMPTS[:3], unknown, change(SECOND, version=5, attempt=attempt)]))

    assert {finding.rule for finding in findings if not finding.note} == rules


def test_an_attempt_may_have_begun_in_a_version_that_is_missing() -> None:
    (finding,) = check(published([*ATTEMPTS[:2], *ATTEMPTS[3:]]))

    assert finding.rule == "gap"


def test_a_cause_of_the_future_is_only_noted() -> None:
    findings = check(published([*ATTEMPTS[:2], change(without(AGAIN, "error"), cause="woken"), *ATTEMPTS[3:]]))

    assert [(finding.note, "'woken'" in finding.message) for finding in findings] == [(True, True)]


def test_an_unknown_value_is_only_noted() -> None:
    findings = check(published(replaced(IDLE, status="waiting")))

    assert {finding.rule for finding in findings if finding.note} == {"unknown_value"}
    assert "'waiting'" in findings[0].message


def test_unknown_fields_are_ignored() -> None:
    assert check(published([change(event, new=1) for event in LIFE])) == []


@pytest.mark.parametrize(
    "line", [b"{", b"[]", b"{}", b'{"event":1,"subject":"x"}', b'{"event":{}}', b"\xff", b"[" * 9999]
)
def test_a_line_that_is_not_a_row_is_reported(line: bytes) -> None:
    (finding,) = check_file([line], Checker())

    assert (finding.rule, finding.line) == ("not_a_row", 1)


def test_empty_lines_are_ignored() -> None:
    checker = Checker()

    assert list(check_file([b"\n", b""], checker)) == []
    assert checker.messages == 0


def test_a_finding_says_where() -> None:
    (finding,) = check(published(dropped(IDLE)))

    assert str(finding) == "line 3, sequence 3: gap: session s1: version 4 comes after version 2: 3 missing"
