"""What a session is: its status, why it ended, and its record."""

from datetime import datetime
from enum import StrEnum
from typing import Any

import msgspec


class Status(StrEnum):
    """Where a session stands; `lifecycle.TRANSITIONS` says what may follow."""

    INITIALIZING = "initializing"
    ACTIVE = "active"
    IDLE = "idle"
    TERMINATING = "terminating"
    TERMINATED = "terminated"


class Reason(StrEnum):
    """Why a session ends."""

    REQUESTED = "requested"
    TIMED_OUT = "timed_out"
    MANAGER_STOPPED = "manager_stopped"
    COMPLETED = "completed"
    CRASHED = "crashed"
    START_FAILED = "start_failed"
    OWNER_LOST = "owner_lost"


class SessionRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """The whole value of a session, as `JIDO_SESSIONS` holds it.

    `version` starts at 1 and grows by one with every transition. `owner` is the id of the manager that
    runs the session. `after` is a sequence of the event stream that was acknowledged before this version
    was committed, so every event of this version lies behind it. `sealed` says that all events are stored
    and nothing will change any more. Times are UTC.
    `opening` says that this version is the first that was written, so that `session_created` is among its events.
    The time limits are those that the session was created with (seconds, 0: none), None where the manager's hold.
    `traceparent` (W3C Trace Context) is that of the command which caused this version, None where it had none.
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
    reason: Reason | None = None
    error: str | None = None
    detail: str | None = None
    forced: bool = False
    after: int = 0
    sealed: bool = False
    opening: bool = False
    idle_after_s: float | None = None
    idle_timeout_s: float | None = None
    max_lifetime_s: float | None = None
    traceparent: str | None = None

    @property
    def has_limits(self) -> bool:
        """Whether it was created with time limits of its own."""
        return not (self.idle_after_s is None and self.idle_timeout_s is None and self.max_lifetime_s is None)
