"""SessionManager: creates, runs, tracks and ends sessions, and tells of every change.

It joins the parts and keeps the lease; what a command does is in `verbs`, how a session changes in `live` and
`write_path`.
"""

import asyncio
import contextlib
import importlib.metadata
import logging
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Final, Self, TypeVar

import msgspec

from jido_nats.api import SessionApi
from jido_nats.broker.clock import boottime
from jido_nats.broker.connection import Connection
from jido_nats.broker.consumer import StreamMessage
from jido_nats.broker.micro import MicroService
from jido_nats.broker.options import ConnectOptions
from jido_nats.core import codec, subjects
from jido_nats.core.settings import Settings
from jido_nats.errors import ConfigurationError, JidoError, NotAllowed, PositionTooOld, ServerUnusable
from jido_nats.ids import new_manager_id, new_message_id
from jido_nats.manager.conversation import Conversations
from jido_nats.manager.forwarding import Forwarder
from jido_nats.manager.handlers import CommandHandlers
from jido_nats.manager.health_server import Snapshot
from jido_nats.manager.loop_monitor import LoopMonitor
from jido_nats.manager.metrics import Stats
from jido_nats.manager.outbox import Outbox
from jido_nats.manager.service import SERVICE_NAME, Handler, Service, overloaded, too_large
from jido_nats.manager.sessions import Sessions
from jido_nats.manager.takeover import OrphanSweeper
from jido_nats.manager.writer import WriterContext
from jido_nats.store import topology
from jido_nats.store.event_log import EventLog, claimant
from jido_nats.store.index import ClaimIndex, SessionIndex
from jido_nats.store.leases import Lease, Leases, ManagerInfo, describe, lease_time
from jido_nats.store.output_log import OutputLog
from jido_nats.store.records import SessionRecords, entry_of
from jido_nats.worker.session import Worker

RESTART_WAIT_S: Final = 1.0
CLOSE_GRACE_S: Final = 10.0
OUTPUT_GRACE_S: Final = 5.0
QUEUE_WATCH_S: Final = 0.25
LEASE_POLL_S: Final = 0.5
# What the index takes in is never on the way of a transition; `list` waits for it at most so much longer.
INDEX_LINGER_S: Final = 0.002
VERSION: Final = importlib.metadata.version("jido_nats")

log = logging.getLogger(__name__)

T = TypeVar("T")


