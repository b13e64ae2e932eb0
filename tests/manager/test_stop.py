"""How sessions end by command: the worker goes first, and one that does not go holds up nobody else."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator

import pytest
from nats.errors import NoRespondersError

from jido_nats import LocalServer, Session, SessionManager
from tests.conftest import StartManager
from tests.tools.programs import serving
from tests.tools.support import Puppet, Stranger, Stubborn, eventually, wait_for_ever

STOPPED = ["1 created", "2 active", "3 terminating", "4 terminated", "4 ended"]


@pytest.fixture
async def stubborn() -> AsyncIterator[Stubborn]:
    """A worker that does not stop before the test ends."""
    stubborn = Stubborn()
    yield stubborn
    stubborn.let_go.set()


async def test_terminated_means_that_the_worker_is_gone(stranger: Stranger, start_manager: StartManager) -> None:
    gone = asyncio.Event()

    async def tidies_up(session: Session) -> None:
        try:
            await wait_for_ever(session)
        finally:
            await asyncio.sleep(0.1)  # work that takes time
            gone.set()

    await start_manager(tidies_up)
    await stranger.create("s1")

    assert (await stranger.ask("jido.session.terminate.s1"))["status"] == "terminated"
    assert gone.is_set()


async def test_terminating_again_answers_the_same_record(stranger: Stranger, manager: SessionManager) -> None:
    await stranger.create("s1")
    first = await stranger.ask("jido.session.terminate.s1", {"detail": "enough"})

    again = await stranger.ask("jido.session.terminate.s1", {"detail": "more than enough"})

    assert {**first, "sealed": True} == {**again, "sealed": True}
    assert first["detail"] == "enough"


async def test_terminating_again_tells_nothing(stranger: Stranger, manager: SessionManager) -> None:
    ear = await stranger.hear("jido.client.events")
    await stranger.create("s1")

    await asyncio.gather(*(stranger.ask("jido.session.terminate.s1") for _ in range(5)))

    await stranger.create("s2")
    await eventually(lambda: ear.told("jido.client.events") == [*STOPPED, "1 created", "2 active"])
    assert await stranger.stored_brief() == [*STOPPED, "1 created", "2 active"]


async def test_an_idle_session_passes_through_terminating(stranger: Stranger, manager: SessionManager) -> None:
    await stranger.create("s1")
    await stranger.ask("jido.session.idle.s1")

    await stranger.ask("jido.session.terminate.s1")

    assert (await stranger.stored_brief())[3:] == ["4 terminating", "5 terminated", "5 ended"]


async def test_a_worker_that_fails_while_it_stops_keeps_the_reason(
    stranger: Stranger, start_manager: StartManager
) -> None:
    async def fails_to_tidy_up(session: Session) -> None:
        try:
            await wait_for_ever(session)
        finally:
            raise RuntimeError("boom")

    await start_manager(fails_to_tidy_up)
    await stranger.create("s1")

    record = await stranger.ask("jido.session.terminate.s1")

    assert record["reason"] == "requested"
    assert record["error"].startswith("RuntimeError: boom (test_stop.py:")


async def test_a_worker_that_does_not_stop_is_told_of(
    stranger: Stranger, start_manager: StartManager, stubborn: Stubborn
) -> None:
    await start_manager(stubborn, stop_timeout_s=0.3)
    await stranger.create("s1")

    reply = await stranger.request("jido.session.terminate.s1")

    assert (reply.headers or {})["Nats-Service-Error-Code"] == "504"
    assert b'"stop_timeout"' in reply.data
    assert (await stranger.ask("jido.session.get.s1"))["status"] == "terminating"


async def test_terminated_follows_when_the_worker_is_gone(
    stranger: Stranger, start_manager: StartManager, stubborn: Stubborn
) -> None:
    await start_manager(stubborn, stop_timeout_s=0.3)
    await stranger.create("s1")
    await stranger.ask("jido.session.terminate.s1")
    assert await stranger.stored_brief() == STOPPED[:3]

    stubborn.let_go.set()

    await eventually(lambda: stored_is(stranger, STOPPED))
    assert (await stranger.ask("jido.session.get.s1"))["reason"] == "requested"


async def test_a_terminate_that_is_repeated_waits_again(
    stranger: Stranger, start_manager: StartManager, stubborn: Stubborn
) -> None:
    await start_manager(stubborn, stop_timeout_s=0.3)
    await stranger.create("s1")
    await stranger.ask("jido.session.terminate.s1")

    assert (await stranger.ask("jido.session.terminate.s1"))["error"]["code"] == "stop_timeout"
    assert await stranger.stored_brief() == STOPPED[:3]


@pytest.mark.parametrize("verb", ["idle", "activate"])
async def test_a_session_that_is_ending_takes_no_other_command(
    stranger: Stranger, start_manager: StartManager, stubborn: Stubborn, verb: str
) -> None:
    await start_manager(stubborn, stop_timeout_s=0.3)
    await stranger.create("s1")
    await stranger.ask("jido.session.terminate.s1")

    assert (await stranger.ask(f"jido.session.{verb}.s1"))["error"]["code"] == "invalid_transition"


async def test_a_slow_stop_delays_no_other_session(
    stranger: Stranger, start_manager: StartManager, stubborn: Stubborn
) -> None:
    async def worker(session: Session) -> None:
        await (stubborn if session.session_id == "slow" else wait_for_ever)(session)

    await start_manager(worker)
    await stranger.create("slow")
    await stranger.create("quick")

    stopping = asyncio.create_task(stranger.ask("jido.session.terminate.slow"))
    await eventually(lambda: stubborn.cancels)
    assert (await stranger.ask("jido.session.terminate.quick"))["status"] == "terminated"

    assert not stopping.done()
    stubborn.let_go.set()
    assert (await stopping)["status"] == "terminated"


async def test_a_slow_stop_delays_no_create(
    stranger: Stranger, start_manager: StartManager, stubborn: Stubborn
) -> None:
    await start_manager(stubborn)
    await stranger.create("slow")

    stopping = asyncio.create_task(stranger.ask("jido.session.terminate.slow"))
    await eventually(lambda: stubborn.cancels)

    assert (await stranger.create("s2"))["status"] == "active"
    assert not stopping.done()
    stubborn.let_go.set()
    await stopping


async def test_a_manager_that_stops_ends_its_sessions(stranger: Stranger, manager: SessionManager) -> None:
    await stranger.create("s1")

    await manager.close()

    assert await stranger.stored_brief() == STOPPED
    assert {event["reason"] for event in (await stranger.stored_events())[2:]} == {"manager_stopped"}


async def test_a_manager_that_stops_seals_its_records(stranger: Stranger, manager: SessionManager) -> None:
    await stranger.create("s1")

    await manager.close()

    record = await stranger.record("s1")
    assert record is not None
    assert (record["status"], record["sealed"]) == ("terminated", True)


async def test_a_manager_that_stops_does_not_wait_for_ever(
    stranger: Stranger, start_manager: StartManager, stubborn: Stubborn
) -> None:
    manager = await start_manager(stubborn, stop_timeout_s=0.3)
    await stranger.create("s1")

    await manager.close()

    assert await stranger.stored_brief() == STOPPED
    assert [event["forced"] for event in (await stranger.stored_events())[3:]] == [True, True]


async def test_a_manager_that_stops_in_a_start_ends_that_session(
    stranger: Stranger, start_manager: StartManager
) -> None:
    manager = await start_manager(wait_for_ever, wait_ready=True)
    creating = asyncio.create_task(stranger.create("s1"))
    await eventually(lambda: stored_is(stranger, ["1 created"]))

    await manager.close()

    assert (await stranger.stored_brief())[-2:] == ["2 terminated", "2 ended"]
    creating.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await creating


async def test_a_manager_that_has_stopped_answers_nobody(stranger: Stranger, manager: SessionManager) -> None:
    await manager.close()

    with pytest.raises(NoRespondersError):
        await stranger.request("jido.session.list")


async def test_many_sessions_end_side_by_side(stranger: Stranger, manager: SessionManager, puppet: Puppet) -> None:
    ids = [f"s{n}" for n in range(50)]
    await asyncio.gather(*(stranger.create(session_id) for session_id in ids))

    await manager.close()

    events = await stranger.stored_events()
    for session_id in ids:
        told = [event["version"] for event in events if event["session_id"] == session_id]
        assert told == [1, 2, 3, 4, 4]


async def stored_is(stranger: Stranger, wanted: list[str]) -> bool:
    return await stranger.stored_brief() == wanted


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_worker_that_swallows_its_cancellation_does_not_keep_the_program(
    server: LocalServer, stranger: Stranger, number: signal.Signals
) -> None:
    async with serving(server.url, "--worker", "tests.tools.workers:never_stops", "--stop-timeout-s", "0.5") as program:
        await stranger.create("s1")
        program.process.send_signal(number)

        finished = await program.finished()

    assert finished.code == 0
    assert "a worker does not stop; abandoning it" in finished.err
    record = await stranger.ends("s1")
    assert (record["reason"], record["forced"]) == ("manager_stopped", True)


async def test_a_second_signal_while_it_leaves_does_not_keep_it(server: LocalServer, stranger: Stranger) -> None:
    async with serving(server.url, "--worker", "tests.tools.workers:never_stops", "--stop-timeout-s", "0.2") as program:
        await stranger.create("s1")
        program.process.send_signal(signal.SIGTERM)
        await program.said("abandoning it")
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            await asyncio.sleep(0.4)
            program.process.send_signal(number)

        await program.finished()
