"""Reading a stream through everything that happens to servers and consumers: no gap, no repeat, in order."""

import asyncio
from typing import Any

import pytest
from nats.js.api import ConsumerConfig

from jido_nats import LocalServer
from jido_nats.broker import durable
from jido_nats.broker.connection import Connection
from jido_nats.broker.consumer import Start, StreamMessage, parse_ack_subject
from jido_nats.broker.durable import DurableConsumer
from jido_nats.broker.ordered import OrderedConsumer
from jido_nats.errors import ConfigurationError, ConsumerNotFound, PositionUnavailable, ServerUnusable
from tests.tools.support import DEADLINE_S, Stranger, eventually

ALL = Start()


@pytest.fixture
async def stream(stranger: Stranger) -> str:
    """A stream with ten messages."""
    await stranger.js.add_stream(name="T", subjects=["t.*"])
    await publish(stranger, 10)
    return "T"


async def publish(stranger: Stranger, number: int, subject: str = "t.a") -> None:
    await asyncio.gather(*(stranger.js.publish(subject, b"x", timeout=5) for _ in range(number)))


async def read(consumer: OrderedConsumer | DurableConsumer, number: int) -> list[int]:
    async with asyncio.timeout(DEADLINE_S):
        return [(await consumer.next()).sequence for _ in range(number)]


async def restart(server: LocalServer, stranger: Stranger) -> None:
    await server.kill()
    await server.start()
    await eventually(lambda: stranger.nc.is_connected)


async def test_an_ordered_consumer_reads_in_order(connection: Connection, stream: str) -> None:
    async with OrderedConsumer(connection, stream, ["t.*"], ALL) as consumer:
        assert await read(consumer, 10) == list(range(1, 11))
        assert consumer.caught_up


async def test_an_ordered_consumer_is_caught_up_at_once_where_there_is_nothing(
    connection: Connection, stream: str
) -> None:
    async with OrderedConsumer(connection, stream, ["t.b"], ALL) as consumer:
        assert consumer.caught_up


async def test_an_ordered_consumer_begins_where_it_is_told(connection: Connection, stream: str) -> None:
    async with OrderedConsumer(connection, stream, ["t.*"], Start.at(7)) as consumer:
        assert await read(consumer, 4) == [7, 8, 9, 10]


async def test_new_means_from_now_on(stranger: Stranger, connection: Connection, stream: str) -> None:
    async with OrderedConsumer(connection, stream, ["t.*"], Start("new")) as consumer:
        await publish(stranger, 2)
        assert await read(consumer, 2) == [11, 12]


async def test_new_holds_through_a_restart_before_the_first_message(
    server: LocalServer, stranger: Stranger, connection: Connection, stream: str
) -> None:
    async with OrderedConsumer(connection, stream, ["t.*"], Start("new")) as consumer:
        reading = asyncio.create_task(read(consumer, 2))
        await restart(server, stranger)
        await publish(stranger, 2)
        assert await reading == [11, 12]


async def test_an_ordered_consumer_reads_through_a_killed_server(
    server: LocalServer, stranger: Stranger, connection: Connection, stream: str
) -> None:
    await publish(stranger, 1000)
    async with OrderedConsumer(connection, stream, ["t.*"], ALL) as consumer:
        before = await read(consumer, 100)
        reading = asyncio.create_task(read(consumer, 1000))
        await restart(server, stranger)
        await publish(stranger, 90)
        assert before + await reading == list(range(1, 1101))


async def test_an_ordered_consumer_is_made_again_when_it_is_deleted(
    stranger: Stranger, connection: Connection, stream: str
) -> None:
    async with OrderedConsumer(connection, stream, ["t.*"], ALL) as consumer:
        await read(consumer, 10)
        reading = asyncio.create_task(read(consumer, 5))
        await delete_consumers(stranger)
        await publish(stranger, 5)
        assert await reading == [11, 12, 13, 14, 15]


async def test_an_ordered_consumer_leaves_nothing_behind(
    stranger: Stranger, connection: Connection, stream: str
) -> None:
    async with OrderedConsumer(connection, stream, ["t.*"], ALL) as consumer:
        await read(consumer, 1)

    await eventually(lambda: has_no_consumers(stranger))


