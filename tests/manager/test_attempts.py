"""Sessions with a restart policy: new attempts, what waits for them, and how they end."""

import asyncio
from datetime import datetime
from typing import Any

import pytest

from jido_nats import (
    BadRequest,
    Cause,
    InvalidTransition,
    JidoError,
    Reason,
    RestartPolicy,
    Session,
    SessionManager,
    StartFailed,
    Status,
    Unavailable,
)
from tests.conftest import StartManager
from tests.tools.support import Stranger, eventually, wait_for_ever

SOON = RestartPolicy(on=(Cause.CRASHED, Cause.START_FAILED), backoff_s=0.05)
LATE = RestartPolicy(on=(Cause.CRASHED,), backoff_s=60)
FAIL = "fail"


class Agent:
    """A worker that crashes at each message `fail` unless that is redelivered, and is its own record of what it did."""

    def __init__(self, *, fails_at: int = 1) -> None:
        self.attempts: list[int] = []
        self.redelivered: list[Any] = []
        self.sessions: list[Session] = []
        self._fails_at = fails_at

    async def __call__(self, session: Session) -> None:
        self.attempts.append(session.attempt)
        self.sessions.append(session)
        async for message in session.messages():
            if message.redelivered:
                self.redelivered.append(message.content)
            if message.content == FAIL and session.attempt <= self._fails_at:
                raise RuntimeError("boom")
            if message.content == "return":
                return


async def crash(manager: SessionManager, session_id: str) -> None:
    """Have the worker crash, and return when that is stored."""
    before = await manager.get_session_info(session_id)
    await manager.send_message(session_id, "user", FAIL)
    await eventually(lambda: version(manager, session_id, before.version + 1))


async def version(manager: SessionManager, session_id: str, number: int) -> bool:
    """Whether the session has come to that version."""
    return (await manager.get_session_info(session_id)).version >= number


async def test_a_crash_is_followed_by_a_new_attempt(start_manager: StartManager, stranger: Stranger) -> None:
    manager, ear = await start_manager(agent := Agent()), await stranger.hear("jido.client.session.s1")
    await manager.create_session(session_id="s1", restart=SOON)

    await crash(manager, "s1")
    record = await eventually(lambda: active(manager, "s1", attempt=2))

    assert agent.attempts == [1, 2]
    assert (record.error, record.run.cause, record.run.failures, record.reason) == (None, None, 1, None)
    await eventually(lambda: len(ear.on("jido.client.session.s1")) == 3)
    told = [
        (e["status"], e["attempt"], e.get("cause"), e.get("error", "")[:18]) for e in ear.on("jido.client.session.s1")
    ]
    assert told == [
        ("active", 1, None, ""),
        ("initializing", 2, "crashed", "RuntimeError: boom"),
        ("active", 2, None, ""),
    ]


async def active(manager: SessionManager, session_id: str, *, attempt: int) -> Any:
    """The record, once that attempt is active."""
    record = await manager.get_session_info(session_id)
    return record if record.status is Status.ACTIVE and record.attempt == attempt else None


async def test_an_idle_session_begins_a_new_attempt_too(start_manager: StartManager) -> None:
    crashed = asyncio.Event()

    async def worker(session: Session) -> None:
        if session.attempt == 1:
            await session.idle()
            await crashed.wait()
            raise RuntimeError("boom")
        await wait_for_ever(session)

    manager = await start_manager(worker)
    await manager.create_session(session_id="s1", restart=SOON)
    await eventually(lambda: version(manager, "s1", 3))
    crashed.set()

    assert (await eventually(lambda: active(manager, "s1", attempt=2))).version == 5


