"""A session as its worker sees it, and the interface of a worker's host."""

import asyncio
import copy
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from typing import Any, Protocol, TypeVar

from jido_nats.core.output import ConversationAdded
from jido_nats.core.requests import CONVERSATION_LIMIT_MAX
from jido_nats.core.session import SessionRecord, Status
from jido_nats.errors import InvalidTransition
from jido_nats.worker.inbox import Inbox, Message

T = TypeVar("T")

Worker = Callable[["Session"], Awaitable[None]]
"""What one session runs: a coroutine function that takes its `Session`. Returning completes the session."""


class WorkerHost(Protocol):
    """Carries out a worker's requests: its manager or, in a process of its own, the pipe to it."""

    # Called with the session's new record after each change of its status, if set.
    on_change: Callable[[SessionRecord], None] | None

    @property
    def record(self) -> SessionRecord:
        """The session's record, as last committed."""

    @property
    def inbox(self) -> Inbox:
        """The messages that the worker has not taken yet."""

    async def ready(self) -> None:
        """The worker is ready."""

    async def step(self, status: Status) -> None:
        """Change the status; returns when it is stored."""

    async def emit(self, name: str, data: Any, *, ephemeral: bool) -> int:
        """Publish output; its number."""

    async def say(self, role: str, content: Any) -> int:
        """Add to the conversation; its number."""

    async def flush(self) -> None:
        """Return when all output is stored."""

    async def checkpoint(self, state: Any, handled: str | None) -> None:
        """Store a checkpoint; `state` UNSET: none; `handled`: the id of a message."""

    async def conversation_so_far(self, limit: int) -> list[ConversationAdded]:
        """The last messages of the conversation, as stored."""

    def handled_taken(self) -> None:
        """The worker asks for another message: those that it has taken are handled."""

    def touch(self) -> None:
        """The worker is busy."""

    def lose_output(self) -> None:
        """Some of the worker's output was lost before it was published."""

    def stop_waiting_for_room(self) -> None:
        """The worker is gone: accept the rest of its output, however much is waiting to be stored."""


class Messages:
    """See `Session.messages`: `await` returns all waiting messages (at least one); `async for` yields one at a time."""

    def __init__(self, session: "Session") -> None:
        self._session = session

    def __await__(self) -> Generator[Any, None, list[Message]]:
        return self._taken(Inbox.take_all).__await__()

    def __aiter__(self) -> AsyncIterator[Message]:
        return self

    async def __anext__(self) -> Message:
        return await self._taken(Inbox.take)

    async def _taken(self, take: Callable[[Inbox], Awaitable[T]]) -> T:
        """What was taken; raises `InvalidTransition` if the attempt is over, or ends meanwhile: the next one has it."""
        host = self._session._host
        host.handled_taken()
        taken = await take(host.inbox)
        self._session._check_attempt()
        return taken


