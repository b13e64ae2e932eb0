"""The streams and buckets: made as designed, adopted, updated where that loses nothing, else refused."""

import asyncio
import logging
import re
from typing import Any

import pytest

from jido_nats import ConnectOptions, LocalServer, Settings
from jido_nats.broker.connection import Connection
from jido_nats.errors import ConfigurationError, JidoError
from jido_nats.store import topology
from jido_nats.store.adoption import Comparison, compare
from tests.tools.cluster import Cluster
from tests.tools.support import Stranger, stranger_at

SETTINGS = Settings()
EVENTS = ["jido.client.events", "jido.client.session.*", "jido.fence.*"]
DAY_NS = 86_400 * 10**9
NAMES = ["JIDO_CLIENT", "JIDO_OUTPUT", "KV_JIDO_MANAGERS", "KV_JIDO_SESSIONS"]


async def config_of(stranger: Stranger, stream: str) -> dict[str, Any]:
    config: dict[str, Any] = (await stranger.ask(f"$JS.API.STREAM.INFO.{stream}"))["config"]
    return config


async def make(stranger: Stranger, stream: str, settings: Settings = SETTINGS, /, **changed: Any) -> dict[str, Any]:
    """The stream as designed, but for what is changed."""
    designed = next(config for config in topology.stream_configs(settings) if config["name"] == stream)
    answer = await stranger.ask(f"$JS.API.STREAM.CREATE.{stream}", designed | changed)
    assert "error" not in answer, answer
    return await config_of(stranger, stream)


async def test_what_is_missing_is_made(stranger: Stranger, connection: Connection) -> None:
    await topology.declare(connection, Settings())

    assert sorted((await stranger.ask("$JS.API.STREAM.NAMES"))["streams"]) == NAMES


async def test_the_event_stream_is_the_design_s(stranger: Stranger, declared: Connection) -> None:
    config = await config_of(stranger, "JIDO_CLIENT")

    assert set(config["subjects"]) == {"jido.client.events", "jido.client.session.*", "jido.fence.*"}
    assert (config["storage"], config["retention"], config["num_replicas"]) == ("file", "limits", 1)
    assert (config["max_age"], config["duplicate_window"]) == (7 * DAY_NS, 120 * 10**9)
    assert (config["max_consumers"], config["deny_delete"], config["deny_purge"]) == (10_000, False, False)


async def test_output_has_a_stream_of_its_own(stranger: Stranger, declared: Connection) -> None:
    assert (await config_of(stranger, "JIDO_OUTPUT"))["subjects"] == ["jido.client.session.*.output"]


@pytest.mark.parametrize("bucket", ["JIDO_SESSIONS", "JIDO_MANAGERS"])
async def test_a_bucket_is_one_for_stock_clients(stranger: Stranger, declared: Connection, bucket: str) -> None:
    kv = await stranger.js.key_value(bucket)
    config = await config_of(stranger, f"KV_{bucket}")

    assert (await kv.status()).history == 1
    assert (config["storage"], config["allow_msg_ttl"], config["max_age"]) == ("file", True, 0)
    assert (config["max_consumers"], config["deny_delete"]) == (100_000, True)


async def test_what_exists_is_adopted(stranger: Stranger, declared: Connection) -> None:
    await stranger.js.publish("jido.client.events", b"{}")
    before = {name: await config_of(stranger, name) for name in NAMES}

    await topology.declare(declared, Settings())

    assert {name: await config_of(stranger, name) for name in NAMES} == before
    assert (await stranger.positions())[0] == 1


async def test_many_managers_declare_at_once(stranger: Stranger, connection: Connection) -> None:
    await asyncio.gather(*(topology.declare(connection, Settings()) for _ in range(10)))

    assert sorted((await stranger.ask("$JS.API.STREAM.NAMES"))["streams"]) == NAMES


async def test_a_retention_that_grows_is_updated(stranger: Stranger, connection: Connection) -> None:
    await topology.declare(connection, Settings(retention_s=3600))
    await stranger.js.publish("jido.client.events", b"{}")

    await topology.declare(connection, Settings(retention_s=7200))

    assert (await config_of(stranger, "JIDO_CLIENT"))["max_age"] == 7200 * 10**9
    assert (await stranger.positions())[0] == 1


