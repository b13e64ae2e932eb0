"""The manager as a Python object: what goes in is checked, and nothing that its callers and workers hold is its own."""

import asyncio
import logging
from typing import Any

import pytest

from jido_nats import (
    BadRequest,
    Client,
    ConfigurationError,
    JidoError,
    LocalServer,
    NotAllowed,
    Session,
    SessionManager,
    Status,
)
from jido_nats.manager import manager as manager_module
from jido_nats.manager import sessions
from jido_nats.store.event_log import EventLog
from tests.conftest import StartManager
from tests.tools.support import Puppet, Stranger, eventually, wait_for_ever

NO_IDS = ["", "*", ">", "a.b", "a b", "s1\n", "ä", "x" * 65, 5, None, ["s1"]]


@pytest.mark.parametrize("session_id", NO_IDS)
@pytest.mark.parametrize(
    "verb", ["get_session_info", "session_history", "terminate_session", "idle_session", "activate_session"]
)
async def test_what_is_no_session_id_is_refused(manager: SessionManager, verb: str, session_id: Any) -> None:
    await manager.create_session(session_id="s1")

    with pytest.raises(BadRequest, match="session id"):
        await getattr(manager, verb)(session_id)

    assert (await manager.get_session_info("s1")).version == 2


NO_REQUESTS: list[dict[str, Any]] = [
    {"metadata": [1]},
    {"metadata": "x"},
    {"metadata": {"a": float("nan")}},
    {"metadata": {"a": {1, 2}}},
    {"metadata": {"a": (1, 2)}},
    {"metadata": {"a": object()}},
    {"metadata": {"a": "\ud800"}},
    {"metadata": {1: "a"}},
    {"llm_config": [1]},
    {"llm_config": {"a": float("inf")}},
    {"session_id": 5},
    {"session_id": ""},
    {"idle_after_s": float("nan")},
    {"idle_after_s": "1"},
    {"max_lifetime_s": -1},
]


@pytest.mark.parametrize("request_", NO_REQUESTS, ids=lambda each: next(iter(each)))
@pytest.mark.parametrize("side", ["manager", "client"])
async def test_what_json_cannot_say_is_no_session(
    server: LocalServer, stranger: Stranger, manager: SessionManager, side: str, request_: dict[str, Any]
) -> None:
    before = await stranger.positions()
    async with Client.connect(server.url) as client:
        with pytest.raises(BadRequest):
            await (manager if side == "manager" else client).create_session(**request_)

    assert await stranger.positions() == before


@pytest.mark.parametrize("detail", [5, True, ["x"], {"a": 1}, "\ud800"])
async def test_a_detail_that_is_no_text_ends_nothing(manager: SessionManager, detail: Any) -> None:
    await manager.create_session(session_id="s1")

    with pytest.raises(BadRequest):
        await manager.terminate_session("s1", detail=detail)

    assert (await manager.get_session_info("s1")).status is Status.ACTIVE


async def test_a_worker_that_changes_its_metadata_changes_its_own(
    stranger: Stranger, start_manager: StartManager
) -> None:
    async def scribbles(session: Session) -> None:
        for own in (session.metadata, session.llm_config or {}):
            own["more"] = object()
            own["list"].append(2)
        await session.idle()
        await wait_for_ever(session)

    manager = await start_manager(scribbles)
    given = {"metadata": {"list": [1]}, "llm_config": {"list": [1]}}

    await stranger.create("s1", **given)
    await eventually(lambda: is_idle(manager, "s1"))

    stored = await stranger.record("s1") or {}
    assert {name: stored[name] for name in given} == given
    assert (await stranger.create("s1", **given))["replayed"]


async def test_a_caller_that_changes_what_it_gave_changes_its_own(stranger: Stranger, manager: SessionManager) -> None:
    metadata = {"list": [1]}
    record = await manager.create_session(session_id="s1", metadata=metadata)

    metadata["list"].append(2)
    record.metadata["list"].append(3)
    (await manager.get_session_info("s1")).metadata["list"].append(4)
    (await manager.list_sessions())[0].metadata["list"].append(5)
    await manager.idle_session("s1")

    assert (await stranger.record("s1") or {})["metadata"] == {"list": [1]}


async def test_the_steps_of_many_workers_are_not_refused(start_manager: StartManager) -> None:
    go = asyncio.Event()

    async def goes_idle(session: Session) -> None:
        await go.wait()
        await session.idle()
        await wait_for_ever(session)

    manager = await start_manager(goes_idle, commands_max=2)
    for number in range(30):
        await manager.create_session(session_id=f"s{number}")
    go.set()

    await eventually(lambda: all_are(manager, Status.IDLE, 30))


