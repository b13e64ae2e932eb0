"""What a newer version stores is never destroyed, hidden or misread: values, types of events, and features."""

import asyncio
import itertools
import logging
from typing import Any

import msgspec
import pytest
from nats.aio.msg import Msg

from jido_nats import (
    Client,
    LocalServer,
    SessionManager,
    SessionRecord,
    SessionStatus,
    SnapshotComplete,
    Unavailable,
    UnknownEvent,
    WatchedSession,
)
from jido_nats.core.requests import CreateRequest
from jido_nats.manager.sessions import Sessions
from tests.conftest import StartManager
from tests.tools.support import DEADLINE_S, Stranger, eventually

NOW = "2026-11-25T18:00:00Z"
LEASE_S = 1


def event(session_id: str, version: int, **fields: Any) -> dict[str, Any]:
    """A `session_status` as it could be stored by a newer version."""
    common = {"type": "session_status", "session_id": session_id, "version": version, "updated_at": NOW}
    return common | {"previous_status": "active"} | fields


def record(session_id: str, **fields: Any) -> dict[str, Any]:
    """A record, version 3, of a manager that has no lease."""
    times = {"created_at": NOW, "updated_at": NOW}
    common = {"session_id": session_id, "status": "idle", "previous_status": "active", "version": 3, "metadata": {}}
    return common | times | {"owner": "manager_newer"} | fields


async def publish(stranger: Stranger, stored: dict[str, Any], subject: str = "jido.client.events") -> None:
    """Store an event as a manager does."""
    suffix = "" if subject == "jido.client.events" else ".session"
    name = f"{stored['session_id']}.{stored['version']}.{stored['type']}{suffix}"
    headers = {"Nats-Msg-Id": name, "Content-Type": "application/json"}
    await stranger.js.publish(subject, msgspec.json.encode(stored), headers=headers)


async def put(stranger: Stranger, stored: dict[str, Any]) -> bytes:
    """Store a record; its bytes."""
    data = msgspec.json.encode(stored)
    await stranger.js.publish(f"$KV.JIDO_SESSIONS.{stored['session_id']}", data)
    return data


async def with_history(stranger: Stranger, session_id: str, status: str, **fields: Any) -> bytes:
    """A session in that status, with all its events; the bytes of its record."""
    created = {"type": "session_created", "session_id": session_id, "version": 1, "created_at": NOW, "metadata": {}}
    await publish(stranger, created)
    steps = [(2, {"status": "active", "previous_status": "initializing"}), (3, {"status": status})]
    for version, change in steps:
        for subject in ("jido.client.events", f"jido.client.session.{session_id}"):
            await publish(stranger, event(session_id, version, **change), subject)
    return await put(stranger, record(session_id, status=status, **fields))


async def stored_bytes(stranger: Stranger, session_id: str) -> bytes:
    found = await stranger.js.get_last_msg("KV_JIDO_SESSIONS", f"$KV.JIDO_SESSIONS.{session_id}")
    return found.data or b""


async def error_of(stranger: Stranger, verb: str, session_id: str) -> tuple[str, str]:
    answer = await stranger.ask(
        f"jido.session.{verb}.{session_id}", {"role": "u", "content": 1} if verb == "send" else b""
    )
    return answer["error"]["code"], answer["error"]["message"]


# Values that were added


async def test_events_with_unknown_values_are_read(
    server: LocalServer, stranger: Stranger, manager: SessionManager
) -> None:
    await publish(stranger, event("n1", 3, status="terminated", reason="handed_over"))
    await publish(stranger, event("n2", 3, status="waiting"))

    async with Client.connect(server.url) as client, client.events(since="all") as events:
        read = [message.event async for message in events.stored()]

    assert [(e.session_id, e.status, e.reason) for e in read if isinstance(e, SessionStatus)] == [
        ("n1", "terminated", "handed_over"),
        ("n2", "waiting", None),
    ]


