"""The commands on sessions as Python calls: the same on a manager and, over NATS, on a client."""

from abc import ABC, abstractmethod
from typing import Any, TypeVar

import msgspec

from jido_nats.core import requests, subjects
from jido_nats.core.commands import COMMANDS, About
from jido_nats.core.events import Event
from jido_nats.core.requests import (
    CreateReply,
    CreateRequest,
    Empty,
    HistoryReply,
    HistoryRequest,
    ListReply,
    ListRequest,
    Request,
    SendReply,
    SendRequest,
    TerminateRequest,
)
from jido_nats.core.session import SessionRecord, Status

T = TypeVar("T")


class SessionApi(ABC):
    """What can be asked of sessions: carried out by a `SessionManager`, asked for by a `Client`."""

    async def create_session(
        self,
        *,
        session_id: str | None = None,
        metadata: dict[str, Any] | None = None,
        llm_config: dict[str, Any] | None = None,
        idle_after_s: float | None = None,
        idle_timeout_s: float | None = None,
        max_lifetime_s: float | None = None,
    ) -> CreateReply:
        """Create a session and return its record once it is `active`.

        With a chosen `session_id` it is safe to repeat: the same request gives the same session.
        `metadata` is broadcast, `llm_config` is stored; both are plain JSON objects.
        The time limits (seconds; 0: none, None: as the manager is set): see `CreateRequest`.
        Raises `StartFailed`, `AlreadyExists`, `Overloaded`, `BadRequest`, `TooLarge`, `Unavailable`.
        """
        request = CreateRequest(
            session_id=session_id,
            metadata={} if metadata is None else metadata,
            llm_config=llm_config,
            idle_after_s=idle_after_s,
            idle_timeout_s=idle_timeout_s,
            max_lifetime_s=max_lifetime_s,
        )
        return await self._checked("create", "", request, CreateReply)

    async def get_session_info(self, session_id: str) -> SessionRecord:
        """The record, also of a session that has ended and not yet expired. Raises `NotFound`, `Unavailable`."""
        return await self._checked("get", session_id, Empty(), SessionRecord)

    async def list_sessions(
        self,
        *,
        status: Status | None = None,
        metadata: dict[str, Any] | None = None,
        include_terminated: bool = False,
    ) -> list[SessionRecord]:
        """The live sessions (or those of a status, or with these metadata), ordered by id. Raises `Unavailable`."""
        found: list[SessionRecord] = []
        request = ListRequest(
            status=status,
            metadata={} if metadata is None else metadata,
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
        """Every event of a session, in order: without JetStream on this side, and after its record has expired.

        Raises `NotFound` when the stream remembers none, `Unavailable`.
        """
        found: list[Event] = []
        request = HistoryRequest(limit=requests.HISTORY_LIMIT_MAX)
        while True:
            page = await self._checked("history", session_id, request, HistoryReply)
            found += page.events
            if page.next is None:
                return found
            request = msgspec.structs.replace(request, after=page.next)

    async def terminate_session(self, session_id: str, *, detail: str | None = None) -> SessionRecord:
        """End a session and return its record, `terminated`; again on a terminated one: the same, nothing is told.

        Raises `NotFound`, `StopTimeout` (stopping goes on), `Unavailable`.
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
        """Send a message to the session's worker; one that is `idle` becomes `active` first.

        `content`: plain JSON. With a chosen `message_id` it is safe to repeat: the message is delivered once.
        Raises `NotFound`, `InvalidTransition` where the session is neither `active` nor `idle`, `Overloaded` where
        its inbox is full, `AlreadyExists` where that id was another message's, `BadRequest`, `Unavailable`.
        """
        request = SendRequest(role=role, content=content, message_id=message_id)
        return await self._checked("send", session_id, request, SendReply)

    async def _checked(self, verb: str, session_id: str, request: Request, kind: type[T]) -> T:
        if COMMANDS[verb].about is not About.NOTHING:
            subjects.check_session_id(session_id)
        return await self._command(verb, session_id, requests.checked(request), kind)

    @abstractmethod
    async def _command(self, verb: str, session_id: str, request: msgspec.Struct, kind: type[T]) -> T:
        """The reply, of that kind. `session_id`: "" for a command that is about no one session."""
