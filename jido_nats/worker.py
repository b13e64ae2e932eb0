"""One session's worker: start it, know when it is ready, cancel it, and learn how it ended."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, NamedTuple

from jido_nats.core.session import SessionRecord, Status
from jido_nats.errors import InvalidTransition

ERROR_LENGTH_MAX: Final = 2000

Worker = Callable[["Session"], Awaitable[None]]
"""What one session runs: a coroutine function that is given its `Session`. Returning completes the session."""

Change = Callable[[Status], Awaitable[SessionRecord]]


class Session:
    """One session, as its worker sees it."""

    __slots__ = ("__weakref__", "_change", "_may_change", "_ready", "record")

    def __init__(self, record: SessionRecord, change: Change, *, wait_ready: bool) -> None:
        self.record = record
        self._change = change
        self._may_change = not wait_ready
        self._ready: asyncio.Event | None = asyncio.Event() if wait_ready else None

    @property
    def session_id(self) -> str:
        """The session's id."""
        return self.record.session_id

    @property
    def metadata(self) -> dict[str, Any]:
        """What the session was created with; broadcast in `session_created`."""
        return self.record.metadata

    @property
    def llm_config(self) -> dict[str, Any] | None:
        """What the session was created with; stored, not broadcast."""
        return self.record.llm_config

    @property
    def status(self) -> Status:
        """The last status that was committed."""
        return self.record.status

    async def ready(self) -> None:
        """Say that the start is done; with `wait_ready` the session becomes `active` now. Else it does nothing."""
        self._may_change = True
        if self._ready is not None:
            self._ready.set()

    async def idle(self) -> None:
        """`active` → `idle`; returns when it is stored. `InvalidTransition` in any other status."""
        await self._step(Status.IDLE)

    async def activate(self) -> None:
        """`idle` → `active`; returns when it is stored. `InvalidTransition` in any other status."""
        await self._step(Status.ACTIVE)

    async def _step(self, status: Status) -> None:
        if not self._may_change:
            raise InvalidTransition(
                f"the session is still starting and cannot become {status}: await session.ready() first",
                session_id=self.session_id,
            )
        await self._change(status)

    def __repr__(self) -> str:
        return f"<Session {self.session_id} {self.record.status} v{self.record.version}>"


class Outcome(NamedTuple):
    """How a worker ended: `error` is None where it returned, `cancelled` where it was cancelled from outside."""

    error: str | None
    cancelled: bool = False


class WorkerRun:
    """One run of a worker, as a task."""

    __slots__ = ("_cancels", "_session", "_task")

    def __init__(self, worker: Worker, session: Session, on_end: Callable[[Outcome], None]) -> None:
        """Start it. Raises what `worker(session)` itself raises, `TypeError` where that gives nothing to await."""
        self._session = session
        self._cancels = 0
        work = worker(session)
        if not inspect.isawaitable(work):
            raise TypeError(f"the worker has to be a coroutine function, and returned {type(work).__name__}")
        self._task = asyncio.create_task(self._work(work), name=session.session_id)
        self._task.add_done_callback(partial(_tell_end, work, on_end))

    @property
    def ended(self) -> bool:
        """Whether the worker is gone."""
        return self._task.done()

    async def wait_ready(self, timeout_s: float) -> str | None:
        """None when the worker is ready; else what went wrong: it ended, or took longer than `timeout_s`."""
        event = self._session._ready
        assert event is not None, "only a session that was made with wait_ready says that it is ready"
        waiter = asyncio.ensure_future(event.wait())
        await asyncio.wait({waiter, self._task}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        waiter.cancel()
        if event.is_set():
            return None
        if self._task.done():
            return _outcome(self._task).error or "the worker ended before it was ready"
        return f"the worker was not ready within {timeout_s:g} s"

    def cancel(self) -> None:
        """Ask it to stop. One that swallows this can be asked again."""
        self._cancels += 1
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
        except (Exception, SystemExit, KeyboardInterrupt) as error:  # the last two would end the manager's loop
            return Outcome(error_text(error))
        return Outcome(None)


def error_text(error: BaseException) -> str:
    """An exception in one line for a record, such as `RuntimeError: boom`; always valid UTF-8."""
    try:
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    except Exception:
        text = type(error).__name__
    return text.encode("utf-8", "replace").decode()[:ERROR_LENGTH_MAX]


def _tell_end(work: Awaitable[None], on_end: Callable[[Outcome], None], task: "asyncio.Task[Outcome]") -> None:
    if task.cancelled() and inspect.iscoroutine(work):
        work.close()  # it was cancelled before its first step
    on_end(_outcome(task))


def _outcome(task: "asyncio.Task[Outcome]") -> Outcome:
    return Outcome(None, cancelled=True) if task.cancelled() else task.result()
