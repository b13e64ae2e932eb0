"""The sweep: sessions that a dead manager left are claimed, repaired and ended with `owner_lost`.

An orphan is an unsealed record (a terminated one too) whose owner, or whose claimant, has no lease, or
which this manager has itself relinquished.
Safe: the claim comes first, so a manager wrongly believed dead can store nothing more, and what the look
finds is all there is. Of several survivors the fence admits one. If that one dies at any step, the same
work is left for the next. Live: the sweep runs every third of a lease, and at once when a lease expires.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Coroutine, Iterable
from datetime import datetime
from typing import Any, Final

from jido_nats.broker.clock import boottime
from jido_nats.core import lifecycle, subjects
from jido_nats.core.session import Reason, SessionRecord, Status
from jido_nats.errors import Conflict, Fenced, JidoError
from jido_nats.manager.sessions import Sessions
from jido_nats.manager.writer import SessionWriter, WriterContext
from jido_nats.store.index import ClaimIndex, SessionIndex

AT_ONCE: Final = 128
OWNERSHIP_POLL_S: Final = 0.5
REPORT_INTERVAL_S: Final = 3.0
TOGETHER: Final = 4096
UNKNOWN_OWNER: Final = "unknown"
ALL_SUBJECTS: Final = (subjects.EVENTS, subjects.ALL_SESSIONS, subjects.ALL_FENCES)

log = logging.getLogger(__name__)


class OrphanSweeper:
    """Ends the sessions that dead managers left."""

    def __init__(
        self,
        context: WriterContext,
        sessions: Sessions,
        index: SessionIndex,
        claims: ClaimIndex,
        interval_s: float,
        *,
        now: Callable[[], datetime],
    ) -> None:
        self._context = context
        self._running = sessions.running
        self._index = index
        self._claims = claims
        self._interval_s = interval_s
        self._now = now
        # How long the owner of a damaged record has to repair it.
        self._damaged_after_s = 3 * interval_s
        self._done = 0
        # The sessions whose failed takeover was logged already.
        self._failed: set[str] = set()
        # How many sessions of newer versions were reported last.
        self._foreign = 0

    async def run(self) -> None:
        """Sweep until cancelled: every `interval_s`, and as soon as a lease has expired."""
        ownership, gone = self._context.ownership, self._context.leases.gone
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._interval_s):
                    await gone.wait()
            gone.clear()
            while not ownership.can_declare_dead():
                await asyncio.sleep(OWNERSHIP_POLL_S)
            await self.sweep()

    async def sweep(self) -> None:
        """Take over every orphan that there is; the leases are read again before each batch."""
        await self._context.leases.remove_overdue()
        await self._repair_damaged()
        orphans = await self._orphans()
        self._failed &= set(orphans)
        if orphans:
            log.warning("taking over sessions of dead managers", extra={"sessions": len(orphans)})
        self._done, tried = 0, set[str]()
        reporting = asyncio.create_task(self._report(len(orphans)), name="takeover: report")
        try:
            while batch := orphans[:TOGETHER]:
                tried.update(batch)
                await self._take_over(batch)
                orphans = [session_id for session_id in await self._orphans() if session_id not in tried]
        finally:
            reporting.cancel()
            await asyncio.gather(reporting, return_exceptions=True)

    async def _report(self, total: int) -> None:
        """Log the progress of a long sweep."""
        while True:
            await asyncio.sleep(REPORT_INTERVAL_S)
            log.warning("taking over sessions", extra={"done": self._done, "total": total})

    async def _orphans(self) -> list[str]:
        await self._context.records.caught_up(self._index.position)
        if not self._index.is_complete:
            return []
        self._report_foreign()
        self._drop_settled_claims()
        claimants = {claimant for _, claimant in self._claims.items()}
        gone = {owner for owner in self._index.owners() | claimants if not await self._is_alive(owner)}
        if not self._context.ownership.can_declare_dead() or not self._index.is_complete:
            return []  # NATS was unavailable during these reads, and all leases may have lapsed
        relinquished = self._running.relinquished
        relinquished -= {session_id for session_id in relinquished if self._is_settled(session_id)}
        orphans = {session_id for owner in gone for session_id in self._index.unsealed(owner)}
        # No other manager ends what this one has claimed and could not end.
        unfinished = gone | {self._context.manager_id}
        orphans |= {session_id for session_id, claimant in self._claims.items() if claimant in unfinished}
        orphans |= {session_id for session_id in relinquished if self._is_left_behind(session_id)}
        return sorted(
            session_id
            for session_id in orphans
            if session_id not in self._running and session_id not in self._index.foreign
        )

    def _report_foreign(self) -> None:
        """Log how many sessions are left to managers of newer versions, when the number changes."""
        foreign = len(self._index.foreign)
        if foreign != self._foreign:
            self._foreign = foreign
            log.warning("sessions of a newer version are left to its managers", extra={"sessions": foreign})

    async def _is_alive(self, manager_id: str) -> bool:
        return manager_id == self._context.manager_id or await self._context.leases.is_alive(manager_id)

    def _is_left_behind(self, session_id: str) -> bool:
        """Whether a session that was relinquished here, after a failed write, has no other owner."""
        record = self._index.get(session_id)
        return record is not None and not record.sealed and record.owner == self._context.manager_id

    def _is_settled(self, session_id: str) -> bool:
        record = self._index.get(session_id)
        return record is None or record.sealed

    def _drop_settled_claims(self) -> None:
        for session_id, _ in self._claims.items():
            if session_id in self._running:
                continue
            if self._is_settled(session_id):
                self._claims.forget(session_id)

    async def _repair_damaged(self) -> None:
        """Store a record again for each entry that is something else and has not been repaired by its owner."""
        for session_id, since in list(self._index.damaged.items()):
            known = self._index.get(session_id)
            if session_id in self._running or boottime() - since < self._damaged_after_s:
                continue
            if known is None or known.owner == self._context.manager_id or not await self._is_alive(known.owner):
                await self._log_failure(session_id, self._repair(session_id, known))

    async def _repair(self, session_id: str, known: SessionRecord | None) -> None:
        """As it was known here, or as the stream describes it; the claim makes it an orphan, which this sweep ends."""
        placeholder = known or lifecycle.create(session_id, owner=UNKNOWN_OWNER, at=self._now())[0]
        writer = SessionWriter(self._context, placeholder, 0, survivor=True)
        with contextlib.suppress(Fenced, Conflict):  # its owner lives, or another manager repairs it
            await writer.claim()
            events = await self._context.event_log.events_of(session_id, writer.fence)
            record = lifecycle.rebuilt(session_id, events, owner=placeholder.owner)
            if record is None or (known is not None and known.version >= record.version):
                record = known
            if record is None:
                raise JidoError("its entry is not a record, and the stream has no event of it: delete the entry")
            entry = await self._context.records.get(session_id)
            if entry.is_damaged:
                await self._context.records.write(record, entry.revision)
                log.error("repaired a damaged record, to end its session", extra={"session_id": session_id})

    async def _take_over(self, session_ids: list[str]) -> None:
        """Claim all, then one look for all, then end them; the seals come last, since nothing waits for them."""
        claimed: list[SessionWriter] = []
        await self._run_all((session_id, self._claim(session_id, claimed)) for session_id in session_ids)
        orphans = await self._reread(claimed)
        complete = await self._context.event_log.complete_among([writer.record for writer in orphans])
        whole = [writer for writer in orphans if writer.record.session_id in complete]
        broken = [writer for writer in orphans if writer.record.session_id not in complete]
        stored = await self._look(broken)
        ended: list[SessionWriter] = []
        self._done += len(session_ids) - len(orphans)  # another manager's by now, or settled
        await self._run_all((w.record.session_id, self._end(w, None, ended)) for w in whole)
        await self._run_all((w.record.session_id, self._end(w, stored, ended)) for w in broken)
        await self._run_all((w.record.session_id, self._seal(w)) for w in ended)

    async def _claim(self, session_id: str, claimed: list[SessionWriter]) -> None:
        record = self._index.get(session_id)
        if record is None:
            return
        writer = SessionWriter(self._context, record, 0, survivor=True)
        try:
            await writer.claim(unclaimed=self._claims.claimant(session_id) is None)
        except Fenced as error:
            log.info("another manager takes over this session", extra={"session_id": session_id, "why": str(error)})
            return
        claimed.append(writer)

    async def _reread(self, claimed: list[SessionWriter]) -> list[SessionWriter]:
        """The sessions that were not settled meanwhile, with their records as of after the claims.

        Once the index has reached what the bucket's leader has now, it is as good as reading each at the leader.
        """
        await self._context.records.caught_up(self._index.position)
        orphans: list[SessionWriter] = []

        async def read(writer: SessionWriter) -> None:
            entry = self._index.unsealed_entry(writer.record.session_id)
            if await writer.reload() if entry is None else writer.adopt(entry):
                self._context.stats.takeovers += 1
                orphans.append(writer)

        await self._run_all((w.record.session_id, read(w)) for w in claimed)
        return orphans

    async def _look(self, writers: list[SessionWriter]) -> Collection[str]:
        """The message ids of these versions that are or were stored: nothing older than the claims can still come."""
        if not writers:
            return frozenset()
        after, until = min(w.record.after for w in writers), max(w.fence for w in writers)
        found = await self._context.event_log.message_ids_between(ALL_SUBJECTS, after, until)
        found |= await self._context.event_log.expired_message_ids([writer.record for writer in writers], found)
        self._context.failpoints.reach("looked")
        return found

    async def _end(self, writer: SessionWriter, stored: Collection[str] | None, ended: list[SessionWriter]) -> None:
        """`stored`: the messages of its last version that a look found; None if all are stored."""
        try:
            if stored is not None:
                await writer.publish(stored)
            while not await self._terminate(writer):
                if not await writer.reload():
                    return
                await writer.look_and_publish()
        except Fenced as error:
            extra = {"session_id": writer.record.session_id, "why": str(error)}
            log.info("another manager takes over this session", extra=extra)
            return
        finally:
            self._done += 1
        ended.append(writer)

    async def _terminate(self, writer: SessionWriter) -> bool:
        """End the session, whose last version is all stored. False if its record was written meanwhile."""
        record = writer.record
        if record.status is Status.TERMINATED:
            return True
        changed, _ = lifecycle.transition(
            record,
            Status.TERMINATED,
            at=self._now(),
            reason=Reason.OWNER_LOST,
            error=f"the manager {record.owner} is gone",
            owner=self._context.manager_id,
            after=self._context.event_log.acknowledged,
        )
        try:
            await writer.commit(changed)
        except Fenced:
            return False
        await writer.publish()
        return True

    async def _seal(self, writer: SessionWriter) -> None:
        with contextlib.suppress(Fenced):  # then another manager has sealed it, or will
            await writer.seal()

    async def _run_all(self, works: Iterable[tuple[str, Coroutine[Any, Any, None]]]) -> None:
        """Run all of them, `AT_ONCE` at a time; one that fails does not affect the others."""
        gate = asyncio.Semaphore(AT_ONCE)
        async with asyncio.TaskGroup() as group:
            for session_id, work in works:
                try:
                    await gate.acquire()
                except asyncio.CancelledError:
                    work.close()
                    raise
                task = group.create_task(self._log_failure(session_id, work), name=f"takeover of {session_id}")
                task.add_done_callback(lambda _: gate.release())

    async def _log_failure(self, session_id: str, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception:
            if session_id not in self._failed:
                self._failed.add(session_id)
                log.exception("a takeover failed; the next sweep retries it", extra={"session_id": session_id})