@pytest.mark.parametrize(
    ("stream", "field", "value"),
    [
        ("JIDO_CLIENT", "max_age", 30 * DAY_NS),
        ("JIDO_CLIENT", "max_age", 0),
        ("JIDO_CLIENT", "max_bytes", 2 << 30),
        ("JIDO_CLIENT", "max_bytes", -1),
        ("JIDO_CLIENT", "duplicate_window", 3600 * 10**9),
        ("JIDO_CLIENT", "max_consumers", 50_000),
        ("JIDO_OUTPUT", "max_age", 30 * DAY_NS),
        ("KV_JIDO_SESSIONS", "subject_delete_marker_ttl", 7200 * 10**9),
        ("KV_JIDO_SESSIONS", "max_consumers", 200_000),
    ],
)
async def test_nothing_is_lowered(
    stranger: Stranger, connection: Connection, caplog: pytest.LogCaptureFixture, stream: str, field: str, value: int
) -> None:
    caplog.set_level(logging.INFO)
    settings = Settings(events_bytes_max=1 << 30)
    before = await make(stranger, stream, settings, **{field: value})

    await topology.declare(connection, settings)

    assert await config_of(stranger, stream) == before
    setting = next(c for c in topology.stream_configs(settings) if c["name"] == stream)[field]
    kept = [(r.levelname, r.stream, r.field, r.value, r.setting) for r in caplog.records if hasattr(r, "setting")]  # type: ignore[attr-defined]
    assert kept == [("INFO", stream, field, value, setting)]


async def test_an_update_of_one_field_lowers_no_other(stranger: Stranger, connection: Connection) -> None:
    await make(stranger, "JIDO_CLIENT", max_age=30 * DAY_NS, max_bytes=1000)

    await topology.declare(connection, Settings(events_bytes_max=2000))

    config = await config_of(stranger, "JIDO_CLIENT")
    assert (config["max_age"], config["max_bytes"]) == (30 * DAY_NS, 2000)


async def test_a_start_with_default_settings_leaves_three_replicas() -> None:
    async with Cluster(3) as cluster:
        await cluster.ready()
        connection = await Connection.open(ConnectOptions(servers=(cluster.url(0),)), "test")
        try:
            await topology.declare(connection, Settings(replicas=3))
            await topology.declare(connection, Settings())
            replicas = [(await topology.find_config(connection, name) or {})["num_replicas"] for name in NAMES]
        finally:
            await connection.close()

    assert replicas == [3] * len(NAMES)


async def test_a_change_that_loses_nothing_keeps_what_the_operator_chose(
    stranger: Stranger, connection: Connection
) -> None:
    await make(stranger, "JIDO_CLIENT", duplicate_window=60 * 10**9, metadata={"team": "a"})

    await topology.declare(connection, Settings())

    config = await config_of(stranger, "JIDO_CLIENT")
    assert config["duplicate_window"] == 120 * 10**9
    assert config["metadata"]["team"] == "a"


@pytest.mark.parametrize(
    ("stream", "field", "value"),
    [
        ("JIDO_CLIENT", "max_msgs", 10),
        ("JIDO_CLIENT", "max_msgs_per_subject", 1),
        ("JIDO_CLIENT", "max_msg_size", 100),
        ("KV_JIDO_SESSIONS", "max_age", DAY_NS),
        ("KV_JIDO_MANAGERS", "max_age", DAY_NS),
    ],
)
async def test_a_limit_that_would_lose_something_is_lifted(
    stranger: Stranger, connection: Connection, stream: str, field: str, value: int
) -> None:
    await make(stranger, stream, **{field: value})

    await topology.declare(connection, Settings())

    assert (await config_of(stranger, stream))[field] in (0, -1)


