"""What a session's life sounds like to a plain NATS subscriber, and what the stream keeps of it."""

import sys
from typing import Any

import msgspec
import pytest

from jido_nats import Session, SessionManager
from jido_nats.core.codec import Encoding
from tests.conftest import StartManager
from tests.tools.support import IN_PUPPET, Puppet, Stranger, eventually

EVENTS = "jido.client.events"
OWN = "jido.client.session.s1"
CRASH = {"reason": "crashed", "error": f"RuntimeError: boom{IN_PUPPET}"}


def without_times(event: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in event.items() if name not in ("created_at", "updated_at")}


def status(version: int, now: str, before: str, **why: Any) -> dict[str, Any]:
    event = {"type": "session_status", "session_id": "s1", "version": version, "status": now, "previous_status": before}
    return event | why


async def live_a_whole_life(stranger: Stranger) -> None:
    await stranger.create("s1", metadata={"project": "demo"}, llm_config={"model": "m"})
    for verb in ("idle", "activate", "terminate"):
        await stranger.ask(f"jido.session.{verb}.s1")


async def test_everyone_hears_the_whole_life(stranger: Stranger, manager: SessionManager) -> None:
    ear = await stranger.hear(EVENTS)

    await live_a_whole_life(stranger)

    heard = await eventually(lambda: len(ear.messages) == 7 and ear.on(EVENTS))
    assert [without_times(event) for event in heard] == [
        {"type": "session_created", "session_id": "s1", "version": 1, "metadata": {"project": "demo"}},
        status(2, "active", "initializing"),
        status(3, "idle", "active"),
        status(4, "active", "idle"),
        status(5, "terminating", "active", reason="requested"),
        status(6, "terminated", "terminating", reason="requested"),
        {"type": "session_terminated", "session_id": "s1", "version": 6, "reason": "requested"},
    ]


async def test_the_session_s_own_subject_carries_its_status_alone(stranger: Stranger, manager: SessionManager) -> None:
    ear = await stranger.hear(OWN)

    await live_a_whole_life(stranger)

    heard = await eventually(lambda: len(ear.messages) == 5 and ear.on(OWN))
    assert [without_times(event) for event in heard] == [
        status(2, "active", "initializing"),
        status(3, "idle", "active"),
        status(4, "active", "idle"),
        status(5, "terminating", "active", reason="requested"),
        status(6, "terminated", "terminating", reason="requested"),
    ]


async def test_the_stream_keeps_what_was_heard(stranger: Stranger, manager: SessionManager) -> None:
    ear = await stranger.hear("jido.client.>")

    await live_a_whole_life(stranger)

    await eventually(lambda: len(ear.messages) == 12)
    stored = await stranger.stored()
    assert [(m.subject, m.data) for m in stored] == [(m.subject, m.data) for m in ear.messages]


async def test_the_stream_has_the_design_s_order(stranger: Stranger, manager: SessionManager) -> None:
    await stranger.create("s1")
    await stranger.ask("jido.session.terminate.s1")

    assert [(m.subject, (m.headers or {})["Nats-Msg-Id"]) for m in await stranger.stored()] == [
        (EVENTS, "s1.1.session_created"),
        (EVENTS, "s1.2.session_status"),
        (OWN, "s1.2.session_status.session"),
        (EVENTS, "s1.3.session_status"),
        (OWN, "s1.3.session_status.session"),
        (EVENTS, "s1.4.session_status"),
        (EVENTS, "s1.4.session_terminated"),
        (OWN, "s1.4.session_status.session"),
    ]


async def test_events_name_their_encoding(stranger: Stranger, manager: SessionManager) -> None:
    await stranger.create("s1")

    assert {(m.headers or {})["Content-Type"] for m in await stranger.stored()} == {"application/json"}


async def test_events_carry_the_record_s_times(stranger: Stranger, manager: SessionManager) -> None:
    record = await stranger.create("s1")

    created, active = await stranger.stored_events()
    assert (created["created_at"], active["updated_at"]) == (record["created_at"], record["updated_at"])
    assert created["created_at"].endswith("Z")


async def test_the_reply_comes_after_the_events(stranger: Stranger, manager: SessionManager) -> None:
    await stranger.create("s1")
    assert await stranger.stored_brief(OWN) == ["2 active"]

    await stranger.ask("jido.session.terminate.s1")
    assert await stranger.stored_brief(OWN) == ["2 active", "3 terminating", "4 terminated"]


