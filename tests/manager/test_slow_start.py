"""A start that takes longer than a command: the manager says so, the client asks again, and every error has the id."""

import asyncio
import time
from typing import Any

import msgspec
import pytest

from jido_nats import Client, LocalServer, Session, SessionManager, Settings, StartFailed, Unavailable
from jido_nats.errors import CommandError
from tests.conftest import StartManager
from tests.tools.programs import run
from tests.tools.proxy import Proxy
from tests.tools.support import Stranger, eventually, wait_for_ever

COMMAND_S = 0.3
CREATE = "jido.session.create"


class Slow:
    """A worker that is ready when the test says so."""

    def __init__(self) -> None:
        self.starts = 0
        self.go = asyncio.Event()

    async def __call__(self, session: Session) -> None:
        self.starts += 1
        await self.go.wait()
        await session.ready()
        await wait_for_ever(session)


@pytest.fixture
def slow() -> Slow:
    """A worker that is not ready yet."""
    return Slow()


@pytest.fixture
async def manager(start_manager: StartManager, slow: Slow) -> SessionManager:
    """A manager whose commands take no longer than `COMMAND_S`, and whose worker is `slow`."""
    return await start_manager(slow, wait_ready=True, command_timeout_s=COMMAND_S)


async def test_a_slow_start_is_answered_in_time(stranger: Stranger, manager: SessionManager, slow: Slow) -> None:
    began = time.monotonic()

    reply = await stranger.request(CREATE, {"session_id": "s1"})

    assert time.monotonic() - began < COMMAND_S + 20  # the start would take for ever
    error = msgspec.json.decode(reply.data)["error"]
    assert ((reply.headers or {})["Nats-Service-Error-Code"], error["code"]) == ("503", "unavailable")
    assert error["message"].startswith("starting")
    assert error["session_id"] == "s1"


async def test_the_start_goes_on(stranger: Stranger, manager: SessionManager, slow: Slow) -> None:
    await stranger.ask(CREATE, {"session_id": "s1"})

    slow.go.set()

    await eventually(lambda: is_active(stranger))
    assert (await stranger.ask(CREATE, {"session_id": "s1"}))["replayed"]
    assert slow.starts == 1


async def is_active(stranger: Stranger) -> bool:
    return (await stranger.record("s1") or {}).get("status") == "active"


async def test_who_chose_no_id_learns_it_from_the_error(
    stranger: Stranger, manager: SessionManager, slow: Slow
) -> None:
    error = (await stranger.ask(CREATE))["error"]

    slow.go.set()

    session_id = error["session_id"]
    assert (await stranger.ask(f"jido.session.get.{session_id}"))["session_id"] == session_id


async def test_asking_again_piles_up_no_work(stranger: Stranger, manager: SessionManager, slow: Slow) -> None:
    await stranger.ask(CREATE, {"session_id": "s1"})
    before = len(manager._sessions.running.tasks)

    await asyncio.gather(*(stranger.ask(CREATE, {"session_id": "s1"}) for _ in range(20)))

    assert len(manager._sessions.running.tasks) == before
    assert slow.starts == 1


async def test_a_start_that_fails_late_is_told_to_who_asks_again(
    stranger: Stranger, start_manager: StartManager, slow: Slow
) -> None:
    await start_manager(slow, wait_ready=True, command_timeout_s=COMMAND_S, start_timeout_s=2 * COMMAND_S)
    assert (await stranger.ask(CREATE, {"session_id": "s1"}))["error"]["code"] == "unavailable"
    await stranger.ends("s1")

    assert (await stranger.ask(CREATE, {"session_id": "s1"}))["error"]["code"] == "start_failed"


async def test_another_manager_says_that_it_is_starting(
    server: LocalServer, stranger: Stranger, start_manager: StartManager, slow: Slow
) -> None:
    settings = Settings(wait_ready=True, command_timeout_s=4.0)  # of which a forwarded command takes less
    await start_manager(slow, wait_ready=True, command_timeout_s=4.0)
    creating = asyncio.create_task(stranger.ask(CREATE, {"session_id": "s1"}))
    await eventually(lambda: stranger.record("s1"))
    async with Proxy(server.port) as proxy:
        async with SessionManager.connect(proxy.url, worker=slow, settings=settings) as other:
            proxy.delay(0.1)

            with pytest.raises(Unavailable, match="starting") as caught:
                await other.create_session(session_id="s1")

            assert (caught.value.session_id, slow.starts) == ("s1", 1)
            proxy.delay(0.0)
    slow.go.set()
    await creating


# The client


async def test_a_client_asks_until_it_is_active(
    server: LocalServer, stranger: Stranger, manager: SessionManager, slow: Slow
) -> None:
    async with Client.connect(server.url) as client:
        creating = asyncio.create_task(client.create_session())
        await eventually(lambda: manager.stats.command_errors["create", "unavailable"] >= 2)
        slow.go.set()
        record = await creating

    assert (record.status, record.replayed, slow.starts) == ("active", False, 1)


async def test_a_client_s_error_names_the_session_that_is_starting(
    server: LocalServer, manager: SessionManager, slow: Slow
) -> None:
    async with Client.connect(server.url, timeout_s=3 * COMMAND_S) as client:
        with pytest.raises(Unavailable, match="starting") as caught:
            await client.create_session()

        session_id = caught.value.session_id
        assert session_id is not None
        assert session_id in str(caught.value)
        slow.go.set()
        assert (await client.wait(session_id, "active", timeout_s=10)).status == "active"


async def test_the_command_line_names_the_session_that_is_starting(
    server: LocalServer, manager: SessionManager, slow: Slow
) -> None:
    await manager.close()

    finished = await run("create", "--server", server.url)

    assert finished.code == 1
    assert "(session_id session_" in finished.err


async def test_every_error_of_a_create_has_the_id(server: LocalServer, start_manager: StartManager) -> None:
    async with Client.connect(server.url, timeout_s=0.5) as client:
        errors: list[Any] = [await error_of(client.create_session())]  # there is no manager
        await start_manager(wait_for_ever, sessions_max=1)
        await client.create_session(session_id="s1")
        errors.append(await error_of(client.create_session()))  # it is full
        errors.append(await error_of(client.create_session(session_id="s1", metadata={"another": 1})))
        errors.append(await error_of(client.create_session(session_id="s2", metadata={"x": "x" * 40_000})))

    assert [error.code for error in errors] == ["unavailable", "overloaded", "already_exists", "too_large"]
    assert all(error.session_id and error.session_id in str(error) for error in errors)


async def test_every_error_of_an_embedded_create_has_the_id(start_manager: StartManager) -> None:
    async def fails(session: Session) -> None:
        raise RuntimeError("boom")

    manager = await start_manager(fails, wait_ready=True)

    error = await error_of(manager.create_session())

    assert isinstance(error, StartFailed)
    assert error.session_id is not None
    assert error.session_id in str(error)


async def error_of(creating: Any) -> CommandError:
    with pytest.raises(CommandError) as caught:
        await creating
    return caught.value


async def test_an_embedded_create_waits_for_the_whole_start(server: LocalServer, slow: Slow) -> None:
    settings = Settings(wait_ready=True, command_timeout_s=COMMAND_S)
    async with SessionManager.connect(server.url, worker=slow, settings=settings) as manager:
        creating = asyncio.create_task(manager.create_session())
        await asyncio.wait({creating}, timeout=2 * COMMAND_S)
        assert not creating.done()

        slow.go.set()

        assert (await creating).status == "active"


def test_a_client_has_a_minute_by_default() -> None:
    assert Client.connect()._timeout_s == 60.0
