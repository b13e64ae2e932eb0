"""The lifecycle's table, transition by transition."""

from itertools import pairwise

import msgspec
import pytest
from hypothesis import given

from jido_nats.core import codec, lifecycle
from jido_nats.core.events import Event, SessionCreated, SessionStatus, SessionTerminated, UnknownEvent
from jido_nats.core.session import Cause, Reason, Run, SessionRecord, Status
from jido_nats.errors import InvalidTransition
from tests.core.samples import POLICY, T0, next_attempt, reason_for, record_in, seconds, waiting, walks

# The table of the design, written down independently of the code.
MAY_BECOME = {
    "initializing": {"active", "terminated"},
    "active": {"idle", "terminating", "terminated"},
    "idle": {"active", "terminating", "terminated"},
    "terminating": {"terminated"},
    "terminated": set[str](),
}
# What a session with a restart policy may become as well: a new attempt, and the end of one that has no worker.
WITH_A_POLICY = [
    (Status.INITIALIZING, Status.INITIALIZING),
    (Status.INITIALIZING, Status.TERMINATING),
    (Status.ACTIVE, Status.INITIALIZING),
    (Status.IDLE, Status.INITIALIZING),
]
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


def run_for(record: SessionRecord, target: Status) -> Run | None:
    return next_attempt(record) if target is Status.INITIALIZING else None


@pytest.mark.parametrize(("source", "target"), WITH_A_POLICY)
def test_a_session_with_a_policy_may_take_more_steps(source: Status, target: Status) -> None:
    record = record_in(source, restart=POLICY)

    changed, _ = lifecycle.transition(
        record, target, at=seconds(9), reason=reason_for(source, target), run=run_for(record, target)
    )

    assert (changed.status, changed.previous_status, changed.version) == (target, source, record.version + 1)


@pytest.mark.parametrize(("source", "target"), WITH_A_POLICY)
def test_a_session_without_a_policy_may_not_take_them(source: Status, target: Status) -> None:
    record = record_in(source)

    with pytest.raises(InvalidTransition):
        lifecycle.transition(
            record, target, at=seconds(9), reason=reason_for(source, target), run=run_for(record, target)
        )


@pytest.mark.parametrize(("source", "target"), [pair for pair in REFUSED if pair not in WITH_A_POLICY])
def test_a_policy_allows_no_other_step(source: Status, target: Status) -> None:
    record = record_in(source, restart=POLICY)

    with pytest.raises(InvalidTransition):
        lifecycle.transition(
            record, target, at=seconds(9), reason=reason_for(source, target), run=run_for(record, target)
        )


@pytest.mark.parametrize("source", [Status.INITIALIZING, *LIVE])
def test_a_new_attempt_has_a_cause(source: Status) -> None:
    record = record_in(source, restart=POLICY)

    for run in (None, next_attempt(record, cause=None)):
        with pytest.raises(InvalidTransition, match="cause"):
            lifecycle.transition(record, Status.INITIALIZING, at=T0, run=run)


@pytest.mark.parametrize("number", [1, 3])
def test_a_new_attempt_has_the_next_number(number: int) -> None:
    record = record_in(Status.ACTIVE, restart=POLICY)
    run = msgspec.structs.replace(next_attempt(record), attempt=number)

    with pytest.raises(InvalidTransition, match="number 2"):
        lifecycle.transition(record, Status.INITIALIZING, at=T0, run=run)


def test_only_initializing_begins_an_attempt() -> None:
    record = record_in(Status.ACTIVE, restart=POLICY)

    with pytest.raises(InvalidTransition, match="begins no attempt"):
        lifecycle.transition(record, Status.IDLE, at=T0, run=next_attempt(record))


@pytest.mark.parametrize("reason", Reason)
def test_a_new_attempt_has_no_reason(reason: Reason) -> None:
    record = record_in(Status.ACTIVE, restart=POLICY)

    with pytest.raises(InvalidTransition):
        lifecycle.transition(record, Status.INITIALIZING, at=T0, reason=reason, run=next_attempt(record))


def test_the_first_attempt_is_that_of_the_creation() -> None:
    record, _ = lifecycle.create("s1", owner="m1", at=T0, restart=POLICY)

    assert record.run == Run(attempt=1, began_at=T0)
    assert record.needs == ("restart",)


def test_an_attempt_that_is_active_has_neither_error_nor_cause() -> None:
    active, _ = lifecycle.transition(waiting(), Status.ACTIVE, at=seconds(7))

    assert active.error is None
    assert active.run == Run(attempt=2, began_at=seconds(7), failures=1)


def test_an_attempt_that_is_active_begins_no_earlier_than_the_record_was_changed() -> None:
    active, _ = lifecycle.transition(waiting(), Status.ACTIVE, at=seconds(-100))

    assert active.run is not None
    assert active.run.began_at == active.updated_at == seconds(2)


