"""The handlers of commands: carry a command out if the session runs here, else read the record or forward it."""

import asyncio
import logging
import random
from collections.abc import Coroutine, Mapping
from typing import Any, Final, TypeVar

import msgspec

from jido_nats.broker.connection import Connection
from jido_nats.broker.micro import reply_value
from jido_nats.core import codec, lifecycle, placement, requests
from jido_nats.core.commands import COMMANDS, Admission
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
from jido_nats.errors import (
    AlreadyExists,
    CommandError,
    InvalidTransition,
    JidoError,
    NotFound,
    NotSent,
    Overloaded,
    StartFailed,
    Unavailable,
)
from jido_nats.ids import new_session_id
from jido_nats.manager.forwarding import Forwarder
from jido_nats.manager.running import NoRoomHere, NotHere, SessionExists
from jido_nats.manager.service import Call, Handler
from jido_nats.manager.sessions import UNFINISHED, Sessions
from jido_nats.manager.writer import WriterContext
from jido_nats.store.index import SessionIndex

STARTING: Final = "starting: the session is not active yet, or not known to be; ask again with the same session id"
# A forwarded create takes this much of a command's time: the manager that forwarded it waits as long for the reply.
FORWARDED_SHARE: Final = 0.9

log = logging.getLogger(__name__)

T = TypeVar("T")


