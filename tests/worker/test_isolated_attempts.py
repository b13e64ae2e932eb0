"""The attempts of Python workers in processes of their own: they begin with what the one before has stored."""

import os
import signal
from typing import Any

import pytest

from tests.conftest import StartManager
from tests.tools.children.kin import kin_of, new_id
from tests.tools.support import Stranger, eventually
from tests.worker.test_isolation import send, worker
from tests.worker.test_program_attempts import ON_CRASH
from tests.worker.test_programs import READY, said


@pytest.fixture
async def session_id(stranger: Stranger, start_manager: StartManager) -> str:
    """A session with a restart policy, whose worker is `remembers`."""
    await start_manager(worker("remembers"))
    session_id = new_id()
    assert (await stranger.create(session_id, restart=ON_CRASH))["status"] == "active"
    return session_id


async def emitted(stranger: Stranger, session_id: str, count: int) -> list[Any]:
    """What it has emitted, once it is as much."""

    async def enough() -> list[Any]:
        found = [data for data in await said(stranger, session_id) if data is not None]
        return found if len(found) >= count else []

    found: list[Any] = await eventually(enough)
    return found


async def test_the_next_attempt_begins_with_the_checkpoint(stranger: Stranger, session_id: str) -> None:
    await send(stranger, session_id, "checkpoint")
    await send(stranger, session_id, "exit")

    assert await emitted(stranger, session_id, 5) == [
        [1, None],
        ["checkpoint", False],
        ["exit", False],
        [2, {"by": 1}],
        ["exit", True],
    ]


async def test_one_that_was_killed_gets_only_what_it_has_not_handled(stranger: Stranger, session_id: str) -> None:
    for content in ("checkpoint", "a", "b"):
        await send(stranger, session_id, content)
    await emitted(stranger, session_id, 4)

    for pid in kin_of(session_id):
        os.kill(pid, signal.SIGKILL)

    outputs = await emitted(stranger, session_id, 7)
    assert outputs[4:] == [[2, {"by": 1}], ["a", True], ["b", True]]  # `a` too: it makes checkpoints


async def test_one_without_checkpoints_has_handled_what_it_took_before_the_last(
    stranger: Stranger, session_id: str
) -> None:
    for content in ("a", "b", "exit"):
        await send(stranger, session_id, content)

    outputs = await emitted(stranger, session_id, 6)

    assert outputs[4:] == [[2, None], ["exit", True]]


async def test_a_state_that_cannot_be_stored_is_refused(stranger: Stranger, session_id: str) -> None:
    await send(stranger, session_id, "refused")
    await send(stranger, session_id, "exit")

    outputs = await emitted(stranger, session_id, 7)

    assert outputs[2:5] == ["too_large", "bad_request", "bad_request"]
    assert outputs[6] == [2, None]


async def test_it_reads_the_conversation(stranger: Stranger, session_id: str) -> None:
    for content in ("first", "second", "conversation"):
        await send(stranger, session_id, content)

    outputs = await emitted(stranger, session_id, 5)

    assert outputs[4] == [["user", "second"], ["user", "conversation"]]


async def test_it_cannot_ask_for_none_of_the_conversation(stranger: Stranger, session_id: str) -> None:
    await send(stranger, session_id, "no conversation")

    outputs = await emitted(stranger, session_id, 3)

    assert outputs[2] == "limit must be 1 to 1000"


async def test_without_a_policy_a_checkpoint_does_nothing(stranger: Stranger, start_manager: StartManager) -> None:
    await start_manager(worker("remembers"))
    await stranger.create("s1")

    for content in ("checkpoint", "after"):
        await send(stranger, "s1", content)

    assert await emitted(stranger, "s1", 3) == [[1, None], ["checkpoint", False], ["after", False]]


async def test_it_knows_that_it_is_stopping(stranger: Stranger, start_manager: StartManager) -> None:
    await start_manager(worker("says_that_it_is_stopping", wait_ready=True), **READY)
    await stranger.create("s1")

    await stranger.ask("jido.session.terminate.s1")

    assert await said(stranger, "s1") == [False, True]