def test_a_session_that_ends_while_it_waits_keeps_the_error() -> None:
    terminating, _ = lifecycle.transition(waiting(), Status.TERMINATING, at=seconds(3), reason=Reason.REQUESTED)
    terminated, _ = lifecycle.transition(terminating, Status.TERMINATED, at=seconds(3))

    assert (terminated.reason, terminated.error, terminated.attempt) == (Reason.REQUESTED, "RuntimeError: boom", 2)


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


def test_a_new_attempt_is_the_design_s_json() -> None:
    assert wire(lifecycle.events_of(waiting())) == [
        '{"type":"session_status","session_id":"s1","version":3,"status":"initializing","previous_status":"active",'
        '"updated_at":"2025-01-24T10:30:02.000001Z","error":"RuntimeError: boom","attempt":2,"cause":"crashed"}'
    ]


def test_every_event_of_a_session_with_a_policy_has_its_attempt_but_the_first() -> None:
    active, again = lifecycle.transition(waiting(), Status.ACTIVE, at=seconds(7))
    _, ended = lifecycle.transition(active, Status.TERMINATED, at=seconds(8), reason=Reason.COMPLETED)

    assert [msgspec.json.decode(text).get("attempt") for text in wire((*again, *ended))] == [2, 2, 2]
    assert ['"cause"' in text for text in wire((*again, *ended))] == [False, False, False]
    assert '"attempt"' not in wire((lifecycle.created_event(active),))[0]


def test_a_reader_s_record_follows_the_attempts() -> None:
    waits = waiting()
    active, (event,) = lifecycle.transition(waits, Status.ACTIVE, at=seconds(7))
    before = record_in(Status.ACTIVE, restart=POLICY)

    after = lifecycle.after_event(before, lifecycle.events_of(waits)[0])

    assert after.run == Run(attempt=2, began_at=seconds(2), cause=Cause.CRASHED)
    assert lifecycle.after_event(after, event).run == Run(attempt=2, began_at=seconds(7))
    assert lifecycle.after_event(active, lifecycle.events_of(waits)[0]).run == Run(
        attempt=2, began_at=seconds(7), failures=1, cause=Cause.CRASHED
    )


def test_a_reader_s_record_goes_back_to_the_first_attempt() -> None:
    waits = waiting()

    assert lifecycle.after_event(waits, lifecycle.created_event(waits)).run == Run(attempt=1, began_at=T0)


def test_a_record_that_is_rebuilt_ends_in_the_attempt_that_its_events_had() -> None:
    waits = waiting()
    first = lifecycle.created_event(waits)
    (event,) = lifecycle.step_of(waits)

    rebuilt = lifecycle.rebuilt("s1", [first, event], owner="m1")
    assert rebuilt is not None
    _, events = lifecycle.transition(rebuilt, Status.TERMINATED, at=seconds(9), reason=Reason.OWNER_LOST, error="gone")

    assert [getattr(one, "attempt", None) for one in events] == [2, 2]


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
    assert {f"{source} --> {target}: with a restart policy" for source, target in WITH_A_POLICY} == {
        line for line in lines if ":" in line
    }


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


@given(walks())
def test_attempts_grow_by_one(walk: list[tuple[SessionRecord, tuple[Event, ...]]]) -> None:
    if walk[0][0].restart is None:
        assert {record.run for record, _ in walk} == {None}
        return
    for (before, _), (record, _) in pairwise(walk):
        assert before.attempt is not None
        assert record.attempt == before.attempt + (record.status is Status.INITIALIZING)


@given(walks())
def test_an_event_has_a_cause_only_where_an_attempt_begins(
    walk: list[tuple[SessionRecord, tuple[Event, ...]]],
) -> None:
    for record, events in walk[1:]:
        for event in events:
            assert getattr(event, "attempt", None) == record.attempt
            begins = isinstance(event, SessionStatus) and event.status is Status.INITIALIZING
            assert (getattr(event, "cause", None) is not None) == begins


@given(walks())
def test_what_runs_has_no_error(walk: list[tuple[SessionRecord, tuple[Event, ...]]]) -> None:
    running = [record for record, _ in walk if record.status in LIVE]

    assert all(record.error is None and (record.run is None or record.run.cause is None) for record in running)


@given(walks())
def test_a_reader_that_applies_the_events_has_the_record(
    walk: list[tuple[SessionRecord, tuple[Event, ...]]],
) -> None:
    followed = walk[0][0]

    for record, events in walk[1:]:
        for event in events:
            followed = lifecycle.after_event(followed, event)
        assert (followed.status, followed.version, followed.attempt) == (record.status, record.version, record.attempt)
        assert lifecycle.events_of(followed) == lifecycle.events_of(record)