@pytest.mark.parametrize(
    ("stream", "field", "value"),
    [
        ("JIDO_CLIENT", "storage", "memory"),
        ("JIDO_CLIENT", "subjects", [*EVENTS, "other.>"]),
        ("JIDO_CLIENT", "subjects", ["jido.fence.*", "jido.client.*.s1"]),
        ("JIDO_CLIENT", "retention", "interest"),
        ("JIDO_CLIENT", "discard", "new"),
        ("JIDO_CLIENT", "no_ack", True),
        ("JIDO_OUTPUT", "storage", "memory"),
        ("KV_JIDO_SESSIONS", "storage", "memory"),
        ("KV_JIDO_SESSIONS", "max_msgs_per_subject", 5),
        ("KV_JIDO_MANAGERS", "max_msgs_per_subject", 5),
        ("KV_JIDO_SESSIONS", "subjects", ["$KV.JIDO_SESSIONS.>", "$KV.OTHER.>"]),
        ("KV_JIDO_SESSIONS", "subjects", ["$KV.JIDO_SESSIONS.*"]),
    ],
)
async def test_any_other_difference_is_refused(
    stranger: Stranger, connection: Connection, stream: str, field: str, value: Any
) -> None:
    before = await make(stranger, stream, **{field: value})

    with pytest.raises(ConfigurationError, match=f"{stream} .*{field}"):
        await topology.declare(connection, Settings())

    assert await config_of(stranger, stream) == before


async def test_another_stream_on_our_subjects_is_told_of(stranger: Stranger, connection: Connection) -> None:
    await stranger.js.add_stream(name="OTHER", subjects=["jido.client.events"])

    with pytest.raises(JidoError, match="JIDO_CLIENT"):
        await topology.declare(connection, Settings())


async def test_names_are_settings(stranger: Stranger, connection: Connection) -> None:
    await topology.declare(connection, Settings(events_stream="E", sessions_bucket="S", managers_bucket="M"))

    assert sorted((await stranger.ask("$JS.API.STREAM.NAMES"))["streams"]) == ["E", "JIDO_OUTPUT", "KV_M", "KV_S"]


async def test_a_stream_and_a_bucket_made_by_hand_are_adopted(stranger: Stranger, connection: Connection) -> None:
    await stranger.js.add_stream(name="JIDO_CLIENT", subjects=EVENTS, max_age=7 * 86_400)
    await stranger.js.create_key_value(bucket="JIDO_SESSIONS")

    await topology.declare(connection, Settings())

    comparison = compare(topology.stream_configs(Settings())[0], await config_of(stranger, "JIDO_CLIENT"))
    assert comparison == Comparison()
    assert (await config_of(stranger, "KV_JIDO_SESSIONS"))["subject_delete_marker_ttl"] == 3600 * 10**9


async def test_a_duplicate_window_is_no_longer_than_the_retention(stranger: Stranger, connection: Connection) -> None:
    await topology.declare(connection, Settings(retention_s=60))

    assert (await config_of(stranger, "JIDO_CLIENT"))["duplicate_window"] == 60 * 10**9


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("subject_transform", {"src": "jido.>", "dest": "x.>"}),
        ("sources", [{"name": "ELSEWHERE"}]),
    ],
)
async def test_what_would_move_or_mix_messages_is_refused(
    stranger: Stranger, connection: Connection, field: str, value: Any
) -> None:
    before = await make(stranger, "JIDO_CLIENT", **{field: value})

    with pytest.raises(ConfigurationError, match=f"{field} is .*, should not be set"):
        await topology.declare(connection, Settings())

    assert await config_of(stranger, "JIDO_CLIENT") == before


# Subjects


@pytest.mark.parametrize(
    "found",
    [
        [*EVENTS, "jido.client.manager.*"],
        [*EVENTS, "jido.journal.*"],
        ["jido.client.*", "jido.client.session.*", "jido.fence.>"],
    ],
)
async def test_a_stream_with_more_subjects_is_left_as_it_is(
    stranger: Stranger, connection: Connection, found: list[str]
) -> None:
    before = await make(stranger, "JIDO_CLIENT", subjects=found)

    await topology.declare(connection, Settings())

    assert await config_of(stranger, "JIDO_CLIENT") == before


@pytest.mark.parametrize(
    ("found", "after"),
    [
        (["jido.client.events"], EVENTS),
        (["jido.client.events", "jido.client.session.s1", "jido.fence.*"], EVENTS),
        (["jido.client.*", "jido.journal.*"], ["jido.client.*", "jido.journal.*", *EVENTS[1:]]),
    ],
)
async def test_subjects_that_are_missing_are_added(
    stranger: Stranger, connection: Connection, found: list[str], after: list[str]
) -> None:
    await make(stranger, "JIDO_CLIENT", subjects=found)
    await stranger.js.publish("jido.client.events", b"{}")

    await topology.declare(connection, Settings())

    assert sorted((await config_of(stranger, "JIDO_CLIENT"))["subjects"]) == sorted(after)
    assert (await stranger.positions())[0] == 1