async def test_an_event_of_an_unknown_type_is_read_with_its_version(
    server: LocalServer, stranger: Stranger, manager: SessionManager
) -> None:
    await publish(stranger, {"type": "session_painted", "session_id": "n1", "version": 7, "colour": "red"})

    async with Client.connect(server.url) as client, client.events(since="all") as events:
        read = [message.event async for message in events.stored()]

    assert read == [UnknownEvent(event_type="session_painted", session_id="n1", version=7)]


async def test_wait_ends_with_a_session_whose_reason_is_unknown(
    server: LocalServer, stranger: Stranger, manager: SessionManager
) -> None:
    async with Client.connect(server.url) as client:
        await client.create_session(session_id="s1")
        waiting = asyncio.create_task(client.wait("s1", "terminated", timeout_s=DEADLINE_S))
        versions = itertools.count(3)

        async def end() -> bool:  # again and again, since nothing shows that the waiting has begun
            ended = event("s1", next(versions), status="terminated", reason="handed_over")
            await publish(stranger, ended, "jido.client.session.s1")
            return waiting.done()

        await eventually(end)

        record = await waiting
        assert (record.status, record.reason) == ("terminated", "handed_over")


async def test_history_from_a_newer_manager_is_read(server: LocalServer, stranger: Stranger) -> None:
    painted = {"type": "session_painted", "session_id": "s1", "version": 2, "colour": "red"}

    async def answer(message: Msg) -> None:
        await message.respond(msgspec.json.encode({"events": [painted, event("s1", 3, status="waiting")]}))

    await stranger.nc.subscribe("jido.session.history.s1", cb=answer)
    await stranger.flush()
    async with Client.connect(server.url) as client:
        first, second = await client.session_history("s1")

    assert first == UnknownEvent(event_type="session_painted", session_id="s1", version=2)
    assert isinstance(second, SessionStatus)
    assert second.status == "waiting"


async def test_a_record_with_an_unknown_status_is_found_and_listed(stranger: Stranger, manager: SessionManager) -> None:
    await put(stranger, record("r1", status="waiting", owner=manager.manager_id))

    assert (await stranger.ask("jido.session.get.r1"))["status"] == "waiting"
    listed = await stranger.ask("jido.session.list")
    assert [(r["session_id"], r["status"]) for r in listed["sessions"]] == [("r1", "waiting")]


async def test_create_does_not_overwrite_a_record_with_an_unknown_status(
    stranger: Stranger, manager: SessionManager
) -> None:
    data = await put(stranger, record("r1", status="waiting"))

    answer = await stranger.create("r1")

    assert answer["error"]["code"] == "unavailable"  # its owner does not answer
    assert await stored_bytes(stranger, "r1") == data


async def test_create_does_not_overwrite_a_record_that_cannot_be_read(
    stranger: Stranger, manager: SessionManager
) -> None:
    await stranger.js.publish("$KV.JIDO_SESSIONS.r1", b'{"half of a rec')

    answer = await stranger.create("r1")

    assert answer["error"]["code"] == "already_exists"
    assert await stored_bytes(stranger, "r1") == b'{"half of a rec'


@pytest.mark.parametrize("status", ["idle", "waiting"])
async def test_an_orphan_in_an_unknown_status_is_ended_as_any_other(
    stranger: Stranger, start_manager: StartManager, status: str
) -> None:
    await start_manager(lease_s=LEASE_S)
    await with_history(stranger, "r1", status)

    ended = await stranger.ends("r1")

    assert (ended["status"], ended["previous_status"], ended["reason"]) == ("terminated", status, "owner_lost")
    assert await stranger.stored_brief() == ["1 created", "2 active", f"3 {status}", "4 terminated", "4 ended"]


async def test_an_unknown_status_in_a_request_is_refused_by_name(stranger: Stranger, manager: SessionManager) -> None:
    answer = await stranger.ask("jido.session.list", {"status": "waiting"})

    assert answer["error"]["code"] == "bad_request"
    assert "waiting" in answer["error"]["message"]


