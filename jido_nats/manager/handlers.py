"""What a manager does for each command: carry it out where the session is its own, else read it or pass it on."""

import asyncio
import contextlib
from collections.abc import Coroutine, Mapping
from typing import Any, Final, TypeVar

import msgspec

from jido_nats.broker.connection import Connection
from jido_nats.core import codec, lifecycle, requests
from jido_nats.core.events import SessionCreated
from jido_nats.core.requests import (
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
from jido_nats.core.session import Reason, SessionRecord, Status
from jido_nats.core.settings import Settings
from jido_nats.errors import AlreadyExists, InvalidTransition, NotFound, NotSent, Overloaded, StartFailed, Unavailable
from jido_nats.ids import new_session_id
from jido_nats.manager.forwarding import Forwarder
from jido_nats.manager.running import NotHere, SessionExists
from jido_nats.manager.service import Handler
from jido_nats.manager.sessions import Sessions
from jido_nats.manager.writer import WriterContext
from jido_nats.store.index import SessionIndex

T = TypeVar("T")


class CommandHandlers:
    """The API's handlers over one manager's sessions; `by_name` has them as the service calls them."""

    def __init__(
        self,
        context: WriterContext,
        sessions: Sessions,
        index: SessionIndex,
        forwarder: Forwarder,
        settings: Settings,
        connection: Connection,
    ) -> None:
        self._context = context
        self._sessions = sessions
        self._index = index
        self._forwarder = forwarder
        self._settings = settings
        self._connection = connection
        self.by_name: Final[Mapping[str, Handler]] = {
            "create": self._create,
            "get": self._get,
            "list": self._list,
            "history": self._history,
            "terminate": self._terminate,
            "send": self._send,
            "idle": lambda session_id, _, **how: self._change("idle", Status.IDLE, session_id, **how),
            "activate": lambda session_id, _, **forwarded: self._change(
                "activate", Status.ACTIVE, session_id, **forwarded
            ),
        }

    async def _create(self, _: str, request: CreateRequest, *, forwarded: bool = False) -> CreateReply:
        request.check()
        request.check_size(min(self._settings.metadata_bytes_max, self._connection.max_payload // 2))
        settings, session_id = self._settings, request.session_id or new_session_id()
        timeout_s = settings.command_timeout_s + (settings.start_timeout_s if settings.wait_ready else 0)
        try:
            record, replayed = await self._carry_out(session_id, self._sessions.create(session_id, request), timeout_s)
        except SessionExists as exists:
            record, replayed = exists.record, True
            if not record.sealed:
                return codec.decode(await self._forward("create", record, request, forwarded=forwarded), CreateReply)
        except Overloaded:
            if forwarded or not self._sessions.full:
                raise
            asked = msgspec.structs.replace(request, session_id=session_id)
            return await self._create_elsewhere(session_id, asked, timeout_s)
        if replayed and not requests.same_content(request, record):
            raise AlreadyExists("that session id is taken; choose another", session_id=record.session_id)
        if replayed and record.reason is Reason.START_FAILED:
            raise StartFailed(f"the session did not start: {record.error}", session_id=record.session_id)
        return requests.reply_of(record, replayed=replayed)

    async def _create_elsewhere(self, session_id: str, request: CreateRequest, timeout_s: float) -> CreateReply:
        """The answer of a manager that has room; `Overloaded` where none has."""
        for manager_id in self._context.leases.others_with_room(self._context.manager_id):
            with contextlib.suppress(Overloaded, NotSent):
                data = await self._forwarder.forward(manager_id, "create", session_id, request, timeout_s=timeout_s)
                return codec.decode(data, CreateReply)
        raise Overloaded("every manager runs as many sessions as it may; ask again later", session_id=session_id)

    async def _get(self, session_id: str, _: Empty, *, forwarded: bool = False) -> SessionRecord:
        return await self._look_up(self._read(session_id))

    async def _list(self, _: str, request: ListRequest, *, forwarded: bool = False) -> ListReply:
        request.check()
        return await self._look_up(self._page(request))

    async def _history(self, session_id: str, request: HistoryRequest, *, forwarded: bool = False) -> HistoryReply:
        request.check()
        return await self._look_up(self._replay(session_id, request))

    async def _terminate(self, session_id: str, request: TerminateRequest, *, forwarded: bool = False) -> SessionRecord:
        request.check()
        timeout_s = max(self._settings.command_timeout_s, self._settings.stop_timeout_s + 1)
        try:
            work = self._sessions.terminate(session_id, Reason.REQUESTED, request.detail)
            return requests.as_answered(await self._carry_out(session_id, work, timeout_s))
        except NotHere:
            record = await self._get(session_id, Empty())
            if record.sealed:
                return requests.as_answered(record)
            return codec.decode(await self._forward("terminate", record, request, forwarded=forwarded), SessionRecord)

    async def _change(self, verb: str, status: Status, session_id: str, *, forwarded: bool = False) -> SessionRecord:
        work = self._sessions.change(session_id, status)
        return await self._at_owner(
            verb, session_id, Empty(), work, SessionRecord, f"cannot become {status}", forwarded=forwarded
        )

    async def _send(self, session_id: str, request: SendRequest, *, forwarded: bool = False) -> SendReply:
        request.check()
        work = self._sessions.send(session_id, request)
        return await self._at_owner(
            "send", session_id, request, work, SendReply, "takes no messages", forwarded=forwarded
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
        forwarded: bool,
    ) -> T:
        """The result of `work` on a session that is run here, or its owner's answer; `refusal`: of one that ended."""
        try:
            return await self._carry_out(session_id, work, self._settings.command_timeout_s)
        except NotHere:
            record = await self._get(session_id, Empty())
            if record.sealed:
                raise InvalidTransition(f"a session that is {record.status} {refusal}", session_id=session_id) from None
            return codec.decode(await self._forward(verb, record, request, forwarded=forwarded), kind)

    async def _carry_out(self, session_id: str, work: Coroutine[Any, Any, T], timeout_s: float) -> T:
        """The result of a change. `Unavailable`: it takes too long (and goes on), or this manager may not answer."""
        if not (self._connection.connected and self._context.ownership.may_write()):
            work.close()
            raise Unavailable("not done: this manager has no connection to NATS, or no lease, right now; ask again")
        result = await self._sessions.in_own_task(session_id, work, timeout_s)
        if not self._context.ownership.may_write():
            raise Unavailable("this manager's lease has lapsed; ask again")
        return result

    async def _look_up(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of a reading, or `Unavailable` when it takes too long (and ends)."""
        try:
            async with asyncio.timeout(self._settings.command_timeout_s):
                return await work
        except TimeoutError:
            raise Unavailable("NATS does not answer this manager right now; ask again") from None

    async def _forward(self, verb: str, record: SessionRecord, request: msgspec.Struct, *, forwarded: bool) -> bytes:
        if forwarded or record.owner == self._context.manager_id:
            raise Unavailable("the session is just changing hands; ask again", session_id=record.session_id)
        try:
            return await self._forwarder.forward(
                record.owner, verb, record.session_id, request, timeout_s=self._settings.command_timeout_s
            )
        except NotSent as error:
            raise Unavailable(
                "the manager that runs this session does not answer; ask again", session_id=record.session_id
            ) from error

    async def _read(self, session_id: str) -> SessionRecord:
        record = (await self._context.records.get(session_id)).record
        if record is None:
            raise NotFound("there is no session of that id, or its record has expired", session_id=session_id)
        return record

    def _page_bytes_max(self) -> int:
        """As JSON: in MessagePack a number may be 2.25 times as long."""
        return min(requests.LIST_BYTES_MAX, self._connection.max_payload // 3)

    async def _page(self, request: ListRequest) -> ListReply:
        position = await self._context.event_log.last_sequence()  # first: what is published is committed
        await self._context.records.caught_up(self._index.position)
        page = await self._index.page(request, self._page_bytes_max())
        return msgspec.structs.replace(page, position=position)

    async def _replay(self, session_id: str, request: HistoryRequest) -> HistoryReply:
        record = (await self._context.records.get(session_id)).record
        steps = await self._context.event_log.steps(session_id)
        if record is not None:
            created: SessionCreated | None = lifecycle.created_event(record)
            steps += lifecycle.step_of(record) if all(step.version < record.version for step in steps) else []
        else:
            created = await self._context.event_log.find_created(session_id)
        if created is None and not steps:
            raise NotFound("there is no session of that id, and the stream remembers none", session_id=session_id)
        limit = request.limit
        while True:
            events, following = lifecycle.history(created, steps, after=request.after, limit=limit)
            if limit == 1 or sum(len(codec.encode(event)) for event in events) <= self._page_bytes_max():
                return HistoryReply(events=events, next=following)
            limit //= 2
