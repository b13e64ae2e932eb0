"""SessionManager: creates, runs, tracks and ends sessions, and tells of every change.

It joins the parts and answers commands; how a session changes is in `sessions` and `write_path`.
"""

import asyncio
import contextlib
import importlib.metadata
import logging
from collections.abc import Awaitable, Callable, Coroutine
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import msgspec

from jido_nats.blocked import LoopWatch
from jido_nats.broker import topology
from jido_nats.broker.clock import boottime
from jido_nats.broker.connection import Connection, ConnectOptions
from jido_nats.broker.endpoints import Endpoints
from jido_nats.broker.event_log import EventLog, claimant
from jido_nats.broker.leases import Lease, Leases, ManagerInfo, describe
from jido_nats.broker.output_log import OutputLog
from jido_nats.broker.peers import Peers
from jido_nats.broker.registry import Registry, entry_of
from jido_nats.core import codec, commands, lifecycle, subjects
from jido_nats.core.commands import (
    CreateReply,
    CreateRequest,
    Empty,
    HistoryReply,
    HistoryRequest,
    ListReply,
    ListRequest,
    SendReply,
    SendRequest,
    TerminateRequest,
)
from jido_nats.core.events import Event
from jido_nats.core.session import Reason, SessionRecord, Status
from jido_nats.core.settings import Settings
from jido_nats.errors import (
    AlreadyExists,
    InvalidTransition,
    NotAllowed,
    NotFound,
    PositionTooOld,
    ServerUnusable,
    StartFailed,
    Unavailable,
)
from jido_nats.ids import new_manager_id, new_message_id, new_session_id
from jido_nats.index import ClaimIndex, SessionIndex
from jido_nats.monitoring import Snapshot
from jido_nats.outbox import Outbox
from jido_nats.service import SERVICE_NAME, Service, Verb, overloaded
from jido_nats.sessions import NotHere, Sessions, Taken
from jido_nats.stats import Stats
from jido_nats.takeover import Sweeper
from jido_nats.talk import Talk
from jido_nats.worker import Worker
from jido_nats.write_path import WritePath

RESTART_WAIT_S: Final = 1.0
CLOSE_GRACE_S: Final = 10.0
OUTPUT_GRACE_S: Final = 5.0
QUEUE_WATCH_S: Final = 0.25
# What the index takes in is never on the way of a transition; `list` waits for it at most so much longer.
INDEX_LINGER_S: Final = 0.002
VERSION: Final = importlib.metadata.version("jido_nats")

log = logging.getLogger(__name__)

T = TypeVar("T")


