"""How a session changes: commit, publish, seal; and claim and look, which resolves every unknown outcome.

The argument (checked exhaustively in the design's model):
* A version becomes true when it is committed. The commit is a compare-and-set on the record's revision, repeated
  with the same bytes until there is an answer, so it happens at most once.
* A version's messages are stored one by one, each asserting the session's fence, the copy on the session's
  own subject last. A claim moves the fence; after it nothing that was sent before can be stored, so what the
  look finds up to the claim is all there is, and what is missing can be published without a duplicate.
* Only one version is open at a time, so repairing the last one repairs all.
* Nothing depends on the duplicate window, or on clocks.
"""

import logging
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Final

import msgspec

from jido_nats.broker.backoff import Backoff
from jido_nats.core import subjects
from jido_nats.core.session import SessionRecord, Status
from jido_nats.core.subjects import Publication
from jido_nats.errors import AlreadyExists, Conflict, Fenced, NotSent, OutcomeUnknown, TooLarge, Unavailable
from jido_nats.manager.failpoints import Failpoints
from jido_nats.manager.journal import remove_journal
from jido_nats.manager.metrics import Stats
from jido_nats.manager.ownership import Ownership
from jido_nats.manager.running import SessionExists
from jido_nats.store.event_log import UNCLAIMED, EventLog
from jido_nats.store.journal_log import JournalLog
from jido_nats.store.leases import Leases
from jido_nats.store.records import Entry, SessionRecords

FIRST_COMMITS_MAX: Final = 3
RETRY_WAIT_S: Final = 0.05
RETRY_WAIT_MAX_S: Final = 2.0
# What was certainly not stored is soon retried: there is nothing to look for, only a connection to wait for. While the
# server refuses, `broker.troubles` sets the pace for all sessions together.
NOT_SENT_WAIT_MAX_S: Final = 0.2
# An end that the server's `max_payload` does not allow.
TOO_LARGE_WAIT_S: Final = 0.5
TOO_LARGE_WAIT_MAX_S: Final = 10.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WriterContext:
    """What the writers of one manager's sessions share."""

    manager_id: str
    records: SessionRecords
    event_log: EventLog
    leases: Leases
    ownership: Ownership
    stats: Stats
    failpoints: Failpoints
    journals: JournalLog | None  # None: this manager may not use them


