"""Records for tests of the core: literals, and hypothesis strategies."""

from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import strategies as st

from jido_nats.core import lifecycle
from jido_nats.core.events import Event
from jido_nats.core.session import Cause, Reason, RestartPolicy, Run, SessionRecord, Status
from jido_nats.errors import InvalidTransition

T0 = datetime(2025, 1, 24, 10, 30, 0, 1, tzinfo=UTC)
POLICY = RestartPolicy(on=tuple(Cause), attempts_max=0)
WAYS: dict[Status, list[tuple[Status, Reason | None]]] = {
    Status.INITIALIZING: [],
    Status.ACTIVE: [(Status.ACTIVE, None)],
    Status.IDLE: [(Status.ACTIVE, None), (Status.IDLE, None)],
    Status.TERMINATING: [(Status.ACTIVE, None), (Status.TERMINATING, Reason.REQUESTED)],
    Status.TERMINATED: [(Status.ACTIVE, None), (Status.TERMINATED, Reason.CRASHED)],
}
FAILURES = frozenset({Reason.CRASHED, Reason.START_FAILED, Reason.OWNER_LOST})


def seconds(number: float) -> datetime:
    """That many seconds after the session was created."""
    return T0 + timedelta(seconds=number)


def record_in(status: Status, **fields: Any) -> SessionRecord:
    """A record that reached `status` by allowed transitions."""
    record, _ = lifecycle.create("s1", owner="m1", at=T0, **fields)
    for step, (target, reason) in enumerate(WAYS[status], start=1):
        record, _ = lifecycle.transition(record, target, at=seconds(step), reason=reason)
    return record


def next_attempt(record: SessionRecord, *, cause: Cause | None = Cause.CRASHED, at: datetime = T0) -> Run:
    """The attempt after the record's, which waits for a second."""
    return Run(
        attempt=(record.attempt or 0) + 1, began_at=at, failures=1, cause=cause, not_before=at + timedelta(seconds=1)
    )


def waiting(**fields: Any) -> SessionRecord:
    """A record that waits for its second attempt: version 3."""
    fields = {"restart": POLICY} | fields
    record = record_in(Status.ACTIVE, **fields)
    at = seconds(2)
    record, _ = lifecycle.transition(
        record, Status.INITIALIZING, at=at, run=next_attempt(record, at=at), error="RuntimeError: boom"
    )
    return record


def reason_for(source: Status, target: Status) -> Reason | None:
    """A reason that the lifecycle accepts for that transition, None if it needs none."""
    if target is Status.TERMINATING:
        return Reason.REQUESTED
    if target is Status.TERMINATED and source is not Status.TERMINATING:
        return Reason.CRASHED
    return None


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
METADATA = st.dictionaries(TEXT, JSON_VALUES, max_size=5)
TIMES = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))
STEPS = st.lists(st.tuples(st.sampled_from(Status), st.none() | st.sampled_from(Reason), TIMES), max_size=12)
POLICIES = st.none() | st.builds(
    RestartPolicy,
    on=st.lists(st.sampled_from(Cause), min_size=1, unique=True).map(tuple),
    attempts_max=st.integers(0, 9),
    backoff_s=st.floats(0.01, 60),
)


@st.composite
def walks(draw: st.DrawFn) -> list[tuple[SessionRecord, tuple[Event, ...]]]:
    """A session's life: the versions, with their events, that a random sequence of steps produced; some are refused."""
    restart = draw(POLICIES)
    walk = [lifecycle.create("s1", owner="m1", at=draw(TIMES), metadata=draw(METADATA), restart=restart)]
    for status, reason, at in draw(STEPS):
        again = status is Status.INITIALIZING
        run = next_attempt(walk[-1][0], cause=draw(st.none() | st.sampled_from(Cause)), at=at) if again else None
        error = "boom" if again or reason in FAILURES else None
        try:
            walk.append(lifecycle.transition(walk[-1][0], status, at=at, reason=reason, error=error, run=run))
        except InvalidTransition:
            continue
    return walk