async def test_closing_goes_on_while_sessions_end(
    server: LocalServer, stranger: Stranger, start_manager: StartManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manager_module, "CLOSE_GRACE_S", 0)
    monkeypatch.setattr(sessions, "KILL_GRACE_S", 30)

    async def takes_its_time(session: Session) -> None:
        try:
            await wait_for_ever(session)
        finally:
            await asyncio.sleep(0.5 * int(session.session_id))

    manager = await start_manager(takes_its_time, stop_timeout_s=1.5)
    for number in range(1, 8):
        await manager.create_session(session_id=str(number))

    await manager.close()

    records = [await stranger.record(str(number)) or {} for number in range(1, 8)]
    assert {(record["status"], record["reason"]) for record in records} == {("terminated", "manager_stopped")}
    assert not [record for record in records if record.get("forced")]


async def test_a_look_after_a_lapse_that_fails_is_repeated(
    server: LocalServer,
    stranger: Stranger,
    start_manager: StartManager,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    manager = await start_manager(lease_s=1)
    last_claim = EventLog.last_claim
    failed: list[None] = []

    async def fails_once(self: EventLog) -> int:
        if not failed:
            failed.append(None)
            raise NotAllowed("publish to $JS.API.>", "$JS.API.>")
        return await last_claim(self)

    monkeypatch.setattr(EventLog, "last_claim", fails_once)
    await server.kill()
    await eventually(lambda: not manager._lease.valid)
    await server.start()

    await eventually(lambda: failed and manager._ownership.may_write())
    assert [r for r in caplog.records if "failed; restarting it" in r.getMessage() and r.levelno == logging.ERROR]


class Stop(BaseException):
    """What is not even an `Exception`."""


@pytest.mark.parametrize("error", [Stop("now"), BaseExceptionGroup("all", [Stop()]), GeneratorExit()], ids=repr)
async def test_whatever_a_worker_raises_ends_its_session(
    stranger: Stranger, manager: SessionManager, puppet: Puppet, error: BaseException
) -> None:
    await stranger.create("s1")

    puppet.crash("s1", error)

    record = await stranger.ends("s1")
    assert (record["reason"], record["error"].partition(":")[0]) == ("crashed", type(error).__name__)


@pytest.mark.parametrize("error", [Stop("now"), SystemExit(3), asyncio.CancelledError(), RuntimeError("now")], ids=repr)
async def test_whatever_a_worker_raises_when_it_is_called_fails_the_start(
    stranger: Stranger, start_manager: StartManager, error: BaseException
) -> None:
    def raises(session: Session) -> Any:
        raise error

    await start_manager(raises)

    for _ in range(2):  # the second finds the first
        assert (await stranger.create("s1"))["error"]["code"] == "start_failed"
    assert (await stranger.ends("s1"))["reason"] == "start_failed"


async def test_serving_begins_once(stranger: Stranger, server: LocalServer) -> None:
    async with SessionManager.connect(server.url, worker=wait_for_ever) as manager:
        await asyncio.gather(*(manager.start_serving() for _ in range(3)))

        ear = await stranger.hear("answers.*")
        await stranger.nc.publish("$SRV.PING", b"", reply="_INBOX.none")
        inbox = await stranger.nc.subscribe("_INBOX.count")
        await stranger.nc.publish("$SRV.PING", b"", reply="_INBOX.count")
        await inbox.next_msg(timeout=5)
        await stranger.create("s1")  # behind every answer
        assert (inbox.pending_msgs, ear.messages) == (0, [])


async def is_idle(manager: SessionManager, session_id: str) -> bool:
    return (await manager.get_session_info(session_id)).status is Status.IDLE


async def all_are(manager: SessionManager, status: Status, number: int) -> bool:
    return len(await manager.list_sessions(status=status)) == number


async def test_a_manager_is_entered_once(server: LocalServer) -> None:
    manager = SessionManager.connect(server.url, worker=wait_for_ever)
    async with manager:
        with pytest.raises(JidoError, match="entered only once"):
            await manager.__aenter__()

    with pytest.raises(JidoError, match="entered only once"):
        await manager.__aenter__()
    with pytest.raises(JidoError, match="is not running"):
        await manager.create_session()


async def test_what_is_no_worker_is_told_when_the_manager_starts(server: LocalServer) -> None:
    nothing: Any = None
    with pytest.raises(ConfigurationError, match="the worker default is None"):
        async with SessionManager.connect(server.url, worker=nothing):
            pass


async def test_a_manager_that_was_not_entered_says_so(server: LocalServer) -> None:
    manager = SessionManager.connect(server.url, worker=wait_for_ever)

    assert "not running" in repr(manager)
    with pytest.raises(JidoError, match="is not running"):
        manager.snapshot()


async def test_a_closed_client_says_so_at_once(server: LocalServer) -> None:
    async with Client.connect(server.url) as client:
        pass

    with pytest.raises(JidoError, match="not connected"):
        await client.list_sessions()
