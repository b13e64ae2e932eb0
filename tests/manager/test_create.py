"""Creating with a chosen id is safe to repeat; an id means one session for ever."""

import asyncio

from jido_nats import SessionManager
from tests.conftest import StartManager
from tests.tools.support import Puppet, Stranger, eventually

CREATED = ["1 created", "2 active"]


async def test_the_same_create_again_is_replayed(stranger: Stranger, manager: SessionManager) -> None:
    first = await stranger.create("s1", metadata={"a": 1}, llm_config={"m": 2})

    again = await stranger.create("s1", metadata={"a": 1}, llm_config={"m": 2})

    assert "replayed" not in first
    assert again == first | {"replayed": True}


async def test_a_replay_tells_nothing(stranger: Stranger, manager: SessionManager) -> None:
    await stranger.create("s1")
    before = await stranger.positions()

    await stranger.create("s1")

    assert await stranger.positions() == before


async def test_other_content_under_that_id_is_refused(stranger: Stranger, manager: SessionManager) -> None:
    await stranger.create("s1", metadata={"a": 1})
    before = await stranger.positions()

    assert (await stranger.create("s1", metadata={"a": 2}))["error"]["code"] == "already_exists"
    assert (await stranger.create("s1", metadata={"a": 1}, llm_config={}))["error"]["code"] == "already_exists"
    assert await stranger.positions() == before


async def test_true_is_other_content_than_1(stranger: Stranger, manager: SessionManager) -> None:
    await stranger.create("s1", metadata={"a": 1})

    assert (await stranger.create("s1", metadata={"a": True}))["error"]["code"] == "already_exists"


async def test_creates_at_once_make_one_session(stranger: Stranger, manager: SessionManager, puppet: Puppet) -> None:
    records = await asyncio.gather(*(stranger.create("s1") for _ in range(10)))

    assert {record["created_at"] for record in records} == {records[0]["created_at"]}
    assert sum("replayed" not in record for record in records) == 1
    assert await stranger.stored_brief() == CREATED


async def test_creates_at_once_at_two_managers_make_one_session(
    stranger: Stranger, start_manager: StartManager
) -> None:
    one, other = await start_manager(), await start_manager()

    first, second = await asyncio.gather(one.create_session(session_id="s1"), other.create_session(session_id="s1"))

    assert first.created_at == second.created_at
    assert await stranger.stored_brief() == CREATED


async def test_a_replay_of_a_session_that_has_ended_answers_its_end(
    stranger: Stranger, manager: SessionManager
) -> None:
    await stranger.create("s1")
    await stranger.ask("jido.session.terminate.s1")

    again = await stranger.create("s1")

    assert (again["status"], again["replayed"]) == ("terminated", True)


async def test_an_id_whose_events_are_remembered_is_not_used_again(
    stranger: Stranger, start_manager: StartManager
) -> None:
    await start_manager(terminated_ttl_s=1)
    await stranger.create("s1")
    await stranger.ask("jido.session.terminate.s1")
    await eventually(lambda: has_expired(stranger))
    before = await stranger.positions()

    assert (await stranger.create("s1"))["error"]["code"] == "already_exists"
    assert await stranger.positions() == before


async def test_a_session_that_has_expired_is_not_found(stranger: Stranger, start_manager: StartManager) -> None:
    await start_manager(terminated_ttl_s=1)
    await stranger.create("s1")
    await stranger.ask("jido.session.terminate.s1")
    await eventually(lambda: has_expired(stranger))

    for verb in ("get", "terminate", "idle", "activate"):
        assert (await stranger.ask(f"jido.session.{verb}.s1"))["error"]["code"] == "not_found"


async def test_a_session_that_has_expired_is_not_listed(stranger: Stranger, start_manager: StartManager) -> None:
    await start_manager(terminated_ttl_s=1)
    await stranger.create("s1")
    await stranger.ask("jido.session.terminate.s1")
    assert len((await stranger.ask("jido.session.list", {"include_terminated": True}))["sessions"]) == 1

    await eventually(lambda: has_expired(stranger))

    assert (await stranger.ask("jido.session.list", {"include_terminated": True}))["sessions"] == []


async def test_a_live_session_does_not_expire(stranger: Stranger, start_manager: StartManager) -> None:
    await start_manager(terminated_ttl_s=1)
    await stranger.create("s1")
    await stranger.create("s2")
    await stranger.ask("jido.session.terminate.s2")

    await eventually(lambda: has_expired(stranger, "s2"))

    assert (await stranger.ask("jido.session.get.s1"))["status"] == "active"


async def test_a_manager_that_is_full_takes_no_more(stranger: Stranger, start_manager: StartManager) -> None:
    await start_manager(sessions_max=1)
    await stranger.create("s1")
    before = await stranger.positions()

    assert (await stranger.create("s2"))["error"]["code"] == "overloaded"
    assert await stranger.positions() == before


async def test_a_full_manager_takes_more_when_a_session_has_ended(
    stranger: Stranger, start_manager: StartManager
) -> None:
    await start_manager(sessions_max=1)
    await stranger.create("s1")
    await stranger.ask("jido.session.terminate.s1")
    await stranger.ends("s1")

    assert (await eventually(lambda: created(stranger, "s2")))["status"] == "active"


async def created(stranger: Stranger, session_id: str) -> dict[str, str] | None:
    record = await stranger.create(session_id)
    return None if "error" in record else record


async def has_expired(stranger: Stranger, session_id: str = "s1") -> bool:
    return await stranger.record(session_id) is None
