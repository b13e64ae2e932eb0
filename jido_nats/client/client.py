"""Client: the manager's API from the caller's side, and events, live or replayed."""

import asyncio
import contextlib
import warnings
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Self, TypeVar, overload

import msgspec

from jido_nats import trace
from jido_nats.api import SessionApi
from jido_nats.broker.connection import Connection, Message
from jido_nats.broker.consumer import StreamMessage, delete_consumer
from jido_nats.broker.durable import DurableConsumer
from jido_nats.broker.micro import reply_error, reply_value
from jido_nats.broker.options import ConnectOptions
from jido_nats.broker.ordered import OrderedConsumer
from jido_nats.broker.stream_info import check_position
from jido_nats.client.retries import Tries
from jido_nats.client.streams import EventMessage, EventStream, OutputMessage, OutputStream, parse_since
from jido_nats.client.watch import ManagerWatch, SessionWatch
from jido_nats.core import codec, requests, subjects
from jido_nats.core.commands import COMMANDS
from jido_nats.core.events import KnownEvent, SessionStatus, UnknownEvent
from jido_nats.core.lifecycle import after_event
from jido_nats.core.output import Attempts
from jido_nats.core.position import Position, parse_position
from jido_nats.core.requests import (
    CreateReply,
    CreateRequest,
    ListRequest,
    SendRequest,
)
from jido_nats.core.session import Reason, SessionRecord, Status
from jido_nats.errors import (
    BadRequest,
    InvalidTransition,
    JidoError,
    NotSent,
    OutcomeUnknown,
    Unavailable,
)
from jido_nats.ids import new_message_id, new_session_id
from jido_nats.store.event_log import event_in
from jido_nats.store.output_log import output_in

TIMEOUT_S: Final = 60.0

_STEPS: Final = {"idle": Status.IDLE, "activate": Status.ACTIVE}

T = TypeVar("T")