class CommandHandlers:
    """One handler for each row of the table of commands."""

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
        self.by_verb: Final[Mapping[str, Handler]] = {
            "create": self._create,
            "list": self._list,
            "get": self._get,
            "terminate": self._terminate,
            "idle": self._idle,
            "activate": self._activate,
            "send": self._send,
            "history": self._history,
        }

    async def handle(self, call: Call[Any]) -> msgspec.Struct:
        """The reply to a command. Raises `CommandError`."""
        call.request.check()
        work = self.by_verb[call.verb](call)
        try:
            if COMMANDS[call.verb].admission in (Admission.READ, Admission.SCAN):
                return await self._look_up(work)
            return await work
        except CommandError:
            raise
        except JidoError as error:  # of NATS: a caller is to ask again
            extra = {"verb": call.verb, "session_id": call.session_id, "error": repr(error)}
            log.warning("a command could not be carried out", extra=extra)
            why = "the manager cannot do this now; ask again with the same session id"
            raise Unavailable(why, session_id=error.session_id) from error

    async def _create(self, call: Call[CreateRequest]) -> CreateReply:
        call.request.check_size(min(self._settings.metadata_bytes_max, self._connection.max_payload // 2))
        session_id = call.request.session_id or new_session_id()
        try:
            return await self._create_named(call, session_id)
        except JidoError as error:
            error.session_id = session_id  # the session may be starting, and its caller may not know the id
            raise

    async def _create_named(self, call: Call[CreateRequest], session_id: str) -> CreateReply:
        timeout_s = self._create_timeout_s(call)
        try:
            record, replayed = await self._start(session_id, call.request, timeout_s)
        except SessionExists as exists:
            if exists.record.unknown_needs:
                raise AlreadyExists(
                    "that session id is taken by a session of a newer version; choose another", session_id=session_id
                ) from None
            if not exists.record.sealed:
                return await self._forward(call, exists.record, CreateReply)
            record, replayed = exists.record, True
        except NoRoomHere as here:
            if call.forwarded:  # by a manager of any version, which then asks the next one
                raise Overloaded(f"{here}; ask again later") from None
            asked = msgspec.structs.replace(call.request, session_id=session_id)
            return await self._create_elsewhere(session_id, asked, timeout_s)
        return _created(call.request, record, replayed=replayed)

    def _create_timeout_s(self, call: Call[CreateRequest]) -> float:
        """How long a create may take before it is answered with `unavailable`, while the start goes on."""
        timeout_s = self._settings.command_timeout_s
        if call.local and (kind := self._settings.of_kind(call.request.worker)).wait_ready:
            return timeout_s + kind.start_timeout_s
        return timeout_s * FORWARDED_SHARE if call.forwarded else timeout_s

    async def _start(self, session_id: str, request: CreateRequest, timeout_s: float) -> tuple[SessionRecord, bool]:
        """See `Sessions.create`; also `Unavailable` if the session is not active within `timeout_s`."""
        if self._sessions.is_starting(session_id):  # wait in no task of its own: a client repeats this all the time
            try:
                async with asyncio.timeout(timeout_s):
                    await self._sessions.wait_started(session_id)
            except TimeoutError:
                raise Unavailable(STARTING) from None
        work = self._sessions.create(session_id, request)
        return await self._carry_out(session_id, work, timeout_s, unfinished=STARTING)

    async def _create_elsewhere(self, session_id: str, request: CreateRequest, timeout_s: float) -> CreateReply:
        """The reply of another manager that runs this kind of worker and has room.

        Raises `NoSuchWorker` if none runs it, `Overloaded` if all that do are full, `Unavailable` if none answers.
        """
        leases, here, wanted = self._context.leases, self._context.manager_id, request.wanted
        leases.check_read()
        managers = leases.others(here) | {here: self._sessions.info}
        candidates = placement.fitting(managers, wanted)
        if not candidates:
            raise placement.no_such_worker(managers, wanted)
        refusal: CommandError = Overloaded(f"every manager that runs {wanted} is full; ask again later")
        if all(info.draining or not info.serves for info in candidates.values()):
            refusal = Unavailable(
                f"every manager that runs {wanted} is stopping, or answers no commands yet; ask again"
            )
        candidates.pop(here, None)
        while (manager_id := placement.choose(candidates, wanted.worker, random.sample)) is not None:
            leases.passed_on(manager_id)
            try:
                data = await self._forwarder.forward(manager_id, "create", session_id, request, timeout_s=timeout_s)
                return reply_value(data, CreateReply)
            except NotSent:
                refusal = Unavailable(f"the manager that runs {wanted} does not answer; ask again")
            except Overloaded as error:  # its lease is older than that
                refusal = Overloaded(f"every manager that runs {wanted} is full; ask again later ({error})")
            del candidates[manager_id]
        raise refusal

    async def _list(self, call: Call[ListRequest]) -> ListReply:
        end = await self._context.event_log.end()  # first: what is published is committed
        await self._context.records.caught_up(self._index.position)
        page = await self._index.page(call.request, self._page_bytes_max())
        return msgspec.structs.replace(page, position=end.sequence, position_token=end.token)

    async def _get(self, call: Call[Empty]) -> SessionRecord:
        return await self._read(call.session_id)

    async def _terminate(self, call: Call[TerminateRequest]) -> SessionRecord:
        stop_timeout_s = self._sessions.settings_of(call.session_id).stop_timeout_s
        timeout_s = max(self._settings.command_timeout_s, stop_timeout_s + 1)
        work = self._sessions.terminate(call.session_id, Reason.REQUESTED, call.request.detail)
        try:
            record = await self._carry_out(call.session_id, work, timeout_s)
        except NotHere:
            record = await self._look_up(self._read(call.session_id))
            if not record.sealed:
                return await self._forward(call, record, SessionRecord)
        return requests.as_answered(record)

    async def _idle(self, call: Call[Empty]) -> SessionRecord:
        work = self._sessions.change(call.session_id, Status.IDLE)
        return await self._at_owner(call, work, SessionRecord, refusal="cannot become idle")

    async def _activate(self, call: Call[Empty]) -> SessionRecord:
        work = self._sessions.change(call.session_id, Status.ACTIVE)
        return await self._at_owner(call, work, SessionRecord, refusal="cannot become active")

    async def _send(self, call: Call[SendRequest]) -> SendReply:
        work = self._sessions.send(call.session_id, call.request)
        return await self._at_owner(call, work, SendReply, refusal="accepts no messages")

    async def _history(self, call: Call[HistoryRequest]) -> HistoryReply:
        session_id, request = call.session_id, call.request
        record = (await self._context.records.get(session_id)).record
        if record is not None:
            _check_known(record)
        steps, is_last = await self._context.event_log.page(session_id, after=request.after, limit=request.limit + 1)
        created: SessionCreated | None = None
        if record is not None:
            created = lifecycle.created_event(record)
            if is_last and all(step.version < record.version for step in steps):
                steps += lifecycle.step_of(record)
        elif request.after < 1 or not steps:
            created = await self._context.event_log.find_created(session_id)
        if created is None and not steps:
            raise NotFound("there is no session of that id, and the stream has no events of one", session_id=session_id)
        limit = request.limit
        while True:
            events, following = lifecycle.history(created, steps, after=request.after, limit=limit)
            if limit == 1 or sum(len(codec.encode(event)) for event in events) <= self._page_bytes_max():
                return HistoryReply(events=events, next=following)
            limit //= 2

    async def _at_owner(self, call: Call[Any], work: Coroutine[Any, Any, T], kind: type[T], *, refusal: str) -> T:
        """The result of `work` on a session that runs here, else its owner's reply; `refusal`: if it has ended."""
        try:
            return await self._carry_out(call.session_id, work, self._settings.command_timeout_s)
        except NotHere:
            record = await self._look_up(self._read(call.session_id))
        if record.sealed:
            raise InvalidTransition(f"a session that is {record.status} {refusal}", session_id=call.session_id)
        return await self._forward(call, record, kind)

    async def _carry_out(
        self, session_id: str, work: Coroutine[Any, Any, T], timeout_s: float, *, unfinished: str = UNFINISHED
    ) -> T:
        """The result of a change. `Unavailable`: it takes too long (and continues), or this manager may not answer."""
        if not (self._connection.connected and self._context.ownership.may_write()):
            work.close()
            raise Unavailable("not done: this manager currently has no connection to NATS, or no lease; ask again")
        result = await self._sessions.in_own_task(session_id, work, timeout_s, unfinished=unfinished)
        if not self._context.ownership.may_write():
            raise Unavailable("this manager's lease has lapsed; ask again")
        return result

    async def _look_up(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of a read; `Unavailable` if it takes too long (and is cancelled)."""
        try:
            async with asyncio.timeout(self._settings.command_timeout_s):
                return await work
        except TimeoutError:
            raise Unavailable("NATS does not answer this manager; ask again") from None

    async def _forward(self, call: Call[Any], record: SessionRecord, kind: type[T]) -> T:
        """The reply of the session's owner. `Unavailable`: it has none at the moment."""
        if call.forwarded or record.owner == self._context.manager_id:
            raise Unavailable("the session is moving to another manager; ask again", session_id=record.session_id)
        timeout_s = self._settings.command_timeout_s
        try:
            data = await self._forwarder.forward(
                record.owner, call.verb, record.session_id, call.request, timeout_s=timeout_s
            )
        except NotSent as error:
            raise Unavailable(
                "the manager that runs this session does not answer; ask again", session_id=record.session_id
            ) from error
        return reply_value(data, kind)

    async def _read(self, session_id: str) -> SessionRecord:
        entry = await self._context.records.get(session_id)
        record = entry.record
        if entry.is_damaged:
            raise Unavailable("the record of this session is damaged and is being repaired; ask again")
        if record is None:
            raise NotFound("there is no session of that id, or its record has expired", session_id=session_id)
        _check_known(record)
        return record

    def _page_bytes_max(self) -> int:
        """The limit for a page, as JSON: in MessagePack a number may be 2.25 times as long."""
        return min(requests.LIST_BYTES_MAX, self._connection.max_payload // 3)


def _check_known(record: SessionRecord) -> None:
    """Raise `Unavailable` for a record whose rules only newer versions know: one of their managers can answer."""
    if record.unknown_needs:
        raise Unavailable(
            f"this session was written by a newer version (it needs {', '.join(record.unknown_needs)}); ask again when "
            "a manager of that version runs",
            session_id=record.session_id,
        )


def _created(request: CreateRequest, record: SessionRecord, *, replayed: bool) -> CreateReply:
    """The reply to a create, from the record; raises `AlreadyExists` if another request created it."""
    if replayed and not requests.same_content(request, record):
        raise AlreadyExists("that session id is taken; choose another", session_id=record.session_id)
    if replayed and record.reason is Reason.START_FAILED:
        raise StartFailed(f"the session did not start: {record.error}", session_id=record.session_id)
    return requests.reply_of(record, replayed=replayed)
