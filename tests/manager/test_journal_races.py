"""What meets a journal at a bad moment: a session that is given up, ends or stops while it reads or writes there."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from jido_nats import (
    AlreadyExists,
    Cause,
    InvalidTransition,
    Overloaded,
    Reason,
    RestartPolicy,
    Session,
    SessionManager,
    Status,
    Unavailable,
)
from jido_nats.errors import Fenced
from jido_nats.manager import conversation, journal
from jido_nats.manager.journal import JournalCleaner
from jido_nats.manager.live_session import LiveSession
from jido_nats.manager.writer import SessionWriter
from jido_nats.store.journal_log import JournalLog
from jido_nats.worker.session import host_of
from tests.conftest import StartManager
from tests.tools.support import Stranger, eventually

SOON = RestartPolicy(on=(Cause.CRASHED,), attempts_max=0, backoff_s=0.05)
LATE = RestartPolicy(on=(Cause.CRASHED,), backoff_s=60)


class Agent:
    """A worker that takes every message, and crashes at each `fail` that is not redelivered."""

    def __init__(self) -> None:
        self.running = 0
        self.attempts: list[int] = []
        self.got: list[Any] = []

    async def __call__(self, session: Session) -> None:
        self.attempts.append(session.attempt)
        self.running += 1
        try:
            async for message in session.messages():
                self.got.append(message.content)
                if message.content == "fail" and not message.redelivered:
                    raise RuntimeError("boom")
        finally:
            self.running -= 1


class Gate:
    """Holds whoever comes until it is opened."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.open = asyncio.Event()

    async def passed(self) -> None:
        self.reached.set()
        await self.open.wait()


@asynccontextmanager
async def held_after(
    monkeypatch: pytest.MonkeyPatch, kind: type[Any], method: str, when: Callable[[Any], bool] = lambda _: True
) -> AsyncIterator[Gate]:
    """A method whose callers are held, after it has done its work, while the block runs."""
    gate, original = Gate(), getattr(kind, method)

    async def held(self: Any, *arguments: Any, **options: Any) -> Any:
        result = await original(self, *arguments, **options)
        if when(self):
            await gate.passed()
        return result

    with monkeypatch.context() as patch:
        patch.setattr(kind, method, held)
        yield gate
        gate.open.set()


