"""SessionManager: creates, runs, tracks and ends sessions, and publishes every change.

It assembles the parts and holds the lease. What a command does is in `handlers`, how a session changes in
`live_session` and `writer`.
"""

import asyncio
import contextlib
import importlib.metadata
import logging
import math
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import ClassVar, Final, Self, TypeVar

import msgspec

from jido_nats.api import SessionApi
from jido_nats.broker.connection import Connection
from jido_nats.broker.micro import MicroService
from jido_nats.broker.options import ConnectOptions
from jido_nats.broker.outage import Outage
from jido_nats.core import codec
from jido_nats.core.manager_info import ManagerInfo
from jido_nats.core.settings import Settings
from jido_nats.errors import JidoError, NotAllowed, ServerUnusable
from jido_nats.ids import new_manager_id
from jido_nats.manager.background import BackgroundTasks, Followers
from jido_nats.manager.consumers import ConsumerRequests
from jido_nats.manager.conversation import Conversations
from jido_nats.manager.failpoints import Failpoints
from jido_nats.manager.forwarding import Forwarder
from jido_nats.manager.handlers import CommandHandlers
from jido_nats.manager.journal import JournalCleaner
from jido_nats.manager.kinds import kinds_of
from jido_nats.manager.loop_monitor import LoopMonitor
from jido_nats.manager.metrics import Snapshot, Stats
from jido_nats.manager.outbox import Outbox
from jido_nats.manager.ownership import Ownership
from jido_nats.manager.service import SERVICE_NAME, Call, Handler, Service
from jido_nats.manager.sessions import Sessions
from jido_nats.manager.stopping import reported
from jido_nats.manager.takeover import OrphanSweeper
from jido_nats.manager.writer import WriterContext
from jido_nats.store import topology
from jido_nats.store.event_log import EventLog
from jido_nats.store.index import ClaimIndex, SessionIndex
from jido_nats.store.journal_log import JournalLog
from jido_nats.store.lease import Lease
from jido_nats.store.leases import Leases, describe
from jido_nats.store.output_log import OutputLog
from jido_nats.store.records import SessionRecords
from jido_nats.worker.inbox import HeldBytes
from jido_nats.worker.session import Worker

CLOSE_GRACE_S: Final = 10.0
OUTPUT_GRACE_S: Final = 5.0
QUEUE_WATCH_S: Final = 0.25
# How long a manager waits for the leases of the others before it answers commands.
LEASES_READ_S: Final = 3.0
VERSION: Final = importlib.metadata.version("jido_nats")

log = logging.getLogger(__name__)

T = TypeVar("T")


