"""The table of sessions that run here, and how it follows each change of one of them.

Changes of one session run one at a time, those of different sessions concurrently. A change is a block `async with
running.changing(session)`. Leaving the block updates the table, in one place: a session with a write that may be
partly stored is relinquished, one that has ended is removed, and for any other the time limits are checked again.
"""

import asyncio
import logging
from collections.abc import Coroutine, Iterator
from types import TracebackType
from typing import Any, Final, Generic, Protocol, TypeVar

from jido_nats.core.session import SessionRecord
from jido_nats.errors import Fenced, JidoError, Unavailable
from jido_nats.manager.deadlines import Deadlines

T = TypeVar("T")

log = logging.getLogger(__name__)


class NotHere(Exception):
    """This manager does not run that session, or no longer does."""


class SessionExists(Exception):
    """A session of that id exists and does not run here; `.record`: its record, as read."""

    def __init__(self, record: SessionRecord) -> None:
        super().__init__(record.session_id)
        self.record = record


class NoRoomHere(Exception):
    """A session cannot be created here, but perhaps at another manager; the message says why."""


class Running(Protocol):
    """What the table needs from a session."""

    session_id: str
    lock: asyncio.Lock

    @property
    def is_here(self) -> bool:
        """Whether it was created, and has not been relinquished."""

    @property
    def is_settled(self) -> bool:
        """Whether nothing more will be written: it was never created, or it is sealed."""

    @property
    def in_doubt(self) -> bool:
        """Whether a write has begun and it is unknown how much of it is stored."""

    def due_at(self) -> float | None:
        """When (of `boottime`) the session's next time limit expires; None: never."""

    def relinquish(self) -> None:
        """Stop the worker, and write nothing more."""

    def removed(self) -> None:
        """It is no longer in the table: hold nothing for it any longer."""


S = TypeVar("S", bound=Running)


class RunningSessions(Generic[S]):
    """The table of the sessions that run here, and the tasks that work on them."""

    def __init__(self) -> None:
        self._sessions: dict[str, S] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._emptied: asyncio.Future[None] | None = None
        self.deadlines: Final = Deadlines()
        # Sessions that this manager no longer runs, and that may not have ended.
        self.relinquished: Final[set[str]] = set()
        self.closed = False

    def __len__(self) -> int:
        return len(self._sessions)

    def __contains__(self, session_id: str) -> bool:
        return session_id in self._sessions

    def __iter__(self) -> Iterator[S]:
        return iter(list(self._sessions.values()))

    def get(self, session_id: str) -> S | None:
        """The session, if it runs here."""
        return self._sessions.get(session_id)

    def find(self, session_id: str) -> S:
        """The session. Raises `NotHere`."""
        session = self._sessions.get(session_id)
        if session is None:
            raise NotHere(session_id)
        return session

    def starting(self, session: S) -> "_Change[S]":
        """A block that creates a session, which is in the table from now on."""
        self._sessions[session.session_id] = session
        return _Change(self, session, is_new=True)

    def changing(self, session: S) -> "_Change[S]":
        """A block that changes a session, under its lock.

        Entering raises `NotHere` if it no longer runs here once the lock is free. A `Fenced` raised in the block turns
        into `Unavailable`.
        """
        return _Change(self, session, is_new=False)

    def relinquish(self, session: S, why: str = "claimed by another manager, or its write failed") -> None:
        """Another manager has the session now, or that is unknown: stop its worker, and write nothing more."""
        if self._sessions.get(session.session_id) is not session:
            return
        self._remove(session)
        log.warning("relinquishing a session", extra={"session_id": session.session_id, "why": why})
        self.relinquished.add(session.session_id)
        session.relinquish()

    async def wait_empty(self, timeout_s: float) -> None:
        """Return when no session runs here, or after `timeout_s`."""
        if self._sessions and timeout_s > 0:
            self._emptied = asyncio.get_running_loop().create_future()
            await asyncio.wait({self._emptied}, timeout=timeout_s)

    # The table's own tasks: what has begun is finished, whether or not its caller still waits.

    @property
    def tasks(self) -> set["asyncio.Task[Any]"]:
        """The tasks that are working on sessions."""
        return set(self._tasks)

    def start_task(self, work: Coroutine[Any, Any, T], session_id: str) -> "asyncio.Task[T]":
        """Do some work on a session in its own task."""
        task = asyncio.create_task(work, name=f"{session_id}: change")  # a worker's task is named after its session
        self._tasks.add(task)
        task.add_done_callback(self._on_task_end)
        return task

    async def close(self) -> None:
        """Cancel the remaining tasks, and start no more for workers that end."""
        for task in self._tasks:
            task.cancel()
        self.closed = True
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _on_task_end(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None and not isinstance(error, JidoError | SessionExists | NotHere | NoRoomHere):
            session_id = task.get_name().partition(":")[0]
            log.error("a session's task failed", exc_info=error, extra={"session_id": session_id})

    def _update(self, session: S, error: BaseException | None) -> None:
        """Update the table after a block that was left with that error."""
        if self._sessions.get(session.session_id) is not session:
            return  # relinquished meanwhile
        if session.is_settled:
            self._remove(session)
        elif session.in_doubt and isinstance(error, Exception):
            self.relinquish(session)
        else:
            self.deadlines.watch(session.session_id, session.due_at())

    def _remove(self, session: S) -> None:
        del self._sessions[session.session_id]
        session.removed()
        self.deadlines.forget(session.session_id)
        if not self._sessions and self._emptied is not None and not self._emptied.done():
            self._emptied.set_result(None)


class _Change(Generic[S]):
    """See `RunningSessions.changing`. A class, since a generator would cost more for every transition."""

    __slots__ = ("_is_new", "_running", "_session")

    def __init__(self, running: RunningSessions[S], session: S, *, is_new: bool) -> None:
        self._running = running
        self._session = session
        self._is_new = is_new

    async def __aenter__(self) -> S:
        session = self._session
        await session.lock.acquire()
        if not self._is_new and not (self._running.get(session.session_id) is session and session.is_here):
            session.lock.release()
            raise NotHere(session.session_id)
        return session

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        session = self._session
        try:
            self._running._update(session, error)
        finally:
            session.lock.release()
        if isinstance(error, Fenced):
            raise Unavailable(
                "another manager has taken the session over; ask again", session_id=session.session_id
            ) from error
