"""The background tasks of a manager, which are restarted when they fail, and the followers among them.

A manager without its index, its leases or its sweep would give wrong answers, so readiness reports a task that is
failing, and a follower that has not caught up yet.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from jido_nats.broker.backoff import Backoff
from jido_nats.broker.consumer import StreamMessage
from jido_nats.broker.follower import FollowingConsumer
from jido_nats.core import subjects
from jido_nats.errors import PositionUnavailable
from jido_nats.manager.sessions import Sessions
from jido_nats.store.event_log import EventLog, claimant
from jido_nats.store.index import ClaimIndex, SessionIndex
from jido_nats.store.leases import Leases
from jido_nats.store.position import StreamPosition
from jido_nats.store.records import SessionRecords, entry_of
from jido_nats.store.snapshot import snapshot

RESTART_WAIT_S: Final = 1.0
RESTART_WAIT_MAX_S: Final = 10.0
# After a task has run for this long without a failure, the wait before its restart starts over.
STEADY_S: Final = 60.0
# How long the index may wait for more entries before it applies them: `list` takes at most this much longer.
INDEX_LINGER_S: Final = 0.002

log = logging.getLogger(__name__)


class BackgroundTasks:
    """The tasks of one manager."""

    def __init__(self, manager_id: str) -> None:
        self._manager_id = manager_id
        self._tasks: list[asyncio.Task[None]] = []
        self._failing: dict[str, str] = {}

    @property
    def not_ready(self) -> list[str]:
        """A sentence for each task that has failed and waits to be restarted."""
        return [f"{name} fails: {error}" for name, error in self._failing.items()]

    def start(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """Run `work` until `close`; if it fails, restart it after a growing wait."""
        task = asyncio.create_task(self._keep_running(name, work), name=f"{self._manager_id}: {name}")
        self._tasks.append(task)

    async def close(self) -> None:
        """End all of them."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _keep_running(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        backoff, loop = Backoff(RESTART_WAIT_S, RESTART_WAIT_MAX_S), asyncio.get_running_loop()
        while True:
            started = loop.time()
            try:
                await work()
            except PositionUnavailable:
                log.info("a follower was disconnected for too long; taking a new snapshot", extra={"part": name})
                continue
            except Exception as error:
                log.exception("a background task of the manager failed; restarting it", extra={"part": name})
                self._failing[name] = f"{type(error).__name__}: {error}"
            if loop.time() - started > STEADY_S:
                backoff.reset()
            await backoff.wait()
            self._failing.pop(name, None)


class Followers:
    """What a manager reads in full and then follows: records, leases and claims."""

    def __init__(
        self,
        records: SessionRecords,
        leases: Leases,
        event_log: EventLog,
        index: SessionIndex,
        claims: ClaimIndex,
        sessions: Sessions,
    ) -> None:
        self._records = records
        self._leases = leases
        self._event_log = event_log
        self._index = index
        self._claims = claims
        self._sessions = sessions
        self._catching_up = {"index", "leases", "claims"}
        self._consumers: dict[str, FollowingConsumer] = {}

    @property
    def not_ready(self) -> list[str]:
        """A sentence for each follower that has not reached the end of its stream yet."""
        return [f"{name} has not caught up yet" for name in sorted(self._catching_up)]

    @property
    def without_consumer(self) -> list[str]:
        """The followers that read by direct gets, because their streams take no more consumers."""
        return [name for name, consumer in self._consumers.items() if consumer.is_polled]

    async def follow_index(self) -> None:
        """Maintain the index of all records; a record that this manager wrote is not decoded or held twice."""
        self._index.clear()
        consumer = self._records.follow(linger_s=INDEX_LINGER_S)
        await self._follow("index", consumer, self._apply_record, self._records.last_position, self._index.position)

    async def follow_leases(self) -> None:
        """Maintain the table of leases."""
        consumer = self._leases.follow()
        await self._follow("leases", consumer, self._leases.apply, self._leases.last_position, StreamPosition())

    async def follow_claims(self) -> None:
        """Maintain the index of claims."""
        self._claims.clear()
        consumer = self._event_log.follow_claims()
        await self._follow("claims", consumer, self._apply_claim, self._event_log.last_claim, self._claims.position)

    async def _follow(
        self,
        name: str,
        consumer: FollowingConsumer,
        apply: Callable[[StreamMessage], object],
        last_position: Callable[[], Awaitable[int]],
        position: StreamPosition,
    ) -> None:
        self._catching_up.add(name)
        self._consumers[name] = consumer
        async with consumer:
            async for message in snapshot(consumer, last_position):
                apply(message)
            self._catching_up.discard(name)
            self._on_caught_up(name)
            while True:
                position.moved_to(consumer.position)
                apply(await consumer.next())

    def _on_caught_up(self, name: str) -> None:
        if name == "leases":
            self._leases.read.set()
        if name == "index":
            self._index.is_complete = True
            self._sessions.compare(self._index)

    def _apply_record(self, message: StreamMessage) -> None:
        session_id = subjects.session_of(message.subject)
        own = self._sessions.written(session_id, message.sequence)
        entry = own or entry_of(message)
        self._index.apply(entry, own=own is not None)
        if entry.record is None:
            self._sessions.check_entry(entry)

    def _apply_claim(self, message: StreamMessage) -> None:
        self._claims.apply(subjects.session_of(message.subject), claimant(message.data))