async def test_after_so_many_failures_in_a_row_it_ends(start_manager: StartManager) -> None:
    async def worker(session: Session) -> None:
        raise RuntimeError(f"boom {session.attempt}")

    manager = await start_manager(worker)
    await manager.create_session(
        session_id="s1", restart=RestartPolicy(on=(Cause.CRASHED,), attempts_max=3, backoff_s=0.01)
    )
    record = await eventually(lambda: ended(manager, "s1"))

    assert (record.reason, record.attempt, record.error[:20]) == (Reason.CRASHED, 3, "RuntimeError: boom 3")
    events = await manager.session_history("s1")
    attempts = [getattr(event, "attempt", None) for event in events]
    assert [attempt for attempt in attempts if attempt] == sorted(attempt for attempt in attempts if attempt)


async def ended(manager: SessionManager, session_id: str) -> Any:
    """The record, once it is terminated."""
    record = await manager.get_session_info(session_id)
    return record if record.status is Status.TERMINATED else None


async def test_an_end_that_the_policy_does_not_name_is_the_end(start_manager: StartManager) -> None:
    manager = await start_manager(Agent())
    await manager.create_session(session_id="s1", restart=RestartPolicy(on=(Cause.OWNER_LOST,)))
    await manager.send_message("s1", "user", FAIL)

    assert (await eventually(lambda: ended(manager, "s1"))).reason is Reason.CRASHED


async def test_a_worker_that_returns_completes_its_session(start_manager: StartManager) -> None:
    manager = await start_manager(Agent())
    await manager.create_session(session_id="s1", restart=SOON)
    await manager.send_message("s1", "user", "return")

    assert (await eventually(lambda: ended(manager, "s1"))).reason is Reason.COMPLETED


async def test_how_a_worker_ends_that_was_asked_to_stop_is_no_failure(start_manager: StartManager) -> None:
    async def worker(session: Session) -> None:
        try:
            await wait_for_ever(session)
        finally:
            raise RuntimeError("while stopping")

    manager = await start_manager(worker)
    await manager.create_session(session_id="s1", restart=SOON)
    record = await manager.terminate_session("s1")

    assert (record.status, record.reason, record.attempt) == (Status.TERMINATED, Reason.REQUESTED, 1)


async def test_a_worker_may_look_whether_it_is_asked_to_stop(start_manager: StartManager) -> None:
    seen: list[bool] = []

    async def worker(session: Session) -> None:
        try:
            seen.append(session.stopping.is_set())
            await wait_for_ever(session)
        finally:
            seen.append(session.stopping.is_set())

    manager = await start_manager(worker)
    await manager.create_session(session_id="s1")
    await manager.terminate_session("s1")

    assert seen == [False, True]


# While it waits


async def test_it_is_terminated_at_once_while_it_waits(start_manager: StartManager, stranger: Stranger) -> None:
    manager, ear = await start_manager(Agent()), await stranger.hear("jido.client.session.s1")
    await manager.create_session(session_id="s1", restart=LATE)
    await crash(manager, "s1")

    record = await manager.terminate_session("s1", detail="enough")

    assert (record.status, record.reason, record.detail, record.forced) == (
        Status.TERMINATED,
        Reason.REQUESTED,
        "enough",
        False,
    )
    await eventually(lambda: len(ear.messages) == 4)
    assert ear.told("jido.client.session.s1") == ["2 active", "3 initializing", "4 terminating", "5 terminated"]


async def test_a_time_limit_applies_while_it_waits(start_manager: StartManager) -> None:
    manager = await start_manager(Agent())
    await manager.create_session(session_id="s1", restart=LATE, max_lifetime_s=1)
    await crash(manager, "s1")

    record = await eventually(lambda: ended(manager, "s1"))

    assert (record.reason, record.run.attempt) == (Reason.TIMED_OUT, 2)


async def test_a_manager_that_stops_ends_what_waits(start_manager: StartManager, stranger: Stranger) -> None:
    manager = await start_manager(Agent())
    await manager.create_session(session_id="s1", restart=LATE)
    await crash(manager, "s1")

    await manager.close()

    assert (await stranger.record("s1") or {})["reason"] == "manager_stopped"


