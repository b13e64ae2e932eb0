"""A session as its worker sees it, and the interface of a worker's host."""

import asyncio
import copy
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from jido_nats.core.session import SessionRecord, Status
from jido_nats.worker.inbox import Inbox, Messages

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

    def touch(self) -> None:
        """The worker is busy."""

    def lose_output(self) -> None:
        """Some of the worker's output was lost before it was published."""

    def stop_waiting_for_room(self) -> None:
        """The worker is gone: accept the rest of its output, however much is waiting to be stored."""


class Session:
    """One session, as its worker sees it."""

    __slots__ = ("__weakref__", "_host", "traceparent")

    def __init__(self, host: WorkerHost) -> None:
        self._host = host
        self.traceparent = host.record.traceparent

    @property
    def session_id(self) -> str:
        """The session's id."""
        return self._host.record.session_id

    @property
    def metadata(self) -> dict[str, Any]:
        """The metadata that the session was created with, a copy; published in `session_created`."""
        return copy.deepcopy(self._host.record.metadata)

    @property
    def llm_config(self) -> dict[str, Any] | None:
        """The configuration that the session was created with, a copy; stored, but not published in events."""
        return copy.deepcopy(self._host.record.llm_config)

    @property
    def worker(self) -> str:
        """The session's kind of worker, `default` if it names none."""
        return self._host.record.worker

    @property
    def labels(self) -> dict[str, str]:
        """The labels that its manager was to have, a copy."""
        return dict(self._host.record.labels)

    @property
    def status(self) -> Status:
        """The last status that was committed."""
        return self._host.record.status

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
        """
        return Messages(self._host.inbox)

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

    async def touch(self) -> None:
        """Report that the worker is busy: `idle_after_s` (or `idle_timeout_s`) starts over."""
        self._host.touch()

    def __repr__(self) -> str:
        record = self._host.record
        return f"<Session {record.session_id} {record.status} v{record.version}>"


async def wait_forever(session: Session) -> None:
    """The worker of a manager that was given none: it does nothing until it is terminated."""
    await asyncio.Event().wait()


def host_of(session: Session) -> WorkerHost:
    """The host of a session, for workers that are part of jido_nats, such as `Program`."""
    return session._host
