"""What NATS does not do: reported when it begins, rarely while it lasts, and when it is over; retries take turns."""

import asyncio
from typing import Any

import pytest

from jido_nats import LocalServer
from jido_nats.broker.connection import Connection
from jido_nats.broker.jetstream import store
from jido_nats.broker.troubles import FORGOTTEN_AFTER_S, QUIET_S, REPORT_AFTER_S, SILENT_AFTER_S, Troubles
from jido_nats.errors import NotSent, OutcomeUnknown
from tests.tools.support import DEADLINE_S, Stranger, eventually

WHAT = "cannot store in S"
FULL = {"discard": "new", "max_msgs": 1}


class Time:
    """A clock that stands still until the test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def troubles(time: Time) -> Troubles:
    return Troubles("test", clock=time)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged, in short: the sentence's first words, and why."""
    return [f"{record.getMessage().partition(':')[0]}: {vars(record)['why']}" for record in caplog.records]


def test_a_refusal_is_logged_at_once_with_the_server_s_words(
    troubles: Troubles, caplog: pytest.LogCaptureFixture
) -> None:
    troubles.refused(WHAT, "maximum messages exceeded (10077)")

    assert lines(caplog) == ["degraded: maximum messages exceeded (10077)"]
    assert list(troubles) == ["cannot store in S: maximum messages exceeded (10077)"]


def test_a_refusal_that_lasts_is_logged_rarely(
    troubles: Troubles, time: Time, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3600):
        troubles.refused(WHAT, "full")
        time.now += 1

    assert lines(caplog) == ["degraded: full", *["still degraded: full"] * 6]
    assert vars(caplog.records[1])["for_s"] == REPORT_AFTER_S


def test_the_end_of_it_is_logged_once(troubles: Troubles, time: Time, caplog: pytest.LogCaptureFixture) -> None:
    troubles.refused(WHAT, "full")
    time.now += 5
    troubles.done(WHAT)
    troubles.done(WHAT)

    assert lines(caplog) == ["degraded: full", "no longer degraded: full"]
    assert vars(caplog.records[-1])["for_s"] == 5
    assert list(troubles) == []