class SessionManager(SessionApi):
    """A manager of sessions; make one with `SessionManager.connect` and use it as `async with`.

    Leaving the block ends every session with `manager_stopped`.
    """

    def __init__(self, options: ConnectOptions, api: ConnectOptions, worker: Worker, settings: Settings) -> None:
        self._options = options
        self._api = api
        self._worker = worker
        self._settings = settings
        self.manager_id: Final = new_manager_id()
        self._description = describe(self.manager_id, VERSION)
        self._index = SessionIndex()
        self._claims = ClaimIndex()
        self._verified_since: float | None = None
        self._verified = asyncio.Event()
        self._lease_is_new = asyncio.Event()
        self._stop_serving = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._exit = contextlib.AsyncExitStack()
        self._entered = False
        self._serving = False
        self._start_serving_once = asyncio.Lock()
        self.stats = Stats()
        self._connections: list[Connection] = []
        self._odd_leases: set[str] = set()
        self._handlers: CommandHandlers | None = None

    @classmethod
    def connect(
        cls,
        server: str | ConnectOptions = "nats://127.0.0.1:4222",
        *,
        worker: Worker,
        settings: Settings | None = None,
        api: ConnectOptions | None = None,
    ) -> "SessionManager":
        """A manager that runs `worker` for each session, to be entered with `async with`.

        `server`: a URL, several with commas, or `ConnectOptions`. `api`: how the connection that answers commands
        is made, where that is another user's (it should be). Entering raises `ServerUnusable` (within seconds) or
        `ConfigurationError`.
        """
        options = server if isinstance(server, ConnectOptions) else ConnectOptions(servers=tuple(server.split(",")))
        return cls(options, api or options, worker, settings or Settings())

    async def __aenter__(self) -> Self:
        if self._entered:
            raise JidoError("a manager is one incarnation: make another with SessionManager.connect(...)")
        self._entered = True
        if not callable(self._worker):
            raise ConfigurationError(f"worker is {self._worker!r}, should be a coroutine function that takes a Session")
        try:
            await self._start()
        except BaseException:
            await self._exit.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def serve(self) -> None:
        """Answer the request-reply API until `stop` is called (from a signal handler, say)."""
        await self.start_serving()
        await self._stop_serving.wait()

    async def start_serving(self) -> None:
        """Begin to answer the request-reply API, on a connection of its own, and return."""
        handlers = self._running().by_name
        async with self._start_serving_once:
            if not self._serving:
                await self._start_service(handlers)

    async def _start_service(self, handlers: Mapping[str, Handler]) -> None:
        connection = await self._connect(self._api, "api ")
        endpoints = MicroService(
            connection,
            name=SERVICE_NAME,
            service_id=self.manager_id,
            version=VERSION,
            description="creates, runs, tracks and ends sessions; every change is an event on jido.client.events",
            in_flight_max=self._settings.commands_max,
            overloaded=overloaded,
            too_large=too_large,
        )
        service = Service(endpoints, self._settings, self.manager_id, handlers, self.stats)
        try:
            await service.start()
            await connection.flush()  # from now on a request finds somebody
        except BaseException as error:
            await service.stop()
            await connection.close()
            self._connections.remove(connection)
            if not isinstance(error, NotAllowed):
                raise
            raise ServerUnusable(
                "the user of this connection may not answer commands; name one that may with api= (--api-user)"
            ) from error
        self._exit.push_async_callback(service.stop)
        self._serving = True
        self._spawn("queue", lambda: self._watch_queue(service))

    def stop(self) -> None:
        """Make `serve` return."""
        self._stop_serving.set()

    async def close(self) -> None:
        """No new commands; end every session with `manager_stopped`, publish it, release the lease, disconnect.

        Before that, for `drain_timeout_s`: no new sessions, while those that run may end by themselves.
        """
        self.stop()
        try:
            left = await self._sessions.drain(self._settings.drain_timeout_s)
            if left:
                log.info("ending the sessions that still run", extra={"sessions": left})
            self._sessions.give_up_starts()
        finally:
            await self._exit.aclose()
            self._handlers = None

    def snapshot(self) -> Snapshot:
        """What the manager can say of itself: its counters, and what keeps it from being ready."""
        if not self._stop_serving.is_set():
            self._running()
        not_ready = [f"no connection to NATS: {c.name}" for c in self._connections if not c.connected]
        not_ready += [] if self._lease_stands() else ["the lease does not stand"]
        not_ready += [] if self._serving else ["commands are not answered yet"]
        not_ready += ["stopping"] if self._stop_serving.is_set() else []
        return Snapshot(
            manager_id=self.manager_id,
            version=VERSION,
            sessions=dict(self._sessions.by_status()),
            stats=self.stats,
            lease_age_s=self._lease.age_s,
            reconnects=sum(connection.reconnects for connection in self._connections),
            not_ready=not_ready,
        )

    def __repr__(self) -> str:
        runs = f"with {len(self._sessions)} sessions" if self._handlers is not None else "that does not run"
        return f"<SessionManager {self.manager_id} {runs}>"

    async def _command(self, verb: str, session_id: str, request: msgspec.Struct, kind: type[T]) -> T:
        reply = await self._running().by_name[verb](session_id, request)
        return codec.decode(codec.encode(reply), kind)  # a copy, as over NATS: records are not the caller's to change

    def _running(self) -> CommandHandlers:
        if self._handlers is None:
            raise JidoError("the manager does not run: use it inside 'async with SessionManager.connect(...)'")
        return self._handlers

    async def _start(self) -> None:
        settings = self._settings
        self._connection = connection = await self._connect(self._options, "")
        await topology.check_server(connection)
        await topology.declare(connection, settings)
        self._records = SessionRecords(
            connection,
            settings.sessions_bucket,
            terminated_ttl_s=settings.terminated_ttl_s,
            marker_ttl_s=settings.marker_ttl_s,
        )
        self._event_log = EventLog(connection, settings.events_stream, settings.encoding)
        self._event_log.acknowledged = await self._event_log.last_sequence()
        self._leases = Leases(connection, settings.managers_bucket)
        path = WriterContext(
            self.manager_id,
            self._records,
            self._event_log,
            self.stats,
            self._lease_stands,
            self._lease_restored,
            self._leases.is_alive,
        )
        self._sessions = Sessions(path, self._worker, settings, await self._open_conversations(), now=_now)
        self._handlers = CommandHandlers(
            path, self._sessions, self._index, Forwarder(connection), settings, connection, self._managers_with_room
        )
        self._sweeper = OrphanSweeper(
            path,
            self._index,
            self._claims,
            interval_s=settings.lease_s / 3,
            runs_here=self._sessions.__contains__,
            relinquished=self._sessions.relinquished,
            may_judge=self._may_judge,
            now=_now,
        )
        self._lease = Lease(self._options, settings.managers_bucket, settings.lease_s, self._info)
        await self._take_lease()
        self._start_tasks()
        self._exit.push_async_callback(self._end_sessions)

    async def _take_lease(self) -> None:
        self._exit.push_async_callback(self._lease.release)
        try:
            await self._lease.acquire(self._lease_is_new.set)
        except TimeoutError:
            raise ServerUnusable(
                f"the lease in {self._settings.managers_bucket} could not be stored within seconds"
            ) from None
        self._verified_since = self._lease.held_since

    def _start_tasks(self) -> None:
        self._exit.push_async_callback(self._end_tasks)
        for name, work in (
            ("index", self._follow_index),
            ("leases", self._follow_leases),
            ("claims", self._follow_claims),
            ("sweep", self._sweeper.run),
            ("limits", self._sessions.deadlines.run),
            ("verify", self._verify_after_lapses),
            ("loop watch", lambda: LoopMonitor(self._sessions.__contains__).run()),
        ):
            self._spawn(name, work)

    async def _connect(self, options: ConnectOptions, use: str) -> Connection:
        connection = await Connection.open(options, f"jido-nats {use}{self.manager_id}")
        self._exit.push_async_callback(connection.close)
        self._connections.append(connection)
        return connection

    async def _open_conversations(self) -> Conversations:
        """Output goes over a connection of its own: thousands of messages a second must not stand before a record."""
        connection = await self._connect(self._options, "output ")
        outbox = Outbox(OutputLog(connection, self._settings.encoding), self._settings.output_message_bytes_max)
        self._exit.push_async_callback(self._end_output, outbox)
        return Conversations(
            outbox,
            inbox_messages_max=self._settings.inbox_messages_max,
            now=_now,
            new_message_id=new_message_id,
        )

    async def _end_output(self, outbox: Outbox) -> None:
        left = await outbox.close(OUTPUT_GRACE_S)
        if left:
            log.error("output of sessions could not be stored any more", extra={"sessions": left})

    async def _end_sessions(self) -> None:
        left = await self._sessions.close(self._settings.stop_timeout_s + CLOSE_GRACE_S)
        if left:
            log.error("sessions could not be ended; another manager will end them", extra={"sessions": left})

    async def _end_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        self._tasks.append(asyncio.create_task(_for_ever(name, work), name=f"{self.manager_id}: {name}"))

    async def _watch_queue(self, service: Service) -> None:
        """Leave the queue group for `create` while this manager is full and another that lives is not."""
        while True:
            await service.take_creates(not self._sessions.full or not self._managers_with_room())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(QUEUE_WATCH_S):
                    await self._sessions.filled.wait()
            self._sessions.filled.clear()

    def _managers_with_room(self) -> list[str]:
        """The other managers that live and, by their last word, answer commands and are not full."""
        others = {name: info for name, info in self._leases.managers.items() if name != self.manager_id}
        return [name for name, info in others.items() if info.serves and not info.full]

    def _info(self) -> ManagerInfo:
        sessions = self._sessions
        return msgspec.structs.replace(
            self._description, sessions=len(sessions), full=sessions.full, serves=self._serving
        )

    # The lease: writes and answers stop with it, and go on when every session was looked at again.

    def _lease_stands(self) -> bool:
        return self._lease.valid and self._lease.held_since == self._verified_since

    async def _lease_restored(self) -> None:
        while not self._lease_stands():
            self._verified.clear()
            with contextlib.suppress(TimeoutError):  # a renewal that came at the last moment is not told
                async with asyncio.timeout(LEASE_POLL_S):
                    await self._verified.wait()

    def _may_judge(self) -> bool:
        """Only who has been connected, with its lease, for a whole lease time may call others dead.

        After a gap in its own renewals half of one is enough: who could not renew, either, tries again all the time.
        """
        lease_s = self._settings.lease_s
        if not self._lease_stands() or not self._lease.steady or not self._connection.connected:
            return False
        since = (self._connection.up_since, self._lease.held_since)
        if None in since or boottime() - self._lease.steady_since < lease_s / 2:
            return False
        return boottime() - max(moment for moment in since if moment is not None) >= lease_s

    async def _verify_after_lapses(self) -> None:
        while True:
            while self._lease.held_since != self._verified_since:
                await self._verify()
            await self._lease_is_new.wait()
            self._lease_is_new.clear()

    async def _verify(self) -> None:
        """After a lapse: which of the sessions are still this manager's? Those that are not are let go of."""
        since = self._lease.held_since
        log.warning("the lease had lapsed; looking at every session again", extra={"manager_id": self.manager_id})
        await self._claims.position.reached(await self._event_log.last_claim())
        for writer in self._sessions.writers():
            session_id = writer.record.session_id
            if self._claims.claimant(session_id) not in (None, self.manager_id):
                self._sessions.lose(session_id)
        if self._lease.held_since == since:  # else it has lapsed once more, and another look is under way
            self._verified_since = since
            self._verified.set()

    # Following

    async def _follow_index(self) -> None:
        self._index.clear()
        async with self._records.follow(linger_s=INDEX_LINGER_S) as consumer:
            async for message in consumer:
                # What this manager wrote itself is not decoded, and not held twice.
                own = self._sessions.written(subjects.session_of(message.subject), message.sequence)
                self._index.apply(own or entry_of(message), own=own is not None)
                self._index.position.moved_to(message.sequence)

    async def _follow_leases(self) -> None:
        async with self._leases.follow() as consumer:
            async for message in consumer:
                if self._leases.apply(message):
                    self._sweeper.nudge()
                self._compare_lease_time(message)

    def _compare_lease_time(self, message: StreamMessage) -> None:
        """One lease time for the whole deployment: who has another is told of in the log, once."""
        manager_id, lease_s = subjects.session_of(message.subject), lease_time(message)
        if manager_id not in self._leases.managers:
            return
        if lease_s not in (None, self._settings.lease_s) and manager_id not in self._odd_leases:
            self._odd_leases.add(manager_id)
            log.warning(
                "another manager has another lease_s; give all the same",
                extra={"other": manager_id, "its_lease_s": lease_s, "lease_s": self._settings.lease_s},
            )

    async def _follow_claims(self) -> None:
        self._claims.clear()
        async with self._event_log.follow_claims() as consumer:
            async for message in consumer:
                self._claims.apply(subjects.session_of(message.subject), claimant(message.data))
                self._claims.position.moved_to(message.sequence)


def _now() -> datetime:
    return datetime.now(UTC)


async def _for_ever(name: str, work: Callable[[], Awaitable[None]]) -> None:
    """Run it again whenever it fails: a manager without its index or its sweep would lie."""
    while True:
        try:
            await work()
        except PositionTooOld:
            log.info("a follower was away for too long and takes a new snapshot", extra={"part": name})
        except Exception:
            log.exception("a part of the manager failed and is started again", extra={"part": name})
            await asyncio.sleep(RESTART_WAIT_S)
