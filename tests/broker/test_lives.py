"""A stream that lost its end, its beginning or its consumers: readers notice, and never miss a message silently."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from jido_nats import LocalServer
from jido_nats.broker.connection import Connection
from jido_nats.broker.consumer import Start
from jido_nats.broker.durable import READ_THROUGH, DurableConsumer
from jido_nats.broker.follower import FollowingConsumer
from jido_nats.broker.life import RECENT, RecentChanges
from jido_nats.broker.ordered import OrderedConsumer
from jido_nats.broker.polled import PolledConsumer
from jido_nats.broker.stream_info import stream_state
from jido_nats.core.position import Position
from jido_nats.errors import ConsumerLimitReached, ConsumerNotFound, PositionUnavailable
from tests.tools.backup import Backup
from tests.tools.support import DEADLINE_S, Stranger, eventually, stranger_at

ALL = Start()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[LocalServer]:
    async with LocalServer(store_dir=tmp_path / "store", sync_interval="2m") as server:
        yield server


@pytest.fixture
def backup(server: LocalServer, tmp_path: Path) -> Backup:
    return Backup(server, tmp_path / "store", tmp_path / "copy")


@pytest.fixture
async def stream(stranger: Stranger) -> str:
    """A stream with ten messages."""
    await add_stream(stranger)
    await publish(stranger, 10)
    return "T"


async def add_stream(stranger: Stranger, **config: Any) -> None:
    await stranger.ask("$JS.API.STREAM.CREATE.T", {"name": "T", "subjects": ["t.*"], "allow_direct": True, **config})


async def publish(stranger: Stranger, number: int, subject: str = "t.a") -> None:
    await eventually(lambda: stranger.nc.is_connected)
    await asyncio.gather(*(stranger.js.publish(subject, b"x", timeout=DEADLINE_S) for _ in range(number)))


async def read(consumer: Any, number: int) -> list[int]:
    async with asyncio.timeout(DEADLINE_S):
        return [(await consumer.next()).sequence for _ in range(number)]


async def at_end(connection: Connection) -> Position:
    return (await stream_state(connection, "T")).end


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("new", [0, 3, 9])
async def test_an_ordered_reader_of_a_store_that_is_older_ends(
    backup: Backup, stranger: Stranger, connection: Connection, stream: str, strict: bool, new: int
) -> None:
    await backup.take()
    await publish(stranger, 5)
    async with OrderedConsumer(connection, stream, ["t.*"], ALL, strict=strict) as consumer:
        await read(consumer, 15)
        await backup.restore()
        async with stranger_at(connection.options.servers[0]) as other:
            await publish(other, new)
            with pytest.raises(PositionUnavailable):
                await read(consumer, 1)


async def test_a_reader_of_a_bucket_notices_that_it_is_older_although_its_last_message_was_replaced(
    backup: Backup, stranger: Stranger, connection: Connection
) -> None:
    await add_stream(stranger, max_msgs_per_subject=1)
    await publish(stranger, 1, "t.a")
    await backup.take()
    await publish(stranger, 1, "t.lost")
    await publish(stranger, 1, "t.b")
    async with OrderedConsumer(connection, "T", ["t.*"], Start("last_per_subject"), recent=RecentChanges()) as consumer:
        await read(consumer, 3)
        await backup.restore()
        async with stranger_at(connection.options.servers[0]) as other:
            await publish(other, 5, "t.b")  # the one at the reader's position is replaced
            with pytest.raises(PositionUnavailable):
                await read(consumer, 1)


@pytest.mark.parametrize("kind", [OrderedConsumer, PolledConsumer])
async def test_a_reader_of_a_bucket_notices_that_what_its_program_stored_is_gone(
    backup: Backup, stranger: Stranger, connection: Connection, kind: type[OrderedConsumer] | type[PolledConsumer]
) -> None:
    await add_stream(stranger, max_msgs_per_subject=1)
    await publish(stranger, 1, "t.a")
    await backup.take()
    recent = RecentChanges()
    async with kind(connection, "T", ["t.*"], Start("last_per_subject"), recent=recent) as consumer:
        await read(consumer, 1)
        await publish(stranger, 1, "t.lost")
        recent.note("t.lost", 2)  # it was acknowledged; this reader never receives it
        await backup.restore()
        async with stranger_at(connection.options.servers[0]) as other:
            await publish(other, 3, "t.a")
            with pytest.raises(PositionUnavailable):
                await read(consumer, 4)


def test_of_recent_changes_the_last_of_each_subject_is_kept() -> None:
    recent = RecentChanges()
    recent.note("t.a", 1)
    recent.note("t.a", 3, 30)
    recent.note("t.a", 3)
    recent.note("t.a", 2)
    for number in range(4, 4 + RECENT - 1):
        recent.note(f"t.{number}", number)
    assert next(iter(recent)) == ("t.a", 3, 30)
    recent.note("t.b", 99)
    assert next(iter(recent)) == ("t.4", 4, 0) and len(list(recent)) == RECENT


async def test_a_reader_of_a_bucket_goes_on_after_a_restart(
    server: LocalServer, stranger: Stranger, connection: Connection
) -> None:
    await add_stream(stranger, max_msgs_per_subject=1)
    await publish(stranger, 1, "t.a")
    await publish(stranger, 1, "t.b")
    async with OrderedConsumer(connection, "T", ["t.*"], Start("last_per_subject"), recent=RecentChanges()) as consumer:
        await read(consumer, 2)
        await server.kill()
        await server.start()
        await publish(stranger, 2, "t.b")
        assert (await read(consumer, 1))[0] in (3, 4)


async def test_a_position_of_another_stream_is_refused(stranger: Stranger, connection: Connection, stream: str) -> None:
    position = await at_end(connection)
    await stranger.js.delete_stream("T")
    await add_stream(stranger)
    await publish(stranger, 20)
    with pytest.raises(PositionUnavailable, match="another life"):
        async with OrderedConsumer(connection, stream, ["t.*"], Start.following(position), strict=True):
            pass


async def test_a_position_after_which_another_history_was_stored_is_refused(
    backup: Backup, stranger: Stranger, connection: Connection, stream: str
) -> None:
    await backup.take()
    await publish(stranger, 5)
    position = await at_end(connection)
    await backup.restore()
    await publish(stranger, 20)
    with pytest.raises(PositionUnavailable, match="another life"):
        async with OrderedConsumer(connection, stream, ["t.*"], Start.following(position), strict=True):
            pass


async def test_a_position_that_holds_is_resumed_from(stranger: Stranger, connection: Connection, stream: str) -> None:
    position = await at_end(connection)
    await publish(stranger, 2)
    async with OrderedConsumer(connection, stream, ["t.*"], Start.following(position), strict=True) as consumer:
        assert await read(consumer, 2) == [11, 12]


async def test_an_ordered_reader_that_is_overtaken_by_the_retention_ends(
    stranger: Stranger, connection: Connection
) -> None:
    await add_stream(stranger, max_msgs=600)
    await publish(stranger, 1)
    async with OrderedConsumer(connection, "T", ["t.*"], ALL, strict=True) as consumer:
        await read(consumer, 1)
        await publish(stranger, 2500)
        with pytest.raises(PositionUnavailable, match="too old"):
            await read(consumer, 2500)


async def test_a_heartbeat_that_is_read_late_does_not_hide_that_messages_were_removed(
    stranger: Stranger, connection: Connection
) -> None:
    await add_stream(stranger)
    await publish(stranger, 300)
    async with OrderedConsumer(connection, "T", ["t.*"], ALL, strict=True) as consumer:
        await read(consumer, 1)
        await eventually(lambda: consumer._queue and consumer._queue[-1].headers)  # a heartbeat, behind the messages
        await publish(stranger, 2200)
        await read(consumer, 260)  # which pulls more, and looks at the stream
        await eventually(lambda: consumer._retention._last == 2500)
        await read(consumer, 100)  # the heartbeat, too
        await stranger.ask("$JS.API.STREAM.PURGE.T", {"seq": 2000})
        with pytest.raises(PositionUnavailable, match="too old"):
            await read(consumer, 2100)


async def test_a_reader_of_a_stream_whose_beginning_is_removed_meanwhile_reads_all_that_follows(
    stranger: Stranger, connection: Connection
) -> None:
    await add_stream(stranger, max_msgs=2000)
    await publish(stranger, 2000)
    async with OrderedConsumer(connection, "T", ["t.*"], ALL, strict=True) as consumer:
        writing = asyncio.create_task(publish(stranger, 400))
        assert len(await read(consumer, 2000)) == 2000
        await writing


async def test_an_idle_reader_of_one_subject_survives_that_the_others_are_removed(
    server: LocalServer, stranger: Stranger, connection: Connection
) -> None:
    await add_stream(stranger, max_msgs=50)
    await publish(stranger, 1, "t.a")
    async with OrderedConsumer(connection, "T", ["t.a"], ALL, strict=True) as consumer:
        await read(consumer, 1)
        for _ in range(4):
            await publish(stranger, 40, "t.b")
            await publish(stranger, 1, "t.a")
            await read(consumer, 1)


async def test_a_durable_that_is_overtaken_while_nobody_reads_says_so(
    stranger: Stranger, connection: Connection
) -> None:
    await add_stream(stranger, max_msgs=20)
    await publish(stranger, 5)
    async with DurableConsumer(connection, "T", "d", ["t.*"], ALL) as consumer:
        await read(consumer, 5)
        await consumer.acknowledge()
    await publish(stranger, 50)
    with pytest.raises(PositionUnavailable, match="too old"):
        async with DurableConsumer(connection, "T", "d", ["t.*"], ALL):
            pass


async def test_a_durable_that_is_overtaken_while_it_is_read_says_so(stranger: Stranger, connection: Connection) -> None:
    await add_stream(stranger, max_msgs=20)
    await publish(stranger, 5)
    async with DurableConsumer(connection, "T", "d", ["t.*"], ALL) as consumer:
        await read(consumer, 2)
        await publish(stranger, 50)
        with pytest.raises(PositionUnavailable, match="too old"):
            await read(consumer, 50)


async def test_a_durable_that_had_read_all_resumes_after_silence(stranger: Stranger, connection: Connection) -> None:
    await add_stream(stranger)
    await publish(stranger, 3, "t.a")
    async with DurableConsumer(connection, "T", "d", ["t.a"], ALL) as consumer:
        await read(consumer, 3)
        await publish(stranger, 2, "t.b")
        await consumer.acknowledge()
    await stranger.ask("$JS.API.STREAM.PURGE.T")  # as retention does it after a week
    await publish(stranger, 1, "t.a")
    async with DurableConsumer(connection, "T", "d", ["t.a"], ALL) as consumer:
        assert await read(consumer, 1) == [6]


async def test_a_durable_stores_up_to_where_its_reader_has_everything(
    stranger: Stranger, connection: Connection, stream: str
) -> None:
    async with DurableConsumer(connection, stream, "d", ["t.*"], ALL) as consumer:
        await read(consumer, 10)
        await consumer.acknowledge()
    info = await stranger.ask("$JS.API.CONSUMER.INFO.T.d")
    assert info["config"]["metadata"][READ_THROUGH] == (await at_end(connection)).token
    assert info["ack_floor"]["stream_seq"] == 10


@pytest.mark.parametrize("begin", [1, 4, 10])
async def test_a_durable_that_is_reset_returns_everything_again(
    stranger: Stranger, connection: Connection, stream: str, begin: int
) -> None:
    async with DurableConsumer(connection, stream, "d", ["t.*"], ALL) as consumer:
        await read(consumer, 10)
        await consumer.acknowledge()
        await stranger.ask("$JS.API.CONSUMER.RESET.T.d", {"seq": begin})
        assert await read(consumer, 11 - begin) == list(range(begin, 11))


@pytest.mark.parametrize("read_before", [1, 10])
async def test_a_durable_that_is_made_again_returns_everything_again(
    stranger: Stranger, connection: Connection, stream: str, read_before: int
) -> None:
    async with DurableConsumer(connection, stream, "d", ["t.*"], ALL) as consumer:
        await read(consumer, read_before)
        config = (await stranger.ask("$JS.API.CONSUMER.INFO.T.d"))["config"]
        await stranger.ask("$JS.API.CONSUMER.DELETE.T.d")
        await stranger.ask("$JS.API.CONSUMER.CREATE.T.d.t.*", {"stream_name": "T", "config": config})
        assert await read(consumer, 10) == list(range(1, 11))


async def test_a_durable_that_is_deleted_has_an_error_of_its_own(
    stranger: Stranger, connection: Connection, stream: str
) -> None:
    async with DurableConsumer(connection, stream, "d", ["t.*"], ALL) as consumer:
        await read(consumer, 10)
        await stranger.ask("$JS.API.CONSUMER.DELETE.T.d")
        with pytest.raises(ConsumerNotFound, match="d of T"):
            await read(consumer, 1)


async def test_a_durable_returns_everything_that_is_stored_after_an_older_store_came_back(
    backup: Backup, stranger: Stranger, connection: Connection, stream: str
) -> None:
    async with DurableConsumer(connection, stream, "d", ["t.*"], ALL) as consumer:
        await read(consumer, 10)
        await consumer.acknowledge()
        await backup.take()
        await publish(stranger, 10)
        assert await read(consumer, 10) == list(range(11, 21))
        await backup.restore()
        async with stranger_at(connection.options.servers[0]) as other:
            await publish(other, 15)
        assert await read(consumer, 15) == list(range(11, 26))


async def test_a_polled_reader_reads_in_order_and_follows(
    stranger: Stranger, connection: Connection, stream: str
) -> None:
    async with PolledConsumer(connection, stream, ["t.*"], Start.at(4)) as consumer:
        assert await read(consumer, 7) == list(range(4, 11))
        assert consumer.caught_up
        await publish(stranger, 1200)
        assert await read(consumer, 1200) == list(range(11, 1211))


async def test_a_polled_reader_of_several_subjects_returns_no_others(
    stranger: Stranger, connection: Connection, stream: str
) -> None:
    for subject in ("t.b", "t.c", "t.d"):
        await publish(stranger, 1, subject)
    async with PolledConsumer(connection, stream, ["t.b", "t.d"], ALL) as consumer:
        assert await read(consumer, 2) == [11, 13]


async def test_a_polled_reader_goes_on_after_a_restart_and_notices_an_older_store(
    backup: Backup, server: LocalServer, stranger: Stranger, connection: Connection, stream: str
) -> None:
    await backup.take()
    async with PolledConsumer(connection, stream, ["t.*"], ALL) as consumer:
        await read(consumer, 10)
        await server.kill()
        await server.start()
        await publish(stranger, 2)
        assert await read(consumer, 2) == [11, 12]
        await backup.restore()
        with pytest.raises(PositionUnavailable):
            await read(consumer, 1)


async def test_a_follower_reads_without_a_consumer_while_the_stream_takes_no_more(
    stranger: Stranger, connection: Connection
) -> None:
    await add_stream(stranger, max_consumers=1)
    await publish(stranger, 3)
    first = await OrderedConsumer(connection, "T", ["t.*"], ALL).__aenter__()
    with pytest.raises(ConsumerLimitReached):
        await OrderedConsumer(connection, "T", ["t.*"], ALL).__aenter__()
    async with FollowingConsumer(connection, "T", ["t.*"], ALL, strict=True) as follower:
        assert await read(follower, 3) == [1, 2, 3]
        assert follower.is_polled and follower.caught_up
        await first.__aexit__(None, None, None)
        await eventually(lambda: has_no_consumer(stranger))
        follower._retry_at = 0.0
        await publish(stranger, 2)
        assert await read(follower, 2) == [4, 5]
        assert not follower.is_polled


async def test_a_polled_reader_knows_that_a_message_is_its_last(
    stranger: Stranger, connection: Connection, stream: str
) -> None:
    await publish(stranger, 1, "t.b")
    await publish(stranger, 1200, "t.c")
    async with PolledConsumer(connection, stream, ["t.b", "t.d"], ALL) as consumer:
        assert await read(consumer, 1) == [11]
        assert consumer.caught_up


async def has_no_consumer(stranger: Stranger) -> bool:
    return not (await stranger.ask("$JS.API.CONSUMER.NAMES.T"))["consumers"]