@pytest.mark.parametrize(
    "subject", ["jido.>", "jido.*.>", "jido.session.>", "jido.session.get.s1", "jido.manager.*.*.*", "jido.admin.>"]
)
async def test_a_stream_that_stores_commands_is_refused(
    stranger: Stranger, connection: Connection, subject: str
) -> None:
    before = await make(stranger, "JIDO_CLIENT", subjects=[subject], no_ack=True)

    with pytest.raises(ConfigurationError, match=f"has {re.escape(subject)}, which stores commands"):
        await topology.declare(connection, Settings())

    assert await config_of(stranger, "JIDO_CLIENT") == before


async def test_a_subject_that_is_not_ours_is_refused_by_name(stranger: Stranger, connection: Connection) -> None:
    await make(stranger, "JIDO_CLIENT", subjects=[*EVENTS, "other.>"])

    with pytest.raises(ConfigurationError, match=r"has other\.>, which does not begin with jido\."):
        await topology.declare(connection, Settings())


async def test_a_stream_that_leaves_no_room_for_another_is_refused_before_anything_is_touched(
    stranger: Stranger, connection: Connection
) -> None:
    before = await make(stranger, "JIDO_CLIENT", subjects=["jido.client.>"])

    with pytest.raises(ConfigurationError, match=r"jido\.client\.> of JIDO_CLIENT overlaps .* of JIDO_OUTPUT"):
        await topology.declare(connection, Settings())

    assert await config_of(stranger, "JIDO_CLIENT") == before
    assert (await stranger.ask("$JS.API.STREAM.NAMES"))["streams"] == ["JIDO_CLIENT"]


async def test_every_field_of_every_stream_is_named_before_anything_is_touched(
    stranger: Stranger, connection: Connection
) -> None:
    await make(stranger, "JIDO_CLIENT", max_age=DAY_NS)
    await make(stranger, "KV_JIDO_SESSIONS", storage="memory", max_msgs_per_subject=5)
    await make(stranger, "KV_JIDO_MANAGERS", storage="memory")
    before = [await config_of(stranger, name) for name in ("JIDO_CLIENT", "KV_JIDO_SESSIONS", "KV_JIDO_MANAGERS")]

    with pytest.raises(ConfigurationError) as refused:
        await topology.declare(connection, Settings())

    text = str(refused.value)
    assert [text.count(word) for word in ("storage", "max_msgs_per_subject", "nothing was touched")] == [2, 1, 1]
    assert [await config_of(stranger, n) for n in ("JIDO_CLIENT", "KV_JIDO_SESSIONS", "KV_JIDO_MANAGERS")] == before
    assert len((await stranger.ask("$JS.API.STREAM.NAMES"))["streams"]) == 3


async def test_streams_that_refuse_deletion_are_adopted(stranger: Stranger, connection: Connection) -> None:
    before = await make(stranger, "JIDO_CLIENT", deny_delete=True, deny_purge=True)

    await topology.declare(connection, Settings())

    assert await config_of(stranger, "JIDO_CLIENT") == before


# Consumers


@pytest.mark.parametrize(("stream", "wanted"), [("JIDO_CLIENT", 10_000), ("KV_JIDO_SESSIONS", 100_000)])
async def test_the_server_s_default_of_consumers_is_raised(
    stranger: Stranger, connection: Connection, stream: str, wanted: int
) -> None:
    await make(stranger, stream, max_consumers=-1)

    await topology.declare(connection, Settings())

    assert (await config_of(stranger, stream))["max_consumers"] == wanted


async def test_the_server_s_default_of_consumers_is_not_lowered(stranger: Stranger, connection: Connection) -> None:
    before = await make(stranger, "JIDO_CLIENT", max_consumers=-1)

    await topology.declare(connection, Settings(consumers_max=100))

    assert await config_of(stranger, "JIDO_CLIENT") == before