async def test_a_position_that_has_gone_is_told(stranger: Stranger, connection: Connection) -> None:
    await stranger.js.add_stream(name="T", subjects=["t.*"], max_msgs=5)
    await publish(stranger, 10)

    with pytest.raises(PositionUnavailable) as error:
        await OrderedConsumer(connection, "T", ["t.*"], Start.at(3), strict=True).__aenter__()

    assert (error.value.wanted, error.value.first) == (3, 6)


async def test_the_oldest_position_that_is_there_is_not_too_old(stranger: Stranger, connection: Connection) -> None:
    await stranger.js.add_stream(name="T", subjects=["t.*"], max_msgs=5)
    await publish(stranger, 10)

    async with OrderedConsumer(connection, "T", ["t.*"], Start.at(6), strict=True) as consumer:
        assert await read(consumer, 5) == [6, 7, 8, 9, 10]


async def test_a_position_that_never_was_is_told(connection: Connection, stream: str) -> None:
    with pytest.raises(PositionUnavailable):
        await OrderedConsumer(connection, stream, ["t.*"], Start.at(100), strict=True).__aenter__()


async def test_headers_alone_can_be_read(connection: Connection, stream: str) -> None:
    async with OrderedConsumer(connection, stream, ["t.*"], ALL, headers_only=True) as consumer:
        message: StreamMessage = await consumer.next()

    assert (message.data, message.subject, message.pending) == (b"", "t.a", 9)


async def test_the_last_of_each_subject_can_be_read(stranger: Stranger, connection: Connection, stream: str) -> None:
    await publish(stranger, 1, "t.b")

    async with OrderedConsumer(connection, stream, ["t.*"], Start("last_per_subject")) as consumer:
        assert await read(consumer, 2) == [10, 11]


async def test_a_durable_carries_on_where_it_stopped(connection: Connection, stream: str) -> None:
    async with DurableConsumer(connection, stream, "d", ["t.*"], ALL) as consumer:
        assert await read(consumer, 4) == [1, 2, 3, 4]
        await consumer.acknowledge()

    async with DurableConsumer(connection, stream, "d", ["t.*"], ALL) as consumer:
        assert await read(consumer, 6) == [5, 6, 7, 8, 9, 10]


async def test_a_message_that_was_not_acknowledged_comes_again_first(connection: Connection, stream: str) -> None:
    async with DurableConsumer(connection, stream, "d", ["t.*"], ALL) as consumer:
        await read(consumer, 4)

    async with DurableConsumer(connection, stream, "d", ["t.*"], ALL) as consumer:
        assert await read(consumer, 3) == [4, 5, 6]


async def test_a_durable_reads_through_a_killed_server(
    server: LocalServer, stranger: Stranger, connection: Connection, stream: str
) -> None:
    await publish(stranger, 40)
    async with DurableConsumer(connection, stream, "d", ["t.*"], ALL) as consumer:
        before = await read(consumer, 20)
        reading = asyncio.create_task(read(consumer, 40))
        await restart(server, stranger)
        await publish(stranger, 10)
        assert before + await reading == list(range(1, 61))


async def test_a_durable_that_has_read_all_is_caught_up(connection: Connection, stream: str) -> None:
    async with DurableConsumer(connection, stream, "d", ["t.*"], ALL) as consumer:
        assert not consumer.caught_up
        await read(consumer, 10)
        assert consumer.caught_up
        await consumer.acknowledge()

    async with DurableConsumer(connection, stream, "d", ["t.*"], ALL) as consumer:
        assert consumer.caught_up


@pytest.mark.parametrize("unfinished", [False, True])
async def test_the_next_reader_of_a_durable_does_not_wait_for_the_last(
    stranger: Stranger, connection: Connection, stream: str, monkeypatch: pytest.MonkeyPatch, unfinished: bool
) -> None:
    monkeypatch.setattr(durable, "ACK_WAIT_S", 300)
    await publish(stranger, 300)
    for sequence in range(1, 300):
        async with asyncio.timeout(DEADLINE_S), DurableConsumer(connection, stream, "d", ["t.*"], ALL) as consumer:
            assert await read(consumer, 1) == [sequence]
            if unfinished:
                assert await read(consumer, 1) == [sequence + 1]
            else:
                await consumer.acknowledge()


