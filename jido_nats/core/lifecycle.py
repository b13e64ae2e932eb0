"""The rules of a session's lifecycle, as data, and the functions that apply them.

`create` and `transition` return the new record and its events, or raise; they have no side effects.
A record holds everything that its events contain, so `events_of` can rebuild them at any time:
that is how another manager publishes the events of a version that a dead manager had committed.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec

from jido_nats.core.events import Event, KnownEvent, SessionCreated, SessionStatus, SessionTerminated, UnknownEvent
from jido_nats.core.session import (
    DEFAULT_WORKER,
    RESTART_FEATURE,
    WORKER_FEATURE,
    Reason,
    RestartPolicy,
    Run,
    SessionRecord,
    Status,
)
from jido_nats.errors import InvalidTransition

TRANSITIONS: Final[Mapping[Status, frozenset[Status]]] = {
    Status.INITIALIZING: frozenset({Status.ACTIVE, Status.TERMINATED}),
    Status.ACTIVE: frozenset({Status.IDLE, Status.TERMINATING, Status.TERMINATED}),
    Status.IDLE: frozenset({Status.ACTIVE, Status.TERMINATING, Status.TERMINATED}),
    Status.TERMINATING: frozenset({Status.TERMINATED}),
    Status.TERMINATED: frozenset(),
}
# What a session with a restart policy may become as well: `initializing` is a new attempt, which has a cause; one that
# waits for it has no worker to stop, and may be `terminating`.
WITH_RESTART: Final[Mapping[Status, frozenset[Status]]] = {
    Status.INITIALIZING: frozenset({Status.INITIALIZING, Status.TERMINATING}),
    Status.ACTIVE: frozenset({Status.INITIALIZING}),
    Status.IDLE: frozenset({Status.INITIALIZING}),
}
# A session in a status that only newer versions know is alive.
_NEXT_OF_UNKNOWN: Final = frozenset({Status.TERMINATING, Status.TERMINATED})

# Ends that a command, a limit or a stopping manager requests pass through `terminating`; the other reasons report
# an end that has happened already.
PASSING_REASONS: Final = frozenset({Reason.REQUESTED, Reason.TIMED_OUT, Reason.MANAGER_STOPPED})
DIRECT_REASONS: Final = frozenset(Reason) - PASSING_REASONS


def create(
    session_id: str,
    *,
    owner: str,
    at: datetime,
    metadata: dict[str, Any] | None = None,
    llm_config: dict[str, Any] | None = None,
    worker: str = DEFAULT_WORKER,
    labels: dict[str, str] | None = None,
    after: int = 0,
    traceparent: str | None = None,
    idle_after_s: float | None = None,
    idle_timeout_s: float | None = None,
    max_lifetime_s: float | None = None,
    restart: RestartPolicy | None = None,
) -> tuple[SessionRecord, tuple[Event, ...]]:
    """Version 1 of a session, `initializing`, and its `session_created` event."""
    record = SessionRecord(
        session_id=session_id,
        status=Status.INITIALIZING,
        version=1,
        owner=owner,
        created_at=at,
        updated_at=at,
        metadata=metadata or {},
        llm_config=llm_config,
        worker=worker,
        labels=labels or {},
        after=after,
        traceparent=traceparent,
        idle_after_s=idle_after_s,
        idle_timeout_s=idle_timeout_s,
        max_lifetime_s=max_lifetime_s,
        needs=features_of(worker, labels or {}, restart),
        restart=restart,
        run=None if restart is None else Run(attempt=1, began_at=at),
    )
    return record, events_of(record)


def features_of(worker: str, labels: Mapping[str, str], restart: RestartPolicy | None = None) -> tuple[str, ...]:
    """What a session with this kind of worker, labels and restart policy needs; see `SessionRecord.needs`."""
    needs = {WORKER_FEATURE: worker != DEFAULT_WORKER or labels, RESTART_FEATURE: restart is not None}
    return tuple(feature for feature, needed in needs.items() if needed)


def opened(record: SessionRecord) -> tuple[SessionRecord, tuple[Event, ...]]:
    """Version 2, `active`, of a session whose version 1 is not written separately; its events are those of both."""
    assert record.version == 1, "just created"
    changed = msgspec.structs.replace(
        record, status=Status.ACTIVE, previous_status=Status.INITIALIZING, version=2, opening=True
    )
    return changed, events_of(changed)


def transition(
    record: SessionRecord,
    status: Status,
    *,
    at: datetime,
    reason: Reason | None = None,
    error: str | None = None,
    detail: str | None = None,
    forced: bool = False,
    output_incomplete: bool = False,
    owner: str | None = None,
    run: Run | None = None,
    after: int = 0,
    traceparent: str | None = None,
) -> tuple[SessionRecord, tuple[Event, ...]]:
    """The record's next version, in `status`, and its events.

    `owner`: the new owner if another manager takes over. `run`: the new attempt (see `restarts.next_run`) if the
    status is `initializing`. `updated_at` never goes backwards within a session.
    Raises `InvalidTransition` if the table does not allow it, or the reason does not fit the transition.
    """
    _check(record, status, reason, run)
    if status is Status.ACTIVE and record.status is Status.INITIALIZING and record.run is not None:
        run = msgspec.structs.replace(record.run, began_at=max(at, record.updated_at), cause=None, not_before=None)
    changed = msgspec.structs.replace(
        record,
        status=status,
        previous_status=record.status,
        version=record.version + 1,
        owner=owner or record.owner,
        updated_at=max(at, record.updated_at),
        reason=record.reason or reason,
        error=error if status in (Status.ACTIVE, Status.IDLE) else error or record.error,
        run=run or record.run,
        detail=record.detail or detail,
        forced=forced,
        output_incomplete=output_incomplete,
        opening=False,
        after=max(after, record.after),
        traceparent=traceparent,
    )
    return changed, events_of(changed)


def events_of(record: SessionRecord) -> tuple[Event, ...]:
    """The events of the record's version, in the order in which they are published."""
    if record.previous_status is None:
        return (created_event(record),)
    changed = SessionStatus(
        session_id=record.session_id,
        version=record.version,
        status=record.status,
        previous_status=record.previous_status,
        updated_at=record.updated_at,
        worker=record.worker,
        reason=record.reason,
        error=record.error,
        detail=record.detail,
        forced=record.forced,
        output_incomplete=record.output_incomplete,
        attempt=record.attempt,
        cause=record.cause,
    )
    if record.opening:
        return (created_event(record), changed)
    if record.status is not Status.TERMINATED:
        return (changed,)
    return (changed, ended_event(changed))


