"""What an attempt has left running when its worker crashed: it says nothing any more, and takes nothing from the next.

A coroutine in the manager's own process may have started tasks of its own, which live on.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

import pytest

from jido_nats import Cause, InvalidTransition, RestartPolicy, Session, SessionManager
from tests.conftest import StartManager
from tests.tools.support import DEADLINE_S, Stranger, eventually, wait_for_ever
from tests.worker.test_programs import said

ON_CRASH: Final = RestartPolicy(on=(Cause.CRASHED,), backoff_s=0.01)
OVER: Final = "attempt 1 of the session is over"


class Leaves:
    """A worker that starts a task and crashes when it is told to; its second attempt takes messages."""

    def __init__(self, task: Callable[[Session], Awaitable[Any]]) -> None:
        self._task = task
        self.crash = asyncio.Event()
        self.sessions: list[Session] = []
        self.taken: list[tuple[Any, bool]] = []
        self.left: asyncio.Task[Any]

    async def __call__(self, session: Session) -> None:
        self.sessions.append(session)
        if session.attempt == 1:
            self.left = asyncio.ensure_future(self._task(session))
            await self.crash.wait()
            raise RuntimeError("boom")
        async for message in session.messages():
            self.taken.append((message.content, message.redelivered))

    async def goes_on(self) -> None:
        """Crash; returns once the second attempt is under way."""
        self.crash.set()
        await eventually(lambda: len(self.sessions) == 2)
        await eventually(lambda: self.sessions[1].status == "active")

    async def refusal(self) -> str:
        """With what the task has failed."""
        with pytest.raises(InvalidTransition) as refused:
            async with asyncio.timeout(DEADLINE_S):
                await self.left
        return str(refused.value)


@pytest.mark.parametrize(
    "says",
    [
        lambda session: session.emit("late"),
        lambda session: session.emit("late", ephemeral=True),
        lambda session: session.say("late"),
        lambda session: session.idle(),
        lambda session: session.ready(),
        lambda session: session.flush(),
        lambda session: session.touch(),
        lambda session: session.checkpoint("late"),
        lambda session: session.conversation(),
        lambda session: take_all(session),
        lambda session: take_one(session),
    ],
    ids=["emit", "ephemeral", "say", "idle", "ready", "flush", "touch", "checkpoint", "conversation", "all", "one"],
)
async def test_it_is_refused(start_manager: StartManager, says: Callable[[Session], Awaitable[Any]]) -> None:
    go = asyncio.Event()

    async def late(session: Session) -> None:
        await go.wait()
        await says(session)

    worker = Leaves(late)
    manager = await start_manager(worker)
    await manager.create_session(session_id="s1", restart=ON_CRASH)
    await worker.goes_on()
    before = await manager.get_session_info("s1")

    go.set()

    assert await worker.refusal() == OVER
    assert await manager.get_session_info("s1") == before


async def take_all(session: Session) -> None:
    await session.messages()


async def take_one(session: Session) -> None:
    async for _ in session.messages():
        return


async def test_the_next_attempt_says_what_it_likes(stranger: Stranger, start_manager: StartManager) -> None:
    worker = Leaves(wait_for_ever)
    manager = await start_manager(worker)
    await manager.create_session(session_id="s1", restart=ON_CRASH)
    await worker.goes_on()

    await worker.sessions[1].emit("hello", 2)
    await worker.sessions[1].flush()

    assert await said(stranger, "s1") == [2]
    worker.left.cancel()


async def test_a_loop_that_goes_on_takes_no_message_of_the_next_attempt(start_manager: StartManager) -> None:
    go, stolen = asyncio.Event(), list[Any]()

    async def loop(session: Session) -> None:
        async for message in session.messages():
            stolen.append(message.content)
            await go.wait()

    worker = Leaves(loop)
    manager = await start_manager(worker)
    await manager.create_session(session_id="s1", restart=ON_CRASH)
    await manager.send_message("s1", "user", "first")
    await eventually(lambda: stolen == ["first"])
    await worker.goes_on()
    await eventually(lambda: worker.taken == [("first", True)])

    go.set()  # now it asks for another
    assert await worker.refusal() == OVER
    await manager.send_message("s1", "user", "second")

    await eventually(lambda: worker.taken == [("first", True), ("second", False)])
    assert stolen == ["first"]


@pytest.mark.parametrize("take", [take_all, take_one], ids=["all", "one"])
async def test_what_waits_for_a_message_during_the_backoff_gets_none(
    start_manager: StartManager, take: Callable[[Session], Awaitable[None]]
) -> None:
    worker = Leaves(take)
    manager = await start_manager(worker)
    await manager.create_session(session_id="s1", restart=RestartPolicy(on=(Cause.CRASHED,), backoff_s=0.5))
    worker.crash.set()
    await eventually(lambda: waits(manager))

    await manager.send_message("s1", "user", "hello")

    assert await worker.refusal() == OVER
    await eventually(lambda: worker.taken == [("hello", False)])


async def waits(manager: SessionManager) -> bool:
    """Whether `s1` waits for its second attempt."""
    record = await manager.get_session_info("s1")
    return record.status == "initializing" and record.attempt == 2


async def test_what_takes_messages_counts_none_of_the_next_attempt_as_handled(start_manager: StartManager) -> None:
    """A task that asks for more says so that what was taken is handled; not for what others have taken."""
    go, sessions = asyncio.Event(), list[Session]()
    taken: list[tuple[int, Any]] = []

    async def late(session: Session) -> None:
        await go.wait()
        await session.messages()

    async def worker(session: Session) -> None:
        sessions.append(session)
        if session.attempt == 1:
            left.append(asyncio.ensure_future(late(session)))
            raise RuntimeError("boom")
        async for message in session.messages():
            taken.append((session.attempt, message.content))
            await asyncio.sleep(0) if session.attempt > 2 else await crash.wait()
            if session.attempt == 2:
                raise RuntimeError("boom again")

    left: list[asyncio.Future[None]] = []
    crash = asyncio.Event()
    manager = await start_manager(worker)
    await manager.create_session(session_id="s1", restart=ON_CRASH)
    await eventually(lambda: len(sessions) == 2 and sessions[1].status == "active")
    await manager.send_message("s1", "user", "hello")
    await eventually(lambda: taken == [(2, "hello")])

    go.set()
    with pytest.raises(InvalidTransition):
        await asyncio.wait_for(left[0], DEADLINE_S)
    crash.set()

    await eventually(lambda: taken == [(2, "hello"), (3, "hello")])


# Stopping


class Asked:
    """A worker that notes whether it knows that it is stopping when it is cancelled."""

    def __init__(self) -> None:
        self.sessions: list[Session] = []
        self.noted: list[bool] = []

    async def __call__(self, session: Session) -> None:
        self.sessions.append(session)
        try:
            await asyncio.Event().wait()
        finally:
            self.noted.append(session.stopping.is_set())


async def test_a_worker_that_is_terminated_knows_that_it_is_stopping(start_manager: StartManager) -> None:
    worker = Asked()
    manager = await start_manager(worker)
    await manager.create_session(session_id="s1")
    assert not worker.sessions[0].stopping.is_set()

    await manager.terminate_session("s1")

    assert worker.noted == [True]


async def test_a_task_that_waits_for_the_stop_is_woken(start_manager: StartManager) -> None:
    woken: list[str] = []

    async def worker(session: Session) -> None:
        async def tidy() -> None:
            await session.stopping.wait()
            woken.append("tidied")

        tidying = asyncio.create_task(tidy())
        try:
            await asyncio.Event().wait()
        finally:
            await tidying

    manager = await start_manager(worker)
    await manager.create_session(session_id="s1")

    await manager.terminate_session("s1")

    assert woken == ["tidied"]


async def test_a_manager_that_is_closed_says_it_to_its_workers(start_manager: StartManager) -> None:
    worker = Asked()
    manager = await start_manager(worker)
    await manager.create_session(session_id="s1", restart=ON_CRASH)

    await manager.close()

    assert (worker.noted, len(worker.sessions)) == ([True], 1)


async def test_a_crash_stops_nobody(start_manager: StartManager) -> None:
    worker = Leaves(wait_for_ever)
    manager = await start_manager(worker)
    await manager.create_session(session_id="s1", restart=ON_CRASH)

    await worker.goes_on()

    assert [session.stopping.is_set() for session in worker.sessions] == [False, False]
    worker.left.cancel()