class Session:
    """One session, as its worker sees it: one attempt of it, if it has a restart policy.

    Attributes: `attempt` (from 1), `state` (of the last checkpoint, by whichever attempt; None if there is none),
    `traceparent` (W3C Trace Context of the command that began it, or None).
    """

    __slots__ = ("__weakref__", "_any_host", "_stopping", "attempt", "state", "traceparent")

    def __init__(self, host: WorkerHost, state: Any = None) -> None:
        self._any_host = host
        self._stopping: asyncio.Event | None = None
        self.attempt = host.record.attempt or 1
        self.state = state
        self.traceparent = host.record.traceparent

    @property
    def _host(self) -> WorkerHost:
        """Raises `InvalidTransition` for what an earlier attempt has left running: it may say nothing any more."""
        self._check_attempt()
        return self._any_host

    def _check_attempt(self) -> None:
        if (self._any_host.record.attempt or 1) != self.attempt:
            raise InvalidTransition(
                f"attempt {self.attempt} of the session is over", session_id=self._any_host.record.session_id
            )

    @property
    def session_id(self) -> str:
        """The session's id."""
        return self._any_host.record.session_id

    @property
    def stopping(self) -> asyncio.Event:
        """Set when the worker is asked to stop, right before it is cancelled."""
        if self._stopping is None:
            self._stopping = asyncio.Event()
        return self._stopping

    @property
    def metadata(self) -> dict[str, Any]:
        """The metadata that the session was created with, a copy; published in `session_created`."""
        return copy.deepcopy(self._any_host.record.metadata)

    @property
    def llm_config(self) -> dict[str, Any] | None:
        """The configuration that the session was created with, a copy; stored, but not published in events."""
        return copy.deepcopy(self._any_host.record.llm_config)

    @property
    def worker(self) -> str:
        """The session's kind of worker, `default` if it names none."""
        return self._any_host.record.worker

    @property
    def labels(self) -> dict[str, str]:
        """The labels that its manager was to have, a copy."""
        return dict(self._any_host.record.labels)

    @property
    def status(self) -> Status:
        """The last status that was committed."""
        return self._any_host.record.status

    async def ready(self) -> None:
        """Report that the start is done; with `wait_ready` the session becomes `active`, else this does nothing."""
        await self._host.ready()

    async def idle(self) -> None:
        """`active` → `idle`; returns when it is stored. `InvalidTransition` in any other status."""
        await self._host.step(Status.IDLE)

    async def activate(self) -> None:
        """`idle` → `active`; returns when it is stored. `InvalidTransition` in any other status."""
        await self._host.step(Status.ACTIVE)

    def messages(self) -> Messages:
        """The messages sent to the session, in order, each once.

        `await session.messages()` returns all that are waiting, as soon as there is one; `async for message in
        session.messages()` yields one at a time.
        In a session with a restart policy, the next attempt gets again (`redelivered`) what this one has not handled.
        A worker that asks for more has handled what it took; if it makes checkpoints, those alone count.
        """
        return Messages(self)

    async def emit(self, name: str, data: Any = None, *, ephemeral: bool = False) -> int:
        """Publish something on the session's output subject, as `session_output`; returns its number.

        `name`: 1 to 64 characters; `data`: plain JSON. Output is stored, in order; `emit` waits only while too much of
        it is in flight, and `flush()` returns once it is stored. `ephemeral` output (streamed tokens, for example)
        reaches current subscribers only. Raises `BadRequest`, `TooLarge`, and `InvalidTransition` once the session has
        ended.
        """
        return await self._host.emit(name, data, ephemeral=ephemeral)

    async def say(self, content: Any, *, role: str = "assistant") -> int:
        """Add to the conversation, as a stored `conversation_added`; returns its number. Raises as `emit` does."""
        return await self._host.say(role, content)

    async def flush(self) -> None:
        """Return when everything emitted and said so far is stored."""
        await self._host.flush()

    async def checkpoint(self, state: Any, *, handled: Message | None = None) -> None:
        """Store what the next attempt gets as its `state`, and that all messages up to `handled` are handled.

        Both in one entry of the session's journal, so that neither is there without the other; returns when it is
        stored. `state`: plain JSON, at most 512 KiB; `handled`: a message, None to leave that as it is. Without a
        restart policy it does nothing.
        Raises `BadRequest`, `TooLarge`, `Overloaded` if the stream of journals is full, and `InvalidTransition` once
        the session has ended.
        """
        await self._host.checkpoint(state, None if handled is None else handled.message_id)

    async def conversation(self, limit: int = CONVERSATION_LIMIT_MAX) -> list[ConversationAdded]:
        """The last `limit` messages of the conversation in order, those to the session and those from it, as stored.

        A message that was accepted a moment ago may be missing, as may be what the stream of output no longer keeps.
        Raises `BadRequest` unless `limit` is 1 to 1000.
        """
        return await self._host.conversation_so_far(limit)

    async def touch(self) -> None:
        """Report that the worker is busy: `idle_after_s` (or `idle_timeout_s`) starts over."""
        self._host.touch()

    def __repr__(self) -> str:
        record = self._any_host.record
        return f"<Session {record.session_id} {record.status} v{record.version}>"


async def wait_forever(session: Session) -> None:
    """The worker of a manager that was given none: it does nothing until it is terminated."""
    await asyncio.Event().wait()


def host_of(session: Session) -> WorkerHost:
    """The host of a session, for workers that are part of jido_nats, such as `Program`."""
    return session._any_host
