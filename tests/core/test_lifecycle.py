"""The lifecycle's table, transition by transition."""

from itertools import pairwise

import msgspec
import pytest
from hypothesis import given

from jido_nats.core import codec, lifecycle
from jido_nats.core.events import Event, SessionCreated, SessionStatus, SessionTerminated, UnknownEvent
from jido_nats.core.session import Reason, SessionRecord, Status
from jido_nats.errors import InvalidTransition
from tests.core.samples import T0, reason_for, record_in, seconds, walks

# The table of the design, written down independently of the code.
MAY_BECOME = {
    "initializing": {"active", "terminated"},
    "active": {"idle", "terminating", "terminated"},
    "idle": {"active", "terminating", "terminated"},
    "terminating": {"terminated"},
    "terminated": set[str](),
}
PAIRS = [(source, target) for source in Status for target in Status]
ALLOWED = [pair for pair in PAIRS if pair[1] in MAY_BECOME[pair[0]]]
REFUSED = [pair for pair in PAIRS if pair[1] not in MAY_BECOME[pair[0]]]
PASSING = [Reason.REQUESTED, Reason.TIMED_OUT, Reason.MANAGER_STOPPED]
DIRECT = [Reason.COMPLETED, Reason.CRASHED, Reason.START_FAILED, Reason.OWNER_LOST]
LIVE = [Status.ACTIVE, Status.IDLE]


@pytest.mark.parametrize(("source", "target"), ALLOWED)
def test_a_step_of_the_table_gives_the_next_version(source: Status, target: Status) -> None:
    record = record_in(source)

    changed, _ = lifecycle.transition(record, target, at=seconds(9), reason=reason_for(source, target))

    assert (changed.status, changed.previous_status) == (target, source)
    assert (changed.version, changed.updated_at) == (record.version + 1, seconds(9))


@pytest.mark.parametrize(("source", "target"), REFUSED)
@pytest.mark.parametrize("reason", [None, *Reason])
def test_a_step_that_is_not_in_the_table_is_refused(source: Status, target: Status, reason: Reason | None) -> None:
    record = record_in(source)
    before = msgspec.json.encode(record)

    with pytest.raises(InvalidTransition) as refusal:
        lifecycle.transition(record, target, at=seconds(9), reason=reason)

    assert refusal.value.session_id == "s1"
    assert msgspec.json.encode(record) == before


@pytest.mark.parametrize("source", LIVE)
@pytest.mark.parametrize("reason", PASSING)
def test_a_command_s_reason_passes_through_terminating(source: Status, reason: Reason) -> None:
    terminating, _ = lifecycle.transition(record_in(source), Status.TERMINATING, at=T0, reason=reason)
    terminated, _ = lifecycle.transition(terminating, Status.TERMINATED, at=T0)

    assert (terminating.reason, terminated.reason) == (reason, reason)


@pytest.mark.parametrize("source", [Status.INITIALIZING, *LIVE])
@pytest.mark.parametrize("reason", PASSING)
def test_a_command_s_reason_does_not_end_a_session_at_once(source: Status, reason: Reason) -> None:
    with pytest.raises(InvalidTransition):
        lifecycle.transition(record_in(source), Status.TERMINATED, at=T0, reason=reason)


@pytest.mark.parametrize("source", [Status.INITIALIZING, *LIVE])
@pytest.mark.parametrize("reason", DIRECT)
def test_what_has_happened_already_goes_straight_to_terminated(source: Status, reason: Reason) -> None:
    ended, _ = lifecycle.transition(record_in(source), Status.TERMINATED, at=T0, reason=reason, error="boom")

    assert (ended.status, ended.reason, ended.error) == (Status.TERMINATED, reason, "boom")


@pytest.mark.parametrize("source", LIVE)
@pytest.mark.parametrize("reason", [None, *DIRECT])
def test_what_has_happened_already_does_not_pass_through_terminating(source: Status, reason: Reason | None) -> None:
    with pytest.raises(InvalidTransition):
        lifecycle.transition(record_in(source), Status.TERMINATING, at=T0, reason=reason)


@pytest.mark.parametrize("source", [Status.INITIALIZING, *LIVE])
def test_a_session_does_not_end_without_a_reason(source: Status) -> None:
    with pytest.raises(InvalidTransition):
        lifecycle.transition(record_in(source), Status.TERMINATED, at=T0)


@pytest.mark.parametrize(("source", "target"), [(Status.INITIALIZING, Status.ACTIVE), (Status.ACTIVE, Status.IDLE)])
@pytest.mark.parametrize("reason", Reason)
def test_a_session_that_is_not_ending_has_no_reason(source: Status, target: Status, reason: Reason) -> None:
    with pytest.raises(InvalidTransition):
        lifecycle.transition(record_in(source), target, at=T0, reason=reason)


@pytest.mark.parametrize("later", Reason)
def test_the_first_reason_stays(later: Reason) -> None:
    ended, _ = lifecycle.transition(record_in(Status.TERMINATING), Status.TERMINATED, at=T0, reason=later)

    assert ended.reason is Reason.REQUESTED


def test_a_lost_owner_is_replaced() -> None:
    ended, _ = lifecycle.transition(
        record_in(Status.ACTIVE), Status.TERMINATED, at=T0, reason=Reason.OWNER_LOST, owner="m2"
    )

    assert ended.owner == "m2"


def test_time_does_not_run_backwards() -> None:
    changed, _ = lifecycle.transition(record_in(Status.ACTIVE), Status.IDLE, at=seconds(-100))

    assert changed.updated_at == seconds(1)


