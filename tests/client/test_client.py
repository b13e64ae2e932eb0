"""The Python client: the same verbs over request-reply, events live and replayed, waiting."""

import asyncio
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import msgspec
import pytest

from jido_nats import (
    AlreadyExists,
    BadRequest,
    Client,
    EventMessage,
    InvalidTransition,
    JidoError,
    LocalServer,
    NotFound,
    PositionUnavailable,
    ServerUnusable,
    SessionManager,
    SessionStatus,
    StartFailed,
    Status,
    StopTimeout,
    TooLarge,
    Unavailable,
)
from jido_nats.client.streams import parse_since
from tests.conftest import StartManager
from tests.core.samples import record_in
from tests.tools.support import DEADLINE_S, IN_PUPPET, Puppet, Stranger, Stubborn, eventually, wait_for_ever

SEALED: dict[str, Any] = msgspec.to_builtins(
    msgspec.structs.replace(record_in(Status.TERMINATED), sealed=True), builtin_types=(datetime,)
)
NOW = datetime(2025, 1, 24, 10, 30, tzinfo=UTC)


@pytest.fixture
async def client(server: LocalServer) -> AsyncIterator[Client]:
    """A client of the test's server."""
    async with Client.connect(server.url) as client:
        yield client


async def read(client: Client, number: int, **options: Any) -> list[EventMessage]:
    async with asyncio.timeout(DEADLINE_S), client.events(**options) as events:
        found = [await anext(events) for _ in range(number)]
        await events.acknowledge()
        return found


async def test_a_session_s_whole_life(client: Client, manager: SessionManager) -> None:
    record = await client.create_session(metadata={"a": 1})

    assert (await client.idle_session(record.session_id)).status == "idle"
    assert (await client.activate_session(record.session_id)).status == "active"
    assert (await client.terminate_session(record.session_id)).status == "terminated"
    assert (await client.get_session_info(record.session_id)).metadata == {"a": 1}


async def test_the_client_and_the_manager_answer_alike(client: Client, manager: SessionManager) -> None:
    await client.create_session(session_id="s1", metadata={"a": 1}, llm_config={"m": 1})

    assert await client.get_session_info("s1") == await manager.get_session_info("s1")
    assert await client.list_sessions() == await manager.list_sessions()


async def test_the_client_chooses_the_id(client: Client, manager: SessionManager) -> None:
    record = await client.create_session()

    assert record.session_id.startswith("session_")
    assert not record.replayed


async def test_list_goes_through_every_page(client: Client, stranger: Stranger, manager: SessionManager) -> None:
    records = [SEALED | {"session_id": f"s{number:04}"} for number in range(1010)]
    for record in records:
        await stranger.nc.publish(f"$KV.JIDO_SESSIONS.{record['session_id']}", msgspec.json.encode(record))
    await eventually(partial(stored, stranger, len(records)))

    listed = await client.list_sessions(include_terminated=True)

    assert [record.session_id for record in listed] == [record["session_id"] for record in records]


async def stored(stranger: Stranger, number: int) -> bool:
    """Whether the bucket has so many messages."""
    return bool((await stranger.js.stream_info("KV_JIDO_SESSIONS")).state.messages == number)


async def test_errors_are_those_of_the_manager(client: Client, manager: SessionManager) -> None:
    await client.create_session(session_id="s1")

    with pytest.raises(NotFound):
        await client.get_session_info("nobody")
    with pytest.raises(InvalidTransition):
        await client.activate_session("s1")
    with pytest.raises(AlreadyExists):
        await client.create_session(session_id="s1", metadata={"a": 1})
    with pytest.raises(TooLarge):
        await client.create_session(metadata={"a": "x" * 50_000})


@pytest.mark.parametrize("bad", ["", "a.b", "*", "a" * 65])
async def test_a_bad_id_never_leaves_the_client(client: Client, bad: str) -> None:
    with pytest.raises(BadRequest):
        await client.get_session_info(bad)


async def test_a_failed_start_is_raised(client: Client, start_manager: StartManager) -> None:
    async def fails(session: object) -> None:
        raise RuntimeError("boom")

    await start_manager(fails, wait_ready=True)

    with pytest.raises(StartFailed, match="boom") as error:
        await client.create_session(session_id="s1")
    assert error.value.session_id == "s1"


async def test_a_stop_that_takes_too_long_is_raised(client: Client, start_manager: StartManager) -> None:
    stubborn = Stubborn()
    await start_manager(stubborn, stop_timeout_s=0.2)
    await client.create_session(session_id="s1")

    with pytest.raises(StopTimeout):
        await client.terminate_session("s1")

    stubborn.let_go.set()
    assert (await client.wait("s1", "terminated", timeout_s=5)).status == "terminated"


