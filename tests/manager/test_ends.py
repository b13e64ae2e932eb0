"""An end is true: it is committed after the output that came before it, or it says that output may be missing."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import msgspec
import pytest

from jido_nats import LocalServer, Session, SessionManager
from jido_nats.manager.live_session import LiveSession
from jido_nats.manager.outbox import WAITING_MAX
from jido_nats.worker.program import Program
from jido_nats.worker.session import Worker, host_of
from tests.conftest import StartManager
from tests.tools.support import Puppet, Stranger, Stubborn, eventually, wait_for_ever

EVENTS = "jido.client.events"
OUTPUTS = 200
# Less than a command may take: the answer is the end, not `unavailable`.
STOP_TIMEOUT_S = 0.5

RemoveOutput: TypeAlias = Callable[[], Awaitable[bool]]


async def emits(session: Session) -> None:
    """Much at once."""
    for number in range(OUTPUTS):
        await session.emit("step", number)


async def returns(session: Session) -> None:
    await emits(session)


async def crashes(session: Session) -> None:
    await emits(session)
    raise RuntimeError("boom")


async def says_its_last_words(session: Session) -> None:
    try:
        await wait_for_ever(session)
    finally:
        await emits(session)


async def never_gets_ready(session: Session) -> None:
    await emits(session)
    await session.say("I cannot start")
    raise RuntimeError("no model")


# What a shell has to print for as much.
PRINTS = f"""for n in $(seq {OUTPUTS}); do echo '{{"type":"output"}}'; done"""


class Moment:
    """How much output is stored when the end of a session is heard."""

    def __init__(self, stranger: Stranger) -> None:
        self._stranger = stranger
        self.stored: int | None = None

    async def on_event(self, message: Any) -> None:
        """The subscription's callback."""
        if msgspec.json.decode(message.data).get("status") == "terminated":
            self.stored = (await self._stranger.js.stream_info("JIDO_OUTPUT")).state.messages


@pytest.fixture
async def moment(stranger: Stranger) -> Moment:
    """That of the first end."""
    moment = Moment(stranger)
    await stranger.nc.subscribe(EVENTS, cb=moment.on_event)
    await stranger.flush()
    return moment


@pytest.mark.parametrize("worker", [returns, crashes, Program(["sh", "-c", PRINTS])])
async def test_an_end_is_told_after_the_output_is_stored(
    stranger: Stranger, start_manager: StartManager, moment: Moment, worker: Worker
) -> None:
    await start_manager(worker)

    await stranger.create("s1")

    assert "output_incomplete" not in await stranger.ends("s1")
    assert await eventually(lambda: moment.stored) == OUTPUTS


async def test_an_end_by_command_is_told_after_the_output_is_stored(
    stranger: Stranger, start_manager: StartManager, moment: Moment
) -> None:
    await start_manager(says_its_last_words)
    await stranger.create("s1")

    record = await stranger.ask("jido.session.terminate.s1")

    assert (record["status"], record.get("output_incomplete")) == ("terminated", None)
    assert await eventually(lambda: moment.stored) == OUTPUTS


async def test_a_failed_start_is_told_after_its_output_is_stored(
    stranger: Stranger, start_manager: StartManager, moment: Moment
) -> None:
    await start_manager(never_gets_ready, wait_ready=True)

    await stranger.create("s1")

    assert (await stranger.ends("s1"))["reason"] == "start_failed"
    assert await eventually(lambda: moment.stored) == OUTPUTS + 1


async def test_a_manager_that_is_stopped_stores_the_output_before_the_ends(
    stranger: Stranger, start_manager: StartManager, moment: Moment
) -> None:
    manager = await start_manager(says_its_last_words)
    await stranger.create("s1")

    await manager.close()

    assert (await stranger.ends("s1"))["reason"] == "manager_stopped"
    assert await eventually(lambda: moment.stored) == OUTPUTS


# The output stream is gone


@pytest.fixture
async def remove_output(stranger: Stranger, start_manager: StartManager) -> AsyncIterator[RemoveOutput]:
    """Removes the stream, until the test is over: then it is there again, so that managers need not wait for it."""
    yield lambda: stranger.js.delete_stream("JIDO_OUTPUT")
    await stranger.js.add_stream(name="JIDO_OUTPUT", subjects=["jido.client.session.*.output"])


async def incomplete_end(stranger: Stranger) -> dict[str, Any]:
    """The record of an end, which says that output may be missing, as both events do."""
    record = await stranger.ends("s1")
    told = (await stranger.stored_events())[-2:]
    assert [event["type"] for event in told] == ["session_status", "session_terminated"]
    assert [message.get("output_incomplete") for message in (record, *told)] == [True, True, True]
    return record


