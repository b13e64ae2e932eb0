"""Where the JetStream API is: under `$JS.API`, under the prefix of an account's imports, or in a domain."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from jido_nats import Client, ConfigurationError, ConnectOptions, LocalServer, NotAllowed, SessionManager, Settings
from jido_nats.broker.cli_context import read_context
from jido_nats.broker.connection import Connection
from jido_nats.broker.jetstream import api
from tests.system.test_credentials import write_context
from tests.tools.programs import run, running
from tests.tools.roles import ONE_ACCOUNT, PASSWORDS, SECRETS, Member, as_user
from tests.tools.support import DEADLINE_S, LEASE_S, wait_for_ever

# A team without permissions: it may ask anything, but its account imports nothing.
TEAM = 'accounts { TEAM { users: [{ user: team, password: "t" }] } }'


async def first_event(options: ConnectOptions) -> int:
    """The version of the first stored event, as a client with these options reads it."""
    async with asyncio.timeout(10):
        async with Client.connect(options) as client, client.events(since="all") as events:
            return (await anext(events)).event.version


@asynccontextmanager
async def deployment(
    server: LocalServer, options: ConnectOptions, api: ConnectOptions | None = None, session_id: str = "example"
) -> AsyncIterator[None]:
    """A manager with these options and one session."""
    manager = SessionManager.connect(options, worker=wait_for_ever, settings=Settings(lease_s=LEASE_S), api=api)
    async with manager:
        await manager.start_serving()
        await manager.create_session(session_id=session_id)
        yield


async def test_a_client_finds_the_imports_by_itself(
    roles_server: LocalServer, members: dict[str, Member], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="jido_nats"):
        assert await first_event(as_user(roles_server, "client")) == 1

    assert caplog.messages == []


async def test_a_client_takes_the_prefix_that_it_is_given(
    roles_server: LocalServer, members: dict[str, Member]
) -> None:
    options = as_user(roles_server, "client")
    assert await first_event(replace(options, js_api_prefix="jido.js")) == 1

    connection = await Connection.open(replace(options, js_api_prefix="$JS.API"), "test")
    with pytest.raises(Exception, match="JetStream not enabled for account"):
        await api(connection, "STREAM.INFO.JIDO_CLIENT")
    await connection.close()


async def test_in_one_account_everything_goes_on_working() -> None:
    async with LocalServer(secrets=SECRETS, config=ONE_ACCOUNT) as server:
        async with deployment(server, as_user(server, "manager")):
            assert await first_event(as_user(server, "observer")) == 1


async def test_an_account_without_jetstream_is_refused_it_at_once() -> None:
    config = TEAM.replace(
        "accounts {", "accounts { SYS {}, JIDO { jetstream: enabled, users: [{ user: m, password: m }] },"
    )
    async with LocalServer(config=config) as server:
        options = ConnectOptions(servers=(server.url,), user="team", password="t")
        with pytest.raises(NotAllowed, match=r"may not use jido\.js\.STREAM\.INFO\.JIDO_CLIENT"):
            await first_event(options)


async def test_a_part_that_is_not_imported_is_refused_at_once(
    roles_server: LocalServer, members: dict[str, Member]
) -> None:
    connection = await Connection.open(as_user(roles_server, "client"), "test")
    assert (await api(connection, "STREAM.INFO.JIDO_CLIENT"))["config"]["name"] == "JIDO_CLIENT"

    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(NotAllowed, match=r"may not use jido\.js\.STREAM\.INFO\.KV_JIDO_MANAGERS"):
            await api(connection, "STREAM.INFO.KV_JIDO_MANAGERS")
    await connection.close()


async def test_a_reader_in_a_role_waits_for_a_manager(roles_server: LocalServer) -> None:
    """Consumers are created by way of the managers."""
    async with deployment(roles_server, as_user(roles_server, "manager"), as_user(roles_server, "manager-api")):
        pass  # the streams exist now
    reading = asyncio.create_task(first_event(as_user(roles_server, "observer")))
    await asyncio.sleep(1)
    assert not reading.done()

    async with deployment(roles_server, as_user(roles_server, "manager"), as_user(roles_server, "manager-api"), "2"):
        assert await reading == 1


@pytest.mark.parametrize("fields", [{"jetstream_api_prefix": "jido.js"}, {}])
async def test_a_context_of_the_nats_cli_has_the_prefix(
    tmp_path: Path, roles_server: LocalServer, members: dict[str, Member], fields: dict[str, str]
) -> None:
    password = PASSWORDS["client"]
    home = write_context(tmp_path, "prod", url=roles_server.url, user="client", password=password, **fields)

    async with running("events", "--since", "all", "--json", "--context", "prod", env=home) as program:
        await program.said('"session_created"')


async def test_a_domain_of_jetstream_is_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = f'jetstream {{ domain: hub, store_dir: "{tmp_path}/js" }}'
    async with LocalServer(config=config) as server:
        home = write_context(tmp_path, "hub", url=server.url, jetstream_domain="hub")
        monkeypatch.setenv("XDG_CONFIG_HOME", home["XDG_CONFIG_HOME"])
        options = read_context("hub")

        assert options.js_api_prefix == "$JS.hub.API"
        async with deployment(server, options):
            assert await first_event(options) == 1


@pytest.mark.parametrize("prefix", ["", "jido.js.", "jido js", "jido.>", "*"])
async def test_what_is_no_prefix_is_refused(prefix: str) -> None:
    with pytest.raises(ConfigurationError, match="is no prefix of subjects"):
        async with Client.connect(ConnectOptions(js_api_prefix=prefix)):
            pass


async def test_the_command_line_has_an_option_for_it(roles_server: LocalServer, members: dict[str, Member]) -> None:
    options = ("--server", roles_server.url, "--user", "client", "--password", PASSWORDS["client"])

    async with running("events", "--since", "all", "--json", *options, "--js-api-prefix", "jido.js") as program:
        await program.said('"session_created"')
    lost = await run("events", "--since", "all", *options, "--js-api-prefix", "$JS.API")

    assert (lost.code, "JetStream not enabled for account" in lost.err) == (1, True)