async def test_a_watch_follows_a_session_through_an_unknown_status(
    server: LocalServer, stranger: Stranger, manager: SessionManager
) -> None:
    await with_history(stranger, "r1", "waiting", owner=manager.manager_id)

    async with Client.connect(server.url) as client, client.watch_sessions() as watched:
        first = await anext(watched)
        assert isinstance(first, WatchedSession)
        assert first.record.status == "waiting"
        assert isinstance(await anext(watched), SnapshotComplete)


# Features that a record needs


@pytest.mark.parametrize("verb", ["get", "history", "terminate", "idle", "activate", "send"])
async def test_a_command_on_a_session_of_a_newer_version_is_unavailable(
    stranger: Stranger, manager: SessionManager, verb: str
) -> None:
    data = await put(stranger, record("r1", needs=["tomorrow"]))

    code, message = await error_of(stranger, verb, "r1")

    assert (code, "newer version" in message, "tomorrow" in message) == ("unavailable", True, True)
    assert await stored_bytes(stranger, "r1") == data


@pytest.mark.parametrize("sealed", [False, True])
async def test_create_of_the_id_of_a_session_of_a_newer_version_is_refused(
    stranger: Stranger, manager: SessionManager, sealed: bool
) -> None:
    data = await put(stranger, record("r1", needs=["tomorrow"], sealed=sealed))

    answer = await stranger.create("r1")

    assert answer["error"]["code"] == "already_exists"
    assert await stored_bytes(stranger, "r1") == data


async def test_a_session_of_a_newer_version_is_listed_with_its_status(
    stranger: Stranger, manager: SessionManager
) -> None:
    await put(stranger, record("r1", status="waiting", needs=["tomorrow"]))

    listed = await stranger.ask("jido.session.list")

    assert [(r["session_id"], r["status"]) for r in listed["sessions"]] == [("r1", "waiting")]