class SessionManager:
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
        self._stop_serving = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._exit = contextlib.AsyncExitStack()
        self._serving = False
        self.stats = Stats()
        self._connections: list[Connection] = []

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

    # Commands: the same as over request-reply.

    async def create_session(
        self,
        *,
        session_id: str | None = None,
        metadata: dict[str, Any] | None = None,
        llm_config: dict[str, Any] | None = None,
        idle_after_s: float | None = None,
        idle_timeout_s: float | None = None,
        max_lifetime_s: float | None = None,
    ) -> SessionRecord:
        """Create a session and return its record once it is `active`.

        With a chosen `session_id` it is safe to repeat: the same request gives the same session.
        `metadata` is broadcast, `llm_config` is stored; both are plain JSON objects.
        The time limits (seconds; 0: none, None: as the manager is set): see `CreateRequest`.
        Raises `StartFailed`, `AlreadyExists`, `Overloaded`, `BadRequest`, `TooLarge`, `Unavailable`.
        """
        request = CreateRequest(
            session_id=session_id,
            metadata=metadata or {},
            llm_config=llm_config,
            idle_after_s=idle_after_s,
            idle_timeout_s=idle_timeout_s,
            max_lifetime_s=max_lifetime_s,
        )
        return await self._create("", request)

    async def get_session_info(self, session_id: str) -> SessionRecord:
        """The record, also of a session that has ended and not yet expired. Raises `NotFound`, `Unavailable`."""
        return await self._get(session_id, Empty())

    async def list_sessions(
        self,
        *,
        status: Status | None = None,
        metadata: dict[str, Any] | None = None,
        include_terminated: bool = False,
    ) -> list[SessionRecord]:
        """The live sessions (or those of a status, or with these metadata), ordered by id. Raises `Unavailable`."""
        found: list[SessionRecord] = []
        cursor: str | None = None
        while True:
            request = ListRequest(
                status=status,
                metadata=metadata or {},
                include_terminated=include_terminated,
                limit=commands.LIST_LIMIT_MAX,
                cursor=cursor,
            )
            page = await self._list("", request)
            found += page.sessions
            if (cursor := page.next_cursor) is None:
                return found

    async def session_history(self, session_id: str) -> list[Event]:
        """Every event of a session, in order, also after its record has expired. Raises `NotFound`, `Unavailable`."""
        found: list[Event] = []
        after: int | None = 0
        while after is not None:
            page = await self._history(session_id, HistoryRequest(after=after, limit=commands.HISTORY_LIMIT_MAX))
            found += page.events
            after = page.next
        return found

    async def terminate_session(self, session_id: str, *, detail: str | None = None) -> SessionRecord:
        """End a session and return its record, `terminated`; again on a terminated one: the same, nothing is told.

        Raises `NotFound`, `StopTimeout` (stopping goes on), `Unavailable`.
        """
        return await self._terminate(session_id, TerminateRequest(detail))

    async def idle_session(self, session_id: str) -> SessionRecord:
        """`active` → `idle`. Raises `NotFound`, `InvalidTransition`, `Unavailable`."""
        return await self._change("idle", Status.IDLE, session_id)

    async def activate_session(self, session_id: str) -> SessionRecord:
        """`idle` → `active`. Raises `NotFound`, `InvalidTransition`, `Unavailable`."""
        return await self._change("activate", Status.ACTIVE, session_id)

    async def send_message(
        self, session_id: str, role: str, content: Any, *, message_id: str | None = None
    ) -> SendReply:
        """Send a message to the session's worker; one that is `idle` becomes `active` first.

        `content`: plain JSON. With a `message_id` it is safe to repeat.
        Raises `NotFound`, `InvalidTransition` where the session is neither `active` nor `idle`, `Overloaded` where
        its inbox is full, `AlreadyExists` where that id was another message's, `BadRequest`, `Unavailable`.
        """
        return await self._send(session_id, SendRequest(role=role, content=content, message_id=message_id))

    # Life

    async def serve(self) -> None:
        """Answer the request-reply API until `stop` is called (from a signal handler, say)."""
        await self.start_serving()
        await self._stop_serving.wait()

    async def start_serving(self) -> None:
        """Begin to answer the request-reply API, on a connection of its own, and return."""
        if self._serving:
            return
        self._serving = True
        connection = await self._connect(self._api, "api ")
        endpoints = Endpoints(
            connection,
            name=SERVICE_NAME,
            service_id=self.manager_id,
            version=VERSION,
            description="creates, runs, tracks and ends sessions; every change is an event on jido.client.events",
            in_flight_max=self._settings.commands_max,
            overloaded=overloaded,
        )
        service = Service(endpoints, self._settings, self.manager_id, self._verbs(), self.stats)
        await service.start()
        try:
            await connection.flush()  # from now on a request finds somebody
        except NotAllowed as error:
            raise ServerUnusable(
                "the user of this connection may not answer commands; name one that may with api= (--api-user)"
            ) from error
        self._exit.push_async_callback(service.stop)
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
        finally:
            await self._exit.aclose()

    def snapshot(self) -> Snapshot:
        """What the manager can say of itself: its counters, and what keeps it from being ready."""
        troubles = [f"no connection to NATS: {c.name}" for c in self._connections if not c.connected]
        troubles += [] if self._lease_stands() else ["the lease does not stand"]
        troubles += [] if self._serving else ["commands are not answered yet"]
        troubles += ["stopping"] if self._stop_serving.is_set() else []
        return Snapshot(
            manager_id=self.manager_id,
            version=VERSION,
            sessions=dict(self._sessions.by_status()),
            stats=self.stats,
            lease_age_s=self._lease.age_s,
            reconnects=sum(connection.reconnects for connection in self._connections),
            troubles=troubles,
        )

    def __repr__(self) -> str:
        return f"<SessionManager {self.manager_id} with {len(self._sessions)} sessions>"

    async def _start(self) -> None:
        settings = self._settings
        self._connection = connection = await self._connect(self._options, "")
        await topology.check_server(connection)
        await topology.declare(connection, settings)
        self._registry = Registry(
            connection,
            settings.sessions_bucket,
            terminated_ttl_s=settings.terminated_ttl_s,
            marker_ttl_s=settings.marker_ttl_s,
        )
        self._event_log = EventLog(connection, settings.events_stream, settings.encoding)
        self._event_log.acknowledged = await self._event_log.last_sequence()
        self._leases = Leases(connection, settings.managers_bucket)
        self._peers = Peers(connection)
        path = WritePath(
            self.manager_id,
            self._registry,
            self._event_log,
            self.stats,
            self._lease_stands,
            self._lease_restored,
            self._leases.is_alive,
        )
        self._sessions = Sessions(
            path, self._worker, settings, await self._open_talk(), now=_now, new_id=new_session_id
        )
        self._sweeper = Sweeper(
            path,
            self._index,
            self._claims,
            interval_s=settings.lease_s / 3,
            runs_here=self._sessions.__contains__,
            let_go=self._sessions.let_go,
            may_judge=self._may_judge,
            now=_now,
        )
        self._lease = Lease(self._options, settings.managers_bucket, settings.lease_s, self._info)
        self._exit.push_async_callback(self._lease.release)
        try:
            await self._lease.acquire(self._on_lease_anew)
        except TimeoutError:
            raise ServerUnusable(
                f"the lease in {settings.managers_bucket} could not be stored within seconds"
            ) from None
        self._verified_since = self._lease.held_since
        self._exit.push_async_callback(self._end_tasks)
        for name, work in (
            ("index", self._follow_index),
            ("leases", self._follow_leases),
            ("claims", self._follow_claims),
            ("sweep", self._sweeper.run),
            ("limits", self._sessions.deadlines.run),
            ("loop watch", lambda: LoopWatch(self._sessions.__contains__).run()),
        ):
            self._spawn(name, work)
        self._exit.push_async_callback(self._end_sessions)

    async def _connect(self, options: ConnectOptions, use: str) -> Connection:
        connection = await Connection.open(options, f"jido-nats {use}{self.manager_id}")
        self._exit.push_async_callback(connection.close)
        self._connections.append(connection)
        return connection

    async def _open_talk(self) -> Talk:
        """Output goes over a connection of its own: thousands of messages a second must not stand before a record."""
        connection = await self._connect(self._options, "output ")
        outbox = Outbox(OutputLog(connection, self._settings.encoding), self._settings.output_message_bytes_max)
        self._exit.push_async_callback(self._end_output, outbox)
        return Talk(
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
            others = [info for name, info in self._leases.managers.items() if name != self.manager_id]
            await service.take_creates(not self._sessions.full or all(info.full for info in others))
            await asyncio.sleep(QUEUE_WATCH_S)

    def _info(self) -> ManagerInfo:
        return msgspec.structs.replace(self._description, sessions=len(self._sessions), full=self._sessions.full)

    # The lease: writes and answers stop with it, and go on when every session was looked at again.

    def _lease_stands(self) -> bool:
        return self._lease.valid and self._lease.held_since == self._verified_since

    async def _lease_restored(self) -> None:
        while not self._lease_stands():
            self._verified.clear()
            await self._verified.wait()

    def _may_judge(self) -> bool:
        """Only who has been connected, with its lease, for a whole lease time may call others dead."""
        since = (self._connection.up_since, self._lease.held_since)
        if not self._lease_stands() or None in since or not self._connection.connected:
            return False
        return boottime() - max(moment for moment in since if moment is not None) >= self._settings.lease_s

    def _on_lease_anew(self) -> None:
        self._tasks.append(asyncio.create_task(self._verify(), name=f"{self.manager_id}: verify"))

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
        async with self._registry.follow(linger_s=INDEX_LINGER_S) as consumer:
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

    async def _follow_claims(self) -> None:
        self._claims.clear()
        async with self._event_log.follow_claims() as consumer:
            async for message in consumer:
                self._claims.apply(subjects.session_of(message.subject), claimant(message.data))
                self._claims.position.moved_to(message.sequence)

    # Verbs

    def _verbs(self) -> dict[str, Verb]:
        return {
            "create": self._create,
            "get": self._get,
            "list": self._list,
            "history": self._history,
            "terminate": self._terminate,
            "send": self._send,
            "idle": lambda session_id, _, **passed: self._change("idle", Status.IDLE, session_id, **passed),
            "activate": lambda session_id, _, **passed: self._change("activate", Status.ACTIVE, session_id, **passed),
        }

    async def _create(self, _: str, request: CreateRequest, *, passed_on: bool = False) -> CreateReply:
        commands.check_create(request, self._settings.metadata_bytes_max)
        settings = self._settings
        timeout_s = settings.command_timeout_s + (settings.start_timeout_s if settings.wait_ready else 0)
        try:
            record, replayed = await self._carry_out(self._sessions.create(request.session_id, request), timeout_s)
        except Taken as taken:
            record, replayed = taken.record, True
            if not record.sealed:
                data = await self._pass_on("create", record, request, passed_on=passed_on)
                return codec.decode(data, CreateReply)
        if replayed and not commands.same_content(request, record):
            raise AlreadyExists("that session id is taken; choose another", session_id=record.session_id)
        if replayed and record.reason is Reason.START_FAILED:
            raise StartFailed(f"the session did not start: {record.error}", session_id=record.session_id)
        return commands.reply_of(record, replayed=replayed)

    async def _get(self, session_id: str, _: Empty, *, passed_on: bool = False) -> SessionRecord:
        return await self._look_up(self._read(session_id))

    async def _list(self, _: str, request: ListRequest, *, passed_on: bool = False) -> ListReply:
        commands.check_list(request)
        return await self._look_up(self._page(request))

    async def _history(self, session_id: str, request: HistoryRequest, *, passed_on: bool = False) -> HistoryReply:
        commands.check_history(request)
        return await self._look_up(self._replay(session_id, request))

    async def _terminate(self, session_id: str, request: TerminateRequest, *, passed_on: bool = False) -> SessionRecord:
        commands.check_terminate(request)
        timeout_s = max(self._settings.command_timeout_s, self._settings.stop_timeout_s + 1)
        try:
            work = self._sessions.terminate(session_id, Reason.REQUESTED, request.detail)
            return commands.as_answered(await self._carry_out(work, timeout_s))
        except NotHere:
            record = await self._get(session_id, Empty())
            if record.sealed:
                return commands.as_answered(record)
            return codec.decode(await self._pass_on("terminate", record, request, passed_on=passed_on), SessionRecord)

    async def _change(self, verb: str, status: Status, session_id: str, *, passed_on: bool = False) -> SessionRecord:
        work = self._sessions.change(session_id, status)
        return await self._at_owner(
            verb, session_id, Empty(), work, SessionRecord, f"cannot become {status}", passed_on=passed_on
        )

    async def _send(self, session_id: str, request: SendRequest, *, passed_on: bool = False) -> SendReply:
        commands.check_send(request)
        work = self._sessions.send(session_id, request)
        return await self._at_owner(
            "send", session_id, request, work, SendReply, "takes no messages", passed_on=passed_on
        )

    async def _at_owner(
        self,
        verb: str,
        session_id: str,
        request: msgspec.Struct,
        work: Coroutine[Any, Any, T],
        kind: type[T],
        refusal: str,
        *,
        passed_on: bool,
    ) -> T:
        """The result of `work` on a session that is run here, or its owner's answer; `refusal`: of one that ended."""
        try:
            return await self._carry_out(work, self._settings.command_timeout_s)
        except NotHere:
            record = await self._get(session_id, Empty())
            if record.sealed:
                raise InvalidTransition(f"a session that is {record.status} {refusal}", session_id=session_id) from None
            return codec.decode(await self._pass_on(verb, record, request, passed_on=passed_on), kind)

    async def _carry_out(self, work: Coroutine[Any, Any, T], timeout_s: float) -> T:
        """The result of a change. `Unavailable`: it takes too long (and goes on), or this manager may not answer."""
        if not (self._connection.connected and self._lease_stands()):
            work.close()
            raise Unavailable("not done: this manager has no connection to NATS, or no lease, right now; ask again")
        result = await self._sessions.in_own_task(work, timeout_s)
        if not self._lease_stands():
            raise Unavailable("this manager's lease has lapsed; ask again")
        return result

    async def _look_up(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of a reading, or `Unavailable` when it takes too long (and ends)."""
        try:
            async with asyncio.timeout(self._settings.command_timeout_s):
                return await work
        except TimeoutError:
            raise Unavailable("NATS does not answer this manager right now; ask again") from None

    async def _pass_on(self, verb: str, record: SessionRecord, request: msgspec.Struct, *, passed_on: bool) -> bytes:
        if passed_on or record.owner == self.manager_id:
            raise Unavailable("the session is just changing hands; ask again", session_id=record.session_id)
        return await self._peers.pass_on(
            record.owner, verb, record.session_id, request, timeout_s=self._settings.command_timeout_s
        )

    async def _read(self, session_id: str) -> SessionRecord:
        record = (await self._registry.get(session_id)).record
        if record is None:
            raise NotFound("there is no session of that id, or its record has expired", session_id=session_id)
        return record

    async def _page(self, request: ListRequest) -> ListReply:
        position = await self._event_log.last_sequence()  # first: what is published is committed
        await self._registry.caught_up(self._index.position)
        return msgspec.structs.replace(self._index.page(request), position=position)

    async def _replay(self, session_id: str, request: HistoryRequest) -> HistoryReply:
        record = (await self._registry.get(session_id)).record
        steps = await self._event_log.steps(session_id)
        created = lifecycle.created_event(record) if record else await self._event_log.find_created(session_id)
        if created is None and not steps:
            raise NotFound("there is no session of that id, and the stream remembers none", session_id=session_id)
        events, following = lifecycle.history(created, steps, after=request.after, limit=request.limit)
        return HistoryReply(events=events, next=following)


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
