"""Several managers on one NATS: whose a session is, who ends it, and who answers."""

import asyncio
import glob
import os
import signal
import time
from collections import Counter
from datetime import UTC, datetime
from functools import partial
from typing import Any

import msgspec
import pytest

from jido_nats import (
    AlreadyExists,
    Client,
    InvalidTransition,
    JidoError,
    LocalServer,
    Overloaded,
    SessionManager,
    Settings,
    Status,
    Unavailable,
)
from jido_nats.broker.connection import Connection
from jido_nats.broker.micro import MicroService, Request
from jido_nats.core import codec, lifecycle
from jido_nats.manager.service import Service
from tests.conftest import StartManager
from tests.tools import audit
from tests.tools.processes import freeze, manager_process
from tests.tools.programs import serving
from tests.tools.support import DEADLINE_S, LEASE_S, Stranger, Stubborn, eventually, wait_for_ever


async def violations(server: LocalServer) -> list[audit.Violation]:
    seen = await audit.read(server.url)
    return audit.audit(*seen, quiet=True)


async def test_a_command_that_reaches_another_manager_is_passed_on_to_the_owner(start_manager: StartManager) -> None:
    owner, other = await start_manager(), await start_manager()
    await owner.create_session(session_id="s1")
    assert (await other.idle_session("s1")).status is Status.IDLE
    assert (await other.activate_session("s1")).owner == owner.manager_id
    assert (await other.terminate_session("s1")).status is Status.TERMINATED


async def test_an_error_of_the_owner_is_passed_back(start_manager: StartManager) -> None:
    owner, other = await start_manager(), await start_manager()
    await owner.create_session(session_id="s1")
    with pytest.raises(JidoError, match="cannot become active"):
        await other.activate_session("s1")


async def test_a_create_that_is_repeated_at_another_manager_gives_the_same_session(start_manager: StartManager) -> None:
    owner, other = await start_manager(), await start_manager()
    first = await owner.create_session(session_id="s1", metadata={"n": 1})
    again = await other.create_session(session_id="s1", metadata={"n": 1})
    assert again.replayed
    assert (again.owner, again.version) == (owner.manager_id, first.version)


async def test_an_owner_that_does_not_answer_makes_the_command_unavailable(
    server: LocalServer, start_manager: StartManager, stranger: Stranger
) -> None:
    async with manager_process(server.url, lease_s=8) as frozen:
        created = await stranger.create("s1")
        other = await start_manager(command_timeout_s=0.5, lease_s=8)
        await frozen.freeze()
        with pytest.raises(Unavailable):
            await other.terminate_session("s1")
        assert (await stranger.record("s1")) == created


async def test_of_two_survivors_exactly_one_ends_each_orphan(server: LocalServer, start_manager: StartManager) -> None:
    async with manager_process(server.url) as dead, Client.connect(server.url) as client:
        await asyncio.gather(*(client.create_session(session_id=f"s{n}") for n in range(100)))
        survivors = [await start_manager(lease_s=1), await start_manager(lease_s=1)]
        dead.send(signal.SIGKILL)
        await eventually(lambda: all_sealed(survivors[0]))
        reasons = Counter(record.reason for record in await client.list_sessions(include_terminated=True))
        assert reasons == {"owner_lost": 100}
        assert await violations(server) == []


async def test_a_manager_whose_expiry_was_not_heard_is_dead_all_the_same(
    start_manager: StartManager, stranger: Stranger
) -> None:
    manager = await start_manager(lease_s=1)
    ghost = msgspec.structs.replace(manager._info(), manager_id="ghost")
    manager._leases.managers["ghost"] = ghost  # as a follower believes that was away for longer than the marker
    record, _ = lifecycle.create("s1", owner="ghost", at=datetime.now(UTC))
    await stranger.js.publish("$KV.JIDO_SESSIONS.s1", codec.encode(record))
    await eventually(lambda: all_sealed(manager))
    assert [record.reason for record in await manager.list_sessions(include_terminated=True)] == ["owner_lost"]


