"""One connection through everything that happens to a server; every request's outcome is said."""

import asyncio
import contextlib
import os
import signal
import time
from collections import Counter
from functools import partial
from typing import Final

import pytest

from jido_nats import LocalServer
from jido_nats.broker.connection import Connection, Message
from jido_nats.broker.nats_client import NatsClient
from jido_nats.broker.options import ConnectOptions
from jido_nats.broker.outage import Outage
from jido_nats.errors import JidoError, NoResponders, NotSent, OutcomeUnknown, ServerUnusable, TooLarge
from tests.tools.cluster import Cluster
from tests.tools.processes import freeze
from tests.tools.proxy import Proxy
from tests.tools.support import Stranger, eventually, stranger_at

REFUSED: Final = "the server at {} refused the credentials; check user, password, token or key"
USER: Final = 'authorization {{ users: [{{ user: u, password: p, permissions: {{ subscribe: {{ deny: "{}" }} }} }}] }}'


async def ignore(_: object) -> None:
    """A responder that hears and says nothing."""


async def heard_again(stranger: Stranger, heard: list[bytes], word: bytes) -> bool:
    if stranger.nc.is_connected:
        await stranger.nc.publish("a", word)
    return word in heard


async def test_a_request_is_answered(stranger: Stranger, connection: Connection) -> None:
    async def answer(message: Message) -> None:
        await message.respond(message.data.upper())

    await stranger.nc.subscribe("a", cb=answer)
    await stranger.flush()

    assert (await connection.request("a", b"hello")).data == b"HELLO"


async def test_a_request_that_nobody_takes_is_surely_not_done(connection: Connection) -> None:
    with pytest.raises(NoResponders):
        await connection.request("nobody")


async def test_a_request_without_an_answer_may_have_been_done(stranger: Stranger, connection: Connection) -> None:
    await stranger.nc.subscribe("a", cb=ignore)
    await stranger.flush()

    with pytest.raises(OutcomeUnknown):
        await connection.request("a", timeout_s=0.1)


async def test_a_request_in_flight_is_told_that_the_server_died(
    server: LocalServer, stranger: Stranger, connection: Connection
) -> None:
    ear = await stranger.hear("a")
    asking = asyncio.create_task(connection.request("a", timeout_s=60))
    await eventually(lambda: ear.messages)

    await server.kill()

    async with asyncio.timeout(5):
        with pytest.raises(OutcomeUnknown):
            await asking


async def test_nothing_is_sent_without_a_server(server: LocalServer, connection: Connection) -> None:
    await server.kill()
    await eventually(lambda: not connection.connected)

    with pytest.raises(NotSent):
        await connection.publish("a")
    with pytest.raises(NotSent):
        await connection.request("a")


async def test_subscriptions_outlive_a_killed_server(
    server: LocalServer, stranger: Stranger, connection: Connection
) -> None:
    heard: list[bytes] = []
    await connection.subscribe("a", lambda message: heard.append(message.data))

    for word in (b"one", b"two"):
        await server.kill()
        await server.start()
        await eventually(partial(heard_again, stranger, heard, word))

    assert connection.reconnects == 2


async def test_a_subscription_that_was_ended_does_not_come_back(
    server: LocalServer, stranger: Stranger, connection: Connection
) -> None:
    ended: list[bytes] = []
    other: list[bytes] = []
    subscription = await connection.subscribe("a", lambda message: ended.append(message.data))
    await subscription.unsubscribe()
    await connection.subscribe("a", lambda message: other.append(message.data))

    await server.kill()
    await server.start()

    await eventually(lambda: heard_again(stranger, other, b"one"))
    assert ended == []


async def test_requests_work_after_a_restart(server: LocalServer, connection: Connection) -> None:
    await server.kill()
    await eventually(lambda: not connection.connected)
    await server.start()

    await connection.wait_up()
    assert (await connection.request("$JS.API.INFO")).data


async def test_a_frozen_server_costs_only_the_time_that_it_is_frozen(
    server: LocalServer, connection: Connection
) -> None:
    await freeze(server.pid)
    with pytest.raises(OutcomeUnknown):
        await connection.request("$JS.API.INFO", timeout_s=0.3)
    os.kill(server.pid, signal.SIGCONT)

    await eventually(lambda: answers(connection))


