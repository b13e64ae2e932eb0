"""`jido-nats bench`: that it measures all it says, that the baseline does what we do, and that nothing stays behind.

How fast anything is, is not asked here.
"""

import signal
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from nats.aio.msg import Msg

from jido_nats import LocalServer, SessionManager, Settings
from jido_nats.bench.deployment import local
from jido_nats.bench.plan import Part, Plan
from jido_nats.bench.run import run as benchmark
from jido_nats.bench.samples import percentile
from tests.conftest import StartManager
from tests.tools.programs import run, running
from tests.tools.roles import PASSWORDS, SECRETS, as_user
from tests.tools.support import LEASE_S, Stranger, eventually, stranger_at, wait_for_ever

SMALL = ("--sessions", "20", "--concurrency", "4")
LEASE = ("--lease-s", str(LEASE_S))  # as the manager of the fixtures has it
LATENCIES = ("rate", "p50", "p99", "p99.9")
COMMANDS = {(verb, statistic) for verb in ("create", "terminate") for statistic in LATENCIES}
WITHOUT_RECOVERY = COMMANDS | {
    ("transition", "p50"),
    ("heard_by_subscriber", "p50"),
    ("heard_by_consumer", "p50"),
    ("message_accepted", "p50"),
    ("checkpoint_1k", "p50"),
    ("checkpoint_100k", "p50"),
    ("replay", "rate"),
}
WITHIN_S = 90.0
SIZE_DIFFERENCE_MAX = 6  # the digits of a sequence


class Sent(NamedTuple):
    """One message that was to be stored: where to, with which headers, how large."""

    subject: str
    headers: tuple[str, ...]
    size: int


def stored_by_session(messages: list[Msg], prefix: str, bucket: str) -> list[list[Sent]]:
    """What was sent to be stored under these names, by session, in order; the names in the words of ours."""
    found: dict[str, list[Sent]] = defaultdict(list)
    for message in messages:
        place, _, session_id = message.subject.rpartition(".")
        if message.subject == f"{prefix}.client.events":
            place, session_id = message.subject, (message.headers or {})["Nats-Msg-Id"].split(".")[0]
        kind = {
            f"$KV.{bucket}": "record",
            f"{prefix}.client.events": "event",
            f"{prefix}.client.session": "copy",
            f"{prefix}.fence": "claim",
        }.get(place)
        if kind is not None and not message.reply.startswith("$JS.ACK"):  # that is a consumer's
            found[session_id].append(Sent(kind, tuple(sorted(message.headers or {})), len(message.data)))
    return list(found.values())