async def test_a_worker_that_blocks_the_loop_does_not_cost_the_lease(
    server: LocalServer, start_manager: StartManager
) -> None:
    async with manager_process(server.url, worker="tests.tools.agents:blocking"):
        other = await start_manager(lease_s=1)
        async with Client.connect(server.url) as client:
            blocked = [await client.create_session(session_id=f"b{n}") for n in range(2)]
        gone: list[str] = []
        async with asyncio.timeout(DEADLINE_S):
            while len(other._leases.managers) == 2 and not await answers(server, blocked[0].session_id):
                gone = [record.session_id for record in await other.list_sessions(status=Status.TERMINATED)]
        assert len(other._leases.managers) == 2
        assert gone == []


async def test_an_outage_longer_than_the_lease_costs_no_session(
    server: LocalServer, start_manager: StartManager, stranger: Stranger
) -> None:
    manager = await start_manager(lease_s=1)
    other = await start_manager(lease_s=1)
    await manager.create_session(session_id="s1")
    await server.kill()
    await eventually(lambda: not manager._lease.valid and not other._lease.valid)
    await server.start()
    await eventually(lambda: manager._ownership.may_write() and other._ownership.can_declare_dead())
    assert (await eventually(lambda: idled(manager))).owner == manager.manager_id
    assert await stranger.stored_brief() == ["1 created", "2 active", "3 idle"]


async def test_an_outage_longer_than_the_duplicate_window_repeats_nothing(
    server: LocalServer, start_manager: StartManager
) -> None:
    manager = await start_manager(duplicate_window_s=1)
    for _ in range(4):
        steps = [asyncio.create_task(steady(manager, f"s{_}_{n}")) for n in range(20)]
        await eventually(lambda: len(manager._sessions) > 5)
        await server.kill()
        await eventually(lambda: not manager._connections[0].connected)
        await server.start()
        await asyncio.gather(*steps)
    await eventually(lambda: all_sealed(manager))  # a terminate is answered before the seal
    assert await violations(server) == []


async def test_a_full_manager_leaves_creating_to_the_others(server: LocalServer, start_manager: StartManager) -> None:
    full, other = await start_manager(sessions_max=1), await start_manager()
    await full.create_session()
    await eventually(lambda: list(full._leases.others(full.manager_id)) == [other.manager_id])
    async with Client.connect(server.url) as client:
        await eventually(lambda: created_at(client, other.manager_id, 10))


async def test_managers_that_are_all_full_answer_overloaded(server: LocalServer, start_manager: StartManager) -> None:
    manager = await start_manager(sessions_max=1)
    await manager.create_session()
    async with Client.connect(server.url) as client:
        with pytest.raises(Overloaded):
            await client.create_session()


async def all_sealed(manager: SessionManager) -> bool:
    records = await manager.list_sessions(include_terminated=True)
    return bool(records) and all(record.sealed for record in records)


def clock_off_by(seconds: int) -> dict[str, str]:
    """The environment of a process whose clock is so much ahead."""
    found = glob.glob("/usr/lib/*/faketime/libfaketime.so.1")
    assert found, "tests/interop/install.sh installs libfaketime"
    return {"LD_PRELOAD": found[0], "FAKETIME": f"{seconds:+d}s", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}


@pytest.mark.parametrize("seconds", [-60, 60])
async def test_clocks_that_differ_do_not_keep_a_command_from_the_owner(
    server: LocalServer, stranger: Stranger, start_manager: StartManager, seconds: int
) -> None:
    async with serving(server.url, "--lease-s", str(LEASE_S), env=clock_off_by(seconds)):
        owner = (await stranger.create("s1"))["owner"]
        other = await start_manager()

        assert (await other.idle_session("s1")).owner == owner
        assert (await other.terminate_session("s1")).status is Status.TERMINATED


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Jido-Time-Left-Ms": "3000", "Jido-Deadline": "2020-01-01T00:00:00+00:00"}, "active"),
        ({"Jido-Time-Left-Ms": "0", "Jido-Deadline": "2999-01-01T00:00:00+00:00"}, None),
        ({"Jido-Time-Left-Ms": "-1"}, None),
        ({"Jido-Time-Left-Ms": "1" * 400, "Jido-Deadline": "nonsense"}, "active"),
        ({"Jido-Deadline": "2020-01-01T00:00:00+00:00"}, None),  # from a manager of version 0.1
        ({"Jido-Deadline": "2999-01-01T00:00:00+00:00"}, "active"),
        ({}, "active"),
    ],
)
async def test_the_time_that_is_left_decides_whether_a_forwarded_command_is_late(
    stranger: Stranger, manager: SessionManager, headers: dict[str, str], status: str | None
) -> None:
    await stranger.create("s1")

    reply = await stranger.request(f"jido.manager.{manager.manager_id}.get.s1", headers=headers)

    answer = msgspec.json.decode(reply.data)
    assert answer.get("status") == status
    assert (answer.get("error") or {}).get("code") == (None if status else "unavailable")


