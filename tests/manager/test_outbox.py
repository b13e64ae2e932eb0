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
from tests.tools.support import DEADLINE_S, Stranger, eventually


@pytest.fixture
async def outbox(server: LocalServer) -> AsyncIterator[Outbox]:
    connection = await Connection.open(ConnectOptions(servers=(server.url,)), "test")
    await topology.declare(connection, Settings())
    outbox = Outbox(OutputLog(connection, "JIDO_OUTPUT", Encoding.JSON), 1000)
    yield outbox
    await outbox.close(0)
    await connection.close()


def output(queue: OutputQueue, data: object = None, session_id: str = "s1") -> SessionOutput:
    """The queue's next."""
    at = datetime(2025, 1, 1, tzinfo=UTC)
    return SessionOutput(session_id=session_id, number=queue.kept + 1, name="n", data=data, created_at=at)


async def stored(stranger: Stranger, session_id: str = "s1") -> list[str]:
    """The message ids of what is stored, in order."""
    subject = f"jido.client.session.{session_id}.output"
    return [(m.headers or {})["Nats-Msg-Id"] for m in await stranger.stored("JIDO_OUTPUT") if m.subject == subject]


async def test_what_was_pushed_is_stored_in_order(outbox: Outbox, stranger: Stranger) -> None:
    queue = outbox.queue()
    for _ in range(100):
        queue.push(output(queue))

    await queue.stored(100)

    assert await stored(stranger) == [f"s1.{number}.output" for number in range(1, 101)]
    assert outbox.bytes_waiting == 0


async def test_who_waits_for_one_does_not_wait_for_all(outbox: Outbox, server: LocalServer, stranger: Stranger) -> None:
    queue = outbox.queue()
    queue.push(output(queue))
    await queue.stored(1)
    await server.kill()
    queue.push(output(queue))

    async with asyncio.timeout(DEADLINE_S):
        await queue.stored(1)

    await server.start()
    await queue.stored(2)


async def test_what_is_pushed_while_the_server_is_away_is_stored_when_it_is_back(
    outbox: Outbox, server: LocalServer, stranger: Stranger
) -> None:
    queue = outbox.queue()
    await server.kill()
    for _ in range(100):
        queue.push(output(queue))
    await server.start()

    await queue.stored(100)

    assert sorted(await stored(stranger)) == sorted(f"s1.{number}.output" for number in range(1, 101))


async def test_a_queue_has_room_for_so_many(outbox: Outbox, server: LocalServer) -> None:
    queue = outbox.queue()
    await server.kill()
    for _ in range(WAITING_MAX - 1):
        queue.push(output(queue))
    assert queue.has_room

    queue.push(output(queue))

    assert not queue.has_room
    assert outbox.queue().has_room
    await server.start()
    await eventually(lambda: queue.has_room)


async def test_all_queues_together_have_room_for_so_many_bytes(outbox: Outbox) -> None:
    outbox.bytes_waiting = BYTES_MAX

    assert not outbox.queue().has_room


async def test_one_that_is_too_large_takes_no_number(outbox: Outbox) -> None:
    queue = outbox.queue()

    with pytest.raises(TooLarge):
        queue.push(output(queue, "x" * 1000))

    assert (queue.kept, outbox.bytes_waiting) == (0, 0)


async def test_a_slow_queue_holds_no_other_up(outbox: Outbox, stranger: Stranger) -> None:
    queues = [outbox.queue() for _ in range(20)]
    for _ in range(50):
        queues[0].push(output(queues[0], "x" * 500, "s0"))
    for number, queue in enumerate(queues[1:], start=1):
        queue.push(output(queue, None, f"s{number}"))

    await asyncio.gather(*(queue.stored(1) for queue in queues[1:]))

    assert not await is_stored(queues[0], 50)
    await queues[0].stored(50)


async def is_stored(queue: OutputQueue, number: int) -> bool:
    """Whether it is, right now."""
    task = asyncio.create_task(queue.stored(number))
    await asyncio.sleep(0)
    task.cancel()
    return task.done() and not task.cancelled()