async def test_closing_while_it_reconnects_leaves_nothing_open(server: LocalServer) -> None:
    async with Proxy(server.port) as proxy:
        connection = await Connection.open(ConnectOptions(servers=(proxy.url,)), "to be closed")
        proxy.black_hole()
        proxy.cut()
        await eventually(lambda: not connection.connected)
        await eventually(lambda: proxy.connections)  # the next one, which hears nothing

        await connection.close()

        assert [task for task in asyncio.all_tasks() if "to be closed" in task.get_name()] == []


async def test_a_handler_that_fails_goes_on_hearing(stranger: Stranger, connection: Connection) -> None:
    heard: list[bytes] = []

    def fail(message: Message) -> None:
        heard.append(message.data)
        raise RuntimeError("boom")

    await connection.subscribe("a", fail)
    await eventually(lambda: heard_again(stranger, heard, b"one"))
    await eventually(lambda: heard_again(stranger, heard, b"two"))


async def test_a_message_beyond_the_server_s_limit_is_told(connection: Connection) -> None:
    with pytest.raises(TooLarge):
        await connection.publish("a", b"x" * 2_000_000)

    assert await answers(connection)


async def test_no_server_is_told_in_time() -> None:
    started = time.monotonic()

    with pytest.raises(ServerUnusable, match=r"no NATS server answers at nats://127.0.0.1:1;"):
        await Connection.open(ConnectOptions(servers=("nats://127.0.0.1:1",)), "test")

    assert time.monotonic() - started < 20


async def test_a_server_that_says_nothing_is_told_in_time() -> None:
    gone = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await gone.wait()
        writer.close()

    async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as silent:
        port = silent.sockets[0].getsockname()[1]
        async with asyncio.timeout(20):
            with pytest.raises(ServerUnusable):
                await Connection.open(ConnectOptions(servers=(f"nats://127.0.0.1:{port}",)), "test")
        gone.set()


async def test_refused_credentials_are_told() -> None:
    async with LocalServer(config='authorization { user: "a", password: "right" }') as server:
        options = ConnectOptions(servers=(server.url,), user="a", password="wrong")

        with pytest.raises(ServerUnusable, match="refused the credentials"):
            await Connection.open(options, "test")


async def test_credentials_open_the_connection() -> None:
    async with LocalServer(config='authorization { user: "a", password: "right" }') as server:
        connection = await Connection.open(ConnectOptions(servers=(server.url,), user="a", password="right"), "test")

        assert connection.connected
        await connection.close()


async def test_a_password_is_never_shown() -> None:
    options = ConnectOptions(servers=("nats://user:secret@127.0.0.1:1",), password="secret", token="secret")

    with pytest.raises(ServerUnusable) as error:
        await Connection.open(options, "test", timeout_s=0.5)

    assert "secret" not in str(error.value)
    assert "secret" not in options.safe_servers()


def test_options_do_not_show_a_password_in_a_url() -> None:
    assert "secret" not in repr(ConnectOptions(servers=("nats://user:secret@127.0.0.1:1",)))


async def answers(connection: Connection) -> bool:
    try:
        return bool((await connection.request("$JS.API.INFO", timeout_s=1)).data)
    except (NotSent, OutcomeUnknown):
        return False


async def test_a_subscription_that_is_made_while_it_reconnects_hears(
    server: LocalServer, stranger: Stranger, connection: Connection
) -> None:
    late: list[str] = []
    heard: set[str] = set()
    for number in range(1500):  # more than nats-py takes without giving others a turn
        await connection.subscribe(f"early.{number}", lambda message: None)

    async def subscribe_more() -> None:
        while not late or not connection.connected:
            if not connection.connected:
                late.append(f"late.{len(late)}")
                await connection.subscribe(late[-1], lambda message: heard.add(message.subject))
            await asyncio.sleep(0)

    more = asyncio.create_task(subscribe_more())
    assert connection._client is not None
    connection._client.lost.set()
    await more
    await connection.flush()  # the server has the subscriptions

    for subject in late:
        await stranger.nc.publish(subject, b"x")
    await eventually(lambda: heard == set(late))


