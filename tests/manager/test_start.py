"""How a session starts: when it is active, and what a start that fails looks like."""

import asyncio
from typing import Any

import pytest

from jido_nats import LocalServer, Session, SessionManager, SessionRecord, Settings, StartFailed, Status
from jido_nats.manager.writer import SessionWriter
from jido_nats.worker.session import Worker
from tests.conftest import StartManager
from tests.tools.proxy import Proxy
from tests.tools.support import Stranger, Stubborn, eventually, wait_for_ever

EVENTS = "jido.client.events"


class Gate:
    """A worker that is ready when the test says so."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.open = asyncio.Event()

    async def __call__(self, session: Session) -> None:
        self.started.set()
        await self.open.wait()
        await session.ready()
        await wait_for_ever(session)


async def being_created(stranger: Stranger, gate: Gate) -> "asyncio.Task[dict[str, Any]]":
    """The create of `s1`, whose worker has started and is not ready, and whose creation is stored."""
    creating = asyncio.create_task(stranger.create("s1"))
    await eventually(gate.started.is_set)  # which is so before the event is stored
    await eventually(stranger.stored_brief)
    return creating


async def raises_early(session: Session) -> None:
    raise RuntimeError("boom")


async def returns_early(session: Session) -> None:
    return


async def cancels_itself(session: Session) -> None:
    raise asyncio.CancelledError


def is_no_coroutine(session: Session) -> Any:
    return None


def raises_when_called(session: Session) -> Any:
    raise RuntimeError("boom")


FAILURES: list[tuple[Worker, str]] = [
    (raises_early, "RuntimeError: boom"),
    (returns_early, "the worker ended before it was ready"),
    (cancels_itself, "CancelledError"),
    (wait_for_ever, "not ready within 0.2 s"),
    (raises_when_called, "RuntimeError: boom"),
    (is_no_coroutine, "TypeError"),
]


async def test_a_session_is_active_when_its_worker_is_ready(stranger: Stranger, start_manager: StartManager) -> None:
    gate = Gate()
    await start_manager(gate, wait_ready=True)

    creating = await being_created(stranger, gate)
    assert await stranger.stored_brief() == ["1 created"]
    gate.open.set()

    assert (await creating)["status"] == "active"


@pytest.mark.parametrize(("worker", "error"), FAILURES)
async def test_a_failed_start_is_answered(
    stranger: Stranger, start_manager: StartManager, worker: Worker, error: str
) -> None:
    await start_manager(worker, wait_ready=True, start_timeout_s=0.2)

    reply = await stranger.request("jido.session.create", {"session_id": "s1"})

    assert (reply.headers or {})["Nats-Service-Error-Code"] == "500"
    assert b'"start_failed"' in reply.data
    assert b'"session_id":"s1"' in reply.data
    assert error.encode() in reply.data


@pytest.mark.parametrize(("worker", "error"), FAILURES)
async def test_a_failed_start_is_told(
    stranger: Stranger, start_manager: StartManager, worker: Worker, error: str
) -> None:
    await start_manager(worker, wait_ready=True, start_timeout_s=0.2)

    await stranger.create("s1")

    assert await stranger.stored_brief() == ["1 created", "2 terminated", "2 ended"]
    for event in (await stranger.stored_events())[1:]:
        assert event["reason"] == "start_failed"
        assert error in event["error"]


@pytest.mark.parametrize("worker", [raises_when_called, is_no_coroutine])
async def test_a_worker_that_cannot_be_called_fails_the_start(
    stranger: Stranger, start_manager: StartManager, worker: Worker
) -> None:
    await start_manager(worker)

    assert (await stranger.create("s1"))["error"]["code"] == "start_failed"
    assert await stranger.stored_brief("jido.client.session.s1") == ["2 terminated"]


async def test_a_failed_start_that_is_asked_for_again_has_failed(
    stranger: Stranger, start_manager: StartManager
) -> None:
    await start_manager(raises_early, wait_ready=True)
    await stranger.create("s1")

    assert (await stranger.create("s1"))["error"]["code"] == "start_failed"
    assert await stranger.stored_brief() == ["1 created", "2 terminated", "2 ended"]


async def test_a_start_that_takes_too_long_is_cancelled(stranger: Stranger, start_manager: StartManager) -> None:
    cancelled = asyncio.Event()

    async def never_ready(session: Session) -> None:
        try:
            await wait_for_ever(session)
        finally:
            cancelled.set()

    await start_manager(never_ready, wait_ready=True, start_timeout_s=0.2)

    await stranger.create("s1")

    assert cancelled.is_set()


async def test_a_terminate_during_the_start_waits_for_it(stranger: Stranger, start_manager: StartManager) -> None:
    gate = Gate()
    manager = await start_manager(gate, wait_ready=True)
    creating = await being_created(stranger, gate)

    terminating = asyncio.create_task(manager.terminate_session("s1"))
    assert await stranger.stored_brief() == ["1 created"]
    assert not terminating.done()
    gate.open.set()

    assert (await creating)["status"] == "active"
    assert (await terminating).status == "terminated"
    assert await stranger.stored_brief() == ["1 created", "2 active", "3 terminating", "4 terminated", "4 ended"]


async def test_a_terminate_during_a_start_that_fails_finds_it_ended(
    stranger: Stranger, start_manager: StartManager
) -> None:
    gate = Gate()
    manager = await start_manager(gate, wait_ready=True, start_timeout_s=0.5)
    creating = await being_created(stranger, gate)

    record = await manager.terminate_session("s1")

    assert (record.status, record.reason) == ("terminated", "start_failed")
    assert (await creating)["error"]["code"] == "start_failed"


async def test_a_worker_that_is_not_ready_cannot_go_idle(stranger: Stranger, start_manager: StartManager) -> None:
    async def hasty(session: Session) -> None:
        await session.idle()

    await start_manager(hasty, wait_ready=True)

    assert "InvalidTransition" in (await stranger.create("s1"))["error"]["message"]


@pytest.mark.parametrize(
    ("verb", "request_"), [("idle", b""), ("activate", b""), ("send", {"role": "user", "content": "hello"})]
)
async def test_only_a_terminate_waits_for_the_start(
    stranger: Stranger, start_manager: StartManager, verb: str, request_: Any
) -> None:
    go = asyncio.Event()

    async def takes_its_time(session: Session) -> None:
        await go.wait()
        await session.ready()
        await wait_for_ever(session)

    await start_manager(takes_its_time, wait_ready=True)
    creating = asyncio.create_task(stranger.create("s1"))
    await eventually(lambda: stranger.record("s1"))

    refused = (await stranger.ask(f"jido.session.{verb}.s1", request_))["error"]

    go.set()
    assert (refused["code"], (await creating)["version"]) == ("invalid_transition", 2)
    assert "initializing" in refused["message"]


async def test_who_waits_for_a_start_is_told_when_the_manager_is_stopped(
    stranger: Stranger, start_manager: StartManager
) -> None:
    gate = Gate()
    manager = await start_manager(gate, wait_ready=True)
    creating = await being_created(stranger, gate)

    await manager.close()

    error = (await creating)["error"]
    assert (error["code"], error["session_id"]) == ("start_failed", "s1")
    assert "the manager was stopped before the worker was ready" in error["message"]
    assert await stranger.stored_brief() == ["1 created", "2 terminated", "2 ended"]


async def test_a_start_that_ignores_its_end_is_abandoned_with_the_manager(
    stranger: Stranger, start_manager: StartManager
) -> None:
    stubborn = Stubborn()
    manager = await start_manager(stubborn, wait_ready=True, stop_timeout_s=0.2)
    creating = asyncio.create_task(stranger.create("s1"))
    await eventually(lambda: manager.snapshot().sessions)

    await manager.close()

    assert (await creating)["error"]["code"] == "start_failed"
    record = await stranger.ends("s1")
    assert (record["reason"], record["forced"]) == ("start_failed", True)
    stubborn.let_go.set()


async def test_a_session_whose_first_record_is_on_its_way_ends_with_the_manager(
    server: LocalServer, stranger: Stranger
) -> None:
    async with Proxy(server.port) as proxy:
        proxy.delay(0.2)
        settings = Settings(wait_ready=True)
        async with SessionManager.connect(proxy.url, worker=wait_for_ever, settings=settings) as manager:
            creating = asyncio.create_task(manager.create_session(session_id="s1"))
            await eventually(lambda: len(manager._sessions) == 1)

        with pytest.raises(StartFailed, match="was stopped before"):
            await creating
    assert (await stranger.ends("s1"))["reason"] == "start_failed"


async def test_a_session_that_is_just_ready_is_stopped_as_one_that_runs(
    stranger: Stranger, start_manager: StartManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, committing = SessionWriter.commit, asyncio.Event()

    async def slow(writer: SessionWriter, changed: SessionRecord) -> None:
        if changed.status is Status.ACTIVE:
            committing.set()
            await asyncio.sleep(0.2)
        await commit(writer, changed)

    monkeypatch.setattr(SessionWriter, "commit", slow)
    gate = Gate()
    gate.open.set()
    manager = await start_manager(gate, wait_ready=True)
    creating = asyncio.create_task(stranger.create("s1"))
    await committing.wait()

    await manager.close()

    assert (await creating)["status"] == "active"
    assert (await stranger.ends("s1"))["reason"] == "manager_stopped"