async def test_an_empty_create_will_do(stranger: Stranger, manager: SessionManager) -> None:
    record = msgspec.json.decode((await stranger.request("jido.session.create")).data)

    assert record["status"] == "active"
    assert record["session_id"].startswith("session_")


@pytest.mark.parametrize("idle", [False, True])
async def test_a_crash_is_told(stranger: Stranger, manager: SessionManager, puppet: Puppet, idle: bool) -> None:
    await stranger.create("s1")
    if idle:
        await stranger.ask("jido.session.idle.s1")
    version, before = (4, "idle") if idle else (3, "active")

    puppet.crash("s1", RuntimeError("boom"))

    await stranger.ends("s1")
    assert [without_times(event) for event in (await stranger.stored_events())[-2:]] == [
        status(version, "terminated", before, **CRASH),
        {"type": "session_terminated", "session_id": "s1", "version": version, **CRASH},
    ]


async def test_a_crash_is_told_on_the_session_s_own_subject(
    stranger: Stranger, manager: SessionManager, puppet: Puppet
) -> None:
    ear = await stranger.hear(OWN)
    await stranger.create("s1")

    puppet.crash("s1", RuntimeError("boom"))

    await eventually(lambda: ear.told(OWN) == ["2 active", "3 terminated"])
    assert without_times(ear.on(OWN)[-1]) == status(3, "terminated", "active", **CRASH)


async def test_the_record_tells_of_the_crash(stranger: Stranger, manager: SessionManager, puppet: Puppet) -> None:
    await stranger.create("s1")

    puppet.crash("s1", RuntimeError("boom"))

    await stranger.ends("s1")
    record = await stranger.ask("jido.session.get.s1")
    assert {name: record[name] for name in ("status", *CRASH)} == {"status": "terminated", **CRASH}


async def test_a_worker_that_returns_has_completed(stranger: Stranger, manager: SessionManager, puppet: Puppet) -> None:
    await stranger.create("s1")

    puppet.complete("s1")

    await stranger.ends("s1")
    assert [without_times(event) for event in (await stranger.stored_events())[-2:]] == [
        status(3, "terminated", "active", reason="completed"),
        {"type": "session_terminated", "session_id": "s1", "version": 3, "reason": "completed"},
    ]


async def test_a_worker_changes_its_own_status(stranger: Stranger, start_manager: StartManager) -> None:
    async def naps(session: Session) -> None:
        await session.idle()
        await session.activate()

    await start_manager(naps)

    await stranger.create("s1")

    await stranger.ends("s1")
    assert await stranger.stored_brief(OWN) == ["2 active", "3 idle", "4 active", "5 terminated"]


async def test_a_worker_sees_what_its_session_was_created_with(
    stranger: Stranger, manager: SessionManager, puppet: Puppet
) -> None:
    await stranger.create("s1", metadata={"project": "demo"}, llm_config={"model": "m"})

    session = await eventually(lambda: puppet.sessions.get("s1"))
    assert (session.session_id, session.metadata, session.llm_config) == ("s1", {"project": "demo"}, {"model": "m"})


async def test_a_worker_that_calls_sys_exit_has_crashed(stranger: Stranger, start_manager: StartManager) -> None:
    async def leaves(session: Session) -> None:
        sys.exit(3)

    await start_manager(leaves)

    await stranger.create("s1")

    await stranger.ends("s1")
    record = await stranger.ask("jido.session.get.s1")
    line = leaves.__code__.co_firstlineno + 1
    assert (record["reason"], record["error"]) == ("crashed", f"SystemExit: 3 (test_life.py:{line} in leaves)")


async def test_a_manager_outlives_a_worker_that_calls_sys_exit(stranger: Stranger, start_manager: StartManager) -> None:
    async def leaves(session: Session) -> None:
        if session.session_id == "s1":
            sys.exit(3)

    await start_manager(leaves)
    await stranger.create("s1")
    await stranger.ends("s1")

    assert (await stranger.create("s2"))["session_id"] == "s2"


async def test_events_can_be_messagepack(stranger: Stranger, start_manager: StartManager) -> None:
    await start_manager(encoding=Encoding.MSGPACK)

    await stranger.create("s1", metadata={"a": 1})

    messages = await stranger.stored()
    assert {(m.headers or {})["Content-Type"] for m in messages} == {"application/msgpack"}
    assert [msgspec.msgpack.decode(m.data)["type"] for m in messages] == [
        "session_created",
        "session_status",
        "session_status",
    ]