def processes_with(mark: str) -> list[str]:
    """The command lines of processes that have a word in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


def names(lines: list[dict[str, Any]]) -> set[tuple[str, str]]:
    return {(line["measure"], line["statistic"]) for line in lines}


async def test_json_has_every_measure_beside_the_baseline(tmp_path: Path) -> None:
    mark = f"bench-test-{tmp_path.name}-{id(tmp_path)}"

    finished = await run(
        *("bench", *SMALL, "--managers", "1", "--lease-s", "1", "--sync", "default", "--json"),
        within_s=WITHIN_S,
        env={"JIDO_BENCH_TEST": mark},
    )

    assert (finished.code, finished.err) == (0, "")
    assert names(finished.lines) == WITHOUT_RECOVERY | {("recover", "time"), ("manager", "CPU")}
    for line in finished.lines:
        assert line["ours"] > 0
        assert line["ratio"] == pytest.approx(line["ours"] / line["baseline"])
        assert (line["sessions"], line["concurrency"], line["managers"]) == (20, 4, 1)
        assert line["sync_interval"] == "default"
        assert line["unit"] in ("sessions/s", "events/s", "ms", "s")
        assert line["server_version"].count(".") == 2
        assert {"cpu", "cores", "memory_gb", "system", "python"} <= line["machine"].keys()
    assert processes_with(mark) == []


async def test_the_floor_stores_what_we_store() -> None:
    parts = frozenset({Part.COMMANDS, Part.RECOVER})
    async with local(Settings(lease_s=1), None, managers=1, sync="default") as deployment:
        async with stranger_at(deployment.options.servers[0]) as stranger:
            listener = await stranger.hear(">")
            async for _ in benchmark(deployment, Plan(1, 1, parts), lambda *_: None):
                pass
            await stranger.flush()

    heard = [message for message in listener.messages if message.data]
    (bucket,) = {bucket for m in heard if (bucket := m.subject.split(".")[1]).startswith("JIDO_BENCH_")}
    ours = stored_by_session(heard, "jido", "JIDO_SESSIONS")
    baseline = stored_by_session(heard, "b" + bucket.removeprefix("JIDO_BENCH_"), bucket)
    assert [len(sent) for sent in ours] == [12, 12, 10]  # the warm-up's, the measured one, the recovered one
    for mine, theirs in zip(ours, baseline, strict=True):
        assert [sent[:2] for sent in mine] == [sent[:2] for sent in theirs]
        assert max(abs(a.size - b.size) for a, b in zip(mine, theirs, strict=True)) <= SIZE_DIFFERENCE_MAX


async def test_a_deployment_is_as_it_was(server: LocalServer, stranger: Stranger, manager: SessionManager) -> None:
    before = await streams(stranger)

    finished = await run("bench", *SMALL, *LEASE, "--json", env={"NATS_URL": server.url}, within_s=WITHIN_S)

    assert (finished.code, finished.err) == (0, "")
    assert names(finished.lines) == WITHOUT_RECOVERY
    assert await streams(stranger) == before
    assert await manager.list_sessions() == []


async def test_people_get_a_table(server: LocalServer, manager: SessionManager) -> None:
    finished = await run("bench", "--server", server.url, *SMALL, *LEASE, within_s=WITHIN_S)

    assert (finished.code, finished.err) == (0, "")
    for text in (
        "create to active, rate",
        "received by a subscriber, p50",
        "baseline",
        "≥ 0.85",
        "20 sessions, 4 at a time",
    ):
        assert text in finished.out
    assert max(map(len, finished.out.splitlines())) <= 80


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_an_interrupted_bench_leaves_nothing(
    server: LocalServer, stranger: Stranger, manager: SessionManager, number: signal.Signals
) -> None:
    before, mark = await streams(stranger), f"bench-test-{server.port}"
    plenty = ("--sessions", "100000", "--concurrency", "4", "--only", "commands")
    async with running("bench", "--server", server.url, *plenty, env={"JIDO_BENCH_TEST": mark}) as program:
        await eventually(manager.list_sessions, within_s=WITHIN_S)

        program.send(number)
        finished = await program.finished(within_s=WITHIN_S)

    assert finished.code == 130
    assert await streams(stranger) == before
    await eventually(lambda: not processes_with(mark))
    assert await manager.list_sessions() == []


async def test_a_server_without_a_manager_is_told(server: LocalServer) -> None:
    await refused("no session manager is running", "--server", server.url)


async def test_a_manager_that_has_gone_is_told(server: LocalServer, start_manager: StartManager) -> None:
    await (await start_manager()).close()

    await refused("no session manager is running", "--server", server.url)


async def test_other_settings_than_the_managers_are_told(
    server: LocalServer, stranger: Stranger, start_manager: StartManager
) -> None:
    await start_manager(retention_s=3600)
    before = await stranger.js.stream_info("JIDO_CLIENT")

    await refused("max_age", "--server", server.url)

    assert (await stranger.js.stream_info("JIDO_CLIENT")).config == before.config


@pytest.mark.parametrize("user", ["client", "manager"])
async def test_a_user_who_may_not_do_it_all_is_told(user: str) -> None:
    async with LocalServer(secrets=SECRETS) as server:
        connection, api = as_user(server, "manager"), as_user(server, "manager-api")
        async with SessionManager.connect(connection, api=api, worker=wait_for_ever) as manager:
            await manager.start_serving()

            await refused(
                *("use a user that may do everything in the account", "--server", server.url),
                *("--user", user, "--password", PASSWORDS[user]),
            )


async def test_a_server_cannot_be_both_named_and_started() -> None:
    await refused("leave out --server", "--server", "nats://127.0.0.1:1", "--managers", "2")


async def test_a_named_server_has_its_own_sync_interval() -> None:
    await refused("leave out --server", "--server", "nats://127.0.0.1:1", "--sync", "default")


async def test_no_manager_of_a_deployment_is_killed(server: LocalServer, manager: SessionManager) -> None:
    await refused("managers that the bench started", "--server", server.url, "--only", "recover")


async def test_a_server_that_is_not_there_is_told() -> None:
    await refused("127.0.0.1:1", "--server", "nats://127.0.0.1:1")


async def test_settings_that_cannot_be_are_told(tmp_path: Path) -> None:
    config = tmp_path / "settings.toml"
    config.write_text('events_stream = "KV_JIDO_SESSIONS"\n')

    await refused("the stream KV_JIDO_SESSIONS ", "--managers", "1", "--config", str(config))


@pytest.mark.parametrize(
    ("percent", "wanted"), [(0, 1), (50, 50), (99, 99), (99.9, 100), (100, 100)], ids=lambda value: f"{value:g}"
)
def test_a_percentile_is_a_value_that_was_measured(percent: float, wanted: int) -> None:
    assert percentile([*range(100, 0, -1)], percent) == wanted


async def refused(why: str, *arguments: str) -> None:
    """The bench says why it does not run, in one line."""
    finished = await run("bench", *arguments, *SMALL, within_s=WITHIN_S)

    assert (finished.code, finished.out) == (1, "")
    assert finished.err.startswith("jido-nats: ")
    assert finished.err.count("\n") == 1
    assert why in finished.err


async def streams(stranger: Stranger) -> list[str]:
    """The names of all streams."""
    return sorted(info.config.name or "" for info in await stranger.js.streams_info())
