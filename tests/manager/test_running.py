"""The table of running sessions: what follows from each way in which a change can end."""

import asyncio
import logging

import pytest

from jido_nats.errors import BadRequest, Fenced, Unavailable
from jido_nats.manager.running import NotHere, RunningSessions


class Fake:
    """A session that is as the test says."""

    def __init__(self, session_id: str = "s1") -> None:
        self.session_id = session_id
        self.lock = asyncio.Lock()
        self.is_here = True
        self.is_settled = False
        self.in_doubt = False
        self.due: float | None = None
        self.relinquished = False

    def due_at(self) -> float | None:
        return self.due

    def removed(self) -> None:
        pass

    def relinquish(self) -> None:
        self.relinquished = True
        self.is_here = False


async def table_with(session: Fake) -> RunningSessions[Fake]:
    running: RunningSessions[Fake] = RunningSessions()
    async with running.starting(session):
        pass
    return running


async def test_a_session_that_was_made_is_in_the_table() -> None:
    session = Fake()

    running = await table_with(session)

    assert (len(running), "s1" in running, running.find("s1")) == (1, True, session)


async def test_one_that_was_never_made_is_dropped() -> None:
    session, running = Fake(), RunningSessions[Fake]()
    session.is_settled = True

    with pytest.raises(BadRequest):
        async with running.starting(session):
            raise BadRequest("no")

    assert len(running) == 0
    assert not session.relinquished


async def test_one_that_is_not_here_cannot_be_found() -> None:
    with pytest.raises(NotHere):
        RunningSessions[Fake]().find("s1")


async def test_a_change_that_ends_it_drops_it() -> None:
    session = Fake()
    running = await table_with(session)

    async with running.changing(session):
        session.is_settled = True

    assert "s1" not in running
    assert not running.relinquished


async def test_a_change_that_is_refused_leaves_it_as_it_is() -> None:
    session = Fake()
    running = await table_with(session)

    with pytest.raises(BadRequest):
        async with running.changing(session):
            raise BadRequest("no")

    assert running.find("s1") is session
    assert not session.relinquished


async def test_a_defect_in_the_middle_of_a_write_relinquishes_it(caplog: pytest.LogCaptureFixture) -> None:
    session = Fake()
    running = await table_with(session)
    session.in_doubt = True
    caplog.set_level(logging.WARNING)

    with pytest.raises(ZeroDivisionError):
        async with running.changing(session):
            raise ZeroDivisionError

    assert (session.relinquished, len(running), running.relinquished) == (True, 0, {"s1"})
    assert [vars(r)["session_id"] for r in caplog.records if "relinquishing" in r.getMessage()] == ["s1"]


async def test_a_fenced_write_is_unavailable_to_its_caller() -> None:
    session = Fake()
    running = await table_with(session)
    session.in_doubt = True

    with pytest.raises(Unavailable) as caught:
        async with running.changing(session):
            raise Fenced("claimed by another")

    assert isinstance(caught.value.__cause__, Fenced)
    assert session.relinquished


async def test_a_cancelled_write_does_not_relinquish_it() -> None:
    session = Fake()
    running = await table_with(session)
    session.in_doubt = True

    with pytest.raises(asyncio.CancelledError):
        async with running.changing(session):
            raise asyncio.CancelledError

    assert running.find("s1") is session


async def test_after_a_change_its_time_limits_are_looked_at() -> None:
    session = Fake()
    running = await table_with(session)

    async with running.changing(session):
        session.due = 0.0

    assert await asyncio.wait_for(running.deadlines.next(), 5) == "s1"


async def test_changes_of_one_session_run_one_at_a_time() -> None:
    session, order = Fake(), list[str]()
    running = await table_with(session)

    async def change(name: str) -> None:
        async with running.changing(session):
            order.append(f"{name} begins")
            await asyncio.sleep(0)
            order.append(f"{name} ends")

    await asyncio.gather(change("a"), change("b"))

    assert order == ["a begins", "a ends", "b begins", "b ends"]


async def test_who_waited_for_a_session_that_was_relinquished_meanwhile_does_not_find_it() -> None:
    session = Fake()
    running = await table_with(session)

    async def change() -> None:
        async with running.changing(session):
            raise AssertionError("entered")

    async with running.changing(session):
        waiting = asyncio.create_task(change())
        await asyncio.sleep(0)
        running.relinquish(session)

    with pytest.raises(NotHere):
        await waiting
    assert not session.lock.locked()


async def test_a_successor_under_the_same_id_is_not_touched_by_the_end_of_the_first() -> None:
    first, second = Fake(), Fake()
    running = await table_with(first)

    async with running.changing(first):
        running.relinquish(first)
        async with running.starting(second):
            pass
        first.is_settled = True

    assert running.find("s1") is second


async def test_the_last_one_that_goes_empties_the_table() -> None:
    session = Fake()
    running = await table_with(session)
    waiting = asyncio.create_task(running.wait_empty(5))
    await asyncio.sleep(0)

    async with running.changing(session):
        session.is_settled = True

    await asyncio.wait_for(waiting, 1)
    assert len(running) == 0


async def test_a_task_that_fails_by_a_defect_is_logged_with_its_session(caplog: pytest.LogCaptureFixture) -> None:
    running = RunningSessions[Fake]()

    async def fail() -> None:
        raise ZeroDivisionError

    await asyncio.wait({running.start_task(fail(), "s1")})

    assert [vars(r)["session_id"] for r in caplog.records] == ["s1"]
    assert running.tasks == set()