@pytest.mark.parametrize(("worker", "reason"), [(returns, "completed"), (crashes, "crashed")])
async def test_an_end_whose_output_cannot_be_stored_says_so(
    stranger: Stranger, start_manager: StartManager, remove_output: RemoveOutput, worker: Worker, reason: str
) -> None:
    go = asyncio.Event()

    async def waits(session: Session) -> None:
        await go.wait()
        await worker(session)

    await start_manager(waits, stop_timeout_s=STOP_TIMEOUT_S)
    await stranger.create("s1")
    await remove_output()

    go.set()

    assert (await incomplete_end(stranger))["reason"] == reason


async def test_a_start_that_fails_says_that_its_output_is_not_stored(
    stranger: Stranger, start_manager: StartManager, remove_output: RemoveOutput
) -> None:
    await start_manager(never_gets_ready, wait_ready=True, stop_timeout_s=STOP_TIMEOUT_S)
    await remove_output()

    assert (await stranger.create("s1"))["error"]["code"] == "start_failed"

    assert (await incomplete_end(stranger))["reason"] == "start_failed"


async def test_a_terminate_is_answered_although_the_output_is_not_stored(
    stranger: Stranger, start_manager: StartManager, remove_output: RemoveOutput
) -> None:
    await start_manager(says_its_last_words, stop_timeout_s=STOP_TIMEOUT_S)
    await stranger.create("s1")
    await remove_output()

    record = await stranger.ask("jido.session.terminate.s1")

    assert (record["status"], record["output_incomplete"]) == ("terminated", True)
    await incomplete_end(stranger)


async def test_a_worker_that_is_abandoned_says_so_too(
    stranger: Stranger, start_manager: StartManager, remove_output: RemoveOutput
) -> None:
    stubborn, speaking = Stubborn(), asyncio.Event()

    async def worker(session: Session) -> None:
        await session.emit("step")
        speaking.set()
        await stubborn(session)

    manager = await start_manager(worker, stop_timeout_s=STOP_TIMEOUT_S)
    await remove_output()
    await stranger.create("s1")
    await speaking.wait()

    await manager.close()

    assert (await incomplete_end(stranger))["forced"]
    stubborn.let_go.set()


async def test_a_send_is_answered_when_its_session_has_ended(
    stranger: Stranger, start_manager: StartManager, remove_output: RemoveOutput, puppet: Puppet
) -> None:
    await start_manager(puppet, stop_timeout_s=STOP_TIMEOUT_S, command_timeout_s=120.0)
    await stranger.create("s1")
    await remove_output()
    sending = asyncio.create_task(stranger.ask("jido.session.send.s1", {"role": "user", "content": 1}))
    live = host_of(puppet.sessions["s1"])
    assert isinstance(live, LiveSession)
    await eventually(lambda: live.conversation.kept)

    puppet.complete("s1")

    assert (await sending)["error"]["code"] == "unavailable"
    await incomplete_end(stranger)


async def test_a_manager_ends_soon_although_the_output_is_not_stored(
    stranger: Stranger, start_manager: StartManager, remove_output: RemoveOutput
) -> None:
    manager = await start_manager(wait_for_ever, stop_timeout_s=STOP_TIMEOUT_S, command_timeout_s=STOP_TIMEOUT_S)
    await stranger.create("s1")
    await remove_output()
    await stranger.ask("jido.session.send.s1", {"role": "user", "content": 1})
    began = time.monotonic()

    await manager.close()

    assert time.monotonic() - began < STOP_TIMEOUT_S + 8  # of which the outbox takes 5
    assert (await incomplete_end(stranger))["reason"] == "manager_stopped"


async def test_output_that_was_lost_on_its_way_is_missing(
    stranger: Stranger, manager: SessionManager, puppet: Puppet
) -> None:
    await stranger.create("s1")
    live = host_of(puppet.sessions["s1"])
    assert isinstance(live, LiveSession)
    live.lose_output()

    puppet.complete("s1")

    assert (await incomplete_end(stranger))["reason"] == "completed"


async def test_what_is_stored_later_is_no_loss(
    server: LocalServer, stranger: Stranger, start_manager: StartManager, puppet: Puppet
) -> None:
    await start_manager(puppet, stop_timeout_s=STOP_TIMEOUT_S)
    await stranger.create("s1")
    session = puppet.sessions["s1"]
    await server.kill()
    for number in range(WAITING_MAX):
        await session.emit("step", number)

    puppet.complete("s1")
    live = host_of(session)
    assert isinstance(live, LiveSession)
    await eventually(lambda: live.in_doubt)  # the end does not wait any longer, but its record does
    await server.start()

    assert (await stranger.ends("s1"))["output_incomplete"]
    await eventually(lambda: has_outputs(stranger, WAITING_MAX))


async def has_outputs(stranger: Stranger, count: int) -> bool:
    return len(await stranger.stored("JIDO_OUTPUT")) == count


async def test_a_session_without_output_waits_for_nothing(
    stranger: Stranger, start_manager: StartManager, remove_output: RemoveOutput, puppet: Puppet
) -> None:
    await start_manager(puppet, stop_timeout_s=60.0)
    await stranger.create("s1")
    await remove_output()

    puppet.complete("s1")

    assert "output_incomplete" not in await stranger.ends("s1", within_s=10)