def step_of(record: SessionRecord) -> list[SessionStatus]:
    """The `session_status` events of the record's version: one, or none for version 1."""
    return [event for event in events_of(record) if isinstance(event, SessionStatus)]


def after_event(record: SessionRecord, event: Event) -> SessionRecord:
    """The record as it was right after `event`; fields that events lack (`owner`, …) are those of `record`."""
    if isinstance(event, UnknownEvent):  # what it changed is not known here, except that it is a version
        return msgspec.structs.replace(record, version=event.version, sealed=False, opening=False)
    if isinstance(event, SessionCreated):
        return msgspec.structs.replace(
            record,
            status=Status.INITIALIZING,
            version=event.version,
            previous_status=None,
            run=None if record.run is None else Run(attempt=1, began_at=event.created_at),
            updated_at=event.created_at,
            reason=None,
            error=None,
            detail=None,
            forced=False,
            output_incomplete=False,
            sealed=False,
            opening=False,
        )
    changes = (
        {"status": Status.TERMINATED}
        if isinstance(event, SessionTerminated)
        else {
            "status": event.status,
            "previous_status": event.previous_status,
        }
    )
    return msgspec.structs.replace(
        record,
        run=_run_after(record.run, event),
        version=event.version,
        updated_at=event.updated_at,
        reason=event.reason,
        error=event.error,
        detail=event.detail,
        forced=event.forced,
        output_incomplete=event.output_incomplete,
        sealed=False,
        opening=False,
        **changes,
    )


def _run_after(run: Run | None, event: SessionStatus | SessionTerminated) -> Run | None:
    """The run as it was right after `event`, as far as events describe it: its attempt, and the cause of a new one."""
    if event.attempt is None:
        return run
    if run is None or event.attempt != run.attempt:
        run = Run(attempt=event.attempt, began_at=event.updated_at)
    match event:
        case SessionStatus(status=Status.INITIALIZING):
            return msgspec.structs.replace(run, cause=event.cause)
        case SessionStatus(status=Status.ACTIVE, previous_status=Status.INITIALIZING):
            return msgspec.structs.replace(run, began_at=event.updated_at, cause=None, not_before=None)
    return run


