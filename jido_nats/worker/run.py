"""One run of a session's worker: start it, wait until it is ready, cancel it, and report how it ended."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from jido_nats.worker.crash import RemoteTraceback, error_text, in_record
from jido_nats.worker.session import Session, Worker


class Outcome(NamedTuple):
    """How a worker ended.

    `error`: None if it returned. `cancelled`: it was cancelled from outside. `forced`: it was killed.
    """

    error: str | None
    cancelled: bool = False
    forced: bool = False


class WorkerFailed(Exception):
    """A worker failed; the message is the session's `error`, verbatim. `traceback`: if it has one, and is elsewhere."""

    def __init__(self, error: str, *, traceback: str | None = None) -> None:
        super().__init__(error)
        self.traceback = traceback


class WorkerKilled(Exception):
    """A worker that was cancelled did not stop, and was killed."""


class WorkerRun:
    """One run of a worker, as a task."""

    __slots__ = ("_awaitable", "_cancels", "_on_end", "_raised", "_ready_waiter", "_session", "_task")

    def __init__(self, worker: Worker, session: Session) -> None:
        """Call the worker; its coroutine runs once it is started.

        Raises what `worker(session)` raises, and `TypeError` if that does not return an awaitable.
        """
        self._session = session
        self._cancels = 0
        self._ready_waiter: asyncio.Future[Any] | None = None
        self._raised: BaseException | None = None
        work = worker(session)
        if not inspect.isawaitable(work):
            raise TypeError(f"the worker has to be a coroutine function, but returned {type(work).__name__}")
        self._awaitable: Awaitable[None] | None = work

    def start(self, on_end: Callable[[Outcome, BaseException | None], None]) -> None:
        """Run it as a task named after the session's id; `on_end(outcome, raised)` is called when it ends.

        `raised`: what it raised, if that has a traceback to log.
        """
        assert self._awaitable is not None, "started once"
        self._on_end = on_end
        self._task = asyncio.create_task(self._work(self._awaitable), name=self._session.session_id)
        self._task.add_done_callback(self._report_end)

    def discard(self) -> None:
        """Close a coroutine that will not be started."""
        if inspect.iscoroutine(self._awaitable):
            self._awaitable.close()

    @property
    def ended(self) -> bool:
        """Whether the worker has ended."""
        return self._task.done()

    @property
    def forced(self) -> bool:
        """Whether it has ended because it was killed."""
        return self._task.done() and _outcome(self._task).forced

    async def wait_ready(self, ready: asyncio.Event, timeout_s: float) -> str | None:
        """None once the worker is ready; else what went wrong: it ended, or took longer than `timeout_s`."""
        self._ready_waiter = waiter = asyncio.ensure_future(ready.wait())
        await asyncio.wait({waiter, self._task}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        waiter.cancel()
        if ready.is_set():
            return None
        if self._task.done():
            return _outcome(self._task).error or "the worker ended before it was ready"
        return f"the worker was not ready within {timeout_s:g} s"

    def cancel(self) -> None:
        """Cancel the worker, and any `wait_ready`. May be repeated, for a worker that swallows a cancellation."""
        self._cancels += 1
        self._session.stopping.set()
        if self._ready_waiter is not None:
            self._ready_waiter.cancel()
        self._task.cancel()

    async def wait_ended(self, timeout_s: float) -> bool:
        """Whether the worker ended within `timeout_s`."""
        await asyncio.wait({self._task}, timeout=timeout_s)
        return self._task.done()

    async def _work(self, work: Awaitable[None]) -> Outcome:
        try:
            await work
        except asyncio.CancelledError as error:
            if self._cancels:
                return Outcome(None, cancelled=True)
            self._raised = error
            return Outcome("CancelledError: the worker cancelled itself")
        except WorkerKilled:
            return Outcome(None, cancelled=True, forced=True)
        except WorkerFailed as failure:
            self._raised = None if failure.traceback is None else RemoteTraceback(failure.traceback)
            return Outcome(in_record(str(failure)))
        except (Exception, SystemExit, KeyboardInterrupt) as error:  # the last two would stop the manager's loop
            self._raised = error
            return Outcome(error_text(error))
        return Outcome(None)

    def _report_end(self, task: "asyncio.Task[Outcome]") -> None:
        if task.cancelled():
            self.discard()  # it was cancelled before its first step
        elif (error := task.exception()) is not None:
            self._raised = error
        raised, self._raised = self._raised, None  # its frames hold the session, which holds this run
        self._on_end(_outcome(task), raised)


def _outcome(task: "asyncio.Task[Outcome]") -> Outcome:
    if task.cancelled():
        return Outcome(None, cancelled=True)
    error = task.exception()  # a `BaseException` ends the session as well
    return task.result() if error is None else Outcome(error_text(error))