async def test_who_waits_to_send_is_let_go_when_a_black_hole_is_noticed(server: LocalServer) -> None:
    """So much that the socket takes no more, by so many that nats-py's flush queue would be full of them."""
    sent = Counter[int]()

    async def stream(number: int) -> None:
        while True:
            with contextlib.suppress(JidoError):
                await connection.publish("a", bytes(2000))
                sent[number] += 1
            await asyncio.sleep(0.2)

    async with Proxy(server.port) as proxy:
        connection = await Connection.open(ConnectOptions(servers=(proxy.url,)), "test")
        streams = [asyncio.create_task(stream(number)) for number in range(3000)]
        await eventually(lambda: len(sent) == 3000)

        proxy.black_hole()
        await eventually(lambda: not connection.connected)
        proxy.heal()
        await eventually(lambda: connection.connected)

        sent.clear()
        await eventually(lambda: len(sent) == 3000)
        for task in streams:
            task.cancel()
        await asyncio.wait(streams)
        await connection.close()


async def test_who_waits_to_send_can_be_cancelled(server: LocalServer) -> None:
    async with Proxy(server.port) as proxy:
        connection = await Connection.open(ConnectOptions(servers=(proxy.url,)), "test")
        proxy.black_hole()
        sending = [asyncio.create_task(connection.publish("a", bytes(200_000))) for _ in range(200)]
        await eventually(lambda: any(not task.done() for task in sending) and any(task.done() for task in sending))

        for task in sending:
            task.cancel()

        await asyncio.wait(sending, timeout=1)
        assert any(task.cancelled() for task in sending)
        assert all(task.done() for task in sending)
        await connection.close()
        await asyncio.gather(*sending, return_exceptions=True)


async def test_the_servers_of_the_cluster_are_remembered_from_one_reconnect_to_the_next() -> None:
    async with Cluster(2) as cluster:
        await eventually(lambda: knows_both(cluster.url(0)))
        connection = await Connection.open(ConnectOptions(servers=(cluster.url(0),)), "test")

        await cluster.kill(0)
        await eventually(lambda: connection.reconnects == 1 and connection.connected)
        await cluster.kill(1)
        await cluster.start(1)

        await eventually(lambda: connection.reconnects == 2 and connection.connected)
        await connection.close()


async def knows_both(url: str) -> bool:
    """Whether the server tells its clients of another."""
    async with stranger_at(url) as stranger:
        return bool(stranger.nc.discovered_servers)


async def test_nobody_overtakes_those_who_wait_to_send() -> None:
    client = NatsClient()
    client._status, client._flush_queue, client._max_payload = client.CONNECTED, asyncio.Queue(), 1_000_000
    client._pending_data_size = 3_000_000
    first = asyncio.create_task(client.send("a", b"first", "", {}))
    await asyncio.sleep(0)
    client._pending_data_size = 0  # the flusher has taken all

    await asyncio.gather(first, client.send("a", b"second", "", {}))

    assert [data.split()[-1] for data in client._pending] == [b"first", b"second"]


async def test_the_cluster_s_servers_want_the_same_user() -> None:
    async with Cluster(2, config="authorization { user: u, password: p }") as cluster:
        url = cluster.url(0).replace("//", "//u:p@")
        await eventually(lambda: knows_both(url))
        connection = await Connection.open(ConnectOptions(servers=(url,)), "test")
        await eventually(lambda: other_servers(connection))  # the server names them once the user is known

        await cluster.kill(0)

        await eventually(lambda: connection.reconnects == 1 and connection.connected)
        await connection.close()


def other_servers(connection: Connection) -> tuple[str, ...]:
    """The servers of the cluster that it knows."""
    assert connection._client is not None
    return connection._client.cluster


