"""A list, a snapshot and what follows them: every reader ends with the same view, however it got there."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime

import pytest

from jido_nats import (
    Client,
    JidoError,
    LocalServer,
    NotFound,
    PositionUnavailable,
    Session,
    SessionChanged,
    SessionManager,
    SessionWatch,
    SnapshotComplete,
    Status,
    WatchedSession,
)
from jido_nats.broker.connection import Connection
from jido_nats.broker.options import ConnectOptions
from jido_nats.core import codec, lifecycle, subjects
from jido_nats.core.position import Position
from jido_nats.core.requests import ListReply, ListRequest
from jido_nats.core.settings import Settings
from jido_nats.store import topology
from jido_nats.store.records import SessionRecords
from tests.conftest import StartManager
from tests.tools.proxy import Proxy
from tests.tools.support import Stranger, eventually

MANY = 50_000


class View:
    """What a reader believes: session id to (status, version), ended ones left out."""

    def __init__(self) -> None:
        self.live: dict[str, tuple[str, int]] = {}
        self.position: int | None = None
        self.token: str | None = None

    async def read(self, watch: SessionWatch, *, at_least: int = 0) -> None:
        """Take in the snapshot, and everything up to a position."""
        async for message in watch:
            if not isinstance(message, SnapshotComplete):
                record = message.record
                self.live[record.session_id] = (record.status, record.version)
                if record.status is Status.TERMINATED:
                    del self.live[record.session_id]
            if not isinstance(message, WatchedSession):
                self.position, self.token = message.position, message.position_token
                if self.position >= at_least:
                    return


@pytest.fixture
async def client(server: LocalServer) -> AsyncIterator[Client]:
    async with Client.connect(server.url, timeout_s=20) as client:
        yield client


async def storm(client: Client, seed: int, *, sessions: int = 30, steps: int = 60) -> None:
    """Random commands on some sessions."""
    dice = random.Random(seed)
    for _ in range(steps):
        session_id = f"s{dice.randrange(sessions)}"
        verb = dice.choice(
            [client.create_session, client.idle_session, client.activate_session, client.terminate_session]
        )
        try:
            await (client.create_session(session_id=session_id) if verb == client.create_session else verb(session_id))  # type: ignore[operator]
        except JidoError:
            continue


async def truth(client: Client) -> dict[str, tuple[str, int]]:
    return {r.session_id: (r.status, r.version) for r in await client.list_sessions()}


async def last_change(client: Client) -> int:
    """The position of an event that comes after everything that was answered."""
    await client.create_session(session_id=f"end_{datetime.now(UTC).timestamp():.6f}".replace(".", "_"))
    page = await client._command("list", "", ListRequest(limit=1), ListReply)
    return page.position - 1  # the last message is the copy on the session's own subject


@pytest.mark.usefixtures("manager")
async def test_two_readers_that_began_at_different_moments_end_with_the_same_view(client: Client) -> None:
    early, late = View(), View()
    async with client.watch_sessions() as first:
        await storm(client, 1)
        async with client.watch_sessions() as second:
            await storm(client, 2)
            end = await last_change(client)
            await early.read(first, at_least=end)
            await late.read(second, at_least=end)
    assert early.live == late.live == await truth(client)


@pytest.mark.usefixtures("manager")
async def test_a_reader_that_is_stopped_at_random_resumes_at_its_position(client: Client) -> None:
    view, dice = View(), random.Random(4)
    async with client.watch_sessions() as watch:
        await view.read(watch)
    storms = asyncio.create_task(storm(client, 3, steps=150))
    while not storms.done():
        async with client.watch_sessions(position=view.token) as watch:
            try:
                async with asyncio.timeout(dice.random() / 10):
                    await view.read(watch, at_least=10**9)
            except TimeoutError:
                continue
    end = await last_change(client)
    async with client.watch_sessions(position=view.token) as watch:
        await view.read(watch, at_least=end)
    assert view.live == await truth(client)


@pytest.mark.usefixtures("manager")
async def test_a_reader_that_is_cut_off_misses_nothing(server: LocalServer, client: Client) -> None:
    view = View()
    async with Proxy(server.port) as proxy, Client.connect(proxy.url) as far, far.watch_sessions() as watch:
        storms = asyncio.create_task(storm(client, 5, steps=100))
        for _ in range(3):
            await view.read(watch, at_least=(view.position or 0) + 10)
            proxy.cut()
        await storms
        await view.read(watch, at_least=await last_change(client))
        assert view.live == await truth(client)


@pytest.mark.usefixtures("manager")
async def test_a_reader_rides_a_restart_of_the_server(server: LocalServer, client: Client) -> None:
    view = View()
    async with client.watch_sessions() as watch:
        await storm(client, 6, steps=20)
        await server.kill()
        await server.start()
        await storm(client, 7, steps=20)
        await view.read(watch, at_least=await last_change(client))
    assert view.live == await truth(client)


@pytest.mark.usefixtures("manager")
async def test_a_list_says_the_position_from_which_to_follow(client: Client) -> None:
    await storm(client, 8)
    page = await client._command("list", "", ListRequest(limit=1000), ListReply)
    view = View()
    view.live = {r.session_id: (r.status, r.version) for r in page.sessions}
    await storm(client, 9)
    end = await last_change(client)
    async with client.watch_sessions(position=page.position_token) as watch:
        await view.read(watch, at_least=end)
    assert view.live == await truth(client)


async def test_a_filter_tells_of_sessions_that_enter_and_leave_it(manager: SessionManager, client: Client) -> None:
    await manager.create_session(session_id="mine", metadata={"of": "me"})
    await manager.create_session(session_id="other", metadata={"of": "you"})
    async with client.watch_sessions(metadata={"of": "me"}, status=Status.IDLE) as watch:
        for session_id in ("other", "mine"):
            await manager.idle_session(session_id)
            await manager.activate_session(session_id)
        told = [await anext(watch) for _ in range(3)]
    changes = [f"{m.record.session_id} {m.record.status}" for m in told if not isinstance(m, SnapshotComplete)]
    assert changes == ["mine idle", "mine active"]


async def test_one_session_can_be_watched(manager: SessionManager, client: Client) -> None:
    for session_id in ("s1", "s2"):
        await manager.create_session(session_id=session_id)
    async with client.watch_sessions(session_id="s2") as watch:
        for session_id in ("s1", "s2"):
            await manager.terminate_session(session_id)
        told = [await anext(watch) for _ in range(4)]
    assert [type(message).__name__ for message in told[:2]] == ["WatchedSession", "SnapshotComplete"]
    assert [m.record.version for m in told[2:] if not isinstance(m, SnapshotComplete)] == [3, 4]


@pytest.mark.usefixtures("manager")
async def test_the_old_name_of_the_position_still_works_with_a_warning(client: Client) -> None:
    await client.create_session(session_id="s1")
    with pytest.warns(DeprecationWarning, match="use position="), pytest.warns(UserWarning, match="bare sequence"):
        watch = client.watch_sessions(cursor=1)
    async with watch:
        first = await anext(watch)
    assert isinstance(first, SessionChanged)
    assert (first.event.session_id, first.position) == ("s1", 2)


async def test_a_position_that_is_too_old_says_so(start_manager: StartManager, client: Client) -> None:
    manager = await start_manager(retention_s=1, duplicate_window_s=1)
    await manager.create_session(session_id="s1")
    end = await manager._context.event_log.end()

    async def too_old() -> bool:
        try:
            async with client.watch_sessions(position=Position(1, 0, end.created_ns).token):
                return False
        except PositionUnavailable as error:
            return error.wanted == 2

    await eventually(too_old)


async def test_fifty_thousand_sessions_are_one_snapshot() -> None:
    async with LocalServer(sync_interval="2m") as server, Client.connect(server.url) as client:
        await _fill(server, MANY)
        view = View()
        async with client.watch_sessions() as watch:
            await view.read(watch)
        assert len(view.live) == MANY


async def test_a_list_shows_what_was_answered_before_it_was_asked(start_manager: StartManager) -> None:
    one, other = await start_manager(), await start_manager()
    for number in range(50):
        await one.create_session(session_id=f"s{number}")
        assert f"s{number}" in {record.session_id for record in await other.list_sessions()}


async def test_pages_of_a_list_are_in_order_with_nothing_twice(manager: SessionManager, client: Client) -> None:
    ids = sorted([(await manager.create_session()).session_id for _ in range(25)])
    found, page_token = [], None
    while True:
        request = ListRequest(limit=10, cursor=page_token)
        page = await client._command("list", "", request, ListReply)
        found += [record.session_id for record in page.sessions]
        if (page_token := page.next_cursor) is None:
            break
    assert found == ids


async def test_history_is_told_after_the_record_has_expired(start_manager: StartManager, client: Client) -> None:
    manager = await start_manager(terminated_ttl_s=1)
    await manager.create_session(session_id="s1", metadata={"n": 1})
    await manager.terminate_session("s1")
    before = await client.session_history("s1")

    async def expired() -> bool:
        try:
            await client.get_session_info("s1")
        except NotFound:
            return True
        return False

    await eventually(expired)
    assert await client.session_history("s1") == before
    assert [type(event).__name__ for event in before] == ["SessionCreated", *["SessionStatus"] * 3, "SessionTerminated"]


async def _fill(server: LocalServer, number: int) -> None:
    """That many records of live sessions, written as a manager would."""
    connection = await Connection.open(ConnectOptions(servers=(server.url,)), "fill")
    try:
        await topology.declare(connection, Settings())
        records = SessionRecords(connection, "JIDO_SESSIONS", terminated_ttl_s=60)
        for index in range(number):
            record, _ = lifecycle.create(f"s{index:06}", owner="m", at=datetime.now(UTC))
            await connection.publish(subjects.key("JIDO_SESSIONS", record.session_id), codec.encode(record))
            if index % 5000 == 0:
                await connection.flush()
        await eventually(lambda: _has(records, number), within_s=60)
    finally:
        await connection.close()


async def _has(records: SessionRecords, number: int) -> bool:
    return await records.last_position() == number


async def test_a_reader_that_gives_up_waiting_goes_on(manager: SessionManager, client: Client) -> None:
    async with client.watch_sessions() as watch:
        assert isinstance(await anext(watch), SnapshotComplete)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await anext(watch)
        await manager.create_session(session_id="s1")

        told = [await anext(watch) for _ in range(2)]

    assert [each.event.version for each in told if isinstance(each, SessionChanged)] == [1, 2]


class Brief:
    """Workers that end at once."""

    async def __call__(self, session: Session) -> None:
        await asyncio.sleep(0.02)


async def test_a_snapshot_with_ended_sessions_has_every_session_that_no_later_event_names(
    start_manager: StartManager, client: Client
) -> None:
    manager = await start_manager(Brief())
    gate = asyncio.Semaphore(64)

    async def create() -> None:
        async with gate:
            await manager.create_session()

    creating = asyncio.gather(*(create() for _ in range(2500)))
    snapshots: list[tuple[int, set[str]]] = []
    while not creating.done():
        found: set[str] = set()
        async with client.watch_sessions(include_terminated=True) as watch:
            async for message in watch:
                if isinstance(message, SnapshotComplete):
                    snapshots.append((message.position, found))
                    break
                assert isinstance(message, WatchedSession)
                found.add(message.record.session_id)
    await creating
    last: dict[str, int] = {}
    async with client.events(since="all") as stream:
        async for stored in stream.stored():
            last[stored.event.session_id] = stored.sequence

    assert len(snapshots) > 10
    assert [
        (position, session_id)
        for position, found in snapshots
        for session_id, sequence in last.items()
        if sequence <= position and session_id not in found
    ] == []


async def test_a_watch_needs_no_consumer_of_the_bucket_after_its_snapshot(
    stranger: Stranger, manager: SessionManager, client: Client
) -> None:
    async def consumers() -> int:
        return len((await stranger.ask("$JS.API.CONSUMER.NAMES.KV_JIDO_SESSIONS"))["consumers"] or [])

    await eventually(lambda: no_more_than_one(consumers))
    before = await consumers()
    async with client.watch_sessions() as watch:
        assert isinstance(await anext(watch), SnapshotComplete)
        await eventually(lambda: is_number(consumers, before))
        await manager.create_session(session_id="s1", llm_config={"model": "m"})
        first = await anext(watch)
        assert isinstance(first, SessionChanged)
        assert (first.record.owner, first.record.llm_config) == (manager.manager_id, {"model": "m"})


async def no_more_than_one(consumers: Callable[[], Awaitable[int]]) -> bool:
    return await consumers() <= 1


async def is_number(consumers: Callable[[], Awaitable[int]], wanted: int) -> bool:
    return await consumers() == wanted


async def test_a_position_of_another_life_of_the_stream_is_refused(
    stranger: Stranger, manager: SessionManager, client: Client
) -> None:
    await manager.create_session(session_id="s1")
    async with client.events(since="all") as stream:
        await anext(stream)
        sequence, stored_ns, created_ns = stream.position_token.split(".")[1:]
    for token in (f"1.{sequence}.{stored_ns}.{int(created_ns) + 1}", f"1.{sequence}.{int(stored_ns) + 1}.{created_ns}"):
        with pytest.raises(PositionUnavailable, match="another life"):
            await client.check_position(token)
        with pytest.raises(PositionUnavailable, match="another life"):
            async with client.watch_sessions(position=token):
                pass
        with pytest.raises(PositionUnavailable, match="another life"):
            async with client.events(since=token):
                pass


async def test_a_token_resumes_after_its_message(manager: SessionManager, client: Client) -> None:
    await manager.create_session(session_id="s1")
    async with client.events(since="all") as stream:
        await anext(stream)
        token = stream.position_token
    async with client.events(since=token) as stream:
        assert (await anext(stream)).sequence == 2


async def test_a_wait_returns_what_the_session_was(stranger: Stranger, manager: SessionManager, client: Client) -> None:
    await manager.create_session(session_id="s1", metadata={"n": 1})
    waiting = asyncio.create_task(client.wait("s1", "idle"))
    await eventually(lambda: reads(stranger, "jido.client.session.s1"))
    for _ in range(5):  # it asks for the record once before these
        await client.get_session_info("s1")
    await manager.idle_session("s1")
    await manager.terminate_session("s1")

    record = await waiting

    assert (record.status, record.version, record.previous_status) == (Status.IDLE, 3, Status.ACTIVE)
    assert (record.reason, record.sealed, record.metadata) == (None, False, {"n": 1})


async def reads(stranger: Stranger, subject: str) -> bool:
    """Whether a consumer of that subject exists."""
    consumers = (await stranger.ask("$JS.API.CONSUMER.LIST.JIDO_CLIENT"))["consumers"] or []
    return any(consumer["config"].get("filter_subject") == subject for consumer in consumers)