async def test_a_forwarded_command_says_how_much_time_is_left(stranger: Stranger, start_manager: StartManager) -> None:
    manager = await start_manager(lease_s=60)
    record, _ = lifecycle.create("s1", owner="ghost", at=datetime.now(UTC))
    await stranger.js.publish("$KV.JIDO_SESSIONS.s1", codec.encode(record))
    forwarded = await stranger.hear("jido.manager.ghost.*.*")

    with pytest.raises(Unavailable):
        await manager.idle_session("s1")

    headers = forwarded.messages[0].headers or {}
    assert 0 < int(headers["Jido-Time-Left-Ms"]) <= 4500
    assert abs((datetime.fromisoformat(headers["Jido-Deadline"]) - datetime.now(UTC)).total_seconds()) < 60


async def test_a_forwarded_command_is_given_up_when_its_sender_no_longer_waits(
    stranger: Stranger, start_manager: StartManager
) -> None:
    stubborn = Stubborn()
    manager = await start_manager(stubborn, stop_timeout_s=30.0)
    await stranger.create("s1")

    started = time.monotonic()
    headers = {"Jido-Time-Left-Ms": "300"}
    try:
        reply = await stranger.request(f"jido.manager.{manager.manager_id}.terminate.s1", headers=headers)
    finally:
        stubborn.let_go.set()

    assert b'"unavailable"' in reply.data
    assert time.monotonic() - started < 15  # half of the worker's time to stop


@pytest.mark.parametrize(("to", "status"), [("this one", None), ("another", 503)])
async def test_a_manager_carries_out_only_what_was_forwarded_to_it(
    connection: Connection, stranger: Stranger, manager: SessionManager, to: str, status: int | None
) -> None:
    await stranger.create("s1")
    micro = MicroService(connection, name="x", service_id="x", version="0", description="")
    handler = manager._running().handle
    service = Service(micro, manager._settings, manager.manager_id, handler, manager._consumers, manager.stats)
    manager_id = manager.manager_id if to == "this one" else "another"

    reply = await service._handle_forwarded(Request(f"jido.manager.{manager_id}.get.s1", {}, b""))

    assert (reply.error[0] if reply.error else None) == status


async def answers(server: LocalServer, session_id: str) -> bool:
    """Whether a command to the session's owner is carried out."""
    async with Client.connect(server.url, timeout_s=1) as client:
        try:
            return (await client.idle_session(session_id)).status is Status.IDLE
        except InvalidTransition:  # an earlier attempt was carried out, and its reply came too late
            return True
        except JidoError:
            return False


async def idled(manager: SessionManager) -> object:
    try:
        return await manager.idle_session("s1")
    except Unavailable:
        return None


async def steady(manager: SessionManager, session_id: str) -> None:
    """Create and end one session, asking again for as long as it takes."""
    for step in (manager.create_session(session_id=session_id), manager.terminate_session(session_id)):
        try:
            await step
        except Unavailable:
            await eventually(lambda: done(manager, session_id))


async def done(manager: SessionManager, session_id: str) -> bool:
    try:
        await manager.create_session(session_id=session_id)
        return (await manager.terminate_session(session_id)).status is Status.TERMINATED
    except Unavailable:
        return False


async def created_at(client: Client, manager_id: str, number: int) -> bool:
    """Whether that many creates in a row all went to one manager."""
    try:
        return {(await client.create_session()).owner for _ in range(number)} == {manager_id}
    except Overloaded:
        return False