def reasons(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Why reconnects failed, as logged."""
    return [vars(record)["error"] for record in caplog.records if "cannot reconnect" in record.getMessage()]


async def test_a_reconnect_that_is_refused_is_logged_once_with_the_reason(
    server: LocalServer, connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    tries: list[object] = []

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tries.append(writer)
        writer.write(b'INFO {"server_id":"x","version":"2.12.0","auth_required":true}\r\n')
        writer.write(b"-ERR 'Authorization Violation'\r\n")
        await reader.read()
        writer.close()

    await server.stop()
    async with await asyncio.start_server(refuse, "127.0.0.1", server.port):
        await eventually(lambda: len(tries) > 5)

    assert reasons(caplog) == [REFUSED.format(server.url)]
    assert connection.not_ready == [f"no connection to NATS: test: {REFUSED.format(server.url)}"]


async def test_another_reason_is_logged_again(caplog: pytest.LogCaptureFixture) -> None:
    async with LocalServer(config='authorization { user: "a", password: "old" }') as server:
        options = ConnectOptions(servers=(server.url,), user="a", password="old")
        connection = await Connection.open(options, "test")

        await server.stop()
        await eventually(lambda: len(reasons(caplog)) == 1)
        async with LocalServer(port=server.port, config='authorization { user: "a", password: "new" }'):
            await eventually(lambda: len(reasons(caplog)) == 2)
        await eventually(lambda: len(reasons(caplog)) == 3)
        await server.start()
        await connection.wait_up()

        silent = f"no NATS server answers at {server.url}; start one ('jido-nats up' does) or name it with --server"
        assert reasons(caplog) == [silent, REFUSED.format(server.url), silent]
        assert connection.not_ready == []
        await connection.close()


async def test_connections_that_share_an_outage_log_its_reason_once(
    server: LocalServer, caplog: pytest.LogCaptureFixture
) -> None:
    options, outage = ConnectOptions(servers=(server.url,)), Outage()
    connections = [await Connection.open(options, f"test {number}", outage=outage) for number in range(3)]

    await go_away(server, connections)
    await eventually(lambda: levels(caplog, "reconnected").count("WARNING") == 1)
    await go_away(server, connections)
    await eventually(lambda: levels(caplog, "reconnected").count("WARNING") == 2)

    silent = f"no NATS server answers at {server.url}; start one ('jido-nats up' does) or name it with --server"
    assert reasons(caplog) == [silent, silent], "once for each time that the server was away"
    await asyncio.gather(*(connection.close() for connection in connections))


async def go_away(server: LocalServer, connections: list[Connection]) -> None:
    """Stop the server until every connection knows why it cannot reconnect."""
    await server.stop()
    await eventually(lambda: all("no NATS server answers" in str(connection.not_ready) for connection in connections))
    await server.start()
    await asyncio.gather(*(connection.wait_up() for connection in connections))


def levels(caplog: pytest.LogCaptureFixture, message: str) -> list[str]:
    """The levels at which a sentence was logged."""
    return [record.levelname for record in caplog.records if record.getMessage() == message]


async def test_a_subscription_that_a_reload_took_away_is_a_reason_not_to_be_ready() -> None:
    allowed, denied = (USER.format(subject) for subject in ("nothing", "a"))
    async with LocalServer(config=allowed) as server:
        connection = await Connection.open(ConnectOptions(servers=(server.url,), user="u", password="p"), "test")
        await connection.subscribe("a", lambda message: None)
        await connection.flush()
        assert connection.not_ready == []

        await server.stop()
        async with LocalServer(port=server.port, config=denied):
            await eventually(lambda: connection.not_ready == ["test may not subscribe to a"])
        await connection.close()


@pytest.mark.parametrize("attempt", range(4))  # the order of the servers is random
async def test_a_reconnect_passes_over_a_server_that_is_frozen(attempt: int, caplog: pytest.LogCaptureFixture) -> None:
    async with Cluster(3) as cluster:
        connection = await Connection.open(ConnectOptions(servers=tuple(cluster.urls.split(","))), "test")
        there = cluster.ports.index(port_of(connection))
        await freeze(cluster.pid((there + 1) % 3))

        await cluster.kill(there)

        await eventually(lambda: connection.reconnects == 1 and connection.connected)
        assert reasons(caplog) == []  # at the first attempt
        await connection.close()


def port_of(connection: Connection) -> int:
    """The port of the server that it is connected to."""
    assert connection._client is not None and connection._client.connected_url is not None
    return connection._client.connected_url.port or 0
