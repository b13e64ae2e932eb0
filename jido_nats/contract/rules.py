"""The rules that one session's events must follow, as a reader sees them. Pure."""

from collections.abc import Iterator
from datetime import datetime
from typing import Final

import msgspec

from jido_nats.core import subjects
from jido_nats.core.events import (
    Event,
    KnownEvent,
    SessionCreated,
    SessionStatus,
    SessionTerminated,
    UnknownEvent,
    event_type,
)
from jido_nats.core.lifecycle import DIRECT_REASONS, PASSING_REASONS, TRANSITIONS, WITH_RESTART, ended_event
from jido_nats.core.session import Cause, Reason, Status

_FAILURES: Final = frozenset({Reason.CRASHED, Reason.START_FAILED, Reason.OWNER_LOST})
_FAILURE_CAUSES: Final = frozenset({Cause.CRASHED, Cause.START_FAILED, Cause.OWNER_LOST})


class Finding(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One violation, or note: the rule, the place, and what is wrong."""

    rule: str
    message: str
    line: int | None = None
    sequence: int | None = None
    session_id: str | None = None
    note: bool = False

    def __str__(self) -> str:
        places = [f"line {self.line}"] if self.line else []
        places += [f"sequence {self.sequence}"] if self.sequence else []
        about = f" session {self.session_id}:" if self.session_id else ""
        return f"{', '.join(places) or 'at the end'}: {self.rule}:{about} {self.message}"


class Place(msgspec.Struct, frozen=True):
    """Where a row comes from; `sequence` is 0 if it was recorded from a plain subscription."""

    line: int | None
    sequence: int

    def finding(self, rule: str, message: str, session_id: str | None = None, *, note: bool = False) -> Finding:
        """A finding at this place."""
        return Finding(
            rule=rule,
            message=message,
            line=self.line,
            sequence=self.sequence or None,
            session_id=session_id,
            note=note,
        )


class Life:
    """One session's events on `jido.client.events`."""

    def __init__(self, partial: bool) -> None:
        self._partial = partial
        self._seen: set[tuple[int, str]] = set()
        self._last: Event | None = None
        self._attempts = _Attempts(partial)
        self.statuses: dict[int, tuple[SessionStatus, Place]] = {}

    def check(self, event: Event, place: Place) -> Iterator[Finding]:
        """Check the next event."""
        last, name = self._last, (event.version, event_type(event))
        if name in self._seen:
            yield place.finding("repeated", f"version {name[0]} {name[1]} was published already", event.session_id)
            return
        self._seen.add(name)
        for rule, message in self._check(event, last):
            yield place.finding(rule, message, event.session_id)
        if isinstance(event, SessionStatus):
            for rule, message in self._attempts.check(event):
                yield place.finding(rule, message, event.session_id)
            self.statuses[event.version] = event, place
        if last is None or event.version >= last.version:
            self._last = event

    def lose_track(self) -> None:
        """Go on from the next event, whatever it is."""
        self._last, self._partial = None, True

    def missing(self) -> Iterator[Finding]:
        """Report an end without its `session_terminated`."""
        last = self._last
        if last is not None and _is_end(last):
            _, place = self.statuses[last.version]
            yield place.finding("end", "no session_terminated follows the end", last.session_id)

    def _check(self, event: Event, last: Event | None) -> Iterator[tuple[str, str]]:
        if last is None:
            if not isinstance(event, UnknownEvent):
                yield from _check_first(event, self._partial)
            return
        if event.version < last.version:
            yield "order", f"version {event.version} {event_type(event)} comes after version {last.version}"
            return
        if isinstance(last, SessionTerminated):
            yield "after_end", f"version {event.version} {event_type(event)} comes after session_terminated"
            return
        if isinstance(event, SessionTerminated):
            if not isinstance(last, UnknownEvent):
                yield from _check_end(event, last)
        elif isinstance(event, UnknownEvent) or isinstance(last, UnknownEvent):
            yield from _check_version(event, last)
        elif _is_end(last):
            yield (
                "after_end",
                f"version {event.version} {event_type(event)} comes after the end, version {last.version}",
            )
        else:
            yield from _check_next(event, last)


class Copies:
    """One session's events on its own subject: copies of its `session_status` events."""

    def __init__(self, partial: bool) -> None:
        self._partial = partial
        self._last: SessionStatus | UnknownEvent | None = None
        self._attempts = _Attempts(partial)
        self._seen: set[int] = set()
        self._first = 0

    def check(self, event: SessionStatus | UnknownEvent, place: Place, life: Life | None) -> Iterator[Finding]:
        """Check the next copy; `life`: the session's events on `jido.client.events`, if they were recorded."""
        last = self._last
        if event.version in self._seen:
            yield place.finding(
                "repeated", f"version {event.version} was published already on {_own(event)}", event.session_id
            )
            return
        self._seen.add(event.version)
        for rule, message in self._check(event, last):
            yield place.finding(rule, f"{message} (on {_own(event)})", event.session_id)
        if isinstance(event, SessionStatus):
            for rule, message in self._attempts.check(event):
                yield place.finding(rule, f"{message} (on {_own(event)})", event.session_id)
        if life is not None and isinstance(event, SessionStatus):
            yield from _check_copy(event, place, life, self._partial)
        self._first = self._first or event.version
        if last is None or event.version > last.version:
            self._last = event

    def lose_track(self) -> None:
        """Go on from the next event, whatever it is."""
        self._last, self._partial, self._first = None, True, 0

    def missing(self, life: Life) -> Iterator[Finding]:
        """Report events that have no copy."""
        for version, (event, place) in life.statuses.items():
            if self._first and version >= self._first and version not in self._seen:
                yield place.finding("copy", f"version {version} has no copy on {_own(event)}", event.session_id)

    def _check(
        self, event: SessionStatus | UnknownEvent, last: SessionStatus | UnknownEvent | None
    ) -> Iterator[tuple[str, str]]:
        if last is None:
            if isinstance(event, SessionStatus):
                if event.version != 2 and not self._partial:
                    yield "first", f"it begins with version {event.version}, not 2; --partial allows that"
                yield from _check_legal(event)
        elif event.version < last.version:
            yield "order", f"version {event.version} comes after version {last.version}"
        elif isinstance(event, UnknownEvent) or isinstance(last, UnknownEvent):
            yield from _check_version(event, last)
        elif last.status is Status.TERMINATED:
            yield "after_end", f"version {event.version} comes after the end"
        else:
            yield from _check_next(event, last)


class _Attempts:
    """Which attempt one session is in, as its `session_status` events say."""

    def __init__(self, partial: bool) -> None:
        # Version 1, of which `session_created` says nothing, is the first attempt, if the session has any.
        self._last: SessionStatus | None = None
        self._version = 0 if partial else 1

    def check(self, event: SessionStatus) -> Iterator[tuple[str, str]]:
        """Check the next `session_status`; one that is not the next version is only compared."""
        follows = event.version == self._version + 1
        if event.version <= self._version:
            return  # reported already
        last, self._last, self._version = self._last, event, event.version
        before = last.attempt if last is not None else event.attempt and 1
        if event.attempt is None or before is None:
            if event.attempt != before:
                yield (
                    "attempt",
                    f"version {event.version} has {_attempt(event.attempt)}, but earlier ones have {_attempt(before)}",
                )
        elif event.attempt < before:
            yield "attempt", f"version {event.version} is attempt {event.attempt}, after attempt {before}"
        elif follows and event.attempt != (wanted := before + (event.status is Status.INITIALIZING)):
            yield (
                "attempt",
                f"version {event.version}: {_change(event)} is attempt {event.attempt}, but should be {wanted}",
            )


def _check_first(event: KnownEvent, partial: bool) -> Iterator[tuple[str, str]]:
    if isinstance(event, SessionCreated):
        if event.version != 1:
            yield "version", f"session_created is version {event.version}, not 1"
        return
    if not partial:
        begin = f"version {event.version} {event_type(event)}"
        yield "first", f"it begins with {begin}, not with version 1 session_created; --partial allows that"
    if isinstance(event, SessionStatus):
        yield from _check_legal(event)


def _check_next(
    event: SessionCreated | SessionStatus, last: SessionCreated | SessionStatus
) -> Iterator[tuple[str, str]]:
    """Check the event after `last`, which did not end the session."""
    if isinstance(event, SessionCreated):
        yield "order", f"version {event.version} session_created comes after version {last.version}"
        return
    if event.version == last.version:
        yield "version", f"version {event.version} is used for two changes: {_change(last)} and {_change(event)}"
    elif event.version > last.version + 1:
        yield from _check_version(event, last)
    elif event.previous_status != (status := _status(last)):
        yield (
            "transition",
            f"version {event.version} has previous_status {event.previous_status}, but the session was {status}",
        )
    if _time(event) < _time(last):
        yield "time", f"version {event.version} is older than version {last.version}: {_time(event)} < {_time(last)}"
    yield from _check_legal(event)
    if isinstance(last, SessionStatus) and last.reason is not None and event.reason != last.reason:
        yield (
            "reason",
            f"the reason {last.reason} became {event.reason} in version {event.version}; it must not change",
        )


def _check_version(event: Event, last: Event) -> Iterator[tuple[str, str]]:
    """Check that no version is missing before the event. An event of an unknown type counts as its version."""
    if event.version > last.version + 1:
        first, until = last.version + 1, event.version - 1
        missing = f"{first}" if first == until else f"{first} to {until}"
        yield "gap", f"version {event.version} comes after version {last.version}: {missing} missing"


def _check_legal(event: SessionStatus) -> Iterator[tuple[str, str]]:
    """Check one transition against the lifecycle's table; what newer versions have added is not judged."""
    if not all(value is None or value.is_known for value in (event.status, event.previous_status, event.reason)):
        return
    step = f"version {event.version}: {_change(event)}"
    following = TRANSITIONS[event.previous_status]
    if event.attempt is not None:
        following |= WITH_RESTART.get(event.previous_status, frozenset())
    if event.status not in following:
        allowed = " or ".join(sorted(following)) or "nothing"
        yield "transition", f"{step} is not allowed, only {allowed}"
    elif event.status is Status.INITIALIZING and event.cause is None:
        yield "attempt", f"{step} is a new attempt without a cause"
    elif event.status is not Status.INITIALIZING and event.cause is not None:
        yield "attempt", f"{step} has the cause {event.cause}, but is no new attempt"
    elif event.status is Status.TERMINATING and event.reason not in PASSING_REASONS:
        yield "reason", f"{step} has the reason {event.reason}, not {_either(PASSING_REASONS)}"
    elif event.status is Status.TERMINATED and event.reason not in _ending_reasons(event):
        yield "reason", f"{step} has the reason {event.reason}, not {_either(_ending_reasons(event))}"
    elif event.status in (Status.INITIALIZING, Status.ACTIVE, Status.IDLE) and event.reason is not None:
        yield "reason", f"{step} has the reason {event.reason}, but the session is not ending"
    elif event.status in (Status.ACTIVE, Status.IDLE) and event.error is not None:
        yield "error", f"{step} has an error, but the session runs"
    if event.reason in _FAILURES and not event.error:
        yield "field_missing", f"{step}: the reason {event.reason} requires the field error"
    if event.cause in _FAILURE_CAUSES and not event.error:
        yield "field_missing", f"{step}: the cause {event.cause} requires the field error"


def _ending_reasons(event: SessionStatus) -> frozenset[Reason]:
    # A session that was terminating when its owner was lost keeps its first reason.
    return PASSING_REASONS if event.previous_status is Status.TERMINATING else DIRECT_REASONS


def _check_end(event: SessionTerminated, last: SessionCreated | SessionStatus) -> Iterator[tuple[str, str]]:
    """An end has two events: `session_status` with `terminated`, then `session_terminated` of the same version."""
    if not isinstance(last, SessionStatus) or not _is_end(last):
        yield "end", f"version {event.version} session_terminated does not follow a session_status with terminated"
        return
    if last.reason is not None and event != (wanted := ended_event(last)):
        differ = [name for name in event.__struct_fields__ if getattr(event, name) != getattr(wanted, name)]
        yield (
            "end",
            f"version {event.version} session_terminated differs from its session_status in {', '.join(differ)}",
        )


def _check_copy(event: SessionStatus, place: Place, life: Life, partial: bool) -> Iterator[Finding]:
    original, first = life.statuses.get(event.version, (None, place))
    if original is None:
        if not partial:
            message = f"version {event.version} is on {_own(event)} and was not on {subjects.EVENTS} before it"
            yield place.finding("copy", message, event.session_id)
    elif original != event:
        differ = [name for name in event.__struct_fields__ if getattr(event, name) != getattr(original, name)]
        message = f"version {event.version} differs in {', '.join(differ)} from the one on {subjects.EVENTS}"
        yield place.finding("copy", message, event.session_id)
    elif 0 < place.sequence < first.sequence:
        message = f"the copy of version {event.version} is stored before the one on {subjects.EVENTS}"
        yield place.finding("copy", message, event.session_id)


def _is_end(event: Event) -> bool:
    return isinstance(event, SessionStatus) and event.status is Status.TERMINATED


def _status(event: SessionCreated | SessionStatus) -> Status:
    return Status.INITIALIZING if isinstance(event, SessionCreated) else event.status


def _time(event: SessionCreated | SessionStatus) -> datetime:
    return event.created_at if isinstance(event, SessionCreated) else event.updated_at


def _change(event: SessionCreated | SessionStatus) -> str:
    return "created" if isinstance(event, SessionCreated) else f"{event.previous_status} → {event.status}"


def _attempt(attempt: int | None) -> str:
    return "no attempt" if attempt is None else f"attempt {attempt}"


def _own(event: SessionStatus | UnknownEvent) -> str:
    return subjects.session(event.session_id)


def _either(reasons: frozenset[Reason]) -> str:
    return " or ".join(sorted(reasons))