async def test_a_session_that_is_given_up_while_it_reads_starts_no_worker(
    start_manager: StartManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = await start_manager(agent := Agent())
    await manager.create_session(session_id="s1", restart=SOON)
    live = manager._sessions.running.find("s1")
    async with held_after(monkeypatch, LiveSession, "_resume") as gate:
        await manager.send_message("s1", "user", "fail")
        await gate.reached.wait()
        manager._sessions.running.relinquish(live)
    await eventually(lambda: not live.lock.locked())

    assert (agent.attempts, agent.running, live.is_here) == ([1], 0, False)


async def test_a_session_that_is_given_up_before_its_first_attempt_is_unavailable(
    start_manager: StartManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = await start_manager(agent := Agent())

    async def fenced(self: SessionWriter, stored: Any = frozenset()) -> None:
        raise Fenced("claimed by another manager")

    with monkeypatch.context() as patch:
        patch.setattr(SessionWriter, "publish", fenced)
        with pytest.raises(Unavailable):
            await manager.create_session(session_id="s1", restart=SOON)

    assert agent.attempts == []


async def test_a_manager_that_stops_before_a_first_attempt_ends_all_sessions(
    start_manager: StartManager, stranger: Stranger, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ready(session: Session) -> None:
        await session.ready()
        await asyncio.Event().wait()

    manager = await start_manager(ready, wait_ready=True)
    await manager.create_session(session_id="other")
    async with held_after(monkeypatch, SessionWriter, "publish", lambda writer: writer.record.version == 1) as gate:
        creating = asyncio.create_task(manager.create_session(session_id="s1", restart=SOON))
        await gate.reached.wait()
        closing = asyncio.create_task(manager.close())
        await stranger.ends("other")
    await asyncio.wait({creating, closing})

    assert (await stranger.record("other") or {})["reason"] == "manager_stopped"
    assert closing.exception() is None
    assert (await stranger.ends("s1"))["status"] == "terminated"


async def test_a_message_that_waits_while_its_session_ends_is_not_accepted(start_manager: StartManager) -> None:
    manager = await start_manager(Agent())
    await manager.create_session(session_id="s1", restart=LATE)
    await manager.send_message("s1", "user", "fail")
    await eventually(lambda: status_is(manager, Status.INITIALIZING))
    live = manager._sessions.running.find("s1")
    await live.conversation.accepting.acquire()
    sending = asyncio.create_task(manager.send_message("s1", "user", "late"))
    await asyncio.sleep(0)
    ending = asyncio.create_task(manager.terminate_session("s1"))
    await eventually(lambda: status_is(manager, Status.TERMINATING))
    live.conversation.accepting.release()
    await asyncio.wait({sending, ending})

    assert isinstance(sending.exception(), InvalidTransition | Unavailable)
    assert ending.result().reason is Reason.REQUESTED


async def status_is(manager: SessionManager, status: Status) -> bool:
    """Whether the session is in that status."""
    return (await manager.get_session_info("s1")).status is status


async def test_a_session_is_terminated_although_its_journal_does_not_answer(
    start_manager: StartManager, stranger: Stranger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "REMOVE_MAX_S", 0.5)
    manager = await start_manager(Agent(), stop_timeout_s=1, command_timeout_s=2)
    await manager.create_session(session_id="s1", restart=SOON)
    await stranger.js.delete_stream("JIDO_JOURNAL")
    with pytest.raises(Unavailable):
        await manager.send_message("s1", "user", "hello")

    assert (await stranger.ask("jido.session.terminate.s1")).get("status") == "terminated" or await stranger.ends("s1")
    assert (await stranger.ends("s1"))["reason"] == "requested"


async def test_what_a_given_up_session_was_accepting_is_not_held(
    start_manager: StartManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = await start_manager(Agent())
    await manager.create_session(session_id="s1", restart=LATE)
    live = manager._sessions.running.find("s1")
    held = live._deps.conversations.held
    async with held_after(monkeypatch, JournalLog, "append") as gate:
        sending = asyncio.create_task(manager.send_message("s1", "user", "x" * 50_000))
        await gate.reached.wait()
        manager._sessions.running.relinquish(live)
    await asyncio.wait({sending})

    assert isinstance(sending.exception(), Unavailable)
    assert held.total == 0


async def test_messages_are_refused_while_too_many_copies_wait(
    start_manager: StartManager, stranger: Stranger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jido_nats.manager.outbox.WAITING_MAX", 5)
    manager = await start_manager(Agent())
    await manager.create_session(session_id="s1", restart=SOON)
    await stranger.js.delete_stream("JIDO_OUTPUT")

    async def refused() -> bool:
        try:
            await manager.send_message("s1", "user", "hello")
        except Overloaded as error:
            return "waits to be stored" in str(error)
        return False

    assert await eventually(refused)


async def test_a_message_that_is_handled_while_another_is_stored_so_is_stored_too(
    start_manager: StartManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversation, "HANDLED_LATE_S", 0)
    manager = await start_manager(agent := Agent())
    await manager.create_session(session_id="s1", restart=SOON)
    log = manager._sessions.running.find("s1").conversation.journal
    assert log is not None
    await manager.send_message("s1", "user", "a")
    async with held_after(monkeypatch, JournalLog, "append") as gate:
        await gate.reached.wait()  # that "a" is handled
        log._taken += 1  # as if the worker had taken another one meanwhile, and asked for more
    await eventually(lambda: log._handled == log._taken)

    assert agent.got == ["a"]


async def test_a_full_journal_does_not_end_a_session_that_crashed(
    start_manager: StartManager, stranger: Stranger
) -> None:
    manager = await start_manager(agent := Agent(), journal_bytes_max=20_000)
    await manager.create_session(session_id="s1", restart=SOON)
    await manager.send_message("s1", "user", "a")
    await manager.send_message("s1", "user", "fail")
    await stranger.js.publish("jido.journal.other", b"x" * 18_800)
    await eventually(lambda: agent.attempts == [1, 2])
    await eventually(lambda: status_is(manager, Status.ACTIVE))

    assert agent.got[-1] == "fail"


@pytest.mark.parametrize("lines", [5, 80])
async def test_what_is_only_handled_never_removes_the_state(
    start_manager: StartManager, monkeypatch: pytest.MonkeyPatch, lines: int
) -> None:
    monkeypatch.setattr(journal, "PURGE_EVERY", 16)
    states: list[Any] = []

    async def worker(session: Session) -> None:
        states.append(session.state)
        if session.attempt == 1:
            async for message in session.messages():
                await session.checkpoint({"important": 1}, handled=message)
                for _ in range(lines):
                    await host_of(session).checkpoint(msgspec.UNSET, message.message_id)
                raise RuntimeError("boom")
        await asyncio.Event().wait()

    manager = await start_manager(worker)
    await manager.create_session(session_id="s1", restart=SOON)
    await manager.send_message("s1", "user", "a")
    await eventually(lambda: len(states) == 2)

    assert states == [None, {"important": 1}]


async def test_a_subject_that_is_no_session_s_does_not_stop_the_cleaner(
    start_manager: StartManager, stranger: Stranger
) -> None:
    manager = await start_manager()
    await stranger.js.publish("jido.journal.a$b", b"x")
    await stranger.js.publish("jido.journal.gone", b"x")
    assert manager._context.journals is not None

    await JournalCleaner(manager._context.journals, manager._context.records, manager._index).clean()

    assert {message.subject for message in await stranger.stored("JIDO_JOURNAL")} == {"jido.journal.a$b"}


@pytest.mark.parametrize("by_worker", [False, True])
async def test_an_activation_that_waits_while_the_worker_fails_activates_nothing(
    start_manager: StartManager, by_worker: bool
) -> None:
    sessions: list[Session] = []
    fail = asyncio.Event()

    async def worker(session: Session) -> None:
        sessions.append(session)
        await session.idle()
        await fail.wait()
        raise RuntimeError("boom")

    manager = await start_manager(worker)
    await manager.create_session(session_id="s1", restart=LATE)
    await eventually(lambda: status_is(manager, Status.IDLE))
    live = manager._sessions.running.find("s1")
    await live.lock.acquire()
    fail.set()
    await eventually(lambda: live.worker_ended)
    await asyncio.sleep(0)  # what follows from that waits for the lock
    change = sessions[0].activate() if by_worker else manager.activate_session("s1")
    changing = asyncio.ensure_future(change)
    await asyncio.sleep(0.1)  # and that, too
    live.lock.release()
    await asyncio.wait({changing})

    assert isinstance(changing.exception(), InvalidTransition)
    assert await status_is(manager, Status.INITIALIZING)


async def test_another_request_for_a_session_that_waits_is_refused_for_good(start_manager: StartManager) -> None:
    manager = await start_manager(Agent())
    await manager.create_session(session_id="s1", restart=LATE)
    await manager.send_message("s1", "user", "fail")
    await eventually(lambda: status_is(manager, Status.INITIALIZING))

    with pytest.raises(AlreadyExists):
        await manager.create_session(session_id="s1", metadata={"other": 1})