async def test_no_manager_is_raised(client: Client) -> None:
    with pytest.raises(Unavailable, match="no session manager"):
        await client.list_sessions()


async def test_a_client_outside_its_block_is_told() -> None:
    with pytest.raises(JidoError, match="async with"):
        await Client.connect().list_sessions()


async def test_a_manager_outside_its_block_is_told() -> None:
    with pytest.raises(JidoError, match="async with"):
        await SessionManager.connect(worker=wait_for_ever).list_sessions()


async def test_wait_returns_at_once_where_it_is_so_already(client: Client, manager: SessionManager) -> None:
    await client.create_session(session_id="s1")

    assert (await client.wait("s1", "active", timeout_s=5)).version == 2


async def test_wait_returns_when_it_is_so(client: Client, manager: SessionManager, puppet: Puppet) -> None:
    await client.create_session(session_id="s1")
    waiting = asyncio.create_task(client.wait("s1", "terminated", timeout_s=5))

    puppet.crash("s1", RuntimeError("boom"))

    assert (await waiting).error == f"RuntimeError: boom{IN_PUPPET}"


async def test_wait_does_not_miss_a_status_that_passes(client: Client, manager: SessionManager) -> None:
    await client.create_session(session_id="s1")
    waiting = asyncio.create_task(client.wait("s1", "idle", timeout_s=5))
    await eventually(lambda: passes_idle(client, waiting))

    assert (await waiting).status == "idle"


async def test_wait_for_what_will_never_be_is_told(client: Client, manager: SessionManager) -> None:
    await client.create_session(session_id="s1")
    await client.terminate_session("s1")

    with pytest.raises(InvalidTransition, match="requested"):
        await client.wait("s1", "active", timeout_s=5)


async def test_wait_gives_up(client: Client, manager: SessionManager) -> None:
    await client.create_session(session_id="s1")

    with pytest.raises(TimeoutError):
        await client.wait("s1", "idle", timeout_s=0.2)


async def test_wait_for_nobody_is_told(client: Client, manager: SessionManager) -> None:
    with pytest.raises(NotFound):
        await client.wait("nobody", "active", timeout_s=5)


async def test_all_events_are_replayed(client: Client, stranger: Stranger, manager: SessionManager) -> None:
    await client.create_session(session_id="s1")

    messages = await read(client, 2, since="all")

    assert [message.event.version for message in messages] == [1, 2]
    assert [message.sequence for message in messages] == [1, 2]
    assert [message.data for message in messages] == [m.data for m in (await stranger.stored())[:2]]


async def test_new_events_are_those_from_now_on(client: Client, manager: SessionManager) -> None:
    await client.create_session(session_id="s1")

    async with client.events() as events:
        await client.create_session(session_id="s2")
        assert (await anext(events)).event.session_id == "s2"


async def test_events_of_one_session(client: Client, manager: SessionManager) -> None:
    await client.create_session(session_id="s1")
    await client.create_session(session_id="s2")

    (message,) = await read(client, 1, session_id="s2", since="all")

    assert (message.event.session_id, message.subject) == ("s2", "jido.client.session.s2")


async def test_a_durable_carries_on(client: Client, manager: SessionManager) -> None:
    await client.create_session(session_id="s1")
    await read(client, 1, durable="d", since="all")

    assert [m.event.version for m in await read(client, 1, durable="d", since="all")] == [2]


async def test_a_durable_that_has_read_all_is_caught_up(client: Client, manager: SessionManager) -> None:
    await client.create_session(session_id="s1")

    for _ in range(10):
        async with client.events(durable="d", since="all") as events:
            while not events.caught_up:
                async with asyncio.timeout(5):
                    await anext(events)
            await events.acknowledge()


async def test_what_is_no_event_is_passed_over(client: Client, stranger: Stranger, manager: SessionManager) -> None:
    await stranger.js.publish("jido.client.events", b"hello")
    await stranger.js.publish("jido.client.events", b'{"type":"session_painted"}')
    await client.create_session(session_id="s1")

    assert [m.sequence for m in await read(client, 2, since="all")] == [3, 4]


async def test_events_go_on_through_a_restart_of_the_server(
    server: LocalServer, client: Client, manager: SessionManager
) -> None:
    await client.create_session(session_id="s1")
    async with asyncio.timeout(DEADLINE_S), client.events(since="all") as events:
        await anext(events)
        await server.kill()
        await server.start()
        await client.create_session(session_id="s2")

        rest = [await anext(events) for _ in range(3)]

    assert [(m.event.session_id, m.event.version) for m in rest] == [("s1", 2), ("s2", 1), ("s2", 2)]


async def test_a_sequence_that_never_was_is_told(client: Client, manager: SessionManager) -> None:
    with pytest.raises(PositionUnavailable):
        await read(client, 1, since=99)


