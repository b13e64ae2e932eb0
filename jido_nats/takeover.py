"""The sweep: sessions that a dead manager left are claimed, repaired and ended with `owner_lost`.

An orphan is an unsealed record (a terminated one too) whose owner, or whose claimant, has no lease.
Safe: the claim comes first, so whoever was wrongly thought dead can store nothing more, and what the look
finds is all there is. Of several survivors the fence admits one. Its own death at any step leaves the same
work for the next. Live: the sweep runs every third of a lease, and at once when a lease expires.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterable
from datetime import datetime
from typing import Any, Final

from jido_nats.broker.leases import Leases
from jido_nats.core import lifecycle
from jido_nats.core.session import Reason, Status
from jido_nats.errors import Fenced
from jido_nats.index import ClaimIndex, SessionIndex
from jido_nats.write_path import SessionWriter, WritePath

AT_ONCE: Final = 128

log = logging.getLogger(__name__)


class Sweeper:
    """Ends what dead managers left. `may_judge`: whether this manager has been up long enough to tell."""

    def __init__(
        self,
        path: WritePath,
        index: SessionIndex,
        claims: ClaimIndex,
        leases: Leases,
        *,
        interval_s: float,
        runs_here: Callable[[str], bool],
        may_judge: Callable[[], bool],
        now: Callable[[], datetime],
    ) -> None:
        self._path = path
        self._index = index
        self._leases = leases
        self._interval_s = interval_s
        self._runs_here = runs_here
        self._may_judge = may_judge
        self._now = now
        self._claims = claims
        self._nudge = asyncio.Event()
        self.taken_over = 0

    def nudge(self) -> None:
        """Sweep soon: a lease has expired."""
        self._nudge.set()

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            try:
                async with asyncio.timeout(self._interval_s):
                    await self._nudge.wait()
            except TimeoutError:
                pass
            self._nudge.clear()
            if self._may_judge():
                await self.sweep()

    async def sweep(self) -> None:
        """Take over every orphan there is now."""
        orphans = await self._orphans()
        if not orphans:
            return
        log.warning("taking over sessions of managers that are gone", extra={"sessions": len(orphans)})
        ended: list[SessionWriter] = []
        await _side_by_side(self._take_over(session_id, ended) for session_id in orphans)
        await _side_by_side(self._seal(writer) for writer in ended)  # nobody waits for the seals

    async def _orphans(self) -> list[str]:
        self._forget_settled_claims()
        claimants = {claimant for _, claimant in self._claims.items()}
        gone = {owner for owner in self._index.owners() | claimants if not await self._is_alive(owner)}
        orphans = {session_id for owner in gone for session_id in self._index.unsealed(owner)}
        orphans |= {session_id for session_id, claimant in self._claims.items() if claimant in gone}
        return sorted(session_id for session_id in orphans if not self._runs_here(session_id))

    async def _is_alive(self, manager_id: str) -> bool:
        if manager_id == self._path.manager_id or manager_id in self._leases.managers:
            return True
        return await self._leases.is_alive(manager_id)

    def _forget_settled_claims(self) -> None:
        for session_id, _ in self._claims.items():
            record = self._index.get(session_id)
            if (record is None or record.sealed) and not self._runs_here(session_id):
                self._claims.forget(session_id)

    async def _take_over(self, session_id: str, ended: list[SessionWriter]) -> None:
        record = self._index.get(session_id)
        if record is None:
            return
        writer = SessionWriter(self._path, record, 0, survivor=True)
        try:
            await writer.claim(unclaimed=self._claims.claimant(session_id) is None)
            while await writer.reload():
                if await self._finish(writer):
                    ended.append(writer)
                    return
        except Fenced as error:
            log.info("another manager takes this session over", extra={"session_id": session_id, "why": str(error)})

    async def _finish(self, writer: SessionWriter) -> bool:
        """Publish what was committed, end the session. False where its record was written meanwhile."""
        await writer.publish(look=True)
        record = writer.record
        try:
            if record.status is not Status.TERMINATED:
                changed, _ = lifecycle.transition(
                    record,
                    Status.TERMINATED,
                    at=self._now(),
                    reason=Reason.OWNER_LOST,
                    error=f"the manager {record.owner} is gone",
                    owner=self._path.manager_id,
                    after=self._path.event_log.acknowledged,
                )
                await writer.commit(changed)
                await writer.publish()
        except Fenced:
            return False
        self.taken_over += 1
        return True

    async def _seal(self, writer: SessionWriter) -> None:
        with contextlib.suppress(Fenced):  # else another has sealed it, or will
            await writer.seal()


async def _side_by_side(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """All of them, `AT_ONCE` at a time."""
    gate = asyncio.Semaphore(AT_ONCE)
    async with asyncio.TaskGroup() as group:
        for work in works:
            await gate.acquire()
            group.create_task(work).add_done_callback(lambda _: gate.release())
