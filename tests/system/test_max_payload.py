"""`max_payload` is lowered while sessions run: what no longer fits is refused, and harms no session."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest
from nats.errors import NoRespondersError

from jido_nats import InvalidTransition, LocalServer, Session, SessionManager, TooLarge
from jido_nats.broker.clock import boottime
from tests.conftest import StartManager
from tests.tools.support import Puppet, Stranger, eventually, stranger_at

LARGE, LOWERED, RAISED = {"text": "x" * 20_000}, 8192, 1_048_576


class Adjustable(LocalServer):
    """A server whose `max_payload` can be changed while it runs."""

    async def set_max_payload(self, limit: int) -> None:
        """As an operator does: edit the file, reload. Returns when it applies."""
        self._config = f"max_payload: {limit}"
        assert self._folder is not None
        self._write_config(self._folder / "ports")
        os.kill(self.pid, signal.SIGHUP)
        await eventually(lambda: has_limit(self.url, limit))


async def has_limit(url: str, limit: int) -> bool:
    async with stranger_at(url) as fresh:
        return fresh.nc.max_payload == limit


@pytest.fixture
async def server() -> AsyncIterator[Adjustable]:
    async with Adjustable() as server:
        yield server


@pytest.fixture
async def manager(start_manager: StartManager, puppet: Puppet) -> SessionManager:
    return await start_manager(puppet, command_timeout_s=20.0)


@pytest.fixture
async def session(server: Adjustable, stranger: Stranger, manager: SessionManager, puppet: Puppet) -> Session:
    """A session whose record no longer fits into a message."""
    assert (await stranger.create("s1", metadata=LARGE))["status"] == "active"
    await server.set_max_payload(LOWERED)
    return puppet.sessions["s1"]


async def code_of(stranger: Stranger, verb: str, payload: Any = b"") -> str | None:
    code: str | None = (await stranger.ask(f"jido.session.{verb}.s1", payload)).get("error", {}).get("code")
    return code


@pytest.mark.parametrize("verb", ["idle", "terminate"])
async def test_a_change_that_does_not_fit_is_refused(
    stranger: Stranger, manager: SessionManager, session: Session, verb: str
) -> None:
    before = await stranger.positions()

    assert await code_of(stranger, verb) == "too_large"

    assert await stranger.positions() == before
    assert manager.snapshot().sessions == {"active": 1}


async def test_a_step_of_the_worker_that_does_not_fit_is_refused(session: Session) -> None:
    with pytest.raises(TooLarge, match="max_payload"):
        await session.idle()

    with pytest.raises(TooLarge, match="max_payload"):
        await session.idle()


async def test_the_session_and_its_worker_go_on(
    server: Adjustable, stranger: Stranger, manager: SessionManager, session: Session
) -> None:
    await code_of(stranger, "idle")

    assert await session.emit("step") == 1
    await session.flush()
    assert await code_of(stranger, "send", {"role": "user", "content": 1}) is None
    assert len(await session.messages()) == 1
    assert manager.snapshot().sessions == {"active": 1}


async def test_an_end_after_output_that_does_not_fit_says_that_it_is_missing(
    stranger: Stranger, session: Session, puppet: Puppet
) -> None:
    await stranger.create("s2")
    await puppet.sessions["s2"].emit("step", "x" * 10_000)  # the connection does not know the new limit yet

    puppet.complete("s2")

    record = await stranger.ends("s2")
    assert (record["reason"], record["output_incomplete"]) == ("completed", True)


async def test_it_changes_again_when_the_limit_is_raised(
    server: Adjustable, stranger: Stranger, session: Session
) -> None:
    assert await code_of(stranger, "idle") == "too_large"

    await server.set_max_payload(RAISED)
    await server.kill()  # clients learn a limit when they connect
    await server.start()

    await eventually(lambda: is_idle(stranger))
    assert await stranger.stored_brief() == ["1 created", "2 active", "3 idle"]
    assert (await stranger.ask("jido.session.terminate.s1"))["status"] == "terminated"


async def is_idle(stranger: Stranger) -> bool:
    with contextlib.suppress(NoRespondersError):  # the manager is about to reconnect
        return await code_of(stranger, "idle") is None
    return False


async def test_an_end_that_does_not_fit_follows_when_the_limit_is_raised(
    server: Adjustable, stranger: Stranger, session: Session, puppet: Puppet, caplog: pytest.LogCaptureFixture
) -> None:
    puppet.complete("s1")
    await eventually(lambda: "a session cannot end until max_payload is raised again" in caplog.text)
    assert await stranger.stored_brief() == ["1 created", "2 active"]

    await server.set_max_payload(RAISED)
    await server.kill()
    await server.start()

    assert (await stranger.ends("s1"))["reason"] == "completed"
    assert await stranger.stored_brief() == ["1 created", "2 active", "3 terminated", "3 ended"]


async def test_a_time_limit_that_does_not_fit_is_tried_now_and_then(
    server: Adjustable, stranger: Stranger, start_manager: StartManager, caplog: pytest.LogCaptureFixture
) -> None:
    manager = await start_manager()
    await stranger.create("s1", metadata=LARGE, idle_after_s=1)

    await server.set_max_payload(LOWERED)

    await eventually(lambda: "a time limit cannot be applied" in caplog.text)
    live = manager._sessions.running.find("s1")
    assert (live.due_at() or 0) > boottime() + 5
    assert manager.snapshot().sessions == {"active": 1}


async def test_a_create_that_does_not_fit_is_refused(
    server: Adjustable, stranger: Stranger, manager: SessionManager, puppet: Puppet
) -> None:
    await server.set_max_payload(LOWERED)
    before = await stranger.positions()

    async with stranger_at(server.url) as fresh:
        answer = await fresh.create("s1", metadata={"text": "x" * (LOWERED - 200)})  # the record is larger

    assert answer["error"]["code"] == "too_large"
    assert await stranger.positions() == before
    assert "s1" not in puppet.sessions
    assert not manager.snapshot().sessions


async def test_other_sessions_are_unharmed(stranger: Stranger, session: Session, puppet: Puppet) -> None:
    await stranger.create("s2")

    results = await asyncio.gather(
        code_of(stranger, "idle"), *(stranger.ask(f"jido.session.{verb}.s2") for verb in ("idle", "activate"))
    )

    assert results[0] == "too_large"
    assert (await stranger.ask("jido.session.terminate.s2"))["status"] == "terminated"


async def test_a_manager_that_stops_leaves_such_a_session_to_others(
    stranger: Stranger, manager: SessionManager, session: Session
) -> None:
    await manager.close()

    with pytest.raises(InvalidTransition):
        await session.emit("step")
    assert await stranger.stored_brief() == ["1 created", "2 active"]
