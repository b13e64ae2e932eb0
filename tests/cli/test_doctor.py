"""The doctor: each trouble is made, and named."""

import asyncio
import signal
from collections.abc import AsyncIterator
from datetime import datetime, timedelta, tzinfo

import pytest

from jido_nats import Client, JidoError, LocalServer, SessionManager
from jido_nats.broker.options import ConnectOptions
from jido_nats.cli.doctor import examine, exit_code
from jido_nats.cli.findings import Finding, Level
from jido_nats.core.settings import Settings
from tests.conftest import StartManager
from tests.tools.agents import waiting
from tests.tools.processes import manager_process
from tests.tools.roles import ONE_ACCOUNT, SECRETS, as_user, member_at
from tests.tools.support import LEASE_S, Puppet, Stranger, eventually


async def findings(server: LocalServer, **settings: int) -> list[Finding]:
    options = ConnectOptions(servers=(server.url,))
    chosen = Settings(**{"lease_s": LEASE_S, **settings})  # type: ignore[arg-type]
    return [f async for f in examine(options, chosen, server.monitoring_url)]


async def troubles(server: LocalServer, **settings: int) -> dict[str, str]:
    return {f.check: f.message for f in await findings(server, **settings) if f.level is not Level.OK}


@pytest.fixture
async def client(server: LocalServer) -> AsyncIterator[Client]:
    async with Client.connect(server.url, timeout_s=2) as client:
        yield client


@pytest.mark.usefixtures("manager")
async def test_a_healthy_deployment_has_no_finding(server: LocalServer, client: Client) -> None:
    await client.create_session()
    assert await troubles(server) == {}


async def test_a_server_that_is_not_there_is_one_error() -> None:
    options = ConnectOptions(servers=("nats://127.0.0.1:1",))
    found = [finding async for finding in examine(options, Settings(), None)]
    assert [(finding.level, finding.check) for finding in found] == [(Level.ERROR, "server")]


async def test_missing_streams_are_named(server: LocalServer) -> None:
    missing = [f.message for f in await findings(server) if f.check == "storage" and f.level is Level.ERROR]
    assert [message.partition(" ")[0] for message in missing] == [
        "JIDO_CLIENT",
        "JIDO_OUTPUT",
        "KV_JIDO_SESSIONS",
        "KV_JIDO_MANAGERS",
    ]


@pytest.mark.usefixtures("manager")
async def test_a_field_that_differs_is_named(server: LocalServer) -> None:
    assert "max_age" in (await troubles(server, retention_s=9 * 24 * 3600))["storage"]


async def storage(server: LocalServer, **settings: int) -> list[tuple[Level, str]]:
    found = await findings(server, **settings)
    return [(f.level, f.message) for f in found if f.check == "storage" and f.level is not Level.OK]


@pytest.mark.usefixtures("manager")
async def test_fewer_replicas_than_set_are_a_warning_for_each_stream(server: LocalServer) -> None:
    found = await storage(server, replicas=3)

    assert {level for level, _ in found} == {Level.WARNING}
    assert ["num_replicas is 1, should be 3" in message for _, message in found] == [True] * 5


async def test_a_value_that_is_larger_than_the_setting_is_a_warning(
    server: LocalServer, start_manager: StartManager
) -> None:
    await start_manager(retention_s=9 * 24 * 3600)

    [(level, message)] = await storage(server)

    assert (level, "no manager lowers" in message, "max_age" in message) == (Level.WARNING, True, True)


@pytest.mark.usefixtures("manager")
async def test_another_lease_time_than_the_managers_is_a_warning(server: LocalServer) -> None:
    [(level, message)] = await storage(server, lease_s=LEASE_S + 2)

    assert (level, f"lease_s {LEASE_S}, the setting is {LEASE_S + 2}" in message) == (Level.WARNING, True)


async def test_a_stream_that_no_manager_adopts_is_an_error(server: LocalServer, stranger: Stranger) -> None:
    await stranger.js.add_stream(name="JIDO_CLIENT", subjects=["jido.client.events", "other"], max_age=7 * 86_400)

    level, message = next((level, text) for level, text in await storage(server) if text.startswith("JIDO_CLIENT"))

    assert (level, "other, which does not begin with jido." in message) == (Level.ERROR, True)