async def test_an_account_that_allows_fewer_consumers_is_enough(caplog: pytest.LogCaptureFixture) -> None:
    limits = "jetstream { max_consumers: 50, max_mem: 1G, max_file: 1G }"
    async with LocalServer(config=account(limits)) as server, stranger_at(url_of(server)) as stranger:
        await make(stranger, "JIDO_CLIENT", max_consumers=20, max_age=DAY_NS)
        connection = await Connection.open(ConnectOptions(servers=(url_of(server),)), "test")
        try:
            await topology.declare(connection, Settings())
        finally:
            await connection.close()
        found = {name: (await config_of(stranger, name))["max_consumers"] for name in NAMES}
        age = (await config_of(stranger, "JIDO_CLIENT"))["max_age"]

    assert (found, age) == (dict.fromkeys(NAMES, -1) | {"JIDO_CLIENT": 20}, 7 * DAY_NS)
    warnings = sorted(vars(r)["stream"] for r in caplog.records if "max_consumers" in r.getMessage())
    assert warnings == NAMES


def account(limits: str) -> str:
    """A configuration with an account that has limits; its user is `u`."""
    system, ours = "users: [{ user: s, password: s }]", "users: [{ user: u, password: p }]"
    return f"accounts {{ SYS {{ {system} }}, J {{ {limits}, {ours} }} }}"


def url_of(server: LocalServer) -> str:
    return server.url.replace("//", "//u:p@")


# What managers agree on


async def lease_time(stranger: Stranger) -> str | None:
    found: str | None = (await config_of(stranger, "JIDO_CLIENT"))["metadata"].get("lease_s")
    return found


async def put_lease(stranger: Stranger, data: bytes | None = None) -> None:
    """A lease of another manager; or another entry of its key."""
    info = b'{"manager_id":"m1","host":"h","pid":1,"started_at":"2026-11-25T18:00:00Z","version":"0"}'
    await stranger.js.publish("$KV.JIDO_MANAGERS.m1", info if data is None else data)


async def test_the_lease_time_is_stored_with_the_stream_of_events(stranger: Stranger, connection: Connection) -> None:
    deployed = await topology.declare(connection, Settings(lease_s=7))

    assert (deployed.lease_s, await lease_time(stranger)) == (7, "7")


@pytest.mark.parametrize("stored", [{}, {"lease_s": "soon"}, {"lease_s": "0"}])
async def test_a_stream_without_a_lease_time_gets_it(
    stranger: Stranger, connection: Connection, stored: dict[str, str]
) -> None:
    await make(stranger, "JIDO_CLIENT", metadata={**stored, "team": "a"})
    await topology.declare(connection, Settings(lease_s=7))

    config = await config_of(stranger, "JIDO_CLIENT")
    assert (config["metadata"]["lease_s"], config["metadata"]["team"]) == ("7", "a")


async def test_the_stored_lease_time_wins_while_a_manager_lives(stranger: Stranger, connection: Connection) -> None:
    await topology.declare(connection, Settings(lease_s=7))
    await put_lease(stranger)

    deployed = await topology.declare(connection, Settings(lease_s=3))

    assert (deployed.lease_s, await lease_time(stranger)) == (7, "7")


@pytest.mark.parametrize("data", [b"", b"no lease"])
async def test_a_new_lease_time_is_stored_while_no_manager_lives(
    stranger: Stranger, connection: Connection, data: bytes
) -> None:
    await topology.declare(connection, Settings(lease_s=7))
    await put_lease(stranger, data)

    deployed = await topology.declare(connection, Settings(lease_s=3))

    assert (deployed.lease_s, await lease_time(stranger)) == (3, "3")


async def test_a_user_that_may_not_update_a_stream_starts_with_what_is_stored() -> None:
    limits = 'jetstream: enabled, default_permissions: { publish: { deny: "$JS.API.STREAM.UPDATE.>" } }'
    async with LocalServer(config=account(limits)) as server:
        connection = await Connection.open(ConnectOptions(servers=(url_of(server),)), "test")
        try:
            await topology.declare(connection, Settings(lease_s=7))
            deployed = await topology.declare(connection, Settings(lease_s=3))
        finally:
            await connection.close()

    assert deployed.lease_s == 7


async def test_the_time_of_markers_is_that_of_the_bucket(stranger: Stranger, connection: Connection) -> None:
    await make(stranger, "KV_JIDO_SESSIONS", subject_delete_marker_ttl=7200 * 10**9)

    assert (await topology.declare(connection, Settings())).marker_ttl_s == 7200