class Client(SessionApi):
    """A caller of session managers; make one with `Client.connect` and use it as `async with`.

    A command is retried while the managers are unavailable. That is safe: ids that the caller does not give are
    chosen here, so a lost reply never creates two sessions or delivers a message twice.
    """

    def __init__(
        self,
        options: ConnectOptions,
        *,
        timeout_s: float,
        events_stream: str,
        output_stream: str,
        sessions_bucket: str,
        managers_bucket: str,
    ) -> None:
        self._options = options
        self._timeout_s = timeout_s
        self._events_stream = events_stream
        self._output_stream = output_stream
        self._sessions_bucket = sessions_bucket
        self._managers_bucket = managers_bucket
        self._entered = False
        self._opened: Connection | None = None

    @classmethod
    def connect(
        cls,
        server: str | ConnectOptions = "nats://127.0.0.1:4222",
        *,
        timeout_s: float = TIMEOUT_S,
        events_stream: str = subjects.EVENTS_STREAM,
        output_stream: str = subjects.OUTPUT_STREAM,
        sessions_bucket: str = subjects.SESSIONS_BUCKET,
        managers_bucket: str = subjects.MANAGERS_BUCKET,
    ) -> "Client":
        """A client; `async with` connects it (raises `ServerUnusable` if no server answers).

        `server`: a URL, several separated by commas, or `ConnectOptions`. `timeout_s`: how long a command may
        take, retries included; it is retried while the managers are unavailable, but fails after 3 s without any.
        """
        options = server if isinstance(server, ConnectOptions) else ConnectOptions(servers=tuple(server.split(",")))
        return cls(
            options,
            timeout_s=timeout_s,
            events_stream=events_stream,
            output_stream=output_stream,
            sessions_bucket=sessions_bucket,
            managers_bucket=managers_bucket,
        )

    async def __aenter__(self) -> Self:
        if self._entered:
            raise JidoError("this client is in use: create another with Client.connect(...)")
        self._entered = True
        try:
            self._opened = await Connection.open(self._options, "jido-nats client")
        except BaseException:
            self._entered = False
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._connection.close()
        finally:
            self._opened, self._entered = None, False

    @property
    def connected(self) -> bool:
        """Whether a command would be sent now; a lost connection is reconnected automatically."""
        return self._opened is not None and self._opened.connected

    async def wait(self, session_id: str, status: Status | str, *, timeout_s: float | None = None) -> SessionRecord:
        """The record once the session is in `status`; returns at once if it already is.

        Raises `NotFound`, `TimeoutError` after `timeout_s` seconds (None: no limit), `InvalidTransition` if
        the session has ended and will never be in that status.
        """
        wanted = requests.status_named(status)
        async with asyncio.timeout(timeout_s), self.events(session_id=session_id, since="new") as events:
            record = await self.get_session_info(session_id)
            while record.status not in (wanted, Status.TERMINATED):
                event = (await anext(events)).event
                if event.version > record.version:
                    record = after_event(record, event)
            if record.status is Status.TERMINATED and record.reason is Reason.OWNER_LOST:
                record = await self.get_session_info(session_id)  # events do not carry the new owner
        if record.status is not wanted:
            raise InvalidTransition(
                f"the session has ended ({record.reason}) and will not be {wanted}", session_id=session_id
            )
        return record

    def watch_sessions(
        self,
        *,
        session_id: str | None = None,
        status: Status | str | None = None,
        metadata: dict[str, Any] | None = None,
        worker: str | None = None,
        include_terminated: bool = False,
        position: int | str | None = None,
        cursor: int | None = None,
    ) -> "SessionWatch":
        """A snapshot of the sessions, then every change, with no gap: `async with` it, then `async for`.

        First a `WatchedSession` for each live session (with `include_terminated`, also for each ended one whose
        record has not expired), then one `SnapshotComplete`, then a `SessionChanged` for each event. A change is
        included if the session matches the filter before or after it. `position`: the `position_token` of the last
        message of an earlier watch; resumes after it, without a snapshot. A bare sequence is accepted with a warning:
        it cannot be verified. `cursor` is its old name and deprecated.
        Entering and the iteration raise `PositionUnavailable` if the stream no longer has the events after that
        position, or is not the stream that it was: start over with a snapshot.
        """
        if cursor is not None:
            warnings.warn("watch_sessions(cursor=…) is deprecated; use position=…", DeprecationWarning, stacklevel=2)
            position = cursor if position is None else position
        wanted = requests.checked(
            ListRequest(
                status=None if status is None else requests.status_named(status),
                metadata={} if metadata is None else metadata,
                worker=worker,
                include_terminated=include_terminated,
            )
        )
        if session_id is not None:
            subjects.check_session_id(session_id)
        resumed = None if position is None else _verifiable(position)
        return SessionWatch(self._connection, self._events_stream, self._sessions_bucket, session_id, wanted, resumed)

    async def check_position(self, position: int | str) -> None:
        """Raise `PositionUnavailable` unless the stream of events is still the one that the position is of.

        `position`: a `position_token`; a bare sequence cannot be verified. Raises `BadRequest` for anything else.
        """
        await check_position(self._connection, self._events_stream, parse_position(position))

    def watch_managers(self) -> ManagerWatch:
        """The live managers, then every renewal and end of a lease: `async with` it, then `async for`.

        Yields a manager's id and its `ManagerLease`, or None when the lease has ended. The iteration raises
        `PositionUnavailable` if the end of a lease may have been missed while NATS was unreachable: start a new watch.
        """
        return ManagerWatch(self._connection, self._managers_bucket)

    @overload
    def events(
        self, *, session_id: str, since: str | int | datetime = "new", durable: str | None = None
    ) -> EventStream[SessionStatus]: ...
    @overload
    def events(
        self, *, session_id: str | None = None, since: str | int | datetime = "new", durable: str | None = None
    ) -> EventStream: ...
    def events(
        self,
        *,
        session_id: str | None = None,
        since: str | int | datetime = "new",
        durable: str | None = None,
    ) -> EventStream:
        """Events in order, without gaps or repeats across reconnects: `async with` it, then `async for`.

        `session_id`: the `session_status` events of one session (an `EventStream[SessionStatus]`); None: every event
        of every session.
        `since`: "new", "all", an age such as "1h", a time (RFC 3339 or `datetime`), a stream sequence, or a
        `position_token`, which means what follows it.
        `durable`: the name of a durable consumer: it resumes where it stopped (`since` applies only when it is
        created), and a message is acknowledged when the next one is requested.
        Entering raises `BadRequest` for an invalid `since`. Entering and the iteration raise `PositionUnavailable` if
        messages were removed before they were read, or the stream is not the one that it was, and `ConsumerNotFound`
        if the durable is deleted.
        """
        subject, kinds = subjects.EVENTS, (*KnownEvent.__args__, UnknownEvent)
        if session_id is not None:
            subject, kinds = subjects.session(session_id), (SessionStatus,)
        start = parse_since(since, datetime.now(UTC))
        if durable is not None:
            name = _checked_durable(durable)
            consumer = DurableConsumer(self._connection, self._events_stream, name, [subject], start)
            return EventStream(consumer, kinds)
        return EventStream(OrderedConsumer(self._connection, self._events_stream, [subject], start, strict=True), kinds)

    async def delete_durable(self, durable: str) -> None:
        """Delete a durable consumer of the events, so that its next reader creates it again, from its own `since`.

        That is the way on after `PositionUnavailable`. Does nothing if there is none. Raises `NotAllowed`,
        `ServerUnusable`.
        """
        await delete_consumer(self._connection, self._events_stream, _checked_durable(durable))

    def output(self, *, session_id: str | None = None, since: str | int | datetime = "new") -> OutputStream:
        """The stored output and conversations of workers: `async with` it, then `async for`.

        `session_id`: None for all sessions. `since`, and what entering raises: see `events`.
        Ephemeral output is not stored; only `listen_output` receives it.
        """
        subject = subjects.ALL_OUTPUT if session_id is None else subjects.output(session_id)
        start = parse_since(since, datetime.now(UTC))
        return OutputStream(OrderedConsumer(self._connection, self._output_stream, [subject], start, strict=True))

    @contextlib.asynccontextmanager
    async def listen(self, subject: str, on_event: Callable[[EventMessage], None]) -> AsyncIterator[None]:
        """Subscribe to events on a subject with core NATS: live only, at most once.

        `on_event` is called in order and must not block; `sequence` is 0, since core NATS has none.
        """

        def on_message(message: StreamMessage) -> None:
            if (event := event_in(message)) is not None:
                on_event(EventMessage(event, 0, message.subject, message.data))

        async with self._subscribed(subject, on_message):
            yield

    @contextlib.asynccontextmanager
    async def listen_output(
        self, session_id: str | None, on_output: Callable[[OutputMessage], None]
    ) -> AsyncIterator[None]:
        """Like `listen`, for output and conversation of one session, or (None) of all, ephemeral output included.

        What an older attempt says after a newer one has spoken is dropped.
        """
        attempts = Attempts()

        def on_message(message: StreamMessage) -> None:
            if (output := output_in(message)) is not None and not attempts.is_late(output):
                on_output(OutputMessage(output, 0, message.subject, message.data))

        async with self._subscribed(
            subjects.ALL_OUTPUT if session_id is None else subjects.output(session_id), on_message
        ):
            yield

    @contextlib.asynccontextmanager
    async def _subscribed(self, subject: str, on_message: Callable[[StreamMessage], None]) -> AsyncIterator[None]:
        def on_received(message: Message) -> None:
            on_message(StreamMessage(message.subject, 0, message.data, message.headers or {}, 0, 0))

        subscription = await self._connection.subscribe(subject, on_received)
        try:
            with contextlib.suppress(NotSent, OutcomeUnknown):  # a reconnect subscribes it, too
                await self._connection.flush()
            yield
        finally:
            await subscription.unsubscribe()

    @property
    def _connection(self) -> Connection:
        if self._opened is None:
            raise JidoError("the client is not connected: use it inside 'async with Client.connect(...)'")
        return self._opened

    async def _command(self, verb: str, session_id: str, request: msgspec.Struct, kind: type[T]) -> T:
        subject = COMMANDS[verb].subject_for(session_id)
        tries = Tries(self._timeout_s)
        if isinstance(request, CreateRequest):
            return await self._create(subject, request, kind, tries)
        try:
            return await self._ask(subject, _with_ids(request), kind, tries)
        except InvalidTransition:
            if verb in _STEPS and tries.in_doubt:  # an earlier attempt, whose reply was lost, may have done it
                record = await self.get_session_info(session_id)
                if record.status is _STEPS[verb] and await self._is_published(record) and isinstance(record, kind):
                    return record
            raise

    async def _create(self, subject: str, request: CreateRequest, kind: type[T], tries: Tries) -> T:
        """The reply; an error has the id. `replayed` is about other requests, not about repetitions of this one."""
        session_id = request.session_id or new_session_id()
        try:
            reply = await self._ask(subject, msgspec.structs.replace(request, session_id=session_id), kind, tries)
        except JidoError as error:
            error.session_id = session_id
            raise
        if request.session_id is None and isinstance(reply, CreateReply):
            return msgspec.structs.replace(reply, replayed=False)
        return reply

    async def _is_published(self, record: SessionRecord) -> bool:
        """Whether the version's events are stored too: a record may be ahead of them."""
        stored = await self.session_history(record.session_id)
        return bool(stored) and stored[-1].version >= record.version

    async def _ask(self, subject: str, request: msgspec.Struct, kind: type[T], tries: Tries) -> T:
        """The reply; retries until the timeout while the outcome is unknown or the managers are unavailable."""
        payload, headers = codec.encode(request), trace.headers(trace.CURRENT.get()) or None
        while True:
            try:
                reply = await self._connection.request(subject, payload, headers=headers, timeout_s=tries.attempt_s())
                if (error := reply_error(reply)) is not None:
                    raise error
                return reply_value(reply.data, kind)
            except (NotSent, OutcomeUnknown, Unavailable) as error:
                await tries.after(error)


def _checked_durable(name: str) -> str:
    """The name. Raises `BadRequest` if no consumer can have it."""
    if not subjects.is_token(name):
        raise BadRequest("a durable's name is 1 to 64 letters, digits, '_' or '-'")
    return name


def _verifiable(position: int | str) -> Position:
    """The position; warns about one that does not say which life of the stream it is of. Raises `BadRequest`."""
    parsed = parse_position(position)
    if not parsed.is_verifiable:
        warnings.warn("a bare sequence cannot be verified; use position_token", UserWarning, stacklevel=3)
    return parsed


def _with_ids(request: msgspec.Struct) -> msgspec.Struct:
    """The request with the ids that its caller did not give: it may have to be retried."""
    match request:
        case SendRequest(message_id=None):
            return msgspec.structs.replace(request, message_id=new_message_id())
        case _:
            return request
