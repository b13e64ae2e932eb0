"""The old version (see `tests/tools/old_version.py`) beside this one, on one server: an upgrade, and a rollback."""

import asyncio
import contextlib
import itertools
import json
import signal
from collections.abc import AsyncIterator
from functools import partial
from typing import Any, Final

import pytest

from jido_nats import Client, LocalServer, SessionChanged, SnapshotComplete, Status, WatchedSession
from tests.tools import audit
from tests.tools.old_version import NotInHistory, old_version
from tests.tools.processes import ManagerProcess, manager_process
from tests.tools.programs import NEW, Finished, Version, run, running
from tests.tools.support import DEADLINE_S, LEASE_S, Stranger, brief, eventually, stranger_at

pytestmark = pytest.mark.timeout(600)  # the first test of all installs the old version

STREAMS: Final = ("JIDO_CLIENT", "JIDO_OUTPUT", "KV_JIDO_SESSIONS", "KV_JIDO_MANAGERS")
LIFE: Final = ["1 created", "2 active", "3 idle", "4 terminating", "5 terminated", "5 ended"]
MESSAGE: Final = {"role": "user", "content": "hello"}
LEFT_IN: Final = {"get": "active", "idle": "idle", "activate": "active", "terminate": "terminated"}


@pytest.fixture(scope="session")
def old() -> Version:
    """The old version."""
    try:
        return old_version()
    except NotInHistory as error:
        pytest.skip(str(error))


@pytest.fixture(params=["old", "new"])
def first(request: pytest.FixtureRequest, old: Version) -> Version:
    """One of the two versions."""
    return old if request.param == "old" else NEW


@pytest.fixture
def second(first: Version, old: Version) -> Version:
    """The other one."""
    return NEW if first is old else old


@contextlib.asynccontextmanager
async def running_manager(server: LocalServer, version: Version) -> AsyncIterator[ManagerProcess]:
    """A manager of that version, whose lease does not expire on a busy machine."""
    async with manager_process(server.url, version=version, lease_s=LEASE_S) as process:
        yield process


async def received(stranger: Stranger, manager: ManagerProcess, verb: str) -> int:
    """How many requests with that verb a manager has received itself, not forwarded by another."""
    stats = await stranger.ask(f"$SRV.STATS.jido-session-manager.{manager.manager_id}")
    endpoints = {endpoint["name"]: endpoint["num_requests"] for endpoint in stats["endpoints"]}
    return int(endpoints[verb])


async def violations(server: LocalServer, *, all_ended: bool = False) -> list[audit.Violation]:
    """What the auditor finds."""
    seen = await audit.read(server.url)
    return audit.audit(*seen, quiet=True, all_ended=all_ended)


async def create_at(stranger: Stranger, manager: ManagerProcess) -> str:
    """A session of that manager: which one receives a create is up to the server."""
    async with asyncio.timeout(DEADLINE_S):
        for n in itertools.count():
            if (await stranger.create(f"s{n}"))["owner"] == manager.manager_id:
                return f"s{n}"
    raise AssertionError


async def ended(stranger: Stranger, *session_ids: str) -> list[str]:
    """Why these sessions ended, as soon as each has ended for good."""
    return [(await stranger.ends(session_id))["reason"] for session_id in session_ids]


# Two managers


@pytest.mark.parametrize("verb", ["get", "idle", "activate", "send", "terminate", "history"])
async def test_a_command_that_reaches_the_other_version_is_carried_out_by_the_owner(
    server: LocalServer, stranger: Stranger, first: Version, second: Version, verb: str
) -> None:
    async with running_manager(server, first) as owner:
        ids = [f"s{n}" for n in range(40)]
        for session_id in ids:
            assert (await stranger.create(session_id))["owner"] == owner.manager_id
            if verb == "activate":
                await stranger.ask(f"jido.session.idle.{session_id}")
        async with running_manager(server, second) as other:
            for session_id in ids:  # which manager receives a command is up to the server
                answer = await stranger.ask(f"jido.session.{verb}.{session_id}", MESSAGE if verb == "send" else b"")
                assert "error" not in answer
                assert answer.get("status") == LEFT_IN.get(verb)
                if await received(stranger, other, verb):
                    break
            assert await received(stranger, other, verb) == 1


