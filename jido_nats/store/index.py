"""Every session of the bucket, in memory: the data of `list` and of the sweep."""

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

from sortedcontainers import SortedList

from jido_nats.broker.clock import boottime
from jido_nats.core import codec
from jido_nats.core.requests import ListReply, ListRequest, deterministic
from jido_nats.core.session import SessionRecord, Status
from jido_nats.store.position import StreamPosition
from jido_nats.store.records import Entry

# How many records are examined before the event loop gets a turn.
RECORDS_PER_TURN: Final = 1000


class SessionIndex:
    """The records as of `position` in the bucket's stream."""

    def __init__(self) -> None:
        self.position = StreamPosition()
        # Whether it has every record: not before the first snapshot is read, and not while another one is.
        self.is_complete = False
        self._records: dict[str, SessionRecord] = {}
        self._ids: SortedList[str] = SortedList()
        self._live: SortedList[str] = SortedList()  # most records are of ended sessions, most lists of live ones
        self._unsealed: defaultdict[str, set[str]] = defaultdict(set)
        self._revisions: dict[str, int] = {}
        # The ids of the records that only managers of newer versions may write.
        self.foreign: Final[set[str]] = set()
        # Since when (of `boottime`) the entries of these sessions have been something else than records.
        self.damaged: Final[dict[str, float]] = {}

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[SessionRecord]:
        return iter(self._records.values())

    def apply(self, entry: Entry, *, own: bool = False) -> None:
        """Apply one entry; entries come in the order of their revisions.

        `own`: its writer is in this process and knows the revision, so it is not kept here.
        """
        if entry.is_damaged:  # what is known about the session stays
            self.damaged.setdefault(entry.session_id, boottime())
            self._revisions.pop(entry.session_id, None)
            return
        self.damaged.pop(entry.session_id, None)
        before = self._records.get(entry.session_id)
        if before is not None and (unsealed := self._unsealed.get(before.owner)) is not None:
            unsealed.discard(entry.session_id)
            if not unsealed:
                del self._unsealed[before.owner]
        self._revisions.pop(entry.session_id, None)
        self._sort(entry, before)
        self.foreign.discard(entry.session_id)
        if entry.record is None:
            self._records.pop(entry.session_id, None)
            return
        self._records[entry.session_id] = entry.record
        if entry.record.unknown_needs:
            self.foreign.add(entry.session_id)
        elif not entry.record.sealed:
            self._unsealed[entry.record.owner].add(entry.session_id)
            if not own:
                self._revisions[entry.session_id] = entry.revision

    def _sort(self, entry: Entry, before: SessionRecord | None) -> None:
        for ids, was, is_in in (
            (self._ids, before is not None, entry.record is not None),
            (self._live, _is_live(before), _is_live(entry.record)),
        ):
            if is_in and not was:
                ids.add(entry.session_id)
            elif was and not is_in:
                ids.remove(entry.session_id)

    def clear(self) -> None:
        """Drop everything, before a new snapshot; a page that is being built continues with the old records."""
        self.position.restart()
        self.is_complete = False
        self._records = {}
        self._ids = SortedList()
        self._live = SortedList()
        self._unsealed.clear()
        self._revisions.clear()
        self.foreign.clear()
        self.damaged.clear()

    def unsealed_entry(self, session_id: str) -> Entry | None:
        """The entry of an unsealed record, if the index has it with its revision."""
        revision = self._revisions.get(session_id)
        return None if revision is None else Entry(session_id, revision, self._records[session_id])

    def get(self, session_id: str) -> SessionRecord | None:
        """The record, if the index has it."""
        return self._records.get(session_id)

    def owners(self) -> set[str]:
        """The owners of all unsealed records that this version may write."""
        return set(self._unsealed)

    def unsealed(self, owner: str) -> list[str]:
        """The ids of the unsealed records of one owner."""
        return sorted(self._unsealed.get(owner, ()))

    async def page(self, request: ListRequest, bytes_max: int) -> ListReply:
        """The sessions that match the request, by id, after its cursor; at most `bytes_max` of them, or one."""
        ended = request.include_terminated or request.status is Status.TERMINATED
        records, ids = self._records, self._ids if ended else self._live
        found: list[SessionRecord] = []
        size, cursor = 0, request.cursor
        while examined := list(islice(ids.irange(cursor, inclusive=(False, True)), RECORDS_PER_TURN)):
            for record in map(records.__getitem__, examined):
                if matches(record, request):
                    size += len(codec.encode(record))
                    if found and (len(found) == request.limit or size > bytes_max):
                        return ListReply(sessions=found, next_cursor=found[-1].session_id)
                    found.append(record)
            cursor = examined[-1]
            await asyncio.sleep(0)
        return ListReply(sessions=found)


class ClaimIndex:
    """The last claimant of each session, as of `position` in the event stream."""

    def __init__(self) -> None:
        self.position = StreamPosition()
        self._claimants: dict[str, str] = {}

    def apply(self, session_id: str, manager_id: str) -> None:
        """Apply one claim."""
        self._claimants[session_id] = manager_id

    def clear(self) -> None:
        """Drop everything, before a new snapshot."""
        self.position.restart()
        self._claimants.clear()

    def forget(self, session_id: str) -> None:
        """The session is settled: its claimant no longer matters."""
        self._claimants.pop(session_id, None)

    def claimant(self, session_id: str) -> str | None:
        """The manager that claimed the session last, or None."""
        return self._claimants.get(session_id)

    def items(self) -> list[tuple[str, str]]:
        """(session id, manager id) of every claim."""
        return list(self._claimants.items())


def _is_live(record: SessionRecord | None) -> bool:
    return record is not None and record.status is not Status.TERMINATED


def matches(record: SessionRecord, request: ListRequest) -> bool:
    """Whether the record belongs in the list that this request asks for."""
    if request.status is not None:
        if record.status is not request.status:
            return False
    elif record.status is Status.TERMINATED and not request.include_terminated:
        return False
    if request.worker not in (None, record.worker):
        return False
    return all(key in record.metadata and _same(record.metadata[key], value) for key, value in request.metadata.items())


def _same(one: Any, other: Any) -> bool:
    """Whether both are equal as JSON: in Python 1 equals True and 1.0, in JSON it does not."""
    return bool(one == other) and (isinstance(one, str) or deterministic(one) == deterministic(other))
