"""Time limits of sessions: given at creation, with defaults at the manager; activity moves them, 0 turns them off."""

import asyncio
import time
from datetime import datetime, timedelta
from typing import Any

import pytest

from jido_nats import Session, SessionManager, Status
from tests.conftest import StartManager
from tests.tools.children.kin import child, kin_of, new_id
from tests.tools.support import Puppet, Stranger, eventually, wait_for_ever


async def status(stranger: Stranger, session_id: str = "s1") -> str:
    found: str = (await stranger.ask(f"jido.session.get.{session_id}"))["status"]
    return found


async def becomes(stranger: Stranger, wanted: str, session_id: str = "s1") -> dict[str, Any]:
    """The record, once it is in that status."""

    async def is_so() -> bool:
        return await status(stranger, session_id) == wanted

    await eventually(is_so)
    return await stranger.ask(f"jido.session.get.{session_id}")


async def stored_from(stranger: Stranger, version: int) -> list[dict[str, Any]]:
    """The stored events from that version on; none before there are two."""
    events = [event for event in await stranger.stored_events() if event["version"] >= version]
    return events if len(events) > 1 else []


async def test_a_session_of_which_nothing_is_heard_becomes_idle(stranger: Stranger, manager: SessionManager) -> None:
    created_at = time.monotonic()
    record = await stranger.create("s1", idle_after_s=0.3)

    await becomes(stranger, "idle")

    assert record["idle_after_s"] == 0.3
    assert time.monotonic() - created_at >= 0.3


async def test_an_idle_session_is_ended(stranger: Stranger, manager: SessionManager) -> None:
    await stranger.create("s1", idle_after_s=0.1, idle_timeout_s=0.2)

    record = await stranger.ends("s1")

    assert (record["reason"], record["detail"]) == ("timed_out", "idle_timeout_s of 0.2 s is over")
    assert (await stranger.stored_brief())[2:] == ["3 idle", "4 terminating", "5 terminated", "5 ended"]


async def test_a_session_that_is_too_old_is_ended(stranger: Stranger, manager: SessionManager) -> None:
    await stranger.create("s1", max_lifetime_s=0.3)

    record = await stranger.ends("s1")

    assert (record["reason"], record["detail"]) == ("timed_out", "max_lifetime_s of 0.3 s is over")
    assert (await stranger.stored_brief())[2:] == ["3 terminating", "4 terminated", "4 ended"]


async def test_a_program_that_is_timed_out_is_gone(stranger: Stranger, start_manager: StartManager) -> None:
    await start_manager(child("family.sh"), wait_ready=True)
    session_id = new_id()
    await stranger.create(session_id, max_lifetime_s=0.3)

    record = await becomes(stranger, "terminated", session_id)

    assert record["reason"] == "timed_out"
    assert not kin_of(session_id)


async def test_activity_keeps_a_session_awake(stranger: Stranger, manager: SessionManager, puppet: Puppet) -> None:
    activities = ["message", "emit", "ephemeral", "say", "touch"]
    for activity in activities:  # in a session of that name
        await stranger.create(activity, idle_after_s=1.0)
    ear = await stranger.hear(*(f"jido.client.session.{activity}" for activity in activities))
    until = time.monotonic() + 1.3

    while time.monotonic() < until:
        for activity in activities:
            await act(puppet.sessions[activity], stranger)

    assert not ear.messages
    for activity in activities:
        await becomes(stranger, "idle", activity)


async def act(session: Session, stranger: Stranger) -> None:
    """What the session's id says."""
    match session.session_id:
        case "message":
            await stranger.ask("jido.session.send.message", {"role": "user", "content": "x"})
            await session.messages()
        case "emit":
            await session.emit("step")
        case "ephemeral":
            await session.emit("step", ephemeral=True)
        case "say":
            await session.say("hello")
        case "touch":
            await session.touch()


async def test_looking_at_a_session_is_no_activity(stranger: Stranger, manager: SessionManager) -> None:
    await stranger.create("s1", idle_after_s=0.3)

    await becomes(stranger, "idle")  # which looks a hundred times a second


async def test_output_of_an_idle_session_keeps_it_alive(
    stranger: Stranger, manager: SessionManager, puppet: Puppet
) -> None:
    await stranger.create("s1", idle_timeout_s=2)
    await stranger.ask("jido.session.idle.s1")
    until = time.monotonic() + 3.0

    while time.monotonic() < until:
        await puppet.sessions["s1"].emit("still here")
        assert await status(stranger) == "idle"
        await status(stranger)  # which takes its time

    await becomes(stranger, "terminated")