class SessionManager(SessionApi):
    """A manager of sessions; create one with `SessionManager.connect` and use it with `async with`.

    Leaving the block ends every session with `manager_stopped`.
    """

    # Tests set their own, to kill or freeze the process at a certain place.
    failpoints: ClassVar[Failpoints] = Failpoints()

    def __init__(
        self,
        options: ConnectOptions,
        api: ConnectOptions,
        worker: Worker | Mapping[str, Worker],
        settings: Settings,
    ) -> None:
        self._options = options
        self._api = api
        self._worker = worker
        self._settings = settings
        self.manager_id: Final = new_manager_id()
        self.stats: Final = Stats()
        self._stop_serving = asyncio.Event()
        self._background = BackgroundTasks(self.manager_id)
        self._exit = contextlib.AsyncExitStack()
        self._entered = False
        self._serving = False
        # How it ends: "draining", then "stopping".
        self._phase = ""
        self._start_serving_once = asyncio.Lock()
        self._connections: list[Connection] = []
        self._outage = Outage()
        self._handlers: CommandHandlers | None = None

    @classmethod
    def connect(
        cls,
        server: str | ConnectOptions = "nats://127.0.0.1:4222",
        *,
        worker: Worker | Mapping[str, Worker],
        settings: Settings | None = None,
        api: ConnectOptions | None = None,
    ) -> "SessionManager":
        """A manager that runs `worker` for each session, to be entered with `async with`.

        Several kinds of worker: a mapping from names to workers; a session that names none gets `default`.
        `server`: a URL, several separated by commas, or `ConnectOptions`. `api`: the options of the connection that
        answers commands, if that connects as another user (it should). Entering raises `ServerUnusable` (within
        seconds) or `ConfigurationError`.
        """
        options = server if isinstance(server, ConnectOptions) else ConnectOptions(servers=tuple(server.split(",")))
        return cls(options, api or options, worker, settings or Settings())

    async def __aenter__(self) -> Self:
        if self._entered:
            raise JidoError("a manager can be entered only once: create another with SessionManager.connect(...)")
        self._entered = True
        self._kinds = kinds_of(self._worker, self._settings)
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
        """Answer the request-reply API until `stop` is called (from a signal handler, for example)."""
        await self.start_serving()
        await self._stop_serving.wait()

    async def start_serving(self) -> None:
        """Start answering the request-reply API, on its own connection, and return."""
        handler = self._running().handle
        async with self._start_serving_once:
            if not self._serving:
                await self._start_service(handler)

    async def _start_service(self, handler: Handler) -> None:
        connection = await self._connect(self._api, "api ")
        endpoints = MicroService(
            connection,
            name=SERVICE_NAME,
            service_id=self.manager_id,
            version=VERSION,
            description="creates, runs, tracks and ends sessions; every change is an event on jido.client.events",
            bytes_max=self._settings.commands_bytes_max,
            wait_max_s=self._settings.command_timeout_s,
        )
        service = Service(endpoints, self._settings, self.manager_id, handler, self._consumers, self.stats)
        try:
            await service.start()
            await connection.flush()  # from now on requests reach this manager
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
        self._lease.renew_soon()  # the others pass sessions on to managers that serve
        self._background.start("queue", lambda: self._watch_queue(service))

    def stop(self) -> None:
        """Make `serve` return."""
        self._stop_serving.set()

    async def close(self) -> None:
        """Accept no more commands; end every session with `manager_stopped`, release the lease, disconnect.

        Before that, for `drain_timeout_s`, it accepts no new sessions, and running sessions may end by themselves.
        """
        self.stop()
        timeout_s = self._settings.drain_timeout_s
        self._phase = "draining" if timeout_s else "stopping"
        self._lease.renew_soon()  # the others are to see it now
        try:
            async with reported("draining", self._sessions if timeout_s else (), f"up to {timeout_s:g} s"):
                await self._sessions.drain(timeout_s)
            self._phase = "stopping"
            self._sessions.give_up_starts()
        finally:
            await self._exit.aclose()
            self._handlers = None

    def snapshot(self) -> Snapshot:
        """The state of the manager: its counters, and the reasons why it is not ready."""
        if not self._stop_serving.is_set():
            self._running()
        not_ready = [reason for connection in self._connections for reason in connection.not_ready]
        not_ready += [] if self._ownership.may_write() else ["the lease is not held"]
        not_ready += self._lease.not_ready
        not_ready += self._followers.not_ready + self._background.not_ready
        not_ready += [] if self._serving else ["commands are not answered yet"]
        if self._stop_serving.is_set():
            not_ready.append(f"{self._phase or 'stopping'}, {len(self._sessions)} sessions are left")
        by_status = self._sessions.by_status()
        return Snapshot(
            manager_id=self.manager_id,
            version=VERSION,
            sessions=dict(sum(by_status.values(), Counter())),
            workers={name: dict(counts) for name, counts in by_status.items()},
            stats=self.stats,
            lease_age_s=self._lease.age_s,
            reconnects=sum(connection.reconnects for connection in self._connections),
            foreign=len(self._index.foreign),
            without_consumer=self._followers.without_consumer,
            not_ready=not_ready,
        )

    def __repr__(self) -> str:
        state = f"with {len(self._sessions)} sessions" if self._handlers is not None else "not running"
        return f"<SessionManager {self.manager_id} {state}>"

    async def _command(self, verb: str, session_id: str, request: msgspec.Struct, kind: type[T]) -> T:
        reply = await self._running().handle(Call(verb, session_id, request, local=True))
        return codec.decode(codec.encode(reply), kind)  # a copy, as over NATS: the caller must not change our records

    def _running(self) -> CommandHandlers:
        if self._handlers is None:
            raise JidoError("the manager is not running: use it inside 'async with SessionManager.connect(...)'")
        return self._handlers

    async def _start(self) -> None:
        settings = self._settings
        connection = await self._connect(self._options, "")
        await topology.check_server(connection)
        deployed = await topology.declare(connection, settings)
        self._context = context = await self._writer_context(connection, deployed)
        self._consumers = ConsumerRequests(connection, topology.readable(settings))
        self._index = index = SessionIndex()
        claims = ClaimIndex()
        description, conversations = describe(self.manager_id, VERSION), await self._open_conversations()
        self._sessions = Sessions(context, description, self._kinds, settings, conversations, now=_now)
        self._handlers = CommandHandlers(context, self._sessions, index, Forwarder(connection), settings, connection)
        await self._take_lease(connection)
        self._followers = Followers(context.records, context.leases, context.event_log, index, claims, self._sessions)
        self._exit.push_async_callback(self._background.close)
        self._sweeper = OrphanSweeper(context, self._sessions, index, claims, self._lease.lease_s / 3, now=_now)
        self._start_tasks(connection, claims)
        self._exit.push_async_callback(self._end_sessions)
        with contextlib.suppress(TimeoutError):  # then what depends on them is refused until they are
            async with asyncio.timeout(LEASES_READ_S):
                await self._leases.read.wait()

    async def _writer_context(self, connection: Connection, deployed: topology.Deployed) -> WriterContext:
        """What sessions are written with; the lease exists, but is not held yet."""
        settings = self._settings
        records = SessionRecords(
            connection,
            settings.sessions_bucket,
            terminated_ttl_s=settings.terminated_ttl_s,
            marker_ttl_s=deployed.marker_ttl_s,
        )
        event_log = EventLog(connection, settings.events_stream, settings.encoding)
        event_log.acknowledged = await event_log.last_sequence()
        self._leases = Leases(connection, settings.managers_bucket, lease_s=deployed.lease_s)
        self._lease = Lease(
            self._options, settings.managers_bucket, self.manager_id, deployed.lease_s, outage=self._outage
        )
        self._ownership = Ownership(self._lease, connection)
        journals = await self._open_journals(connection)
        return WriterContext(
            self.manager_id, records, event_log, self._leases, self._ownership, self.stats, self.failpoints, journals
        )

    async def _open_journals(self, connection: Connection) -> JournalLog | None:
        """The stream of journals; None, with a warning in the log, if this manager may not use it."""
        stream = self._settings.journal_stream
        try:
            await topology.declare_journal(connection, self._settings)
            journals = JournalLog(connection, stream)
            await journals.check()
        except (NotAllowed, ServerUnusable) as error:
            log.warning(
                "the journals cannot be used: this manager creates no sessions with a restart policy",
                extra={"stream": stream, "error": str(error)},
            )
            return None
        return journals

    async def _take_lease(self, connection: Connection) -> None:
        self._exit.push_async_callback(self._lease.release)
        try:
            await self._lease.acquire(self._info)
        except TimeoutError:
            raise ServerUnusable(
                f"the lease in {self._settings.managers_bucket} could not be stored within seconds"
            ) from None
        self._ownership.rechecked(self._lease.held_since)
        await self._use_stored_lease_time(connection, self._settings.lease_s)

    async def _use_stored_lease_time(self, connection: Connection, before: int) -> None:
        """Use the deployment's lease time; warn if that is not the one of before."""
        stored = await topology.stored_lease_time(connection, self._settings.events_stream)
        self._lease.lease_s = self._leases.lease_s = lease_s = stored or self._lease.lease_s
        if lease_s != before:
            extra = {"lease_s": lease_s, "setting": self._settings.lease_s}
            log.warning("lease_s is that of the deployment's managers, not the setting", extra=extra)

    async def _agree_on_lease_time(self, connection: Connection) -> None:
        """Read the stored lease time again when a manager with another one is seen, until cancelled.

        Managers that start at the same moment may each find no other, and store their own: the last one stands. Its
        lease comes later than that, so every other manager sees it, and then reads what it has stored.
        """
        while True:
            await self._leases.disagreement.wait()
            self._leases.disagreement.clear()
            try:
                await self._use_stored_lease_time(connection, self._lease.lease_s)
            except JidoError:
                self._leases.disagreement.set()  # once this task is restarted
                raise

    def _start_tasks(self, connection: Connection, claims: ClaimIndex) -> None:
        if (journals := self._context.journals) is not None:
            cleaner = JournalCleaner(journals, self._context.records, self._index)
            self._background.start("journals", cleaner.run)
        for name, work in (
            ("index", self._followers.follow_index),
            ("leases", self._followers.follow_leases),
            ("lease time", lambda: self._agree_on_lease_time(connection)),
            ("claims", self._followers.follow_claims),
            ("sweep", self._sweeper.run),
            ("deadlines", self._sessions.apply_deadlines),
            ("lapses", lambda: self._sessions.recheck_after_lapses(claims)),
            ("loop monitor", lambda: LoopMonitor(self._sessions.running).run()),
        ):
            self._background.start(name, work)

    async def _connect(self, options: ConnectOptions, use: str) -> Connection:
        connection = await Connection.open(options, f"jido-nats {use}{self.manager_id}", outage=self._outage)
        self._exit.push_async_callback(connection.close)
        self._connections.append(connection)
        return connection

    async def _open_conversations(self) -> Conversations:
        """Output has its own connection: thousands of messages a second must not delay a record."""
        connection = await self._connect(self._options, "output ")
        settings = self._settings
        output_log = OutputLog(connection, settings.output_stream, settings.encoding)
        outbox = Outbox(output_log, settings.output_message_bytes_max)
        self._exit.push_async_callback(self._end_output, outbox)
        held = HeldBytes(settings.sessions_bytes_max)
        return Conversations(
            outbox,
            held,
            journals=self._context.journals,
            failpoints=self.failpoints,
            inbox_messages_max=settings.inbox_messages_max,
            now=_now,
        )

    async def _end_output(self, outbox: Outbox) -> None:
        left = await outbox.close(OUTPUT_GRACE_S)
        if left:
            log.error("output of sessions could not be stored in time", extra={"sessions": left})

    async def _end_sessions(self) -> None:
        silence_max_s = self._sessions.stop_timeout_s + CLOSE_GRACE_S
        until = f"giving up if none ends for {silence_max_s:g} s"
        async with reported("ending", self._sessions, until, level=logging.INFO):
            left = await self._sessions.close(silence_max_s)
        if left:
            log.error("sessions could not be ended; another manager will end them", extra={"sessions": left})

    async def _watch_queue(self, service: Service) -> None:
        """Renew the lease when a kind is full or has room again; leave the queue group of `create` if another has room.

        By a lease that is newer than the first one in which this manager is full: so of several managers that fill
        together, the last one stays.
        """
        renewed_with, full_at = set[str](), math.inf
        while True:
            info = self._sessions.info
            if (full := {name for name, kind in info.kinds.items() if kind.full}) != renewed_with:
                renewed_with = full
                self._lease.renew_soon()
            full_at = min(full_at, self._leases.full_at(self.manager_id)) if info.full else math.inf
            await service.take_creates(not self._leases.others_have_room(self.manager_id, after=full_at))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(QUEUE_WATCH_S):
                    await self._sessions.filled.wait()
            self._sessions.filled.clear()

    def _info(self) -> ManagerInfo:
        return msgspec.structs.replace(self._sessions.info, draining=bool(self._phase), serves=self._serving)


def _now() -> datetime:
    return datetime.now(UTC)
