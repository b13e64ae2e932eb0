"""The streams and buckets: made as designed, adopted, updated where that loses nothing, else refused."""

import asyncio
from typing import Any

import pytest

from jido_nats import Settings
from jido_nats.broker.connection import Connection
from jido_nats.errors import ConfigurationError, JidoError
from jido_nats.store import topology
from tests.tools.support import Stranger

DAY_NS = 86_400 * 10**9
NAMES = ["JIDO_CLIENT", "JIDO_OUTPUT", "KV_JIDO_MANAGERS", "KV_JIDO_SESSIONS"]


async def config_of(stranger: Stranger, stream: str) -> dict[str, Any]:
    config: dict[str, Any] = (await stranger.ask(f"$JS.API.STREAM.INFO.{stream}"))["config"]
    return config


async def make(stranger: Stranger, stream: str, **changed: Any) -> dict[str, Any]:
    """The stream as designed, but for what is changed."""
    designed = next(config for config in topology.stream_configs(Settings()) if config["name"] == stream)
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
    assert (config["deny_delete"], config["deny_purge"]) == (True, True)


async def test_output_has_a_stream_of_its_own(stranger: Stranger, declared: Connection) -> None:
    assert (await config_of(stranger, "JIDO_OUTPUT"))["subjects"] == ["jido.client.session.*.output"]


@pytest.mark.parametrize("bucket", ["JIDO_SESSIONS", "JIDO_MANAGERS"])
async def test_a_bucket_is_one_for_stock_clients(stranger: Stranger, declared: Connection, bucket: str) -> None:
    kv = await stranger.js.key_value(bucket)
    config = await config_of(stranger, f"KV_{bucket}")

    assert (await kv.status()).history == 1
    assert (config["storage"], config["allow_msg_ttl"], config["max_age"]) == ("file", True, 0)


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


async def test_a_retention_that_shrinks_is_refused(stranger: Stranger, connection: Connection) -> None:
    await topology.declare(connection, Settings(retention_s=7200))

    with pytest.raises(ConfigurationError, match=r"JIDO_CLIENT .*max_age"):
        await topology.declare(connection, Settings(retention_s=3600))

    assert (await config_of(stranger, "JIDO_CLIENT"))["max_age"] == 7200 * 10**9


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
        ("JIDO_CLIENT", "subjects", ["jido.client.>"]),
        ("JIDO_CLIENT", "subjects", ["jido.client.events"]),
        ("JIDO_CLIENT", "retention", "interest"),
        ("JIDO_CLIENT", "discard", "new"),
        ("JIDO_CLIENT", "no_ack", True),
        ("JIDO_OUTPUT", "storage", "memory"),
        ("KV_JIDO_SESSIONS", "storage", "memory"),
        ("KV_JIDO_SESSIONS", "max_msgs_per_subject", 5),
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
    subjects = ["jido.client.events", "jido.client.session.*", "jido.fence.*"]
    await stranger.js.add_stream(name="JIDO_CLIENT", subjects=subjects, max_age=7 * 86_400)
    await stranger.js.create_key_value(bucket="JIDO_SESSIONS")

    await topology.declare(connection, Settings())

    assert topology.differences(topology.stream_configs(Settings())[0], await config_of(stranger, "JIDO_CLIENT")) == (
        [],
        [],
    )
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
