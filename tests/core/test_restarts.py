"""What follows when a worker ends by itself: the next attempt, or the end."""

from datetime import datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jido_nats.core import lifecycle
from jido_nats.core.restarts import BACKOFF_MAX_S, GOOD_AFTER, next_run
from jido_nats.core.session import Cause, Reason, RestartPolicy, Run, SessionRecord, Status
from tests.core.samples import POLICIES, T0, record_in, seconds

GOOD_S = GOOD_AFTER.total_seconds()


def failed(failures: int, status: Status = Status.ACTIVE, **policy: Any) -> SessionRecord:
    """A session that has failed so often in a row; its attempt began when it was created."""
    chosen: dict[str, Any] = {"on": tuple(Cause), "attempts_max": 0} | policy
    restart = RestartPolicy(**chosen)
    record = record_in(status, restart=restart)
    return msgspec.structs.replace(record, run=Run(attempt=failures + 1, began_at=T0, failures=failures))


def wait_s(run: Run | None, at: datetime) -> float:
    """How long the attempt waits."""
    assert run is not None
    assert run.not_before is not None
    return (run.not_before - at).total_seconds()


def test_the_next_attempt_follows_the_one_that_failed() -> None:
    run = next_run(failed(2), Reason.CRASHED, at=seconds(5), jitter=0)

    assert run == Run(attempt=4, began_at=seconds(5), failures=3, cause=Cause.CRASHED, not_before=seconds(9))


@pytest.mark.parametrize(("failures", "expected"), [(0, 0.5), (1, 1), (2, 2), (3, 4), (6, 32), (7, 60), (500, 60)])
def test_the_wait_doubles_up_to_a_minute(failures: int, expected: float) -> None:
    run = next_run(failed(failures, backoff_s=0.5), Reason.CRASHED, at=seconds(5), jitter=0)

    assert wait_s(run, seconds(5)) == expected


@pytest.mark.parametrize(("jitter", "expected"), [(0.0, 8.0), (0.5, 7.0), (1.0, 6.0)])
def test_jitter_takes_up_to_a_quarter_off_the_wait(jitter: float, expected: float) -> None:
    run = next_run(failed(3), Reason.CRASHED, at=seconds(5), jitter=jitter)

    assert wait_s(run, seconds(5)) == expected


@pytest.mark.parametrize("status", [Status.ACTIVE, Status.IDLE])
@pytest.mark.parametrize(("up_s", "failures"), [(GOOD_S - 1, 4), (GOOD_S, 1)])
def test_ten_good_minutes_make_the_next_failure_the_first(status: Status, up_s: float, failures: int) -> None:
    run = next_run(failed(3, status), Reason.CRASHED, at=T0 + GOOD_AFTER * (up_s / GOOD_S), jitter=0)

    assert run is not None
    assert (run.attempt, run.failures) == (5, failures)


def test_ten_minutes_of_starting_are_no_good_minutes() -> None:
    run = next_run(failed(3, Status.INITIALIZING), Reason.START_FAILED, at=T0 + GOOD_AFTER, jitter=0)

    assert run is not None
    assert run.failures == 4


@pytest.mark.parametrize(("failures", "goes_on"), [(1, True), (2, False), (3, False)])
def test_after_so_many_failures_in_a_row_the_session_ends(failures: int, goes_on: bool) -> None:
    run = next_run(failed(failures, attempts_max=3), Reason.CRASHED, at=seconds(5), jitter=0)

    assert (run is not None) == goes_on


def test_one_attempt_at_most_is_no_second_one() -> None:
    assert next_run(failed(0, attempts_max=1), Reason.CRASHED, at=seconds(5), jitter=0) is None


def test_good_minutes_count_before_the_limit_does() -> None:
    assert next_run(failed(2, attempts_max=3), Reason.CRASHED, at=T0 + GOOD_AFTER, jitter=0) is not None


def test_zero_is_no_limit() -> None:
    run = next_run(failed(10_000, attempts_max=0), Reason.CRASHED, at=seconds(5), jitter=0)

    assert run is not None
    assert run.attempt == 10_002


@pytest.mark.parametrize("on", [tuple(Cause), *[(cause,) for cause in Cause]])
@pytest.mark.parametrize("reason", Reason)
def test_only_what_the_policy_names_is_followed_by_an_attempt(on: tuple[Cause, ...], reason: Reason) -> None:
    run = next_run(failed(0, on=on), reason, at=seconds(5), jitter=0)

    assert (None if run is None else str(run.cause)) == (str(reason) if str(reason) in on else None)


@pytest.mark.parametrize("status", [Status.TERMINATING, Status.TERMINATED])
def test_a_session_that_is_ending_has_no_next_attempt(status: Status) -> None:
    assert next_run(failed(0, status), Reason.CRASHED, at=seconds(5), jitter=0) is None


def test_a_session_without_a_policy_has_no_next_attempt() -> None:
    assert next_run(record_in(Status.ACTIVE), Reason.CRASHED, at=seconds(5), jitter=0) is None


@given(POLICIES, st.sampled_from(Reason), st.integers(0, 100), st.floats(0, 1), st.floats(0, 1000))
def test_the_lifecycle_accepts_every_next_attempt(
    policy: RestartPolicy | None, reason: Reason, failures: int, jitter: float, up_s: float
) -> None:
    record = record_in(Status.ACTIVE, restart=policy)
    if record.run is not None:
        record = msgspec.structs.replace(record, run=msgspec.structs.replace(record.run, failures=failures))
    run = next_run(record, reason, at=seconds(up_s), jitter=jitter)
    if run is None:
        return

    changed, _ = lifecycle.transition(record, Status.INITIALIZING, at=seconds(up_s), run=run, error="boom")

    assert changed.run == run
    assert 0 < wait_s(run, run.began_at) <= BACKOFF_MAX_S
