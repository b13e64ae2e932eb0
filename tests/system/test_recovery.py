"""What a manager left behind when it was killed, and what a server that was killed costs: nothing."""

import asyncio
import contextlib
from pathlib import Path

import msgspec
import pytest

from jido_nats import Client, LocalServer, SessionManager
from jido_nats.errors import TooLarge
from jido_nats.manager import takeover
from jido_nats.manager.writer import SessionWriter
from tests.conftest import StartManager
from tests.tools.programs import serving
from tests.tools.support import Puppet, Stranger, brief, eventually

LOST = {"1 created", "2 active", "3 terminated", "3 ended"}


async def test_a_killed_manager_s_sessions_end_when_the_next_one_starts(
    server: LocalServer, stranger: Stranger, start_manager: StartManager
) -> None:
    async with serving(server.url, "--lease-s", "2") as program:
        await stranger.create("s1")
        program.process.kill()
        await program.process.wait()

    await start_manager()

    record = await stranger.ends("s1")
    assert (record["status"], record["reason"]) == ("terminated", "owner_lost")


async def test_a_killed_manager_s_sessions_are_told_of_once(
    server: LocalServer, stranger: Stranger, start_manager: StartManager
) -> None:
    async with serving(server.url, "--lease-s", "2") as program:
        await asyncio.gather(*(stranger.create(f"s{n}") for n in range(20)))
        program.process.kill()
        await program.process.wait()

    await start_manager()

    await asyncio.gather(*(stranger.ends(f"s{n}") for n in range(20)))
    for number in range(20):
        own = await stranger.stored_brief(f"jido.client.session.s{number}")
        assert own == ["2 active", "3 terminated"]
    assert len(await stranger.stored_events()) == 20 * len(LOST)