async def test_messages_are_accepted_while_it_waits(start_manager: StartManager) -> None:
    manager = await start_manager(agent := Agent())
    policy = RestartPolicy(on=(Cause.CRASHED,), backoff_s=1)
    await manager.create_session(session_id="s1", restart=policy)
    await crash(manager, "s1")
    reply = await manager.send_message("s1", "user", "later", message_id="m")

    assert await eventually(lambda: agent.attempts == [1, 2] and agent.redelivered)
    assert agent.redelivered == [FAIL]
    assert (await manager.send_message("s1", "user", "later", message_id="m")) == type(reply)(
        session_id="s1", message_id="m", number=reply.number, replayed=True
    )


async def test_it_can_be_made_neither_active_nor_idle_while_it_waits(start_manager: StartManager) -> None:
    manager = await start_manager(Agent())
    await manager.create_session(session_id="s1", restart=LATE)
    await crash(manager, "s1")

    for change in (manager.activate_session, manager.idle_session):
        with pytest.raises(InvalidTransition, match="wait until it is active"):
            await change("s1")


async def test_the_same_create_is_to_be_asked_again_while_it_waits(start_manager: StartManager) -> None:
    manager = await start_manager(Agent())
    await manager.create_session(session_id="s1", restart=LATE)
    await crash(manager, "s1")

    with pytest.raises(Unavailable, match="waits for its next attempt"):
        await manager.create_session(session_id="s1", restart=LATE)


async def test_it_waits_as_long_as_the_record_says(start_manager: StartManager, stranger: Stranger) -> None:
    manager = await start_manager(Agent())
    await manager.create_session(session_id="s1", restart=LATE)
    await crash(manager, "s1")

    run = (await stranger.record("s1") or {})["run"]
    wait = datetime.fromisoformat(run["not_before"]) - datetime.fromisoformat(run["began_at"])

    assert 45 <= wait.total_seconds() <= 60
    assert (run["attempt"], run["failures"], run["cause"]) == (2, 1, "crashed")


# Failed starts


async def test_a_start_that_failed_is_tried_again(start_manager: StartManager) -> None:
    async def worker(session: Session) -> None:
        if session.attempt == 1:
            raise RuntimeError("not today")
        await session.ready()
        await wait_for_ever(session)

    manager = await start_manager(worker, wait_ready=True)
    with pytest.raises(Unavailable, match=r"not today.*tries again"):
        await manager.create_session(session_id="s1", restart=SOON)

    record = await eventually(lambda: active(manager, "s1", attempt=2))
    assert record.run.failures == 1
    assert (await manager.create_session(session_id="s1", restart=SOON)).replayed


async def test_a_start_that_fails_too_often_is_the_end(start_manager: StartManager) -> None:
    async def worker(session: Session) -> None:
        raise RuntimeError(f"not today {session.attempt}")

    manager = await start_manager(worker, wait_ready=True)
    policy = RestartPolicy(on=(Cause.START_FAILED,), attempts_max=2, backoff_s=0.01)
    with pytest.raises(Unavailable):
        await manager.create_session(session_id="s1", restart=policy)
    record = await eventually(lambda: ended(manager, "s1"))

    assert (record.reason, record.attempt) == (Reason.START_FAILED, 2)
    assert "not today 2" in record.error


async def test_without_start_failed_in_the_policy_a_failed_start_is_the_end(start_manager: StartManager) -> None:
    async def worker(session: Session) -> None:
        raise RuntimeError("not today")

    manager = await start_manager(worker, wait_ready=True)
    with pytest.raises(StartFailed, match="not today"):
        await manager.create_session(session_id="s1", restart=LATE)


async def test_an_attempt_that_is_not_ready_in_time_has_failed(start_manager: StartManager) -> None:
    async def worker(session: Session) -> None:
        if session.attempt != 2:
            await session.ready()
        if session.attempt == 1:
            raise RuntimeError("boom")
        await wait_for_ever(session)

    manager = await start_manager(worker, wait_ready=True, start_timeout_s=0.5)
    await manager.create_session(session_id="s1", restart=SOON)

    assert (await eventually(lambda: active(manager, "s1", attempt=3))).run.failures == 2