def test_many_requests_that_time_out_together_are_no_trouble(
    troubles: Troubles, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(1000):
        troubles.unanswered(WHAT, "no answer")

    assert (lines(caplog), list(troubles)) == ([], [])


def test_silence_that_lasts_is_trouble(troubles: Troubles, time: Time, caplog: pytest.LogCaptureFixture) -> None:
    troubles.unanswered(WHAT, "no answer")
    time.now += SILENT_AFTER_S
    troubles.unanswered(WHAT, "no answer")

    assert lines(caplog) == ["degraded: no answer"]


def test_an_answer_between_two_time_outs_is_no_trouble(
    troubles: Troubles, time: Time, caplog: pytest.LogCaptureFixture
) -> None:
    troubles.unanswered(WHAT, "no answer")
    time.now += SILENT_AFTER_S
    troubles.done(WHAT)
    troubles.unanswered(WHAT, "no answer")

    assert lines(caplog) == []


def test_a_trouble_that_comes_and_goes_does_not_fill_the_log(
    troubles: Troubles, time: Time, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(100):
        troubles.refused(WHAT, "full")
        time.now += QUIET_S / 200
        troubles.done(WHAT)

    assert lines(caplog) == ["degraded: full", "no longer degraded: full"]


def test_a_trouble_of_one_stream_is_not_ended_by_another(troubles: Troubles) -> None:
    troubles.refused(WHAT, "full")

    troubles.done("cannot store in T")

    assert list(troubles) == ["cannot store in S: full"]


def test_a_trouble_that_nobody_meets_any_more_is_forgotten(troubles: Troubles, time: Time) -> None:
    troubles.refused(WHAT, "full")
    time.now += FORGOTTEN_AFTER_S

    assert list(troubles) == []


async def test_retries_of_many_take_turns(troubles: Troubles) -> None:
    clock = asyncio.get_running_loop().time
    passed: list[float] = []
    troubles.refused(WHAT, "full")

    async def retry() -> None:
        while list(troubles):
            await troubles.turn(WHAT)
            passed.append(clock())
            troubles.refused(WHAT, "full")

    began = clock()
    retrying = [asyncio.create_task(retry()) for _ in range(500)]
    await eventually(lambda: len(passed) >= 3)
    took_s = clock() - began
    for task in retrying:
        task.cancel()
    await asyncio.gather(*retrying, return_exceptions=True)

    assert len(passed) <= 3 + 10 * took_s


async def test_all_pass_as_soon_as_it_is_over(troubles: Troubles) -> None:
    troubles.refused(WHAT, "full")
    waiting = [asyncio.create_task(troubles.turn(WHAT)) for _ in range(500)]
    await asyncio.sleep(0)

    troubles.done(WHAT)

    await asyncio.wait_for(asyncio.gather(*waiting), timeout=DEADLINE_S)


async def test_a_waiter_that_is_cancelled_keeps_nobody_waiting(troubles: Troubles) -> None:
    troubles.refused(WHAT, "full")
    first, second = (asyncio.create_task(troubles.turn(WHAT)) for _ in range(2))
    await asyncio.sleep(0)

    first.cancel()

    await asyncio.wait_for(second, timeout=DEADLINE_S)


# On a server


@pytest.fixture
async def stream(stranger: Stranger) -> dict[str, Any]:
    """The configuration of a stream `S` that takes everything on `s`."""
    created = await stranger.ask("$JS.API.STREAM.CREATE.S", {"name": "S", "subjects": ["s"], "storage": "memory"})
    config: dict[str, Any] = created["config"]
    return config


@pytest.mark.parametrize(
    ("change", "words"),
    [(FULL, "maximum messages exceeded (10077)"), ({"sealed": True}, "invalid operation on sealed stream (10109)")],
)
async def test_a_stream_that_refuses_is_reported_in_its_words(
    stranger: Stranger, connection: Connection, stream: dict[str, Any], change: dict[str, Any], words: str
) -> None:
    await store(connection, "S", "s", b"", {})
    assert connection.not_ready == []
    await stranger.ask("$JS.API.STREAM.UPDATE.S", stream | change)

    with pytest.raises(OutcomeUnknown):  # an earlier attempt of the same message may be stored
        await store(connection, "S", "s", b"", {})

    assert connection.not_ready == [f"test cannot store in S: {words}"]


async def test_a_stream_that_stores_again_is_no_trouble(
    stranger: Stranger, connection: Connection, stream: dict[str, Any]
) -> None:
    await stranger.ask("$JS.API.STREAM.UPDATE.S", stream | {"discard": "new", "max_msgs": 0, "max_bytes": 1})
    with pytest.raises(OutcomeUnknown):
        await store(connection, "S", "s", b"", {})
    await stranger.ask("$JS.API.STREAM.UPDATE.S", stream)

    await store(connection, "S", "s", b"", {})

    assert connection.not_ready == []


async def test_a_stream_that_does_not_acknowledge_is_reported(
    stranger: Stranger, connection: Connection, stream: dict[str, Any]
) -> None:
    """As with a full disk, where publishers see only time-outs."""
    await stranger.ask("$JS.API.STREAM.UPDATE.S", stream | {"no_ack": True})

    async with asyncio.timeout(DEADLINE_S):
        while not connection.not_ready:
            with pytest.raises(OutcomeUnknown):
                await store(connection, "S", "s", b"", {}, timeout_s=0.3)

    assert "test cannot store in S: no answer" in connection.not_ready[0]


async def test_a_stream_that_is_gone_is_reported(connection: Connection, server: LocalServer) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not connection.not_ready:
            with pytest.raises(NotSent):
                await store(connection, "S", "s", b"", {})
            await asyncio.sleep(0.1)

    assert "test cannot store in S: no answer" in connection.not_ready[0]
