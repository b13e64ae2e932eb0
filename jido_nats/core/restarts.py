"""What follows when a worker ends by itself: a new attempt, or the end of its session. Pure."""

from datetime import datetime, timedelta
from typing import Final

from jido_nats.core.session import Cause, Reason, Run, SessionRecord, Status

# An attempt that was `active` for so long has not failed: the next failure counts as the first.
GOOD_AFTER: Final = timedelta(minutes=10)
BACKOFF_MIN_S: Final = 0.01
BACKOFF_MAX_S: Final = 60.0


def next_run(record: SessionRecord, reason: Reason, *, at: datetime, jitter: float) -> Run | None:
    """The attempt that follows, or None if the session ends.

    `reason`: that of the end, if there is one. `jitter`: a random number from 0 to 1, which takes up to a quarter off
    the wait, so that what failed together does not start together.
    """
    policy, run = record.restart, record.run
    if policy is None or run is None or Cause(reason) not in policy.on or record.status not in _MAY_RESTART:
        return None
    was_good = record.status is not Status.INITIALIZING and at - run.began_at >= GOOD_AFTER
    failures = 1 if was_good else run.failures + 1
    if policy.attempts_max and failures >= policy.attempts_max:
        return None
    wait_s = min(policy.backoff_s * 2 ** min(failures - 1, 32), BACKOFF_MAX_S) * (1 - jitter / 4)
    return Run(
        attempt=run.attempt + 1,
        began_at=at,
        failures=failures,
        cause=Cause(reason),
        not_before=at + timedelta(seconds=wait_s),
    )


_MAY_RESTART: Final = frozenset({Status.INITIALIZING, Status.ACTIVE, Status.IDLE})