async def test_durability_is_judged_by_the_streams_not_by_the_settings() -> None:
    async with LocalServer(sync_interval="2m") as server, SessionManager.connect(server.url, worker=waiting):
        assert "power cut" in (await troubles(server, replicas=3))["durability"]


async def test_an_absent_manager_is_told(server: LocalServer, start_manager: StartManager) -> None:
    manager = await start_manager()
    await manager.close()
    assert "no manager is alive" in (await troubles(server))["managers"]


async def test_sessions_of_a_dead_manager_are_told(server: LocalServer, client: Client) -> None:
    async with manager_process(server.url) as dead:
        await client.create_session(session_id="s1")
        dead.send(signal.SIGKILL)
        told = await eventually(lambda: _trouble(server, "sessions"))
    assert "s1" in told


async def test_committed_events_that_are_not_published_are_told(
    server: LocalServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jido_nats.cli.doctor.SETTLED_AFTER_S", 0.0)
    async with manager_process(server.url, failpoints="before message 1:freeze:1", lease_s=30) as frozen:
        creating = asyncio.create_task(_try_to_create(client))
        await eventually(lambda: frozen.frozen)
        assert "s1" in (await troubles(server))["events"]
        await creating


async def test_a_server_that_does_not_sync_is_told(stranger: Stranger) -> None:
    async with LocalServer(sync_interval="2m") as server:
        assert "power cut" in (await troubles(server))["durability"]


@pytest.mark.parametrize(
    ("levels", "code"), [({Level.OK}, 0), ({Level.OK, Level.WARNING}, 1), ({Level.WARNING, Level.ERROR}, 2)]
)
def test_the_worst_finding_is_the_exit_code(levels: set[Level], code: int) -> None:
    assert exit_code(levels) == code


async def _trouble(server: LocalServer, check: str) -> str | None:
    return (await troubles(server)).get(check)


async def _try_to_create(client: Client) -> None:
    with pytest.raises(JidoError):
        await client.create_session(session_id="s1")


@pytest.mark.parametrize("serving", [True, False])
async def test_who_may_not_look_is_told_so_and_blames_nobody(serving: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jido_nats.cli.doctor.CHECK_TIMEOUT_S", 10.0 if serving else 1.0)
    async with LocalServer(secrets=SECRETS) as server:
        options = as_user(server, "manager")
        api = as_user(server, "manager-api")
        async with SessionManager.connect(options, worker=waiting, api=api) as manager:
            if serving:
                await manager.start_serving()
            await manager.create_session()
            client = as_user(server, "client")
            found = [finding async for finding in examine(client, Settings(), server.monitoring_url)]
    assert {finding.level for finding in found} == {Level.OK, Level.WARNING}
    why = "whether their owners are alive was not checked" if serving else "a manager has to run for it"
    assert why in next(finding.message for finding in found if finding.check == "sessions")


async def test_a_user_outside_the_account_of_the_streams_is_no_risk() -> None:
    assert await account_of_streams("client") == (
        Level.OK,
        "CLIENTS imports JetStream: its users cannot write into the streams",
    )


async def test_managers_and_operators_alone_in_the_account_of_the_streams_are_right() -> None:
    level, message = await account_of_streams("manager", beside="operator")

    assert (level, message) == (Level.OK, "JIDO has the streams, and only managers and operators use it")


async def test_another_user_in_the_account_of_the_streams_is_a_warning() -> None:
    level, message = await account_of_streams("manager", beside="observer", config=ONE_ACCOUNT)

    assert level is Level.WARNING
    assert message.startswith("observer use JIDO, the account of the streams: with any JetStream permission there")


async def test_without_users_everybody_may_do_everything(server: LocalServer) -> None:
    found = {finding.check: finding for finding in await findings(server)}

    assert "may do everything; loopback only" in found["account"].message


async def account_of_streams(user: str, *, beside: str = "operator", config: str = "") -> tuple[Level, str]:
    """What the doctor of one user finds about accounts, with a manager and another user connected."""
    async with LocalServer(secrets=SECRETS, config=config) as server:
        manager, api = as_user(server, "manager"), as_user(server, "manager-api")
        async with SessionManager.connect(manager, worker=waiting, api=api), member_at(server, beside):
            found = [finding async for finding in examine(as_user(server, user), Settings(), server.monitoring_url)]
    return next((finding.level, finding.message) for finding in found if finding.check == "account")


async def test_without_jetstream_nothing_that_needs_it_is_waited_for() -> None:
    async with LocalServer(config="jetstream: disabled") as server:
        async with asyncio.timeout(5):
            found = await findings(server)

    assert [(finding.level, finding.check) for finding in found] == [
        (Level.OK, "server"),
        (Level.ERROR, "jetstream"),
        (Level.OK, "user"),
    ]


@pytest.mark.usefixtures("manager")
async def test_entries_that_are_no_records_are_told(server: LocalServer, stranger: Stranger) -> None:
    await stranger.js.publish("$KV.JIDO_SESSIONS.note", b"hello")

    assert "are not session records (note)" in (await troubles(server))["sessions"]


@pytest.mark.usefixtures("manager")
async def test_sessions_of_a_newer_version_are_counted(server: LocalServer, stranger: Stranger) -> None:
    record = (
        b'{"session_id":"s1","status":"waiting","version":5,"owner":"m1","metadata":{},"needs":["tomorrow"],'
        b'"created_at":"2026-11-25T18:00:00Z","updated_at":"2026-11-25T18:00:00Z"}'
    )
    await stranger.js.publish("$KV.JIDO_SESSIONS.s1", record)

    found = [f for f in await findings(server) if f.check == "sessions" and f.level is not Level.OK]

    assert [f.level for f in found] == [Level.WARNING]
    assert "newer version (s1)" in found[0].message
    assert "tomorrow" in found[0].message


@pytest.mark.usefixtures("manager")
async def test_readers_that_soon_have_every_consumer_are_a_warning(server: LocalServer, stranger: Stranger) -> None:
    config = (await stranger.ask("$JS.API.STREAM.INFO.KV_JIDO_SESSIONS"))["config"]
    await stranger.ask("$JS.API.STREAM.UPDATE.KV_JIDO_SESSIONS", {**config, "max_consumers": 10})
    for number in range(9):
        reader = {"name": f"reader{number}", "ack_policy": "none", "inactive_threshold": 60_000_000_000}
        subject = f"$JS.API.CONSUMER.CREATE.KV_JIDO_SESSIONS.reader{number}"
        await stranger.ask(subject, {"stream_name": "KV_JIDO_SESSIONS", "config": reader})

    warnings = [f.message for f in await findings(server) if f.level is Level.WARNING]

    assert any("KV_JIDO_SESSIONS has 10 of 10 consumers" in message for message in warnings)


async def test_a_stream_of_journals_that_is_soon_full_is_a_warning(
    server: LocalServer, stranger: Stranger, start_manager: StartManager
) -> None:
    await start_manager(journal_bytes_max=50_000)
    await stranger.js.publish("jido.journal.s1", b"x" * 46_000)

    [(level, message)] = await storage(server, journal_bytes_max=50_000)

    assert (level, "JIDO_JOURNAL has 46" in message, "raise journal_bytes_max" in message) == (
        Level.WARNING,
        True,
        True,
    )


@pytest.mark.usefixtures("manager")
async def test_that_there_are_no_journals_is_a_warning(server: LocalServer, stranger: Stranger) -> None:
    await stranger.js.delete_stream("JIDO_JOURNAL")

    [(level, message)] = await storage(server)

    assert (level, "without it no session with a restart policy can be created" in message) == (Level.WARNING, True)


async def test_a_manager_that_drains_is_named(server: LocalServer, stranger: Stranger) -> None:
    puppet = Puppet()
    settings = Settings(lease_s=LEASE_S, drain_timeout_s=30)
    async with SessionManager.connect(server.url, worker=puppet, settings=settings) as manager:
        await manager.start_serving()
        await stranger.create("s1")
        closing = asyncio.create_task(manager.close())

        said = await eventually(lambda: draining(server))

        assert (said.level, said.message.partition("; ")[2]) == (
            Level.OK,
            "it is draining: it stops once they have ended",
        )
        puppet.complete("s1")
        await closing


async def draining(server: LocalServer) -> Finding | None:
    return next((f for f in await findings(server) if f.check == "managers" and "draining" in f.message), None)


class AnHourFast(datetime):
    """The clock of a machine that is an hour ahead of the server's."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> "AnHourFast":
        return super().now(tz) + timedelta(hours=1)


@pytest.mark.usefixtures("manager")
async def test_a_clock_that_differs_from_the_server_s_is_a_warning(
    server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jido_nats.cli.doctor.datetime", AnHourFast)

    assert "clock and the server's differ by 3" in (await troubles(server))["clock"]
