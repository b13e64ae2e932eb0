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