async def test_a_woken_session_has_all_its_time_again(stranger: Stranger, manager: SessionManager) -> None:
    await stranger.create("s1", idle_after_s=0.2, idle_timeout_s=60)
    await becomes(stranger, "idle")

    await stranger.ask("jido.session.send.s1", {"role": "user", "content": "wake up"})

    woken, slept = (await eventually(lambda: stored_from(stranger, 4)))[:2]
    assert (woken["status"], slept["status"]) == ("active", "idle")
    assert datetime.fromisoformat(slept["updated_at"]) - datetime.fromisoformat(woken["updated_at"]) >= timedelta(
        seconds=0.2
    )


async def test_activity_does_not_make_a_session_older_than_it_may_be(
    stranger: Stranger, manager: SessionManager, puppet: Puppet
) -> None:
    await stranger.create("s1", max_lifetime_s=0.5)
    session = puppet.sessions["s1"]

    while session.status is Status.ACTIVE:
        await session.touch()
        await status(stranger)  # which takes its time

    assert (await becomes(stranger, "terminated"))["reason"] == "timed_out"


async def test_the_manager_s_limits_hold_where_none_are_given(stranger: Stranger, start_manager: StartManager) -> None:
    await start_manager(wait_for_ever, idle_after_s=0.2)
    record = await stranger.create("s1")

    await becomes(stranger, "idle")

    assert "idle_after_s" not in record


async def test_0_turns_the_manager_s_limit_off(stranger: Stranger, start_manager: StartManager) -> None:
    await start_manager(wait_for_ever, idle_after_s=0.2, max_lifetime_s=0.2)
    await stranger.create("s1", idle_after_s=0, max_lifetime_s=0)
    await stranger.create("s2", max_lifetime_s=0)

    await becomes(stranger, "idle", "s2")  # so the manager has looked

    assert await status(stranger) == "active"


async def test_the_session_s_own_limit_wins(stranger: Stranger, start_manager: StartManager) -> None:
    await start_manager(wait_for_ever, idle_after_s=60, idle_timeout_s=0.2)
    await stranger.create("s1", idle_after_s=0.2, idle_timeout_s=60)
    await becomes(stranger, "idle")
    await stranger.create("s2", idle_after_s=0.1)

    await becomes(stranger, "terminated", "s2")

    assert await status(stranger) == "idle"


async def test_the_same_limits_again_are_a_replay(stranger: Stranger, manager: SessionManager) -> None:
    first = await stranger.create("s1", idle_after_s=60, max_lifetime_s=3600.5)

    assert await stranger.create("s1", idle_after_s=60.0, max_lifetime_s=3600.5) == {**first, "replayed": True}


@pytest.mark.parametrize("other", [{}, {"idle_after_s": 61}, {"idle_after_s": 60, "idle_timeout_s": 0}])
async def test_other_limits_are_another_session(
    stranger: Stranger, manager: SessionManager, other: dict[str, Any]
) -> None:
    await stranger.create("s1", idle_after_s=60)

    assert (await stranger.create("s1", **other))["error"]["code"] == "already_exists"


async def test_a_limit_that_is_none_is_refused(stranger: Stranger, manager: SessionManager) -> None:
    limits: list[Any] = [-1, -0.001, 1e300, "60", True, []]
    for name in ("idle_after_s", "idle_timeout_s", "max_lifetime_s"):
        for limit in limits:
            assert (await stranger.create("s1", **{name: limit}))["error"]["code"] == "bad_request"


async def test_limits_need_no_task_of_their_own(stranger: Stranger, manager: SessionManager) -> None:
    await stranger.create("first", max_lifetime_s=60)
    before = len(asyncio.all_tasks())
    limits = {"idle_after_s": 60, "idle_timeout_s": 60, "max_lifetime_s": 60}

    await asyncio.gather(*(stranger.create(f"s{number}", **limits) for number in range(100)))

    await eventually(lambda: len(asyncio.all_tasks()) < before + 110)  # a worker each


async def test_many_that_are_due_at_once_all_end(stranger: Stranger, manager: SessionManager) -> None:
    ear = await stranger.hear("jido.client.events")
    await asyncio.gather(*(stranger.create(f"s{number}", max_lifetime_s=1.0) for number in range(100)))

    await eventually(lambda: len([told for told in ear.told("jido.client.events") if told == "4 ended"]) == 100)

    assert {event.get("reason") for event in ear.on("jido.client.events") if event["version"] == 4} == {"timed_out"}
