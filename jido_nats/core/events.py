"""The events, a union tagged by `type`. The tags are the contract; fields may be added, with defaults."""

from datetime import datetime
from typing import Any

import msgspec

from jido_nats.core.session import DEFAULT_WORKER, Cause, Reason, Status


class SessionCreated(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="session_created"):
    """A session was created; always version 1. `worker`, `labels`: see `SessionRecord`."""

    session_id: str
    version: int
    created_at: datetime
    metadata: dict[str, Any]
    worker: str = DEFAULT_WORKER
    labels: dict[str, str] = {}


class SessionStatus(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="session_status"):
    """A session went from `previous_status` to `status`; `reason` and `error` are set if it is ending.

    `attempt`: which run of its worker this is, for a session with a restart policy; `cause` (and `error`) if this is
    the beginning of a new one. `worker`, `output_incomplete`: see `SessionRecord`.
    """

    session_id: str
    version: int
    status: Status
    previous_status: Status
    updated_at: datetime
    worker: str = DEFAULT_WORKER
    reason: Reason | None = None
    error: str | None = None
    detail: str | None = None
    forced: bool = False
    output_incomplete: bool = False
    attempt: int | None = None
    cause: Cause | None = None


class SessionTerminated(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="session_terminated"):
    """A session has ended; published after the `session_status` of the same version.

    `attempt`: see `SessionStatus`. `worker`, `output_incomplete`: see `SessionRecord`.
    """

    session_id: str
    version: int
    updated_at: datetime
    reason: Reason
    worker: str = DEFAULT_WORKER
    error: str | None = None
    detail: str | None = None
    forced: bool = False
    output_incomplete: bool = False
    attempt: int | None = None


KnownEvent = SessionCreated | SessionStatus | SessionTerminated
"""The events that this version publishes."""


class UnknownEvent(msgspec.Struct, frozen=True, kw_only=True, rename={"event_type": "type"}):
    """An event of a type that only newer versions know: what every event has. It counts as its version."""

    event_type: str
    session_id: str
    version: int


Event = KnownEvent | UnknownEvent
"""What a reader gets."""


def event_type(event: Event) -> str:
    """The value of `type` on the wire, such as `session_status`."""
    return event.event_type if isinstance(event, UnknownEvent) else str(type(event).__struct_config__.tag)