def rebuilt(session_id: str, events: Sequence[KnownEvent], *, owner: str) -> SessionRecord | None:
    """The record of a session as its events describe it, for one that was lost; None without any event.

    What events do not carry is lost: its `llm_config`, its time limits and its restart policy.
    """
    if not events:
        return None
    first = events[0]
    at = first.created_at if isinstance(first, SessionCreated) else first.updated_at
    created = first if isinstance(first, SessionCreated) else None
    record, _ = create(
        session_id,
        owner=owner,
        at=at,
        metadata=created.metadata if created else {},
        worker=first.worker,
        labels=created.labels if created else {},
    )
    for event in events:
        record = after_event(record, event)
    return record


def ended_event(status: SessionStatus) -> SessionTerminated:
    """The `session_terminated` that follows a session's last `session_status`."""
    assert status.status is Status.TERMINATED and status.reason is not None, "an end has a reason"
    return SessionTerminated(
        session_id=status.session_id,
        version=status.version,
        updated_at=status.updated_at,
        worker=status.worker,
        reason=status.reason,
        error=status.error,
        detail=status.detail,
        forced=status.forced,
        output_incomplete=status.output_incomplete,
        attempt=status.attempt,
    )


def created_event(record: SessionRecord) -> SessionCreated:
    """The `session_created` of a session, from any of its versions."""
    return SessionCreated(
        session_id=record.session_id,
        version=1,
        created_at=record.created_at,
        metadata=record.metadata,
        worker=record.worker,
        labels=record.labels,
    )


def history(
    created: SessionCreated | None, steps: Sequence[SessionStatus], *, after: int, limit: int
) -> tuple[list[KnownEvent], int | None]:
    """(events, next) of the versions after `after`: whole versions, about `limit` events; `next` if there are more."""
    versions: list[list[KnownEvent]] = [[created]] if created is not None else []
    versions += [[s, ended_event(s)] if s.status is Status.TERMINATED else [s] for s in steps]
    wanted = [events for events in versions if events[0].version > after]
    found: list[KnownEvent] = []
    for events in wanted:
        if found and len(found) + len(events) > limit:
            return found, found[-1].version
        found += events
    return found, None


def diagram() -> str:
    """The table as a Mermaid state diagram, for the README."""
    lines = ["stateDiagram-v2", "    [*] --> initializing"]
    lines += [f"    {source} --> {target}" for source in Status for target in Status if target in TRANSITIONS[source]]
    lines += [
        f"    {source} --> {target}: with a restart policy"
        for source in Status
        for target in Status
        if target in WITH_RESTART.get(source, frozenset())
    ]
    return "\n".join([*lines, "    terminated --> [*]"])


def _check(record: SessionRecord, status: Status, reason: Reason | None, run: Run | None) -> None:
    def refuse(why: str) -> InvalidTransition:
        return InvalidTransition(why, session_id=record.session_id)

    following = TRANSITIONS.get(record.status, _NEXT_OF_UNKNOWN)
    if record.restart is not None:
        following |= WITH_RESTART.get(record.status, frozenset())
    if status not in following:
        allowed = " or ".join(sorted(following)) or "nothing"
        raise refuse(f"a session that is {record.status} cannot become {status}, only {allowed}")
    if status is Status.INITIALIZING and (run is None or run.cause is None):
        raise refuse("a new attempt has a cause")
    if status is Status.INITIALIZING and run is not None and run.attempt != (wanted := (record.attempt or 0) + 1):
        raise refuse(f"the next attempt is number {wanted}, not {run.attempt}")
    if status is not Status.INITIALIZING and run is not None:
        raise refuse(f"a session that becomes {status} begins no attempt")
    if status is Status.TERMINATING and reason not in PASSING_REASONS:
        raise refuse(f"the reason for terminating must be {_either(PASSING_REASONS)}, not {reason}")
    if status is Status.TERMINATED and record.status is not Status.TERMINATING and reason not in DIRECT_REASONS:
        raise refuse(
            f"the reason for going from {record.status} to terminated must be {_either(DIRECT_REASONS)}, not {reason}"
        )
    if status in (Status.INITIALIZING, Status.ACTIVE, Status.IDLE) and reason is not None:
        raise refuse(f"a session that becomes {status} is not ending, so it must have no reason")


def _either(reasons: frozenset[Reason]) -> str:
    return " or ".join(sorted(reasons))
