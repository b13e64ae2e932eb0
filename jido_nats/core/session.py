"""What a session is: its status, why it ended, and its record."""

from datetime import datetime
from enum import StrEnum
from typing import Any, Final, Self

import msgspec

# The kind of worker of a session that names none.
DEFAULT_WORKER: Final = "default"
# The feature of a session with another kind of worker, or with labels.
WORKER_FEATURE: Final = "worker"
# The feature of a session with a restart policy.
RESTART_FEATURE: Final = "restart"
# The features whose rules this version knows; see `SessionRecord.needs`.
KNOWN_FEATURES: Final[frozenset[str]] = frozenset({WORKER_FEATURE, RESTART_FEATURE})


class OpenEnum(StrEnum):
    """An enum that newer versions may add values to: a value that this version does not know keeps its text."""

    @classmethod
    def _missing_(cls, value: object) -> "Self | None":
        if not isinstance(value, str):
            return None
        unknown = str.__new__(cls, value)
        unknown._name_ = unknown._value_ = value
        return unknown

    @property
    def is_known(self) -> bool:
        """Whether this version knows the value."""
        return self.value in type(self)._value2member_map_


class Status(OpenEnum):
    """A session's place in its lifecycle; `lifecycle.TRANSITIONS` lists the allowed next ones.

    A session in a status that this version does not know is alive.
    """

    INITIALIZING = "initializing"
    ACTIVE = "active"
    IDLE = "idle"
    TERMINATING = "terminating"
    TERMINATED = "terminated"


class Reason(OpenEnum):
    """Why a session ends."""

    REQUESTED = "requested"
    TIMED_OUT = "timed_out"
    MANAGER_STOPPED = "manager_stopped"
    COMPLETED = "completed"
    CRASHED = "crashed"
    START_FAILED = "start_failed"
    OWNER_LOST = "owner_lost"


class Cause(OpenEnum):
    """Why an attempt began that is not a session's first."""

    CRASHED = "crashed"
    START_FAILED = "start_failed"
    OWNER_LOST = "owner_lost"


class RestartPolicy(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """When a session goes on with a new attempt, one more run of its worker, instead of ending.

    `on`: the reasons to end after which it does. `attempts_max`: after so many failures in a row it ends (0: no
    limit). `backoff_s`: how long it waits after the first failure, in seconds; twice as long after each further one.
    """

    on: tuple[Cause, ...]
    attempts_max: int = 5
    backoff_s: float = 1.0


class Run(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The current attempt of a session with a restart policy.

    `attempt` counts from 1. `began_at`: when it began; once it is `active`, since when. `failures`: how many attempts
    in a row have failed before it. `cause`: why it began, until it is `active`; then it also waits until `not_before`.
    """

    attempt: int
    began_at: datetime
    failures: int = 0
    cause: Cause | None = None
    not_before: datetime | None = None


class SessionRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Everything about a session, as stored in `JIDO_SESSIONS`.

    `version` starts at 1 and grows by one with each transition. `owner` is the id of the manager that runs the
    session. `after` is a sequence of the event stream that was acknowledged before this version was committed, so
    every event of this version is stored after it. `sealed`: every event is stored, and the record is final.
    `opening`: this is the first version that was written, so its events include `session_created`.
    The time limits are those of the request that created the session (seconds; 0: no limit; None: the manager's).
    `traceparent` (W3C Trace Context) is that of the command that caused this version, if it had one. Times are UTC.
    `output_incomplete`: the session ended before all of its output and conversation was known to be stored; the rest
    may still follow, or be missing.
    `worker` is the session's kind of worker; its manager has all of the `labels`.
    `restart`, `run`: only of a session that was created with a restart policy.
    `needs` names the features whose rules the record's writer relies on. A manager that does not know one of them
    never writes, claims or ends the record.
    """

    session_id: str
    status: Status
    version: int
    owner: str
    created_at: datetime
    updated_at: datetime
    metadata: dict[str, Any]
    previous_status: Status | None = None
    llm_config: dict[str, Any] | None = None
    worker: str = DEFAULT_WORKER
    labels: dict[str, str] = {}
    reason: Reason | None = None
    error: str | None = None
    detail: str | None = None
    forced: bool = False
    output_incomplete: bool = False
    after: int = 0
    sealed: bool = False
    opening: bool = False
    idle_after_s: float | None = None
    idle_timeout_s: float | None = None
    max_lifetime_s: float | None = None
    traceparent: str | None = None
    needs: tuple[str, ...] = ()
    restart: RestartPolicy | None = None
    run: Run | None = None

    @property
    def unknown_needs(self) -> list[str]:
        """The features that the record needs and this version does not know; empty for a record that it may write."""
        return [feature for feature in self.needs if feature not in KNOWN_FEATURES]

    @property
    def attempt(self) -> int | None:
        """The number of its current attempt; None without a restart policy."""
        return None if self.run is None else self.run.attempt

    @property
    def cause(self) -> Cause | None:
        """Why its current attempt began, if that is not its first and not active yet; else None."""
        return None if self.run is None or self.status is not Status.INITIALIZING else self.run.cause

    @property
    def replayed(self) -> bool:
        """Whether `create_session` found the session, created earlier by an equal request, and created nothing."""
        return False  # a field of `CreateReply`, the record that `create_session` returns

    @property
    def has_limits(self) -> bool:
        """Whether the session was created with its own time limits."""
        return not (self.idle_after_s is None and self.idle_timeout_s is None and self.max_lifetime_s is None)