def test_what_was_acknowledged_does_not_go_back() -> None:
    record, _ = lifecycle.create("s1", owner="m1", at=T0, after=7)

    assert lifecycle.transition(record, Status.ACTIVE, at=T0, after=5)[0].after == 7


def test_a_session_begins_with_version_1() -> None:
    record, events = lifecycle.create("s1", owner="m1", at=T0, metadata={"a": 1}, llm_config={"model": "m"})

    assert (record.status, record.version, record.previous_status) == (Status.INITIALIZING, 1, None)
    assert (record.metadata, record.llm_config) == ({"a": 1}, {"model": "m"})
    assert [type(event) for event in events] == [SessionCreated]


def wire(events: tuple[Event, ...]) -> list[str]:
    return [codec.encode(event).decode() for event in events]


def test_session_created_is_the_design_s_json() -> None:
    _, events = lifecycle.create("s1", owner="m1", at=T0, metadata={"project": "demo"}, llm_config={"model": "m"})

    assert wire(events) == [
        '{"type":"session_created","session_id":"s1","version":1,'
        '"created_at":"2025-01-24T10:30:00.000001Z","metadata":{"project":"demo"}}'
    ]


def test_session_status_is_the_design_s_json() -> None:
    record = record_in(Status.INITIALIZING)

    _, events = lifecycle.transition(record, Status.ACTIVE, at=seconds(0.000411))

    assert wire(events) == [
        '{"type":"session_status","session_id":"s1","version":2,"status":"active",'
        '"previous_status":"initializing","updated_at":"2025-01-24T10:30:00.000412Z"}'
    ]


def test_an_end_is_the_design_s_two_events() -> None:
    _, events = lifecycle.transition(
        record_in(Status.ACTIVE), Status.TERMINATED, at=seconds(2), reason=Reason.CRASHED, error="RuntimeError: boom"
    )

    assert wire(events) == [
        '{"type":"session_status","session_id":"s1","version":3,"status":"terminated","previous_status":"active",'
        '"updated_at":"2025-01-24T10:30:02.000001Z","reason":"crashed","error":"RuntimeError: boom"}',
        '{"type":"session_terminated","session_id":"s1","version":3,'
        '"updated_at":"2025-01-24T10:30:02.000001Z","reason":"crashed","error":"RuntimeError: boom"}',
    ]


def test_a_forced_end_says_so_in_both_events() -> None:
    _, events = lifecycle.transition(record_in(Status.TERMINATING), Status.TERMINATED, at=seconds(3), forced=True)

    assert [msgspec.json.decode(text)["forced"] for text in wire(events)] == [True, True]


def test_an_end_whose_output_is_incomplete_says_so_in_both_events() -> None:
    _, events = lifecycle.transition(
        record_in(Status.TERMINATING), Status.TERMINATED, at=seconds(3), output_incomplete=True
    )

    assert [msgspec.json.decode(text)["output_incomplete"] for text in wire(events)] == [True, True]


@pytest.mark.parametrize("field", ["forced", "output_incomplete"])
def test_a_record_that_is_rebuilt_has_what_its_end_said(field: str) -> None:
    first = record_in(Status.TERMINATING)
    ended, events = lifecycle.transition(
        first, Status.TERMINATED, at=seconds(3), forced=field == "forced", output_incomplete=field != "forced"
    )
    known = [event for event in events if not isinstance(event, UnknownEvent)]

    rebuilt = lifecycle.rebuilt("s1", [lifecycle.created_event(first), *known], owner="m1")

    assert rebuilt is not None
    assert getattr(rebuilt, field)
    assert getattr(lifecycle.after_event(first, events[0]), field)
    assert not getattr(lifecycle.after_event(ended, lifecycle.created_event(ended)), field)


@pytest.mark.parametrize("status", Status)
def test_a_record_can_rebuild_its_events(status: Status) -> None:
    record = record_in(status)
    again = codec.decode(codec.encode(record), SessionRecord)

    assert lifecycle.events_of(again) == lifecycle.events_of(record)


def test_the_diagram_has_every_step_of_the_table() -> None:
    lines = {line.strip() for line in lifecycle.diagram().splitlines()}

    assert {f"{source} --> {target}" for source, target in ALLOWED} <= lines
    assert not {f"{source} --> {target}" for source, target in REFUSED} & lines


@given(walks())
def test_versions_have_no_gap(walk: list[tuple[SessionRecord, tuple[Event, ...]]]) -> None:
    assert [record.version for record, _ in walk] == list(range(1, len(walk) + 1))


@given(walks())
def test_events_cover_the_whole_life(walk: list[tuple[SessionRecord, tuple[Event, ...]]]) -> None:
    steps = [event for _, events in walk for event in events if isinstance(event, SessionStatus)]

    assert [event.status for event in steps] == [record.status for record, _ in walk[1:]]
    assert [event.previous_status for event in steps] == [record.status for record, _ in walk[:-1]]


@given(walks())
def test_time_only_grows(walk: list[tuple[SessionRecord, tuple[Event, ...]]]) -> None:
    assert all(a.updated_at <= b.updated_at for (a, _), (b, _) in pairwise(walk))


@given(walks())
def test_a_session_ends_once(walk: list[tuple[SessionRecord, tuple[Event, ...]]]) -> None:
    ends = [event for _, events in walk for event in events if isinstance(event, SessionTerminated)]
    last = walk[-1][0]

    assert len(ends) == (last.status is Status.TERMINATED)
    assert all(end.version == last.version and end.reason is last.reason for end in ends)


@given(walks())
def test_a_reason_never_changes(walk: list[tuple[SessionRecord, tuple[Event, ...]]]) -> None:
    reasons = [record.reason for record, _ in walk if record.reason is not None]

    assert len(set(reasons)) <= 1