async def test_a_session_that_a_defect_broke_is_ended_all_the_same(
    server: LocalServer, start_manager: StartManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = await start_manager(lease_s=1)
    publish, failures = manager._context.event_log.publish, iter([ZeroDivisionError("a defect")])

    async def fails_once(*arguments: Any) -> int:
        for failure in failures:
            raise failure
        return await publish(*arguments)

    monkeypatch.setattr(manager._context.event_log, "publish", fails_once)
    with pytest.raises(ZeroDivisionError):
        await manager.create_session(session_id="s1")
    await eventually(lambda: all_sealed(manager))
    assert await violations(server) == []


async def test_no_create_is_refused_while_another_manager_has_room(
    server: LocalServer, stranger: Stranger, start_manager: StartManager
) -> None:
    full, other = await start_manager(sessions_max=5), await start_manager()
    await eventually(lambda: list(full._leases.others(full.manager_id)) == [other.manager_id])

    answers = await asyncio.gather(*(stranger.create(f"s{number}") for number in range(60)))

    assert [answer for answer in answers if "error" in answer] == []
    assert {answer["owner"] for answer in answers} == {full.manager_id, other.manager_id}
    assert len(full._sessions) == 5


async def test_a_manager_uses_the_lease_time_of_those_that_live(
    stranger: Stranger, start_manager: StartManager, caplog: pytest.LogCaptureFixture
) -> None:
    await start_manager(lease_s=2)

    other = await start_manager(lease_s=3)

    assert (other._lease.lease_s, other._leases.lease_s, other._sweeper._interval_s) == (2, 2, 2 / 3)
    warnings = [(r.levelname, vars(r)["lease_s"], vars(r)["setting"]) for r in caplog.records if hasattr(r, "setting")]
    assert warnings == [("WARNING", 2, 3)]
    assert {(m.headers or {})["Nats-TTL"] for m in await stranger.stored("KV_JIDO_MANAGERS")} == {"2s"}


async def test_a_new_lease_time_holds_after_every_manager_was_stopped(start_manager: StartManager) -> None:
    await (await start_manager(lease_s=2)).close()

    assert (await start_manager(lease_s=3))._lease.lease_s == 3


async def test_managers_that_start_at_the_same_moment_agree_on_the_lease_time(start_manager: StartManager) -> None:
    managers = await asyncio.gather(*(start_manager(lease_s=2 + number % 3) for number in range(6)))

    await eventually(lambda: len({manager._lease.lease_s for manager in managers}) == 1)


async def test_a_manager_takes_the_lease_time_of_one_that_started_while_its_own_lease_had_lapsed(
    server: LocalServer, start_manager: StartManager, stranger: Stranger
) -> None:
    manager = await start_manager(lease_s=2)
    config = (await stranger.ask("$JS.API.STREAM.INFO.JIDO_CLIENT"))["config"]
    await stranger.ask("$JS.API.STREAM.UPDATE.JIDO_CLIENT", config | {"metadata": {"lease_s": "4"}})

    await start_manager(lease_s=4)

    await eventually(lambda: manager._lease.lease_s == 4)


async def test_a_manager_of_an_older_version_with_another_lease_time_is_reported(
    stranger: Stranger, start_manager: StartManager, caplog: pytest.LogCaptureFixture
) -> None:
    manager = await start_manager(lease_s=2)

    lease = codec.encode(msgspec.structs.replace(manager._info(), manager_id="manager_old"))
    await stranger.js.publish("$KV.JIDO_MANAGERS.manager_old", lease, headers={"Nats-TTL": "9s"})

    await eventually(lambda: [vars(r) for r in caplog.records if vars(r).get("other") == "manager_old"])


async def test_a_repeated_create_finds_its_session_although_the_manager_is_full(
    stranger: Stranger, start_manager: StartManager
) -> None:
    full, other = await start_manager(sessions_max=1), await start_manager(sessions_max=1)
    await full.create_session(session_id="s1")
    await eventually(lambda: list(full._leases.others(full.manager_id)) == [other.manager_id])
    first = await full.create_session(session_id="s2", metadata={"n": 1})

    again = await full.create_session(session_id="s2", metadata={"n": 1})
    with pytest.raises(AlreadyExists):
        await full.create_session(session_id="s2", metadata={"n": 2})

    assert (first.owner, first.replayed) == (other.manager_id, False)
    assert (again.owner, again.version, again.replayed) == (other.manager_id, 2, True)


async def test_a_manager_that_does_not_serve_is_not_counted_on(
    server: LocalServer, stranger: Stranger, start_manager: StartManager
) -> None:
    full = await start_manager(sessions_max=1)
    async with SessionManager.connect(server.url, worker=wait_for_ever, settings=Settings(lease_s=2)) as embedded:
        await full.create_session()
        await eventually(lambda: full._leases.managers.get(embedded.manager_id))

        assert (await stranger.create("s1"))["error"]["code"] == "overloaded"


async def test_a_manager_that_is_gone_does_not_hold_up_the_next(start_manager: StartManager) -> None:
    full, other = await start_manager(sessions_max=1), await start_manager()
    await full.create_session()
    await eventually(lambda: list(full._leases.others(full.manager_id)) == [other.manager_id])
    gone = msgspec.structs.replace(full._leases.managers[other.manager_id], manager_id="manager_gone")
    full._leases.managers = {"manager_gone": gone, **full._leases.managers}

    assert (await full.create_session()).owner == other.manager_id


async def test_a_foreign_entry_with_another_clock_s_seconds_is_passed_over(
    stranger: Stranger, start_manager: StartManager, caplog: pytest.LogCaptureFixture
) -> None:
    manager = await start_manager()
    await stranger.js.publish("$KV.JIDO_MANAGERS.note", b"{}", headers={"Nats-TTL": "1m0s"})
    other = await start_manager()

    await eventually(lambda: other.manager_id in manager._leases.managers)
    assert not [record for record in caplog.records if "failed; restarting it" in record.getMessage()]


@pytest.mark.parametrize("seconds", [1.5, 3.5], ids=["shorter than a lease", "longer than a lease"])
async def test_managers_do_not_judge_each_other_by_leases_that_nats_did_not_let_them_renew(
    server: LocalServer, start_manager: StartManager, seconds: float
) -> None:
    managers = [await start_manager(lease_s=2) for _ in range(4)]
    for number, manager in enumerate(managers):
        await manager.create_session(session_id=f"s{number}")
    await eventually(lambda: all(manager._ownership.can_declare_dead() for manager in managers))

    await freeze(server.pid)
    await asyncio.sleep(seconds)
    os.kill(server.pid, signal.SIGCONT)

    await eventually(lambda: all(manager._ownership.can_declare_dead() for manager in managers))
    await asyncio.gather(*(manager._sweeper.sweep() for manager in managers))
    assert [record.status for record in await managers[0].list_sessions()] == [Status.ACTIVE] * 4


async def test_what_a_manager_claimed_and_could_not_end_is_ended_though_its_owner_came_back(
    start_manager: StartManager, stranger: Stranger
) -> None:
    owner, other = await start_manager(lease_s=2), await start_manager(lease_s=2)
    await owner.create_session(session_id="s1")
    await stranger.js.publish("jido.fence.s1", msgspec.json.encode({"manager": other.manager_id}))

    with pytest.raises(Unavailable):
        await owner.idle_session("s1")  # which finds that it was claimed, and lets go of it

    assert (await stranger.ends("s1"))["reason"] == "owner_lost"


async def test_a_manager_that_was_frozen_logs_what_it_has_lost_and_serves_on(
    server: LocalServer, stranger: Stranger
) -> None:
    options = ("--worker", "tests.tools.agents:waiting", "--lease-s", "1")
    async with serving(server.url, *options) as frozen:
        for number in range(3):
            await stranger.create(f"s{number}")
        async with serving(server.url, *options) as survivor:
            frozen.send(signal.SIGSTOP)
            ends = [await stranger.ends(f"s{number}") for number in range(3)]
            frozen.send(signal.SIGCONT)

            for number in range(3):
                await frozen.said(f"relinquishing a session session_id=s{number}")
            await frozen.said("the lease had lapsed and is held again")
            await survivor.said("taking over sessions")
        assert [end["reason"] for end in ends] == ["owner_lost"] * 3
        await eventually(partial(is_created, stranger, "s4"))


async def is_created(stranger: Stranger, session_id: str) -> bool:
    """Whether a session can be created; on a busy machine a lease of a second may lapse, and a create waits for it."""
    try:
        return bool((await stranger.create(session_id)).get("status") == "active")
    except TimeoutError:
        return False