@pytest.mark.parametrize("since", ["", "yesterday", "-1", "1w", "1.5h", "2025-13-01", "NEW"])
def test_a_position_that_is_none_is_refused(since: str) -> None:
    with pytest.raises(BadRequest):
        parse_since(since, NOW)


def test_an_age_is_a_time() -> None:
    assert parse_since("90m", NOW).time == NOW - timedelta(minutes=90)


def test_a_huge_age_is_no_crash() -> None:
    with pytest.raises(BadRequest):
        parse_since("999999999d", NOW)


async def passes_idle(client: Client, waiting: "asyncio.Task[Any]") -> bool:
    """Idle for a moment, as long as nobody has seen it."""
    if not waiting.done():
        await client.idle_session("s1")
        await client.activate_session("s1")
    return waiting.done()


async def test_a_manager_is_waited_for_a_while(client: Client, start_manager: StartManager) -> None:
    asking = asyncio.create_task(client.list_sessions())
    await asyncio.sleep(0)  # it is asked now, and there is nobody

    await start_manager()

    assert await asking == []


@pytest.mark.parametrize("since", ["²", "1.5", "-1", "yesterday", "1w"])
async def test_what_is_no_position_is_refused(client: Client, since: str) -> None:
    with pytest.raises(BadRequest, match="is not a position"):
        client.events(since=since)


async def test_a_time_without_a_zone_is_this_machine_s(client: Client, manager: SessionManager) -> None:
    await manager.create_session()

    async with client.events(since=datetime.now() - timedelta(hours=1)) as events:
        assert (await anext(events)).event.version == 1


async def test_a_create_that_found_its_session_is_replayed(client: Client, manager: SessionManager) -> None:
    created = await client.create_session(session_id="s1")
    again = await client.create_session(session_id="s1")

    assert (created.replayed, again.replayed) == (False, True)


async def test_a_status_may_be_its_name(client: Client, manager: SessionManager) -> None:
    await client.create_session(session_id="s1")

    assert await client.list_sessions(status="active") == [await client.get_session_info("s1")]
    assert await client.list_sessions(status="idle") == []


@pytest.mark.parametrize(
    "use",
    [
        lambda client: client.list_sessions(status="asleep"),
        lambda client: client.wait("s1", "asleep"),
        lambda client: watch(client, status="asleep"),
    ],
    ids=["list_sessions", "wait", "watch_sessions"],
)
async def test_an_unknown_status_is_a_bad_request(use: Callable[[Client], Awaitable[object]], client: Client) -> None:
    with pytest.raises(BadRequest, match="unknown status 'asleep'; use initializing, active, idle"):
        await use(client)


async def watch(client: Client, status: str) -> None:
    client.watch_sessions(status=status)


async def test_a_session_s_stream_gives_its_statuses_only(
    client: Client, stranger: Stranger, manager: SessionManager
) -> None:
    await client.create_session(session_id="s1")
    created = {"type": "session_created", "session_id": "s1", "version": 1, "created_at": NOW, "metadata": {}}
    await stranger.js.publish("jido.client.session.s1", msgspec.json.encode(created))
    await client.idle_session("s1")

    found = await read(client, 2, session_id="s1", since="all")

    assert [type(message.event) for message in found] == [SessionStatus, SessionStatus]


async def test_a_client_that_is_in_use_is_not_entered_again(server: LocalServer, stranger: Stranger) -> None:
    client = Client.connect(server.url)
    async with client:
        with pytest.raises(JidoError, match="create another"):
            await client.__aenter__()
        assert client.connected

    await eventually(lambda: connections(server) == 1)  # the test's own


async def test_a_client_is_entered_by_one_of_two_that_try_at_once(server: LocalServer) -> None:
    client = Client.connect(server.url)

    results = await asyncio.gather(client.__aenter__(), client.__aenter__(), return_exceptions=True)

    assert [type(result) for result in results] == [Client, JidoError]
    await client.__aexit__(None, None, None)


async def test_a_client_can_be_entered_again_after_its_end(server: LocalServer, manager: SessionManager) -> None:
    client = Client.connect(server.url)
    for number in range(2):
        async with client:
            await client.create_session(session_id=f"s{number}")


async def test_a_client_can_be_entered_again_after_a_failure(server: LocalServer) -> None:
    client = Client.connect(server.url)
    await server.stop()
    with pytest.raises(ServerUnusable):
        await client.__aenter__()
    await server.start()

    async with client:
        assert client.connected


def connections(server: LocalServer) -> int:
    """How many clients the server has."""
    with urllib.request.urlopen(f"{server.monitoring_url}/connz", timeout=5) as answer:
        return int(msgspec.json.decode(answer.read())["num_connections"])