async def test_an_error_of_the_other_version_is_passed_back(
    server: LocalServer, stranger: Stranger, first: Version, second: Version
) -> None:
    async with running_manager(server, first):
        await stranger.create("s1")
        async with running_manager(server, second) as other, asyncio.timeout(DEADLINE_S):
            while not await received(stranger, other, "activate"):
                answer = await stranger.ask("jido.session.activate.s1")
                assert answer["error"]["code"] == "invalid_transition"


async def test_a_create_that_is_repeated_at_the_other_version_gives_the_same_session(
    server: LocalServer, stranger: Stranger, first: Version, second: Version
) -> None:
    async with running_manager(server, first):
        created = await stranger.create("s1", metadata={"n": 1})
        async with running_manager(server, second) as other, asyncio.timeout(DEADLINE_S):
            while not await received(stranger, other, "create"):
                assert await stranger.create("s1", metadata={"n": 1}) == created | {"replayed": True}


async def test_either_version_lists_the_sessions_of_both(
    server: LocalServer, stranger: Stranger, first: Version, second: Version
) -> None:
    async with running_manager(server, first) as one, running_manager(server, second) as other:
        owners: dict[str, str] = {}
        async with asyncio.timeout(DEADLINE_S):
            while set(owners.values()) != {one.manager_id, other.manager_id}:
                session_id = f"s{len(owners)}"
                owners[session_id] = (await stranger.create(session_id))["owner"]
            while not (await received(stranger, one, "list") and await received(stranger, other, "list")):
                listed = (await stranger.ask("jido.session.list"))["sessions"]
                assert {record["session_id"]: record["owner"] for record in listed} == owners


async def test_the_sessions_of_a_killed_manager_are_ended_by_the_other_version(
    server: LocalServer, stranger: Stranger, first: Version, second: Version
) -> None:
    async with manager_process(server.url, version=first) as dying:
        for n in range(5):
            await stranger.create(f"s{n}", metadata={"n": n})
        await stranger.ask("jido.session.idle.s0")
        async with manager_process(server.url, version=second):
            dying.send(signal.SIGKILL)
            assert await ended(stranger, *(f"s{n}" for n in range(5))) == ["owner_lost"] * 5
            assert await violations(server, all_ended=True) == []


async def test_an_end_that_the_other_version_left_half_published_is_completed(
    server: LocalServer, stranger: Stranger, old: Version
) -> None:
    async with manager_process(server.url, failpoints="before message 2:die:3"):
        await stranger.create("s1")
        with contextlib.suppress(TimeoutError):  # it dies before it answers
            await stranger.nc.request("jido.session.terminate.s1", b"", timeout=2)
    async with manager_process(server.url, version=old):
        await stranger.ends("s1")
        assert await violations(server, all_ended=True) == []


async def test_sessions_outlive_the_orderly_stop_of_the_other_version(
    server: LocalServer, stranger: Stranger, first: Version, second: Version
) -> None:
    async with running_manager(server, first):
        await stranger.create("stays")
        async with running_manager(server, second) as leaving:
            leaves = await create_at(stranger, leaving)
            leaving.send(signal.SIGTERM)
            assert await ended(stranger, leaves) == ["manager_stopped"]
            await leaving.exit_code()
        assert (await stranger.ask("jido.session.idle.stays"))["status"] == "idle"


# One manager after the other


async def stored_by(version: Version, server: LocalServer, stranger: Stranger) -> list[dict[str, Any]]:
    """The records of two sessions that a manager of that version ran and ended; it is gone."""
    async with running_manager(server, version) as process:
        for session_id in ("s1", "s2"):
            await stranger.create(session_id, metadata={"project": "demo"}, llm_config={"model": "m"})
            await stranger.ask(f"jido.session.send.{session_id}", MESSAGE)
            await stranger.ask(f"jido.session.idle.{session_id}")
            await stranger.ask(f"jido.session.terminate.{session_id}", {"detail": "enough"})
            await stranger.ends(session_id)
        process.send(signal.SIGTERM)
        await process.exit_code()
    return [await stranger.record(session_id) or {} for session_id in ("s1", "s2")]


async def test_records_that_one_version_wrote_are_read_by_the_other(
    server: LocalServer, stranger: Stranger, first: Version, second: Version
) -> None:
    records = await stored_by(first, server, stranger)
    async with running_manager(server, second):
        assert await stranger.ask("jido.session.get.s1") == records[0]
        listed = await stranger.ask("jido.session.list", {"include_terminated": True})
        assert sorted(listed["sessions"], key=lambda record: str(record["session_id"])) == records