async def test_closing_waits_for_what_is_on_its_way(outbox: Outbox, stranger: Stranger) -> None:
    queue = outbox.queue()
    for _ in range(50):
        queue.push(output(queue))

    assert await outbox.close(10) == 0

    assert len(await stored(stranger)) == 50


async def test_closing_gives_up_in_the_end(outbox: Outbox, server: LocalServer) -> None:
    queue = outbox.queue()
    await server.kill()
    queue.push(output(queue))

    assert await outbox.close(0.1) == 1


async def test_what_an_ended_session_could_not_store_is_dropped_after_a_while(
    outbox: Outbox, stranger: Stranger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("jido_nats.manager.outbox.AFTER_END_S", 0.2)
    await stranger.js.delete_stream("JIDO_OUTPUT")
    queues = [outbox.queue() for _ in range(3)]
    for queue in queues:
        queue.push(output(queue))
        queue.push(output(queue))

    assert [await queue.finish(0) for queue in queues] == [False] * 3

    await eventually(lambda: dropped(caplog))
    assert dropped(caplog) == [(6, 3)]
    assert outbox.bytes_waiting == 0
    assert await outbox.close(0) == 0, "nothing is tried any more"


def dropped(caplog: pytest.LogCaptureFixture) -> list[tuple[int, int]]:
    """Each line about what was dropped: how many messages, of how many sessions."""
    lines = [vars(record) for record in caplog.records if "was dropped" in record.getMessage()]
    return [(line["messages"], line["sessions"]) for line in lines]


async def test_what_an_ended_session_still_has_is_stored_when_the_server_is_back_soon(
    outbox: Outbox, server: LocalServer, stranger: Stranger, caplog: pytest.LogCaptureFixture
) -> None:
    queue = outbox.queue()
    await server.kill()
    queue.push(output(queue))
    assert not await queue.finish(0)

    await server.start()

    await eventually(lambda: outbox.bytes_waiting == 0)
    assert await stored(stranger) == ["s1.1.output"]
    assert dropped(caplog) == []


async def test_the_output_of_a_session_that_lives_is_never_dropped(
    outbox: Outbox, stranger: Stranger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jido_nats.manager.outbox.AFTER_END_S", 0.0)
    stream = await stranger.js.stream_info("JIDO_OUTPUT")
    await stranger.js.delete_stream("JIDO_OUTPUT")
    ended, lives = outbox.queue(), outbox.queue()
    ended.push(output(ended, None, "ended"))
    lives.push(output(lives, None, "lives"))
    await ended.finish(0)
    await eventually(lambda: outbox.bytes_waiting < 2 * len(outbox.item(output(lives)).payload))

    await stranger.js.add_stream(stream.config)

    await lives.stored(1)


async def test_what_the_server_would_not_take_is_refused_before_it_is_promised(stranger: Stranger) -> None:
    async with LocalServer(config="max_payload: 4096") as small:
        connection = await Connection.open(ConnectOptions(servers=(small.url,)), "test")
        outbox = Outbox(OutputLog(connection, "JIDO_OUTPUT", Encoding.JSON), 100_000)
        queue = outbox.queue()

        with pytest.raises(TooLarge, match="the limit is 3072"):
            queue.push(output(queue, "x" * 3000))

        assert queue.kept == 0
        await connection.close()


async def test_who_waits_for_what_is_given_up_is_told(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuses(*item: object) -> None:
        raise TooLarge("max_payload was lowered")

    monkeypatch.setattr(outbox._log, "store", refuses)
    queue = outbox.queue()
    for _ in range(3):
        queue.push(output(queue))

    with pytest.raises(TooLarge, match="lowered"):
        await queue.stored(2)
    with pytest.raises(TooLarge, match="lowered"):
        await queue.flushed()
    await queue.flushed()
    assert not await queue.finish(1.0)
