"""One session's worker: start it, know when it is ready, cancel it, and learn how it ended."""

import asyncio
import copy
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple, Protocol

from jido_nats.broker.clock import boottime
from jido_nats.core.session import SessionRecord, Status
from jido_nats.errors import InvalidTransition
from jido_nats.manager.outbox import OutputQueue
from jido_nats.worker.inbox import Inbox, Messages

ERROR_LENGTH_MAX: Final = 2000

Worker = Callable[["Session"], Awaitable[None]]
"""What one session runs: a coroutine function that is given its `Session`. Returning completes the session."""


class WorkerHost(Protocol):
    """What carries out what a worker asks for: its manager, or the other side of the pipe of a process of its own."""

    async def make_ready(self, session: "Session") -> None:
        """The worker is ready."""

    async def step(self, session: "Session", status: Status) -> None:
        """Change the status; returns when it is stored."""

    async def emit(self, session: "Session", name: str, data: Any, *, ephemeral: bool) -> int:
        """Tell of output; its number."""

    async def say(self, session: "Session", role: str, content: Any) -> int:
        """Add to the conversation; its number."""

    async def flush(self, session: "Session") -> None:
        """Return when all output is stored."""

    async def touched(self, session: "Session") -> None:
        """The worker is at work."""


class Session:
    """One session, as its worker sees it."""

    __slots__ = (
        "__weakref__",
        "_host",
        "_may_step",
        "_ready",
        "active_at",
        "ending",
        "inbox",
        "lane",
        "on_change",
        "record",
        "traceparent",
    )

    def __init__(self, record: SessionRecord, host: WorkerHost, *, wait_ready: bool) -> None:
        self.record = record
        self.traceparent = record.traceparent
        self._host = host
        self._may_step = not wait_ready
        self._ready: asyncio.Event | None = asyncio.Event() if wait_ready else None
        # For whoever runs the session; most sessions never need the first three.
        self.inbox: Inbox | None = None
        self.lane: OutputQueue | None = None
        self.on_change: Callable[[SessionRecord], None] | None = None
        self.active_at = boottime()
        self.ending = False

    def changed(self, record: SessionRecord) -> None:
        """The session's new record; for whoever runs the session."""
        self.record = record
        self.active_at = boottime()
        if self.on_change is not None:
            self.on_change(record)

    @property
    def session_id(self) -> str:
        """The session's id."""
        return self.record.session_id

    @property
    def metadata(self) -> dict[str, Any]:
        """What the session was created with, a copy; broadcast in `session_created`."""
        return copy.deepcopy(self.record.metadata)

    @property
    def llm_config(self) -> dict[str, Any] | None:
        """What the session was created with, a copy; stored, not broadcast."""
        return copy.deepcopy(self.record.llm_config)

    @property
    def status(self) -> Status:
        """The last status that was committed."""
        return self.record.status

    async def ready(self) -> None:
        """Say that the start is done; with `wait_ready` the session becomes `active` now. Else it does nothing."""
        self._may_step = True
        if self._ready is not None:
            self._ready.set()
        await self._host.make_ready(self)

    async def idle(self) -> None:
        """`active` → `idle`; returns when it is stored. `InvalidTransition` in any other status."""
        await self._step(Status.IDLE)

    async def activate(self) -> None:
        """`idle` → `active`; returns when it is stored. `InvalidTransition` in any other status."""
        await self._step(Status.ACTIVE)

    def messages(self) -> Messages:
        """What is sent to the session, in order, each message once.

        `await session.messages()` gives all that wait, as soon as there is one; `async for message in
        session.messages()` one after the other.
        """
        if self.inbox is None:
            self.inbox = Inbox()
        return Messages(self.inbox)

    async def emit(self, name: str, data: Any = None, *, ephemeral: bool = False) -> int:
        """Tell of something on the session's output subject, as `session_output`; its number.

        `name`: 1 to 64 characters; `data`: plain JSON. It is kept, in order, and waits only while too much is on its
        way; `flush()` returns when it is stored. `ephemeral` output (streamed tokens, say) is heard live only.
        Raises `BadRequest`, `TooLarge`, and `InvalidTransition` when the session has ended.
        """
        return await self._host.emit(self, name, data, ephemeral=ephemeral)

    async def say(self, content: Any, *, role: str = "assistant") -> int:
        """Add to the conversation, told as `conversation_added` and kept; its number. Raises as `emit`."""
        return await self._host.say(self, role, content)

    async def flush(self) -> None:
        """Return when everything that was emitted and said is stored."""
        await self._host.flush(self)

    async def touch(self) -> None:
        """Say that the worker is at work: the time until `idle_after_s` (or `idle_timeout_s`) begins anew."""
        self.active_at = boottime()
        await self._host.touched(self)

    async def _step(self, status: Status) -> None:
        if not self._may_step:
            raise InvalidTransition(
                f"the session is still starting and cannot become {status}: await session.ready() first",
                session_id=self.session_id,
            )
        await self._host.step(self, status)

    def __repr__(self) -> str:
        return f"<Session {self.session_id} {self.record.status} v{self.record.version}>"