async def test_history_that_one_version_wrote_is_read_by_the_other(
    server: LocalServer, stranger: Stranger, first: Version, second: Version
) -> None:
    await stored_by(first, server, stranger)
    async with running_manager(server, second):
        history = await stranger.ask("jido.session.history.s1")
        assert [brief(event) for event in history["events"]] == LIFE


async def test_an_id_that_one_version_used_is_refused_by_the_other(
    server: LocalServer, stranger: Stranger, first: Version, second: Version
) -> None:
    await stored_by(first, server, stranger)
    async with running_manager(server, second):
        assert (await stranger.create("s1"))["error"]["code"] == "already_exists"


async def test_streams_of_one_version_are_adopted_by_the_other(
    server: LocalServer, stranger: Stranger, first: Version, second: Version
) -> None:
    await stored_by(first, server, stranger)
    before = {name: await stranger.js.stream_info(name) for name in STREAMS}
    async with running_manager(server, second):
        assert (await stranger.create("s3"))["status"] == "active"
        after = {name: await stranger.js.stream_info(name) for name in STREAMS}
    for name in STREAMS:
        assert after[name].created == before[name].created
        one, other = before[name].config, after[name].config
        limits = ("subjects", "num_replicas", "max_age", "max_bytes", "max_msgs", "duplicate_window", "retention")
        assert {f: getattr(other, f) for f in limits} == {f: getattr(one, f) for f in limits}


async def test_no_promise_is_broken_by_an_upgrade_with_a_rollback(
    server: LocalServer, stranger: Stranger, old: Version
) -> None:
    orphans: list[str] = []
    for number, version in enumerate((old, NEW, old, NEW)):
        async with manager_process(server.url, version=version):  # killed at the end of the block
            assert set(await ended(stranger, *orphans)) <= {"owner_lost"}
            orphans = [f"a{number}", f"b{number}"]
            for session_id in orphans:
                assert (await stranger.create(session_id))["status"] == "active"
    async with manager_process(server.url):
        assert await ended(stranger, *orphans) == ["owner_lost"] * 2
        assert await violations(server, all_ended=True) == []


# A client of one version, a manager of the other


async def test_this_client_commands_an_old_manager(server: LocalServer, old: Version) -> None:
    async with running_manager(server, old), Client.connect(server.url) as client:
        created = await client.create_session(session_id="s1", metadata={"project": "demo"})
        await client.send_message("s1", "user", "hello")
        assert (created.status, (await client.idle_session("s1")).status) == (Status.ACTIVE, Status.IDLE)
        assert [record.session_id for record in await client.list_sessions()] == ["s1"]
        assert (await client.terminate_session("s1")).reason == "requested"
        assert (await client.wait("s1", "terminated")).session_id == "s1"
        assert [event.version for event in await client.session_history("s1")] == [1, 2, 3, 4, 5, 5]


async def test_this_client_watches_an_old_manager(server: LocalServer, old: Version) -> None:
    async with running_manager(server, old), Client.connect(server.url) as client:
        await client.create_session(session_id="s1")
        async with client.watch_sessions() as watch, asyncio.timeout(DEADLINE_S):
            assert isinstance(await anext(watch), WatchedSession)
            assert isinstance(await anext(watch), SnapshotComplete)
            await client.idle_session("s1")
            change = await anext(watch)
    assert isinstance(change, SessionChanged)
    assert change.record.status is Status.IDLE


async def test_this_client_reads_the_events_of_an_old_manager(
    server: LocalServer, stranger: Stranger, old: Version
) -> None:
    await stored_by(old, server, stranger)
    async with Client.connect(server.url) as client, client.events(since="all") as events:
        read = [message.event async for message in events.stored()]
    assert [event.version for event in read if event.session_id == "s1"] == [1, 2, 3, 4, 5, 5]


async def ask(old: Version, server: LocalServer, *arguments: str) -> Finished:
    """How the old `jido-nats` with these arguments ended; it has to have done what it was asked for."""
    finished = await run(*arguments, "--server", server.url, "--json", version=old)
    assert finished.code == 0, finished.err
    return finished


