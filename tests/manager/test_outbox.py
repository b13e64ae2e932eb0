"""The outbox against a server that is there, away, or slow: in order, bounded, never lost."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest

from jido_nats import LocalServer, SessionOutput, Settings
from jido_nats.broker.connection import Connection
from jido_nats.broker.options import ConnectOptions
from jido_nats.core.codec import Encoding
from jido_nats.errors import TooLarge
from jido_nats.manager.outbox import BYTES_MAX, WAITING_MAX, Outbox, OutputQueue
from jido_nats.store import topology
from jido_nats.store.output_log import OutputLog
from tests.tools.support import Stranger, eventually


@pytest.fixture
async def outbox(server: LocalServer) -> AsyncIterator[Outbox]:
    connection = await Connection.open(ConnectOptions(servers=(server.url,)), "test")
    await topology.declare(connection, Settings())
    outbox = Outbox(OutputLog(connection, Encoding.JSON), 1000)
    yield outbox
    await outbox.close(0)
    await connection.close()


def output(lane: OutputQueue, data: object = None, session_id: str = "s1") -> SessionOutput:
    """The lane's next."""
    at = datetime(2025, 1, 1, tzinfo=UTC)
    return SessionOutput(session_id=session_id, number=lane.kept + 1, name="n", data=data, created_at=at)


async def stored(stranger: Stranger, session_id: str = "s1") -> list[str]:
    """The message ids of what is stored, in order."""
    subject = f"jido.client.session.{session_id}.output"
    return [(m.headers or {})["Nats-Msg-Id"] for m in await stranger.stored("JIDO_OUTPUT") if m.subject == subject]


async def test_what_was_pushed_is_stored_in_order(outbox: Outbox, stranger: Stranger) -> None:
    lane = outbox.lane()
    for _ in range(100):
        lane.push(output(lane))

    await lane.stored(100)

    assert await stored(stranger) == [f"s1.{number}.output" for number in range(1, 101)]
    assert outbox.bytes_waiting == 0


async def test_who_waits_for_one_does_not_wait_for_all(outbox: Outbox, server: LocalServer, stranger: Stranger) -> None:
    lane = outbox.lane()
    lane.push(output(lane))
    await lane.stored(1)
    await server.kill()
    lane.push(output(lane))

    async with asyncio.timeout(4):
        await lane.stored(1)

    await server.start()
    await lane.stored(2)


async def test_what_is_pushed_while_the_server_is_away_is_stored_when_it_is_back(
    outbox: Outbox, server: LocalServer, stranger: Stranger
) -> None:
    lane = outbox.lane()
    await server.kill()
    for _ in range(100):
        lane.push(output(lane))
    await server.start()

    await lane.stored(100)

    assert sorted(await stored(stranger)) == sorted(f"s1.{number}.output" for number in range(1, 101))


async def test_a_lane_has_room_for_so_many(outbox: Outbox, server: LocalServer) -> None:
    lane = outbox.lane()
    await server.kill()
    for _ in range(WAITING_MAX - 1):
        lane.push(output(lane))
    assert lane.has_room

    lane.push(output(lane))

    assert not lane.has_room
    assert outbox.lane().has_room
    await server.start()
    await eventually(lambda: lane.has_room)


async def test_all_lanes_together_have_room_for_so_many_bytes(outbox: Outbox) -> None:
    outbox.bytes_waiting = BYTES_MAX

    assert not outbox.lane().has_room


async def test_one_that_is_too_large_takes_no_number(outbox: Outbox) -> None:
    lane = outbox.lane()

    with pytest.raises(TooLarge):
        lane.push(output(lane, "x" * 1000))

    assert (lane.kept, outbox.bytes_waiting) == (0, 0)


async def test_a_slow_lane_holds_no_other_up(outbox: Outbox, stranger: Stranger) -> None:
    lanes = [outbox.lane() for _ in range(20)]
    for _ in range(50):
        lanes[0].push(output(lanes[0], "x" * 500, "s0"))
    for number, lane in enumerate(lanes[1:], start=1):
        lane.push(output(lane, None, f"s{number}"))

    await asyncio.gather(*(lane.stored(1) for lane in lanes[1:]))

    assert not await is_stored(lanes[0], 50)
    await lanes[0].stored(50)


async def is_stored(lane: OutputQueue, number: int) -> bool:
    """Whether it is, right now."""
    task = asyncio.create_task(lane.stored(number))
    await asyncio.sleep(0)
    task.cancel()
    return task.done() and not task.cancelled()


async def test_closing_waits_for_what_is_on_its_way(outbox: Outbox, stranger: Stranger) -> None:
    lane = outbox.lane()
    for _ in range(50):
        lane.push(output(lane))

    assert await outbox.close(10) == 0

    assert len(await stored(stranger)) == 50


async def test_closing_gives_up_in_the_end(outbox: Outbox, server: LocalServer) -> None:
    lane = outbox.lane()
    await server.kill()
    lane.push(output(lane))

    assert await outbox.close(0.1) == 1


async def test_what_the_server_would_not_take_is_refused_before_it_is_promised(stranger: Stranger) -> None:
    async with LocalServer(config="max_payload: 4096") as small:
        connection = await Connection.open(ConnectOptions(servers=(small.url,)), "test")
        outbox = Outbox(OutputLog(connection, Encoding.JSON), 100_000)
        lane = outbox.lane()

        with pytest.raises(TooLarge, match="at most 3072"):
            lane.push(output(lane, "x" * 3000))

        assert lane.kept == 0
        await connection.close()


async def test_who_waits_for_what_is_given_up_is_told(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuses(*item: object) -> None:
        raise TooLarge("max_payload was lowered")

    monkeypatch.setattr(outbox._log, "store", refuses)
    lane = outbox.lane()
    for _ in range(3):
        lane.push(output(lane))

    with pytest.raises(TooLarge, match="lowered"):
        await lane.stored(2)
    with pytest.raises(TooLarge, match="lowered"):
        await lane.flushed()
    await lane.flushed()