async def test_a_long_takeover_says_how_far_it_is(
    server: LocalServer,
    stranger: Stranger,
    start_manager: StartManager,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serving(server.url, "--lease-s", "2") as program:
        await asyncio.gather(*(stranger.create(f"s{n}") for n in range(20)))
        program.process.kill()
        await program.process.wait()
    monkeypatch.setattr(takeover, "REPORT_INTERVAL_S", 0.001)

    await start_manager()

    await asyncio.gather(*(stranger.ends(f"s{n}") for n in range(20)))
    told = [vars(record) for record in caplog.records if record.message == "taking over sessions"]
    assert {record["total"] for record in told} == {20}
    assert [record["done"] for record in told] == sorted(record["done"] for record in told)


async def test_a_killed_manager_s_last_commands_are_told_whole(
    server: LocalServer, stranger: Stranger, start_manager: StartManager
) -> None:
    async with serving(server.url, "--lease-s", "2") as program:
        commands = [asyncio.create_task(stranger.create(f"s{n}")) for n in range(200)]
        await eventually(lambda: sum(task.done() for task in commands) > 20)
        program.process.kill()
        await program.process.wait()
        for task in commands:
            task.cancel()
        await asyncio.gather(*commands, return_exceptions=True)

    await start_manager()

    await eventually(lambda: all_sealed(stranger))
    events = await stranger.stored_events()
    for session_id in {event["session_id"] for event in events}:
        told = [(event["version"], event["type"]) for event in events if event["session_id"] == session_id]
        assert told == sorted(set(told))
        assert (told[0], told[-1][1]) == ((1, "session_created"), "session_terminated")


async def test_a_living_manager_ends_what_a_killed_one_left(
    server: LocalServer, stranger: Stranger, start_manager: StartManager
) -> None:
    async with serving(server.url, "--lease-s", "2") as program:
        await stranger.create("s1")
        manager = await start_manager()
        program.process.kill()
        await program.process.wait()

    record = await stranger.ends("s1")
    assert (record["reason"], record["owner"]) == ("owner_lost", manager.manager_id)


async def test_a_survivor_claims_before_it_tells(
    server: LocalServer, stranger: Stranger, start_manager: StartManager
) -> None:
    async with serving(server.url, "--lease-s", "2") as program:
        await stranger.create("s1")
        program.process.kill()
        await program.process.wait()

    manager = await start_manager()

    await stranger.ends("s1")
    stored = await stranger.stored()
    claim = next(n for n, message in enumerate(stored) if message.subject == "jido.fence.s1")
    assert msgspec.json.decode(stored[claim].data)["manager"] == manager.manager_id
    assert b'"terminated"' not in b"".join(message.data for message in stored[:claim])


async def test_a_manager_touches_nothing_of_a_living_one(
    server: LocalServer, stranger: Stranger, start_manager: StartManager
) -> None:
    async with serving(server.url, "--lease-s", "2") as program:
        await stranger.create("dead")
        owner = await start_manager()
        await owner.create_session(session_id="alive")
        program.process.kill()
        await program.process.wait()

    await stranger.ends("dead")

    assert (await stranger.ask("jido.session.get.alive"))["status"] == "active"


async def test_sessions_outlive_a_restart_of_the_server(
    server: LocalServer, stranger: Stranger, manager: SessionManager, puppet: Puppet
) -> None:
    await stranger.create("s1")

    await server.kill()
    await server.start()

    async with Client.connect(server.url) as client:
        assert (await client.idle_session("s1")).status == "idle"
    await eventually(lambda: stored_is(stranger, ["1 created", "2 active", "3 idle"]))


async def test_a_crash_while_the_server_is_away_is_told_afterwards(
    server: LocalServer, stranger: Stranger, manager: SessionManager, puppet: Puppet
) -> None:
    await stranger.create("s1")

    await server.kill()
    puppet.crash("s1", RuntimeError("boom"))
    await server.start()

    await eventually(lambda: stored_is(stranger, ["1 created", "2 active", "3 terminated", "3 ended"]))


async def test_commands_through_a_restart_of_the_server_happen_once(
    server: LocalServer, stranger: Stranger, manager: SessionManager
) -> None:
    async with Client.connect(server.url, timeout_s=20) as client:
        creating = [asyncio.create_task(client.create_session(session_id=f"s{n}")) for n in range(50)]
        await eventually(lambda: any(task.done() for task in creating))
        await server.kill()
        await server.start()
        records = await asyncio.gather(*creating)

    assert {record.status for record in records} == {"active"}
    events = await eventually(lambda: readable(stranger))
    told = [(event["session_id"], event["version"]) for event in events]
    assert sorted(told) == sorted((f"s{n}", version) for n in range(50) for version in (1, 2))


async def test_a_lease_that_lapsed_is_made_anew(
    server: LocalServer, stranger: Stranger, manager: SessionManager
) -> None:
    await stranger.create("s1")

    await server.kill()
    await eventually(lambda: not manager._lease.valid)
    await server.start()

    async with Client.connect(server.url, timeout_s=20) as client:
        assert (await client.idle_session("s1")).status == "idle"


async def all_sealed(stranger: Stranger) -> bool:
    with contextlib.suppress(Exception):
        sessions = (await stranger.ask("jido.session.list", {"include_terminated": True, "limit": 1000}))["sessions"]
        return bool(sessions) and all(record.get("sealed") for record in sessions)
    return False


async def stored_is(stranger: Stranger, wanted: list[str]) -> bool:
    with contextlib.suppress(Exception):  # the stock client is reconnecting, too
        return await stranger.stored_brief() == wanted
    return False


async def readable(stranger: Stranger) -> list[dict[str, object]]:
    with contextlib.suppress(Exception):
        return await stranger.stored_events()
    return []


@pytest.mark.parametrize("session_id", ["no token", "another", "a.b"])
async def test_a_record_that_is_none_does_not_hold_up_the_others(
    stranger: Stranger, start_manager: StartManager, session_id: str
) -> None:
    left = {
        "status": "active",
        "version": 2,
        "previous_status": "initializing",
        "owner": "manager_dead",
        "created_at": "2025-01-24T10:30:00Z",
        "updated_at": "2025-01-24T10:30:00Z",
        "metadata": {},
    }
    await start_manager()
    await stranger.js.publish("$KV.JIDO_SESSIONS.copy", msgspec.json.encode({**left, "session_id": session_id}))
    await stranger.js.publish("$KV.JIDO_SESSIONS.a.b", msgspec.json.encode({**left, "session_id": "b"}))

    await stranger.js.publish("$KV.JIDO_SESSIONS.s1", msgspec.json.encode({**left, "session_id": "s1"}))

    assert (await stranger.ends("s1"))["reason"] == "owner_lost"
    assert {s["session_id"] for s in (await stranger.ask("jido.session.list"))["sessions"]} == set()


async def test_one_that_cannot_be_taken_over_does_not_hold_up_the_others(
    server: LocalServer, stranger: Stranger, start_manager: StartManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(server.url, "--lease-s", "2") as program:
        await asyncio.gather(*(stranger.create(f"s{n}") for n in range(5)))
        program.process.kill()
        await program.process.wait()
    claim = SessionWriter.claim

    async def fails_for_one(self: SessionWriter, **options: bool) -> None:
        if self.record.session_id == "s2":
            raise TooLarge("max_payload was lowered")
        await claim(self, **options)

    monkeypatch.setattr(SessionWriter, "claim", fails_for_one)

    await start_manager()

    await asyncio.gather(*(stranger.ends(f"s{n}") for n in (0, 1, 3, 4)))
    assert (await stranger.record("s2") or {})["status"] == "active"


async def test_sessions_end_though_the_stream_of_their_events_was_made_again(
    server: LocalServer, stranger: Stranger, start_manager: StartManager
) -> None:
    async with serving(server.url, "--lease-s", "2") as program:
        for number in range(5):
            await stranger.create(f"s{number}")
            await stranger.ask(f"jido.session.terminate.s{number}")
        await stranger.create("last")
        program.process.kill()
        await program.process.wait()
    await stranger.js.delete_stream("JIDO_CLIENT")

    await start_manager()

    assert (await stranger.ends("last"))["reason"] == "owner_lost"
    assert await stranger.stored_brief() == ["1 created", "2 active", "3 terminated", "3 ended"]


async def test_what_the_stream_has_forgotten_is_not_told_again(
    server: LocalServer, stranger: Stranger, start_manager: StartManager, tmp_path: Path
) -> None:
    (tmp_path / "settings.toml").write_text("retention_s = 3\nlease_s = 2\n")
    async with serving(server.url, "--config", str(tmp_path / "settings.toml")) as program:
        await stranger.create("s1")
        await stranger.create("s2")
        await stranger.ask("jido.session.idle.s2")
        program.process.kill()
        await program.process.wait()
    await eventually(lambda: stored_is(stranger, []))

    await start_manager(retention_s=3, lease_s=2)

    await stranger.ends("s1")
    await stranger.ends("s2")
    assert sorted(await stranger.stored_brief()) == ["3 ended", "3 terminated", "4 ended", "4 terminated"]


async def test_history_of_what_the_stream_has_forgotten_ends_with_what_is(
    stranger: Stranger, start_manager: StartManager
) -> None:
    await start_manager(retention_s=2)
    await stranger.create("s1")
    await stranger.ask("jido.session.idle.s1")

    await eventually(lambda: stored_is(stranger, []))

    told = (await stranger.ask("jido.session.history.s1"))["events"]
    assert [brief(event) for event in told] == ["1 created", "3 idle"]
