"""The data of a live view of sessions, as of the last message of a watch; pure, and cheap at a thousand a second.

The rows are kept sorted as they change (one bisection each), so a frame costs only as much as is visible.
"""

import bisect
import copy
import itertools
from collections import Counter, deque
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Any, Final, Self

from jido_nats.cli.escape import printable
from jido_nats.client.watch import SessionChanged, SnapshotComplete, Watched, WatchedSession
from jido_nats.core import codec
from jido_nats.core.events import Event, SessionTerminated
from jido_nats.core.session import DEFAULT_WORKER, SessionRecord, Status

# How long ended sessions are still shown, and how many at most.
ENDED_SHOWN_S: Final = 5.0
ENDED_MAX: Final = 10_000
EVENTS_MAX: Final = 100
RATE_OVER_S: Final = 5
HISTORY_S: Final = 60


class Order(StrEnum):
    """What the rows are sorted by."""

    ID = "id"
    STATUS = "status"
    SINCE = "since"


_RANKS: Final = {status: rank for rank, status in enumerate(Status)}
_KEYS: Final[dict[Order, Callable[[SessionRecord], tuple[Any, ...]]]] = {
    Order.ID: lambda record: (record.session_id,),
    Order.STATUS: lambda record: (_RANKS.get(record.status, len(_RANKS)), record.session_id),
    Order.SINCE: lambda record: (record.updated_at, record.session_id),
}


class Rate:
    """How many things happened in each of the last seconds; times are of any monotonic clock."""

    def __init__(self) -> None:
        self._seconds: deque[tuple[int, int]] = deque(maxlen=HISTORY_S + 1)
        self._since: int | None = None

    def count(self, now: float) -> None:
        """One more."""
        second = int(now)
        self._since = second if self._since is None else self._since
        number = self._seconds.pop()[1] if self._seconds and self._seconds[-1][0] == second else 0
        self._seconds.append((second, number + 1))

    def history(self, now: float, seconds: int) -> list[int]:
        """How many in each of the last whole seconds, the oldest first."""
        counted = dict(self._seconds)
        return [counted.get(second, 0) for second in range(int(now) - seconds, int(now))]

    def per_second(self, now: float) -> float:
        """The mean over the last whole seconds, or over those since the first event if they are fewer."""
        known = RATE_OVER_S if self._since is None else int(now) - self._since
        seconds = max(1, min(RATE_OVER_S, known))
        return sum(self.history(now, seconds)) / seconds

    def copy(self) -> "Rate":
        """A snapshot of the counts."""
        copied = Rate()
        copied._seconds, copied._since = self._seconds.copy(), self._since
        return copied


class SessionTable:
    """The sessions and the last events. `status`: the watch is limited to sessions in this status."""

    def __init__(self, status: Status | None = None) -> None:
        self._status = status
        self._rows: dict[str, SessionRecord] = {}
        self._sorted: list[tuple[Any, ...]] = []
        self._unconfirmed: set[str] = set()
        self._ended: deque[tuple[float, str]] = deque()
        self.counts: Counter[Status] = Counter()
        self.events: deque[Event] = deque(maxlen=EVENTS_MAX)
        self.events_taken = 0
        self.rate = Rate()
        self.order = Order.ID
        self.backwards = False
        self.search = ""
        self.complete = False
        self.position = 0
        self.ended = 0
        self.widest_id = 0

    def __len__(self) -> int:
        """How many sessions there are, regardless of the search."""
        return len(self._rows)

    @property
    def found(self) -> int:
        """How many sessions match the search."""
        return len(self._sorted)

    def begin(self) -> None:
        """A new snapshot follows; sessions that it does not contain are removed when it is complete."""
        self._unconfirmed = set(self._rows)
        self.complete = False

    def take(self, message: Watched, now: float) -> None:
        """Apply the next message of the watch; `now`: seconds of a monotonic clock."""
        match message:
            case WatchedSession(record):
                self._unconfirmed.discard(record.session_id)
                self._put(record)
            case SnapshotComplete(position):
                for session_id in self._unconfirmed:
                    self._remove(session_id)
                self._unconfirmed = set()
                self.complete, self.position = True, position
            case SessionChanged(event, record, position):
                self.complete, self.position = True, position
                self._change(event, record, now)

    def drop_ended(self, now: float) -> None:
        """Remove the sessions whose end was long enough ago."""
        while self._ended and (self._ended[0][0] <= now or len(self._ended) > ENDED_MAX):
            _, session_id = self._ended.popleft()
            row = self._rows.get(session_id)
            if row is not None and row.status is Status.TERMINATED:
                self._remove(session_id)

    def rows(self, first: int, number: int) -> list[SessionRecord]:
        """The rows from index `first` (0-based), in order."""
        if self.backwards:
            chosen = list(itertools.islice(reversed(self._sorted), first, first + number))
        else:
            chosen = self._sorted[first : first + number]
        return [self._rows[key[-1]] for key in chosen]

    def sort_by(self, order: Order) -> None:
        """Sort by this; the same again reverses the order. By `since`, the last change comes first."""
        self.backwards = not self.backwards if order is self.order else order is Order.SINCE
        self.order = order
        self._arrange()

    def find(self, text: str) -> None:
        """Show only the rows with this text in their id or metadata, ignoring case; all rows if it is empty."""
        self.search = text.casefold()
        self._arrange()

    def copy(self) -> Self:
        """A snapshot that later messages do not change."""
        copied = copy.copy(self)
        copied._rows, copied._sorted = self._rows.copy(), self._sorted.copy()
        copied._unconfirmed, copied._ended = self._unconfirmed.copy(), self._ended.copy()
        copied.counts, copied.events, copied.rate = self.counts.copy(), self.events.copy(), self.rate.copy()
        return copied

    def _change(self, event: Event, record: SessionRecord, now: float) -> None:
        self.events.append(event)
        self.events_taken += 1
        self.rate.count(now)
        if isinstance(event, SessionTerminated):
            self.ended += 1
            shown_s = float("inf") if self._status is Status.TERMINATED else ENDED_SHOWN_S
            self._ended.append((now + shown_s, record.session_id))
        if self._status in (None, record.status):
            self._put(record)
        else:
            self._remove(record.session_id)

    def _put(self, record: SessionRecord) -> None:
        self._remove(record.session_id)
        self._rows[record.session_id] = record
        self.counts[record.status] += 1
        self.widest_id = max(self.widest_id, len(record.session_id))
        if self._is_found(record):
            bisect.insort(self._sorted, _KEYS[self.order](record))

    def _remove(self, session_id: str) -> None:
        record = self._rows.pop(session_id, None)
        if record is None:
            return
        self.counts[record.status] -= 1
        key = _KEYS[self.order](record)
        place = bisect.bisect_left(self._sorted, key)
        if place < len(self._sorted) and self._sorted[place] == key:
            del self._sorted[place]

    def _arrange(self) -> None:
        key = _KEYS[self.order]
        self._sorted = sorted(key(record) for record in self._rows.values() if self._is_found(record))

    def _is_found(self, record: SessionRecord) -> bool:
        if not self.search or self.search in record.session_id.casefold():
            return True
        shown = " ".join(f"{name}={value}" for name, value in pairs(record))
        return self.search in printable(shown).casefold()


def pairs(record: SessionRecord) -> Iterator[tuple[str, str]]:
    """Kind of worker and metadata as they are shown and searched: text unchanged, other values as JSON."""
    if record.worker != DEFAULT_WORKER:
        yield "worker", record.worker
    for name, value in record.metadata.items():
        yield name, value if isinstance(value, str) else codec.encode(value).decode()
