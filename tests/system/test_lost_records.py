"""Records that a person deleted or overwrote, a store that came back older, buckets without room for a consumer."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from jido_nats import Client, LocalServer, Session, SessionManager, Settings
from jido_nats.manager import takeover
from jido_nats.store import leases
from tests.conftest import StartManager
from tests.tools.backup import Backup
from tests.tools.programs import serving
from tests.tools.support import LEASE_S, Stranger, eventually

NOW = "2026-11-26T00:00:00Z"
KEY = "$KV.JIDO_SESSIONS."
DELETED = ["1 created", "2 active", "3 terminated", "3 ended"]


class Workers:
    """Workers that wait, and who of them still runs."""

    def __init__(self) -> None:
        self.running: set[str] = set()

    async def __call__(self, session: Session) -> None:
        self.running.add(session.session_id)
        try:
            await asyncio.Event().wait()
        finally:
            self.running.discard(session.session_id)


@pytest.fixture
def workers() -> Workers:
    return Workers()


async def delete(stranger: Stranger, session_id: str, operation: str) -> None:
    """As `nats kv del` and `nats kv purge`."""
    headers = {"KV-Operation": operation} | ({"Nats-Rollup": "sub"} if operation == "PURGE" else {})
    await stranger.js.publish(KEY + session_id, b"", headers=headers)


@pytest.mark.parametrize("operation", ["DEL", "PURGE"])
async def test_a_session_whose_record_was_deleted_ends(
    stranger: Stranger, start_manager: StartManager, workers: Workers, operation: str
) -> None:
    await start_manager(workers)
    await stranger.create("s1")

    await delete(stranger, "s1", operation)

    record = await stranger.ends("s1")
    assert (record["status"], record["reason"], record["error"]) == ("terminated", "crashed", "record deleted")
    assert await stranger.stored_brief() == DELETED
    assert workers.running == set()


async def test_a_command_about_a_deleted_record_does_not_hide_its_end(
    stranger: Stranger, start_manager: StartManager, workers: Workers
) -> None:
    manager = await start_manager(workers)
    await stranger.create("s1")
    await delete(stranger, "s1", "DEL")

    await asyncio.gather(*(stranger.ask(f"jido.session.{verb}.s1") for verb in ("idle", "terminate", "activate")))

    record = await stranger.ends("s1")
    assert record["status"] == "terminated"
    assert (await stranger.stored_brief("jido.client.session.s1"))[-1].endswith("terminated")
    assert len(manager._sessions) == 0 and workers.running == set()


async def test_a_worker_that_ends_after_its_record_was_deleted_ends_its_session(
    stranger: Stranger, start_manager: StartManager
) -> None:
    ending = asyncio.Event()

    async def worker(session: Session) -> None:
        await ending.wait()

    await start_manager(worker)
    await stranger.create("s1")
    await delete(stranger, "s1", "DEL")
    ending.set()

    assert (await stranger.ends("s1"))["status"] == "terminated"
    assert (await stranger.stored_brief("jido.client.session.s1")) == ["2 active", "3 terminated"]


async def test_a_live_session_s_owner_stores_a_damaged_record_again(
    stranger: Stranger, start_manager: StartManager, workers: Workers
) -> None:
    await start_manager(workers)
    await stranger.create("s1", metadata={"a": 1}, llm_config={"b": 2})
    before = await stranger.record("s1")

    await stranger.js.publish(KEY + "s1", b"\x00 no record")

    await eventually(lambda: stored_again(stranger, "s1"))
    assert await stranger.record("s1") == before
    assert (await stranger.ask("jido.session.idle.s1"))["version"] == 3
    assert (await stranger.ask("jido.session.terminate.s1"))["status"] == "terminated"
    assert workers.running == set()


async def stored_again(stranger: Stranger, session_id: str) -> bool:
    found = await stranger.js.get_last_msg("KV_JIDO_SESSIONS", KEY + session_id)
    return bool(found.data and found.data.startswith(b"{"))


@pytest.mark.parametrize(
    "damage", [b"no record", b'{"session_id":"another"}', b'{"session_id":"s1","status":"active"}']
)
async def test_an_orphan_whose_record_is_damaged_is_repaired_from_the_stream_and_ended(
    server: LocalServer, stranger: Stranger, start_manager: StartManager, damage: bytes
) -> None:
    async with serving(server.url, "--lease-s", "1") as program:
        await stranger.create("s1", metadata={"a": 1})
        await stranger.ask("jido.session.idle.s1")
        program.process.kill()
        await program.process.wait()
    await stranger.js.publish(KEY + "s1", damage)

    await start_manager()

    error = (await stranger.ask("jido.session.get.s1"))["error"]
    assert (error["code"], "damaged" in error["message"]) == ("unavailable", True)
    await eventually(lambda: is_sealed(stranger, "s1"))
    record = await stranger.record("s1")
    assert record is not None
    assert (record["status"], record["reason"], record["version"]) == ("terminated", "owner_lost", 4)
    assert record["metadata"] == {"a": 1}
    assert await stranger.stored_brief() == ["1 created", "2 active", "3 idle", "4 terminated", "4 ended"]


async def test_a_repaired_record_ends_in_its_attempt_and_its_journal_is_removed(
    server: LocalServer, stranger: Stranger, start_manager: StartManager
) -> None:
    async with serving(server.url, "--lease-s", "1") as program:
        await stranger.create("s1", restart={"on": ["crashed"]})
        program.process.kill()
        await program.process.wait()
    assert await stranger.stored("JIDO_JOURNAL")
    await stranger.js.publish(KEY + "s1", b"no record")

    await start_manager()

    await eventually(lambda: is_sealed(stranger, "s1"))
    assert [event.get("attempt") for event in await stranger.stored_events()] == [None, 1, 1, 1]
    assert not await stranger.stored("JIDO_JOURNAL")


async def is_sealed(stranger: Stranger, session_id: str) -> bool:
    found = await stranger.js.get_last_msg("KV_JIDO_SESSIONS", KEY + session_id)
    return b'"sealed":true' in (found.data or b"")


class Restorable(NamedTuple):
    """A manager, and a client, on a server whose store can come back older."""

    server: LocalServer
    backup: Backup
    manager: SessionManager
    client: Client


@pytest.fixture
async def restorable(tmp_path: Path, workers: Workers) -> AsyncIterator[Restorable]:
    async with (
        LocalServer(store_dir=tmp_path / "store") as server,
        SessionManager.connect(server.url, worker=workers, settings=Settings(lease_s=2)) as manager,
        Client.connect(server.url, timeout_s=20) as client,
    ):
        await manager.start_serving()
        yield Restorable(server, Backup(server, tmp_path / "store", tmp_path / "copy"), manager, client)


async def test_the_store_wins_over_what_a_manager_remembers(
    restorable: Restorable, workers: Workers, caplog: pytest.LogCaptureFixture
) -> None:
    _, backup, _, client = restorable
    for name in ("kept", "changed"):
        await client.create_session(session_id=name)
    await backup.take()
    await eventually(lambda: client.list_sessions())
    await client.idle_session("changed")
    await asyncio.gather(*(client.create_session(session_id=f"lost{n}") for n in range(5)))
    await backup.restore()

    await client.create_session(session_id="new")
    await eventually(lambda: ids_of(client, {"kept", "new"}))
    assert workers.running == {"kept", "new"}
    ended = await client.wait("changed", "terminated", timeout_s=20)
    assert (ended.reason, ended.version) == ("owner_lost", 3)
    assert (await client.terminate_session("kept")).reason == "requested"
    lost = [vars(r)["session_id"] for r in caplog.records if "came back without this session" in r.message]
    assert sorted(lost) == ["changed", *(f"lost{n}" for n in range(5))]
    assert [r for r in caplog.records if r.levelno >= logging.ERROR and "came back" not in r.message] == []


async def test_a_session_that_had_ended_since_the_store_was_copied_ends_again(restorable: Restorable) -> None:
    _, backup, _, client = restorable
    await client.create_session(session_id="s1")
    await backup.take()
    await client.terminate_session("s1")
    await backup.restore()

    ended = await client.wait("s1", "terminated", timeout_s=20)
    assert (ended.reason, ended.version) == ("owner_lost", 3)


async def ids_of(client: Client, wanted: set[str]) -> bool:
    return {record.session_id for record in await client.list_sessions()} == wanted


async def test_a_manager_killed_after_the_store_came_back_older_is_taken_over(restorable: Restorable) -> None:
    server, backup, survivor, client = restorable
    await client.create_session(session_id="first")
    await backup.take()
    await asyncio.gather(*(client.create_session(session_id=f"lost{n}") for n in range(20)))
    await backup.restore()
    async with serving(server.url, "--worker", "tests.tools.agents:waiting", "--lease-s", "2") as program:
        made = await asyncio.gather(*(client.create_session(session_id=f"new{n}") for n in range(30)))
        program.process.kill()
        await program.process.wait()
    orphans = [record.session_id for record in made if record.owner != survivor.manager_id]
    assert orphans
    for session_id in orphans:
        assert (await client.wait(session_id, "terminated", timeout_s=20)).reason == "owner_lost"


async def test_a_manager_does_its_work_although_readers_have_every_consumer_of_the_bucket(
    server: LocalServer, stranger: Stranger, start_manager: StartManager
) -> None:
    async with serving(server.url, "--lease-s", "1") as program:
        await stranger.create("orphan")
        manager = await start_manager()
        await take_every_consumer(stranger)
        await eventually(lambda: manager.snapshot().without_consumer == ["index"])
        program.process.kill()
        await program.process.wait()

    assert (await stranger.ends("orphan"))["reason"] == "owner_lost"
    assert (await stranger.create("s1"))["status"] == "active"
    assert [s["session_id"] for s in (await stranger.ask("jido.session.list"))["sessions"]] == ["s1"]
    assert manager.snapshot().not_ready == []


async def take_every_consumer(stranger: Stranger) -> None:
    """A reader has the only consumer that the bucket takes; those of managers are gone."""
    stream = "KV_JIDO_SESSIONS"
    others = (await stranger.ask(f"$JS.API.CONSUMER.NAMES.{stream}"))["consumers"]
    reader = {"name": "reader", "ack_policy": "none", "inactive_threshold": 120_000_000_000}
    await stranger.ask(f"$JS.API.CONSUMER.CREATE.{stream}.reader", {"stream_name": stream, "config": reader})
    config = (await stranger.ask(f"$JS.API.STREAM.INFO.{stream}"))["config"]
    assert "error" not in await stranger.ask(f"$JS.API.STREAM.UPDATE.{stream}", {**config, "max_consumers": 1})
    for name in others:
        await stranger.ask(f"$JS.API.CONSUMER.DELETE.{stream}.{name}")


async def test_an_owner_whose_lease_is_back_keeps_what_a_sweep_has_not_taken_yet(
    stranger: Stranger, start_manager: StartManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(takeover, "TOGETHER", 1)
    await start_manager()
    ended = await stranger.hear("jido.client.events")

    await asyncio.gather(*(put_record(stranger, f"s{number:02}", "manager_other") for number in range(60)))
    await eventually(lambda: ended.messages)
    lease = {"manager_id": "manager_other", "host": "h", "pid": 1, "started_at": NOW, "version": "1"}
    await stranger.js.publish("$KV.JIDO_MANAGERS.manager_other", msgspec.json.encode(lease))
    taken = await settled_number(stranger)

    assert 0 < taken < 60
    assert await settled_number(stranger) == taken


async def test_an_entry_that_no_manager_renews_is_no_lease_although_the_server_keeps_it(
    stranger: Stranger, start_manager: StartManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "OVERDUE_S", 1)
    lease = {"manager_id": "manager_gone", "host": "h", "pid": 1, "started_at": NOW, "version": "1"}
    manager = await start_manager()
    await stranger.js.publish("$KV.JIDO_MANAGERS.manager_gone", msgspec.json.encode(lease))  # without a TTL
    await eventually(lambda: "manager_gone" in manager._leases.managers)
    await put_record(stranger, "s1", "manager_gone")

    assert (await stranger.ends("s1"))["reason"] == "owner_lost"
    await eventually(lambda: "manager_gone" not in manager._leases.managers)


async def test_an_entry_that_no_manager_renews_is_removed_also_if_it_owns_nothing(
    stranger: Stranger, start_manager: StartManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "OVERDUE_S", 1)
    lease = {"manager_id": "manager_gone", "host": "h", "pid": 1, "started_at": NOW, "version": "1"}
    manager = await start_manager()
    await stranger.js.publish("$KV.JIDO_MANAGERS.manager_gone", msgspec.json.encode(lease))

    await eventually(lambda: "manager_gone" in manager._leases.managers)
    await eventually(lambda: "manager_gone" not in manager._leases.managers)


async def put_record(stranger: Stranger, session_id: str, owner: str) -> None:
    record = {
        "session_id": session_id,
        "status": "active",
        "previous_status": "initializing",
        "version": 2,
        "owner": owner,
        "created_at": NOW,
        "updated_at": NOW,
        "metadata": {},
        "opening": True,
    }
    await stranger.js.publish(KEY + session_id, msgspec.json.encode(record))


async def settled_number(stranger: Stranger) -> int:
    """How many sessions have ended, once two sweeps have ended no more."""
    number = -1
    while (now := sum("terminated" in text for text in await stranger.stored_brief())) != number:
        number = now
        await asyncio.sleep(LEASE_S)
    return number