async def test_the_old_command_line_commands_a_new_manager(server: LocalServer, old: Version) -> None:
    async with running_manager(server, NEW):
        (created,) = (await ask(old, server, "create", "--session-id", "s1", "--metadata", "n=1")).lines
        assert (created["status"], created["metadata"]) == ("active", {"n": "1"})
        await ask(old, server, "send", "s1", "hello")
        for verb, status in (("idle", "idle"), ("activate", "active"), ("get", "active"), ("list", "active")):
            (record,) = (await ask(old, server, verb, *(["s1"] if verb != "list" else []))).lines
            assert record["status"] == status
        (ended,) = (await ask(old, server, "terminate", "s1")).lines
        assert ended["reason"] == "requested"
        (waited,) = (await ask(old, server, "wait", "s1", "--for", "terminated")).lines
        assert waited["session_id"] == "s1"


@pytest.mark.parametrize("command", [("events", "--since", "all", "--no-follow"), ("history", "s1")])
async def test_the_old_command_line_reads_the_events_of_a_new_manager(
    server: LocalServer, old: Version, command: tuple[str, ...]
) -> None:
    async with running_manager(server, NEW), stranger_at(server.url) as stranger:
        await stranger.create("s1")
        await stranger.ask("jido.session.idle.s1")
        await stranger.ask("jido.session.terminate.s1")
        finished = await ask(old, server, *command)
    assert [brief(line.get("event", line)) for line in finished.lines] == LIFE


async def test_the_old_command_line_watches_a_new_manager(
    server: LocalServer, stranger: Stranger, old: Version
) -> None:
    async with running_manager(server, NEW):
        await stranger.create("s1")
        async with running("watch", "--server", server.url, "--json", version=old) as watch:
            await watch.said("snapshot")
            await stranger.ask("jido.session.idle.s1")
            await watch.said('"status":"idle"')
            assert watch.err == ""
            assert all(isinstance(json.loads(line), dict) for line in watch.out.splitlines())


# Kinds of worker


async def test_a_kind_of_worker_can_be_named_once_no_old_manager_is_left(
    server: LocalServer, stranger: Stranger, old: Version
) -> None:
    coder = manager_process(server.url, worker="coder=tests.tools.agents:waiting", lease_s=LEASE_S)
    async with running_manager(server, old) as leaving, coder:
        messages: dict[str, str] = {}
        async with asyncio.timeout(DEADLINE_S):
            while set(messages) != {"bad_request", "unavailable"}:  # from the old one, and from the new one
                error = (await stranger.create("s1", worker="coder"))["error"]
                messages[error["code"]] = error["message"]
        assert "worker" in messages["bad_request"]
        assert "upgrade all managers first" in messages["unavailable"]
        assert (await eventually(partial(created, stranger, "s2")))["owner"] == leaving.manager_id

        leaving.send(signal.SIGTERM)
        await leaving.exit_code()

        assert (await eventually(partial(created, stranger, "s1", worker="coder")))["worker"] == "coder"


# Restart policies

POLICY: dict[str, Any] = {"on": ["crashed"]}


async def test_a_restart_policy_can_be_given_once_no_old_manager_is_left(
    server: LocalServer, stranger: Stranger, old: Version
) -> None:
    async with running_manager(server, old) as leaving, manager_process(server.url, lease_s=LEASE_S):
        messages: dict[str, str] = {}
        async with asyncio.timeout(DEADLINE_S):
            while set(messages) != {"bad_request", "unavailable"}:  # from the old one, and from the new one
                error = (await stranger.create("s1", restart=POLICY))["error"]
                messages[error["code"]] = error["message"]
        assert "restart" in messages["bad_request"]
        assert "upgrade all managers first" in messages["unavailable"]

        leaving.send(signal.SIGTERM)
        await leaving.exit_code()

        assert (await eventually(partial(created, stranger, "s1", restart=POLICY)))["run"]["attempt"] == 1


async def test_an_old_manager_leaves_sessions_with_a_restart_policy_alone(
    server: LocalServer, stranger: Stranger, old: Version
) -> None:
    async with manager_process(server.url, lease_s=LEASE_S) as first:
        await eventually(partial(created, stranger, "durable", restart=POLICY))
        await stranger.create("plain")
        async with running_manager(server, old):
            first.send(signal.SIGKILL)
            assert (await stranger.ends("plain"))["reason"] == "owner_lost"
            assert (await stranger.record("durable") or {})["status"] == "active"

            async with manager_process(server.url, lease_s=LEASE_S):
                assert (await stranger.ends("durable"))["reason"] == "owner_lost"


async def created(stranger: Stranger, session_id: str, **fields: Any) -> dict[str, Any] | None:
    """The session's record, if it can be created."""
    answer = await stranger.create(session_id, **fields)
    return None if "error" in answer else answer