async def test_a_worker_that_cannot_even_be_called_is_tried_again(start_manager: StartManager) -> None:
    calls: list[int] = []

    def worker(session: Session) -> Any:
        calls.append(session.attempt)
        if session.attempt == 2:
            raise RuntimeError("cannot be called")
        return Agent()(session)

    manager = await start_manager(worker)
    await manager.create_session(session_id="s1", restart=SOON)
    await crash(manager, "s1")

    await eventually(lambda: active(manager, "s1", attempt=3))
    assert calls == [1, 2, 3]


# What an earlier attempt has left


async def test_what_an_attempt_has_left_running_says_nothing_and_takes_nothing(start_manager: StartManager) -> None:
    errors: list[JidoError] = []
    left: list[asyncio.Task[None]] = []
    got: list[Any] = []

    async def goes_on(session: Session, began: asyncio.Event) -> None:
        waiting = asyncio.create_task(session.messages().__anext__())
        await began.wait()
        for work in (
            session.say("late"),
            session.emit("late"),
            session.checkpoint(["late"]),
            session.idle(),
            session.messages().__anext__(),
        ):
            try:
                await work
            except JidoError as error:
                errors.append(error)
        got.append("stolen") if waiting.done() else waiting.cancel()

    async def worker(session: Session) -> None:
        if session.attempt == 1:
            left.append(asyncio.create_task(goes_on(session, second)))
            raise RuntimeError("boom")
        assert session.state is None
        async for message in session.messages():
            got.append(message.content)

    second = asyncio.Event()
    manager = await start_manager(worker)
    await manager.create_session(session_id="s1", restart=SOON)
    await eventually(lambda: active(manager, "s1", attempt=2))
    await manager.send_message("s1", "user", "for the second")
    second.set()
    await asyncio.wait(left)

    assert [type(error) for error in errors] == [InvalidTransition] * 5
    assert await eventually(lambda: got == ["for the second"])


# Requests


@pytest.mark.parametrize(
    ("policy", "problem"),
    [
        ({"on": []}, "restart.on must name one or more"),
        ({"on": ["crashed", "crashed"]}, "each once"),
        ({"on": ["completed"]}, "crashed, start_failed, owner_lost"),
        ({"on": ["crashed"], "attempts_max": -1}, "attempts_max must be 0"),
        ({"on": ["crashed"], "backoff_s": 0}, "backoff_s must be 0.01 to 60"),
        ({"on": ["crashed"], "backoff_s": 61}, "backoff_s must be 0.01 to 60"),
        ({"on": ["crashed"], "backoff": 1}, "backoff"),
        ({}, "on"),
        ("crashed", "restart"),
    ],
)
async def test_a_wrong_policy_is_refused(
    start_manager: StartManager, stranger: Stranger, policy: Any, problem: str
) -> None:
    await start_manager()

    error = (await stranger.ask("jido.session.create", {"session_id": "s1", "restart": policy}))["error"]

    assert (error["code"], problem in error["message"]) == ("bad_request", True), error


async def test_a_wrong_policy_from_python_is_refused(manager: SessionManager) -> None:
    with pytest.raises(BadRequest, match=r"restart\.on"):
        await manager.create_session(restart=RestartPolicy(on=()))


async def test_another_policy_is_another_session(start_manager: StartManager, stranger: Stranger) -> None:
    await start_manager()
    request: dict[str, Any] = {"session_id": "s1", "restart": {"on": ["crashed", "owner_lost"]}}
    await stranger.ask("jido.session.create", request)

    again = await stranger.ask(
        "jido.session.create", {"session_id": "s1", "restart": {"on": ["owner_lost", "crashed"], "backoff_s": 1}}
    )
    other = await stranger.ask("jido.session.create", {"session_id": "s1"})

    assert again["replayed"] is True
    assert other["error"]["code"] == "already_exists"