async def test_an_acknowledgement_counts_for_the_next_reader(connection: Connection, stream: str) -> None:
    for sequence in range(1, 11):
        async with DurableConsumer(connection, stream, "d", ["t.*"], ALL) as consumer:
            assert (consumer.position, await read(consumer, 1)) == (sequence - 1, [sequence])
            await consumer.acknowledge()


async def test_a_durable_that_is_deleted_is_told_of(stranger: Stranger, connection: Connection, stream: str) -> None:
    async with DurableConsumer(connection, stream, "d", ["t.*"], ALL) as consumer:
        await read(consumer, 10)
        reading = asyncio.create_task(read(consumer, 1))
        await delete_consumers(stranger)

        with pytest.raises(ConsumerNotFound):
            await reading


@pytest.mark.parametrize(
    "reply",
    [
        "$JS.ACK.T.c.1.42.7.1700000000.3",
        "$JS.ACK.hub.ACCHASH.T.c.1.42.7.1700000000.3.token",
        "$JS.ACK._.ACCHASH.T.c.1.42.7.1700000000.3",
    ],
)
def test_an_acknowledgement_subject_is_read(reply: str) -> None:
    assert parse_ack_subject(reply) == (42, 7, 1700000000, 3)


async def consumer_names(stranger: Stranger) -> list[str]:
    names: list[str] = (await stranger.ask("$JS.API.CONSUMER.NAMES.T"))["consumers"] or []
    return names


async def has_no_consumers(stranger: Stranger) -> bool:
    return not await consumer_names(stranger)


async def delete_consumers(stranger: Stranger) -> None:
    for name in await consumer_names(stranger):
        await stranger.js.delete_consumer("T", name)


async def test_a_reader_that_gives_up_often_hears_on_after_a_restart(
    server: LocalServer, stranger: Stranger, connection: Connection, stream: str
) -> None:
    async with OrderedConsumer(connection, stream, ["t.*"], ALL) as consumer:
        await read(consumer, 10)
        await restart(server, stranger)
        await publish(stranger, 1)

        assert await eventually(lambda: polled(consumer)) == 11


async def test_a_reader_that_gives_up_often_notices_a_consumer_that_is_gone(
    stranger: Stranger, connection: Connection, stream: str
) -> None:
    async with OrderedConsumer(connection, stream, ["t.*"], ALL) as consumer:
        await read(consumer, 10)
        await stranger.js.delete_consumer(stream, consumer._name)
        await publish(stranger, 1)

        assert await eventually(lambda: polled(consumer)) == 11


async def polled(consumer: OrderedConsumer) -> int | None:
    """The next message's sequence, unless it takes a tenth of a second."""
    try:
        async with asyncio.timeout(0.1):
            return (await consumer.next()).sequence
    except TimeoutError:
        return None


async def test_a_reader_that_cannot_begin_leaves_nothing_behind(connection: Connection, stream: str) -> None:
    before = (list(connection._on_up), list(connection._subscriptions))

    with pytest.raises(PositionUnavailable, match=r"beyond the end of the stream \(10\)"):
        async with OrderedConsumer(connection, stream, ["t.*"], Start.at(99), strict=True):
            pass
    with pytest.raises(ServerUnusable, match="overlap"):
        async with OrderedConsumer(connection, stream, ["t.*", "t.*"], ALL):  # subjects that overlap
            pass

    assert (connection._on_up, list(connection._subscriptions)) == before


@pytest.mark.parametrize(
    ("differs", "named"),
    [({"filter_subject": "t.b"}, "filter_subject"), ({"max_ack_pending": 5}, "max_ack_pending")],
)
async def test_a_durable_that_is_there_for_something_else_is_refused(
    stranger: Stranger, connection: Connection, stream: str, differs: dict[str, Any], named: str
) -> None:
    designed = {"durable_name": "d", "ack_policy": "explicit", "max_ack_pending": 1, "filter_subject": "t.a"}
    config = ConsumerConfig(**{**designed, **differs})
    await stranger.js.add_consumer(stream, config)

    with pytest.raises(ConfigurationError, match=named):
        async with DurableConsumer(connection, stream, "d", ["t.a"], ALL):
            pass