class Outcome(NamedTuple):
    """How a worker ended.

    `error` is None where it returned, `cancelled` where it was cancelled from outside, `forced` where it was killed.
    """

    error: str | None
    cancelled: bool = False
    forced: bool = False


class WorkerFailed(Exception):
    """A worker failed; the message, as it is, is the session's `error`."""


class WorkerKilled(Exception):
    """A worker that was cancelled did not stop, and was killed."""


class WorkerRun:
    """One run of a worker, as a task."""

    __slots__ = ("_awaitable", "_cancels", "_on_end", "_ready_waiter", "_session", "_task")

    def __init__(self, worker: Worker, session: Session) -> None:
        """Call it; it runs once it is started. Raises what `worker(session)` raises, `TypeError` where that gives
        nothing to await."""
        self._session = session
        self._cancels = 0
        self._ready_waiter: asyncio.Future[Any] | None = None
        work = worker(session)
        if not inspect.isawaitable(work):
            raise TypeError(f"the worker has to be a coroutine function, and returned {type(work).__name__}")
        self._awaitable: Awaitable[None] | None = work

    def start(self, on_end: Callable[[str, Outcome], None]) -> None:
        """Run it; `on_end(session_id, outcome)` is told how it ended."""
        assert self._awaitable is not None, "started once"
        self._on_end = on_end
        self._task = asyncio.create_task(self._work(self._awaitable), name=self._session.session_id)
        self._task.add_done_callback(self._tell_end)

    def discard(self) -> None:
        """It will not be started."""
        if inspect.iscoroutine(self._awaitable):
            self._awaitable.close()

    @property
    def ended(self) -> bool:
        """Whether the worker is gone."""
        return self._task.done()

    @property
    def forced(self) -> bool:
        """Whether it is gone because it was killed."""
        return self._task.done() and _outcome(self._task).forced

    @property
    def ready(self) -> bool:
        """Whether the worker has said that it is ready."""
        return self._session._ready is not None and self._session._ready.is_set()

    async def wait_ready(self, timeout_s: float) -> str | None:
        """None when the worker is ready; else what went wrong: it ended, or took longer than `timeout_s`."""
        event = self._session._ready
        assert event is not None, "only a session that was made with wait_ready says that it is ready"
        self._ready_waiter = waiter = asyncio.ensure_future(event.wait())
        await asyncio.wait({waiter, self._task}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        waiter.cancel()
        if event.is_set():
            return None
        if self._task.done():
            return _outcome(self._task).error or "the worker ended before it was ready"
        return f"the worker was not ready within {timeout_s:g} s"

    def cancel(self) -> None:
        """Ask it to stop, and wait for its being ready no more. One that swallows this can be asked again."""
        self._cancels += 1
        if self._ready_waiter is not None:
            self._ready_waiter.cancel()
        self._task.cancel()

    async def wait_ended(self, timeout_s: float) -> bool:
        """Whether the worker was gone within `timeout_s`."""
        await asyncio.wait({self._task}, timeout=timeout_s)
        return self._task.done()

    async def _work(self, work: Awaitable[None]) -> Outcome:
        try:
            await work
        except asyncio.CancelledError:
            if self._cancels:
                return Outcome(None, cancelled=True)
            return Outcome("CancelledError: the worker cancelled itself")
        except WorkerKilled:
            return Outcome(None, cancelled=True, forced=True)
        except WorkerFailed as failure:
            return Outcome(in_record(str(failure)))
        except (Exception, SystemExit, KeyboardInterrupt) as error:  # the last two would end the manager's loop
            return Outcome(error_text(error))
        return Outcome(None)

    def _tell_end(self, task: "asyncio.Task[Outcome]") -> None:
        if task.cancelled():
            self.discard()  # before its first step
        self._on_end(self._session.session_id, _outcome(task))


def error_text(error: BaseException) -> str:
    """An exception in one line for a record, such as `RuntimeError: boom`; always valid UTF-8."""
    try:
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    except Exception:
        text = type(error).__name__
    return in_record(text)


def in_record(text: str) -> str:
    """The text as a record can hold it: valid UTF-8, and not too long."""
    return text.encode("utf-8", "replace").decode()[:ERROR_LENGTH_MAX]


def _outcome(task: "asyncio.Task[Outcome]") -> Outcome:
    if task.cancelled():
        return Outcome(None, cancelled=True)
    error = task.exception()  # what is not even an `Exception` ends the session as well
    return task.result() if error is None else Outcome(error_text(error))
