"""NATS refuses what a manager writes: one log line, few retries, not ready while it lasts, and nothing is lost."""

import asyncio
import urllib.request
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from jido_nats import LocalServer, SessionManager
from tests.conftest import StartManager
from tests.tools.support import Stranger, eventually

SESSIONS = 40
FULL = {"discard": "new", "max_msgs": 1}
SEALED = {"sealed": True}
OPEN = {"discard": "old", "max_msgs": -1}
Lines = Callable[[], list[str]]


@pytest.fixture
def degraded(caplog: pytest.LogCaptureFixture) -> Lines:
    """The lines about NATS being degraded, so far: what is not done, and the first word of the sentence."""

    def lines() -> list[str]:
        found = [record for record in caplog.records if "degraded" in record.getMessage()]
        return [f"{record.getMessage().split()[0]} {vars(record)['what']}: {vars(record)['why']}" for record in found]

    return lines


async def change_stream(stranger: Stranger, name: str, change: dict[str, Any]) -> None:
    config = (await stranger.ask(f"$JS.API.STREAM.INFO.{name}"))["config"]
    answer = await stranger.ask(f"$JS.API.STREAM.UPDATE.{name}", config | change)
    assert "error" not in answer, answer


async def messages_in(server: LocalServer) -> int:
    """How many messages the server has received from its clients."""

    def read() -> int:
        with urllib.request.urlopen(f"{server.monitoring_url}/varz", timeout=5) as answer:
            return int(msgspec.json.decode(answer.read())["in_msgs"])

    return await asyncio.to_thread(read)


async def idle_all(stranger: Stranger) -> list[dict[str, Any]]:
    return await asyncio.gather(*(stranger.ask(f"jido.session.idle.s{number}") for number in range(SESSIONS)))


async def sessions_of(start_manager: StartManager, stranger: Stranger) -> SessionManager:
    """A manager that runs `SESSIONS` sessions."""
    manager = await start_manager(command_timeout_s=0.5, stop_timeout_s=0.2)
    await asyncio.gather(*(stranger.create(f"s{number}") for number in range(SESSIONS)))
    await eventually(lambda: manager.snapshot().not_ready == [])
    return manager


@pytest.mark.parametrize(
    ("change", "words"),
    [(FULL, "maximum messages exceeded (10077)"), (SEALED, "invalid operation on sealed stream (10109)")],
    ids=["full", "sealed"],
)
async def test_a_stream_that_refuses_is_one_line_and_few_retries(
    server: LocalServer,
    stranger: Stranger,
    start_manager: StartManager,
    degraded: Lines,
    change: dict[str, Any],
    words: str,
) -> None:
    manager = await sessions_of(start_manager, stranger)
    await change_stream(stranger, "JIDO_CLIENT", change)

    answers = await idle_all(stranger)
    before = await messages_in(server)
    await asyncio.sleep(3.0)  # a rate takes time
    a_second = (await messages_in(server) - before) / 3.0

    assert {answer["error"]["code"] for answer in answers} == {"unavailable"}
    assert degraded() == [f"degraded: cannot store in JIDO_CLIENT: {words}"]
    assert a_second < 30
    assert [reason.partition("cannot ")[2] for reason in manager.snapshot().not_ready] == [
        f"store in JIDO_CLIENT: {words}"
    ]


async def test_a_stream_that_stores_again_is_one_line_and_nothing_is_lost(
    stranger: Stranger, start_manager: StartManager, degraded: Lines
) -> None:
    manager = await sessions_of(start_manager, stranger)
    await change_stream(stranger, "JIDO_CLIENT", FULL)
    await idle_all(stranger)

    await change_stream(stranger, "JIDO_CLIENT", OPEN)

    await eventually(lambda: manager.snapshot().not_ready == [] and manager.stats.versions_unpublished == 0)
    assert [line.partition(" ")[0] for line in degraded()] == ["degraded:", "no"]
    assert sorted(await stranger.stored_brief()) == sorted(["1 created", "2 active", "3 idle"] * SESSIONS)


async def test_a_lapse_is_logged_when_it_happens_with_its_reason(
    stranger: Stranger, start_manager: StartManager, caplog: pytest.LogCaptureFixture
) -> None:
    manager = await start_manager(lease_s=1)

    await change_stream(stranger, "KV_JIDO_MANAGERS", SEALED)

    lapses = await eventually(lambda: [r for r in caplog.records if "has lapsed" in r.getMessage()])
    assert "sealed" in vars(lapses[0])["why"]
    assert "the lease is not held" in manager.snapshot().not_ready
