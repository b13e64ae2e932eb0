"""The dashboard's state, in memory: sessions, managers, rates, and the last events, encoded for sending.

Nothing here awaits. `EventFeed` writes it from NATS; requests and streams read it.
"""

from collections import deque
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import msgspec

from jido_nats.client.watch import ManagerLease, SessionChanged, SnapshotComplete
from jido_nats.core import codec
from jido_nats.core.events import Event, SessionCreated, SessionTerminated, UnknownEvent
from jido_nats.core.session import Reason, SessionRecord, Status

EVENTS_MAX: Final = 10_000
ENDED_MAX: Final = 5_000
RATES_S: Final = 300
CHUNK_BYTES_MAX: Final = 256 * 1024
FAILURES: Final = frozenset({Reason.CRASHED, Reason.START_FAILED, Reason.OWNER_LOST})

# A session's metadata may be 32 KiB; a row of the table shows and searches only this much of it.
ROW_PAIRS_MAX: Final = 20
ROW_TEXT_MAX: Final = 200


class Chunk(NamedTuple):
    """Encoded events, and the sequence of the last one."""

    data: bytes
    position: int


class DashboardState:
    """The sessions as of `position` in the event stream, and the events after `events_after`, ready to send."""

    def __init__(self, *, events_max: int = EVENTS_MAX) -> None:
        self._events_max = events_max
        self.loaded = False
        self.generation = 0
        self.position = 0
        self.position_token = ""  # of a position in a stream, no secret  # nosec B105
        self.events_after = 0
        self.sessions: dict[str, SessionRecord] = {}
        self.managers: dict[str, ManagerLease] = {}
        self.rates = Rates()
        self._ended: deque[str] = deque()
        self._events: deque[tuple[int, bytes]] = deque()

    def restart(self, records: Iterable[SessionRecord], complete: SnapshotComplete) -> None:
        """Start over from a snapshot; every open stream is sent a `reset`."""
        self.generation += 1
        self.loaded = True
        self.position = self.events_after = complete.position
        self.position_token = complete.position_token
        self.sessions = {record.session_id: record for record in records}
        ended = [record for record in self.sessions.values() if record.status is Status.TERMINATED]
        self._ended = deque(record.session_id for record in sorted(ended, key=lambda record: record.updated_at))
        self._events.clear()
        self.rates = Rates()
        self._forget()

    def apply(self, change: SessionChanged) -> None:
        """Apply one event; events arrive in sequence order."""
        event, record, self.position, self.position_token = change
        known = self.sessions.get(event.session_id)
        if known is None or event.version > known.version:
            self.sessions[event.session_id] = record
        if isinstance(event, SessionTerminated):
            self._ended.append(event.session_id)
            self._forget()
        self.rates.count(event)
        self._events.append((change.position, change_message(change.position_token, event, record.owner)))
        if len(self._events) > self._events_max:
            self.events_after = self._events.popleft()[0]

    def after(self, position: int) -> Chunk | None:
        """The events after `position`, or the first of them if there are many; None if they are no longer in memory."""
        if position < self.events_after:
            return None
        wanted: list[tuple[int, bytes]] = []
        for sequence, data in reversed(self._events):
            if sequence <= position:
                break
            wanted.append((sequence, data))
        size, taken = 0, []
        for sequence, data in reversed(wanted):
            taken.append(data)
            position, size = sequence, size + len(data)
            if size > CHUNK_BYTES_MAX:
                break
        return Chunk(b"".join(taken), position)

    def snapshot(self) -> dict[str, Any]:
        """Everything that the page starts with; changes after `position` follow."""
        return {
            "generation": self.generation,
            "position": self.position,
            "position_token": self.position_token,
            "now": datetime.now(UTC),
            "sessions": [row(record) for record in self.sessions.values()],
            "managers": self.manager_rows(),
            "rates": self.rates.rows(),
        }

    def manager_rows(self) -> list[dict[str, Any]]:
        """The managers, the longest running first."""
        leases = sorted(self.managers.values(), key=lambda lease: lease.info.started_at)
        return [
            {**msgspec.structs.asdict(lease.info), "renewed_at": lease.renewed_at, "lease_s": lease.lease_s}
            for lease in leases
        ]

    def _forget(self) -> None:
        while len(self._ended) > ENDED_MAX:
            self.sessions.pop(self._ended.popleft(), None)


class Rates:
    """The number of events, and of failures among them, in each of the last seconds."""

    def __init__(self) -> None:
        self._seconds: dict[int, list[int]] = {}

    def count(self, event: Event) -> None:
        """Count one event, in the second in which it happened; an event of an unknown type does not say when."""
        if isinstance(event, UnknownEvent):
            return
        at = event.created_at if isinstance(event, SessionCreated) else event.updated_at
        second = int(at.timestamp())
        if second not in self._seconds:
            self._forget()
        counts = self._seconds.setdefault(second, [0, 0])
        counts[0] += 1
        counts[1] += isinstance(event, SessionTerminated) and event.reason in FAILURES

    def rows(self) -> list[list[int]]:
        """[Unix time in seconds, events, failures] for each second that had events."""
        self._forget()
        return [[second, *counts] for second, counts in sorted(self._seconds.items())]

    def _forget(self) -> None:
        oldest = int(datetime.now(UTC).timestamp()) - RATES_S
        self._seconds = {second: counts for second, counts in self._seconds.items() if second >= oldest}


def row(record: SessionRecord) -> list[Any]:
    """A session as a row of the table."""
    return [
        record.session_id,
        record.status,
        record.version,
        record.owner,
        record.created_at,
        record.updated_at,
        brief(record.metadata),
        record.reason,
        record.error and record.error[:ROW_TEXT_MAX],
        record.worker,
        record.attempt,
        record.cause,
    ]


def brief(metadata: dict[str, Any]) -> dict[str, str]:
    """Metadata as a row shows it: strings, truncated if long."""
    return {key[:ROW_TEXT_MAX]: _text(value) for key, value in list(metadata.items())[:ROW_PAIRS_MAX]}


def change_message(position_token: str, event: Event, owner: str) -> bytes:
    """One event, encoded; its `id` is the `position_token` from which to resume after it."""
    if isinstance(event, SessionCreated):
        event = msgspec.structs.replace(event, metadata=dict(brief(event.metadata)))
    return message("change", {"event": event, "owner": owner}, position_token)


def message(name: str, data: object, position_token: str | None = None) -> bytes:
    """A Server-Sent Event (WHATWG HTML, section 9.2); without a position the browser keeps its last id."""
    head = b"" if position_token is None else b"id: %s\n" % position_token.encode()
    return b"%sevent: %s\ndata: %s\n\n" % (head, name.encode(), codec.encode(data))


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else codec.encode(value).decode()
    return text if len(text) <= ROW_TEXT_MAX else f"{text[: ROW_TEXT_MAX - 1]}…"
