"""The session commands as Python methods: the same on a manager and, over NATS, on a client."""

from abc import ABC, abstractmethod
from typing import Any, TypeVar

import msgspec

from jido_nats.core import codec, requests, subjects
from jido_nats.core.commands import COMMANDS, About
from jido_nats.core.events import Event
from jido_nats.core.requests import (
    CreateReply,
    CreateRequest,
    Empty,
    HistoryPage,
    HistoryRequest,
    ListReply,
    ListRequest,
    Request,
    SendReply,
    SendRequest,
    TerminateRequest,
)
from jido_nats.core.session import DEFAULT_WORKER, RestartPolicy, SessionRecord, Status
from jido_nats.errors import InternalError, JidoError

T = TypeVar("T")


class SessionApi(ABC):
    """The session commands. A `SessionManager` carries them out; a `Client` sends them to a manager."""

    async def create_session(
        self,
        *,
        session_id: str | None = None,
        metadata: dict[str, Any] | None = None,
        llm_config: dict[str, Any] | None = None,
        worker: str = DEFAULT_WORKER,
        labels: dict[str, str] | None = None,
        idle_after_s: float | None = None,
        idle_timeout_s: float | None = None,
        max_lifetime_s: float | None = None,
        restart: RestartPolicy | None = None,
    ) -> SessionRecord:
        """Create a session and return its record once it is `active`.

        With your own `session_id` it is safe to retry: if the same request created the session before, its record is
        returned, with `replayed` set.
        `worker`: the kind of worker, by its name; `labels`: what the manager that runs it has to have, all of them.
        `metadata` is published in `session_created`; `llm_config` is only stored. Both are plain JSON objects.
        Time limits, in seconds (0: no limit; None: the manager's setting): an `active` session becomes `idle` after
        `idle_after_s` without a message, output or `touch()`; an `idle` one ends after `idle_timeout_s`; any session
        ends `max_lifetime_s` after its creation.
        `restart`: when the session goes on with a new attempt instead of ending; see `RestartPolicy`.
        Raises `NoSuchWorker`, `StartFailed`, `AlreadyExists`, `Overloaded`, `BadRequest`, `TooLarge`, `Unavailable`;
        every error has the id, also one that was not given, as `session_id`.
        """
        request = CreateRequest(
            session_id=session_id,
            metadata={} if metadata is None else metadata,
            llm_config=llm_config,
            worker=worker,
            labels={} if labels is None else labels,
            idle_after_s=idle_after_s,
            idle_timeout_s=idle_timeout_s,
            max_lifetime_s=max_lifetime_s,
            restart=restart,  # type: ignore[arg-type]  # it becomes a request as the whole request is checked
        )
        try:
            return await self._checked("create", "", request, CreateReply)
        except JidoError as error:
            _name(error, error.session_id or session_id)
            raise

    async def get_session_info(self, session_id: str) -> SessionRecord:
        """Return a session's record, until it expires some time after the end. Raises `NotFound`, `Unavailable`."""
        return await self._checked("get", session_id, Empty(), SessionRecord)

    async def list_sessions(
        self,
        *,
        status: Status | str | None = None,
        metadata: dict[str, Any] | None = None,
        worker: str | None = None,
        include_terminated: bool = False,
    ) -> list[SessionRecord]:
        """Return the live sessions, ordered by id.

        `status`: only those in this status; `metadata`: only those that have all of these pairs; `worker`: only those
        with this kind of worker;
        `include_terminated`: ended sessions too, until their records expire.
        Raises `BadRequest` for an unknown status, `Unavailable`.
        """
        found: list[SessionRecord] = []
        request = ListRequest(
            status=None if status is None else requests.status_named(status),
            metadata={} if metadata is None else metadata,
            worker=worker,
            include_terminated=include_terminated,
            limit=requests.LIST_LIMIT_MAX,
        )
        while True:
            page = await self._checked("list", "", request, ListReply)
            found += page.sessions
            if page.next_cursor is None:
                return found
            request = msgspec.structs.replace(request, cursor=page.next_cursor)

    async def session_history(self, session_id: str) -> list[Event]:
        """Return every event of a session, in order; also after its record has expired.

        It is a request, so the caller needs no access to JetStream.
        Raises `NotFound` if the stream has no event of it, `Unavailable`.
        """
        found: list[Event] = []
        request = HistoryRequest(limit=requests.HISTORY_LIMIT_MAX)
        while True:
            page = await self._checked("history", session_id, request, HistoryPage)
            found += [_event_in(bytes(event)) for event in page.events]
            if page.next is None:
                return found
            request = msgspec.structs.replace(request, after=page.next)

    async def terminate_session(self, session_id: str, *, detail: str | None = None) -> SessionRecord:
        """End a session and return its record, now `terminated`.

        If it has already ended, the same record is returned and no event is published.
        Raises `NotFound`, `StopTimeout` (stopping continues), `Unavailable`.
        """
        return await self._checked("terminate", session_id, TerminateRequest(detail), SessionRecord)

    async def idle_session(self, session_id: str) -> SessionRecord:
        """`active` → `idle`. Raises `NotFound`, `InvalidTransition`, `Unavailable`."""
        return await self._checked("idle", session_id, Empty(), SessionRecord)

    async def activate_session(self, session_id: str) -> SessionRecord:
        """`idle` → `active`. Raises `NotFound`, `InvalidTransition`, `Unavailable`."""
        return await self._checked("activate", session_id, Empty(), SessionRecord)

    async def send_message(
        self, session_id: str, role: str, content: Any, *, message_id: str | None = None
    ) -> SendReply:
        """Send a message to the session's worker; an `idle` session becomes `active` first.

        `content`: plain JSON, not None. With your own `message_id` it is safe to retry: the message is delivered once.
        Raises `NotFound`, `InvalidTransition` if the session is neither `active` nor `idle`, `Overloaded` if its inbox
        is full, `AlreadyExists` if that id belongs to a different message, `BadRequest`, `Unavailable`.
        """
        request = SendRequest(role=role, content=content, message_id=message_id)
        return await self._checked("send", session_id, request, SendReply)

    async def _checked(self, verb: str, session_id: str, request: Request, kind: type[T]) -> T:
        if COMMANDS[verb].about is not About.NOTHING:
            subjects.check_session_id(session_id)
        return await self._command(verb, session_id, requests.checked(request), kind)

    @abstractmethod
    async def _command(self, verb: str, session_id: str, request: msgspec.Struct, kind: type[T]) -> T:
        """Carry out the command and return its reply, a `kind`. `session_id`: "" if it is not about one session."""


def _name(error: JidoError, session_id: str | None) -> None:
    """Make the error of a create name the session, which may be starting: its caller may not know the id yet."""
    if isinstance(session_id, str):  # a caller may have given anything
        error.session_id = session_id
        if session_id not in str(error):
            error.args = (f"{error} (session_id {session_id})",)


def _event_in(data: bytes) -> Event:
    try:
        return codec.decode_event(data)
    except codec.DecodeError as error:
        raise InternalError(f"a history has something that is not an event: {error}") from error