class SessionWriter:
    """One session's record and events, written by one manager, one version at a time."""

    __slots__ = (
        "_context",
        "_needs",
        "_unpublished",
        "fence",
        "in_doubt",
        "record",
        "relinquished",
        "revision",
        "survivor",
    )

    def __init__(self, context: WriterContext, record: SessionRecord, revision: int, *, survivor: bool = False) -> None:
        self._context = context
        self.record = record
        self.revision = revision
        self.fence = 0
        self.survivor = survivor
        self.relinquished = False
        # Whether a write has begun and it is unknown how much of it is stored.
        self.in_doubt = False
        self._unpublished = False
        # The features that the stored record needs.
        self._needs: tuple[str, ...] = ()

    async def commit(self, changed: SessionRecord) -> None:
        """Make `changed` the truth; `Fenced` if another manager has written meanwhile.

        Raises `TooLarge`, and changes nothing, if the record is larger than the server's `max_payload`; and
        `Unavailable`, and writes nothing, if `changed` needs a feature that the stored record does not need and
        that some manager does not know: that manager could no longer answer for the session, nor end it.
        """
        await self._wait_writable()
        if introduced := sorted(set(changed.needs) - set(self._needs)):
            self._context.leases.check_known(introduced)
        self._context.failpoints.reach("before seal" if changed.sealed else "before commit")
        self.in_doubt = True
        try:
            self.revision = await self._context.records.write(changed, self.revision)
        except Conflict:
            await self._resolve_conflict(changed)
        except TooLarge as error:
            await self._resolve_too_large(changed, error)
        self.record, self._needs = changed, changed.needs
        if changed.sealed:
            self.in_doubt = False
        else:
            self._unpublished = True
            self._context.stats.versions_unpublished += 1
        self._context.failpoints.reach("sealed" if changed.sealed else "committed")

    async def commit_first(self, record: SessionRecord, *, chosen: bool) -> None:
        """Commit the record. Assumes that the key is new, which the commit checks; reads the key only if it is not."""
        context = self._context
        for _ in range(FIRST_COMMITS_MAX):
            used = chosen and await context.event_log.has_events(record.session_id)
            if not used:
                try:
                    await self.commit(record)
                    return
                except Fenced:
                    pass
            entry = await context.records.get(record.session_id)
            if entry.record is not None:
                raise SessionExists(entry.record)
            if entry.is_damaged:
                raise AlreadyExists(
                    "that session id is taken by a record that cannot be read; choose another",
                    session_id=record.session_id,
                )
            if used:
                raise AlreadyExists(
                    "that session id was used before, by a session whose record has expired; choose another",
                    session_id=record.session_id,
                )
            self.revision = entry.revision  # of an expiry marker: the next attempt reads the stream again
        raise Unavailable("the record of that session id is just expiring; ask again", session_id=record.session_id)

    async def restore(self) -> None:
        """Store the record again over an entry that is not a record; `Fenced` if another manager has the session."""
        entry = await self._context.records.get(self.record.session_id)
        if entry.is_damaged:
            await self._write_over(entry, self.record)

    async def look_and_publish(self) -> None:
        """`publish` what is missing, after a claim by this manager: some of it may be stored already."""
        await self.publish(await self._look())

    async def publish(self, stored: Collection[str] = frozenset()) -> None:
        """Store every message that the record's version owes, each exactly once; `Fenced` if another manager claimed.

        `stored`: the message ids that a look found.
        """
        try:
            await self._publish_all(stored)
            self.in_doubt = False
        finally:
            if self._unpublished:
                self._unpublished = False
                self._context.stats.versions_unpublished -= 1
        self._count()

    async def check_unchanged(self) -> None:
        """Raise `Fenced` unless the bucket has the record as it was last committed here, at its leader."""
        entry = await self._context.records.get(self.record.session_id)
        if entry.record != self.record:
            raise Fenced(f"the session {self.record.session_id} was written by another manager")

    async def seal(self) -> None:
        """Mark the record as final, and let it expire; what its next attempt would have needed goes.

        That goes first: it is not needed once the session is `terminated`, and nobody looks at a sealed one again.
        """
        if self.record.attempt is not None and self._context.journals is not None:
            await remove_journal(self._context.journals, self.record.session_id)
        await self.commit(msgspec.structs.replace(self.record, sealed=True))

    async def claim(self, *, unclaimed: bool = False) -> None:
        """Move the fence to this manager.

        `unclaimed`: no claim is known, so try that before reading the fence.
        `Fenced`: another manager has claimed it. (A survivor continues if that manager no longer has a lease.)
        """
        context, session_id = self._context, self.record.session_id
        backoff = Backoff(RETRY_WAIT_S, RETRY_WAIT_MAX_S)
        while True:
            fence = UNCLAIMED if unclaimed else await context.event_log.fence(session_id)
            unclaimed = False
            if fence.manager_id is not None and fence.manager_id != context.manager_id:
                if not self.survivor or await context.leases.is_alive(fence.manager_id):
                    raise Fenced(f"the session {session_id} was claimed by {fence.manager_id}")
            await self._wait_writable()
            context.failpoints.reach("before claim")
            try:
                self.fence = await context.event_log.claim(session_id, context.manager_id, fence.sequence)
                context.failpoints.reach("claimed")
                return
            except (Conflict, OutcomeUnknown, NotSent):
                await backoff.wait()

    async def reload(self) -> bool:
        """Read the record at the leader again; False if there is none or it is sealed: nothing is left to do."""
        return self.adopt(await self._context.records.get(self.record.session_id))

    def adopt(self, entry: Entry) -> bool:
        """Continue from this entry; False if there is nothing to do: no record, a sealed one, or a newer version's."""
        if entry.record is None or entry.record.sealed or entry.record.unknown_needs:
            return False
        self.record, self.revision, self._needs = entry.record, entry.revision, entry.record.needs
        return True

    async def _resolve_conflict(self, changed: SessionRecord) -> None:
        """The compare-and-set was refused. That may be due to an earlier attempt of the same write, or to a person.

        A record that was overwritten with something else is stored again. One that was deleted ends: see
        `Sessions.recheck`.
        """
        if (entry := await self._unless_stored(changed)) is None:
            return
        by_hand = entry.record is None and entry.revision > self.revision > 0
        if by_hand and (entry.is_damaged or changed.status is Status.TERMINATED):
            await self._write_over(entry, changed)
            return
        self.in_doubt = not by_hand  # nothing was stored, and no other manager is known to have written
        raise Fenced(f"the session {changed.session_id} was written by another manager, or deleted")

    async def _resolve_too_large(self, changed: SessionRecord, error: TooLarge) -> None:
        """The server takes no message of that size any longer. An earlier attempt of the same write may be stored.

        Such an attempt cannot be repeated until there is an answer, as others are. But one that was larger than the
        limit was refused; and should one from before that still be stored, the next write meets its revision.
        """
        if (entry := await self._unless_stored(changed)) is None:
            return
        self.in_doubt = entry.revision != self.revision
        raise TooLarge(
            "nothing was changed: the session's record is larger than the server's max_payload, which was lowered",
            session_id=changed.session_id,
        ) from error

    async def _unless_stored(self, changed: SessionRecord) -> Entry | None:
        """What the bucket has instead of `changed`; None if an earlier attempt of that write was stored."""
        entry = await self._context.records.get(changed.session_id)
        if entry.record != changed:
            return entry
        self.revision = entry.revision
        return None

    async def _write_over(self, entry: Entry, record: SessionRecord) -> None:
        """Store a record over what a person has written, if no other manager has claimed the session."""
        await self.claim()
        try:
            self.revision = await self._context.records.write(record, entry.revision)
        except Conflict:
            if await self._unless_stored(record) is not None:
                raise Fenced(f"the session {record.session_id} was written again") from None
        log.error(
            "stored a record again that was deleted or overwritten by another program",
            extra={"session_id": record.session_id, "revision": self.revision},
        )

    async def _publish_all(self, stored: Collection[str]) -> None:
        backoff = Backoff(RETRY_WAIT_S, RETRY_WAIT_MAX_S)
        while True:
            try:
                await self._publish_missing(stored)
                self._context.failpoints.reach("published")
                return
            except (Conflict, OutcomeUnknown):
                await backoff.wait()
            await self.claim()
            await self.check_unchanged()
            stored = await self._look()

    def _count(self) -> None:
        record, stats = self.record, self._context.stats
        why = record.reason or record.cause or ""
        stats.transitions[record.previous_status or "", record.status, why, record.worker] += 1
        stats.events_published += 2 if record.opening or record.status is Status.TERMINATED else 1
        if record.opening:
            stats.transitions["", Status.INITIALIZING, "", record.worker] += 1

    async def _look(self) -> Collection[str]:
        stored = await self._context.event_log.stored(self.record, self.fence)
        self._context.failpoints.reach("looked")
        return stored

    async def _publish_missing(self, stored: Collection[str]) -> None:
        for number, publication in enumerate(subjects.publications(self.record), start=1):
            if publication.message_id not in stored:
                await self._publish_one(publication, f"before message {number}")

    async def _publish_one(self, publication: Publication, place: str) -> None:
        backoff = Backoff(RETRY_WAIT_S, NOT_SENT_WAIT_MAX_S)
        while True:
            await self._wait_writable()
            self._context.failpoints.reach(place)
            try:
                await self._context.event_log.publish(publication, self.fence)
                return
            except NotSent:
                await backoff.wait()

    async def _wait_writable(self) -> None:
        if not self._context.ownership.may_write():
            await self._context.ownership.wait_writable()
        if self.relinquished:
            raise Fenced(f"the session {self.record.session_id} was relinquished")


async def until_it_fits(session_id: str, change: Callable[[], Awaitable[None]]) -> None:
    """Carry out a change that has to be, an end; again and again while its record is larger than `max_payload`."""
    backoff, reported = Backoff(TOO_LARGE_WAIT_S, TOO_LARGE_WAIT_MAX_S), False
    while True:
        try:
            return await change()
        except TooLarge as error:
            if not reported:
                reported = True
                extra = {"session_id": session_id, "error": str(error)}
                log.error("a session cannot end until max_payload is raised again", extra=extra)
        await backoff.wait()