async def test_an_orphan_of_a_newer_version_is_left_as_it_is(
    stranger: Stranger, start_manager: StartManager, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    await start_manager(lease_s=LEASE_S)
    foreign = await with_history(stranger, "foreign", "idle", needs=["tomorrow"])
    await stranger.js.publish("jido.fence.foreign", b'{"manager":"manager_newer"}')
    await with_history(stranger, "known", "idle")

    await stranger.ends("known")  # so a sweep has seen both

    assert await stored_bytes(stranger, "foreign") == foreign
    fences = [m.subject for m in await stranger.stored() if m.subject.startswith("jido.fence.")]
    assert fences == ["jido.fence.foreign", "jido.fence.known"]
    reported = [vars(r)["sessions"] for r in caplog.records if "left to its managers" in r.getMessage()]
    assert reported == [1]


async def test_readiness_counts_sessions_of_newer_versions(stranger: Stranger, manager: SessionManager) -> None:
    await put(stranger, record("r1", needs=["tomorrow"]))

    await eventually(lambda: manager.snapshot().foreign == 1)
    assert manager.snapshot().not_ready == []


async def test_a_lease_says_what_its_manager_knows(stranger: Stranger, manager: SessionManager) -> None:
    entry = await (await stranger.js.key_value("JIDO_MANAGERS")).get(manager.manager_id)

    assert msgspec.json.decode(entry.value or b"")["knows"] == ["restart", "worker"]


async def test_a_reader_ignores_fields_that_it_does_not_know(stranger: Stranger, manager: SessionManager) -> None:
    await put(stranger, record("r1", owner=manager.manager_id, colour="red"))

    assert (await stranger.ask("jido.session.get.r1"))["status"] == "idle"


# Features that are introduced


@pytest.fixture
def knows_tomorrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The managers of the test know a feature."""
    for module in ("jido_nats.core.session", "jido_nats.store.leases"):
        monkeypatch.setattr(f"{module}.KNOWN_FEATURES", frozenset({"tomorrow"}))


@pytest.fixture
def creates_with_tomorrow(knows_tomorrow: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """And each session that they create needs it."""
    first_record = Sessions._first_record

    def needing(sessions: Sessions, session_id: str, request: CreateRequest) -> SessionRecord:
        return msgspec.structs.replace(first_record(sessions, session_id, request), needs=("tomorrow",))

    monkeypatch.setattr(Sessions, "_first_record", needing)


async def put_old_lease(stranger: Stranger, manager: SessionManager) -> None:
    """The lease of a manager that knows no feature, which `manager` has noticed."""
    lease = {"manager_id": "manager_old", "host": "h", "pid": 1, "started_at": NOW, "version": "0.1.0"}
    await stranger.js.publish("$KV.JIDO_MANAGERS.manager_old", msgspec.json.encode(lease))
    await eventually(lambda: "manager_old" in manager._leases.managers)


async def test_a_feature_is_not_introduced_while_a_manager_does_not_know_it(
    stranger: Stranger, creates_with_tomorrow: None, manager: SessionManager
) -> None:
    await put_old_lease(stranger, manager)

    error = (await stranger.create("s1"))["error"]

    assert error["code"] == "unavailable"
    assert all(part in error["message"] for part in ("upgrade all managers first", "manager_old", "tomorrow"))
    assert await stranger.positions() == (0, 0)


async def test_a_feature_is_introduced_once_every_manager_knows_it(
    stranger: Stranger, creates_with_tomorrow: None, manager: SessionManager
) -> None:
    await put_old_lease(stranger, manager)
    await stranger.create("s1")
    await stranger.js.publish("$KV.JIDO_MANAGERS.manager_old", b"", headers={"KV-Operation": "DEL"})
    await eventually(lambda: "manager_old" not in manager._leases.managers)

    assert (await stranger.create("s1"))["status"] == "active"
    assert (await stranger.record("s1") or {})["needs"] == ["tomorrow"]


async def test_no_feature_is_introduced_before_the_leases_are_read(
    stranger: Stranger, creates_with_tomorrow: None, manager: SessionManager
) -> None:
    manager._leases.follow()

    assert (await stranger.create("s1"))["error"]["code"] == "unavailable"
    assert await stranger.record("s1") is None


async def test_a_change_that_would_introduce_a_feature_leaves_the_session_as_it_is(
    stranger: Stranger, knows_tomorrow: None, manager: SessionManager
) -> None:
    await stranger.create("s1")
    await put_old_lease(stranger, manager)
    before = await stranger.positions()
    live = manager._sessions.running.find("s1")
    changed = msgspec.structs.replace(live.record, needs=("tomorrow",), version=3)

    with pytest.raises(Unavailable, match="upgrade all managers first"):
        async with manager._sessions.running.changing(live):
            await live.writer.commit(changed)

    assert await stranger.positions() == before
    assert (await stranger.ask("jido.session.idle.s1"))["version"] == 3


async def test_a_session_that_has_a_feature_goes_on_beside_a_manager_that_does_not_know_it(
    stranger: Stranger, creates_with_tomorrow: None, manager: SessionManager
) -> None:
    await stranger.create("s1")
    await put_old_lease(stranger, manager)

    assert (await stranger.ask("jido.session.idle.s1"))["status"] == "idle"
    assert (await stranger.ask("jido.session.terminate.s1"))["status"] == "terminated"


async def test_an_orphan_that_has_a_feature_is_ended_beside_a_manager_that_does_not_know_it(
    stranger: Stranger, knows_tomorrow: None, start_manager: StartManager
) -> None:
    manager = await start_manager(lease_s=LEASE_S)
    await put_old_lease(stranger, manager)
    await with_history(stranger, "r1", "idle", needs=["tomorrow"])

    assert (await stranger.ends("r1"))["reason"] == "owner_lost"
