"""Sessions with a restart policy driven at random: crashes, checkpoints, messages and ends in any order.

The oracle is, for each session, the list of the messages that were accepted.
"""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, rule, run_state_machine_as_test

from jido_nats import (
    Cause,
    Client,
    InvalidTransition,
    LocalServer,
    RestartPolicy,
    Session,
    SessionManager,
    Settings,
    Status,
)
from jido_nats.manager import conversation, journal
from tests.tools import audit
from tests.tools.support import eventually

T = TypeVar("T")

POLICY = RestartPolicy(on=(Cause.CRASHED,), attempts_max=0, backoff_s=0.01)


class Crash(Exception):
    """What the test has a worker raise."""


class Workers:
    """Workers that keep every message in their state, and crash where the test says: before or after a checkpoint."""

    def __init__(self) -> None:
        self.crash_at: dict[str, str] = {}
        self.states: dict[str, list[Any]] = defaultdict(list)
        self.attempts: dict[str, int] = {}
        self._wake: dict[str, asyncio.Event] = {}

    async def __call__(self, session: Session) -> None:
        session_id = session.session_id
        self.attempts[session_id] = session.attempt
        self._wake[session_id] = asyncio.Event()
        working = asyncio.create_task(self._work(session))
        waking = asyncio.create_task(self._wake[session_id].wait())
        try:
            await asyncio.wait({working, waking}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
            raise Crash
        finally:
            working.cancel()
            waking.cancel()

    async def _work(self, session: Session) -> None:
        state = session.state or []
        async for message in session.messages():
            self._crash_if(session.session_id, "before")
            state.append(message.content)
            await session.checkpoint(state, handled=message)
            self.states[session.session_id] = list(state)
            self._crash_if(session.session_id, "after")

    def crash_now(self, session_id: str) -> None:
        """Crash wherever it is."""
        self._wake[session_id].set()

    def _crash_if(self, session_id: str, place: str) -> None:
        if self.crash_at.get(session_id) == place:
            del self.crash_at[session_id]
            raise Crash


class AttemptsMachine(RuleBasedStateMachine):
    """The model is `self.accepted`: session id to what was accepted, in order."""

    sessions = Bundle("sessions")

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.accepted: dict[str, list[int]] = {}
        self.workers = Workers()
        self.number = 0
        self.runner.run(self.start())

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    async def start(self) -> None:
        self.exit = AsyncExitStack()
        self.server = await self.exit.enter_async_context(LocalServer(sync_interval="2m"))
        self.client = await self.exit.enter_async_context(Client.connect(self.server.url))
        manager = SessionManager.connect(self.server.url, worker=self.workers, settings=Settings(lease_s=60))
        self.manager = await self.exit.enter_async_context(manager)
        await self.manager.start_serving()

    @rule(target=sessions)
    def create(self) -> str:
        record = self.do(self.client.create_session(restart=POLICY))
        self.accepted[record.session_id] = []
        return record.session_id

    @rule(session_id=sessions, times=st.integers(1, 12))
    def send(self, session_id: str, times: int) -> None:
        for _ in range(times):
            self.number += 1
            self.do(self._send(session_id, self.number))
            self.accepted[session_id].append(self.number)

    @rule(session_id=sessions)
    def send_again(self, session_id: str) -> None:
        if self.accepted[session_id]:
            assert self.do(self._send(session_id, self.accepted[session_id][-1])).replayed

    @rule(session_id=sessions, place=st.sampled_from(["before", "after"]))
    def crash_at(self, session_id: str, place: str) -> None:
        self.workers.crash_at[session_id] = place

    @rule(session_id=sessions)
    def crash_now(self, session_id: str) -> None:
        self.do(self._crash_now(session_id))

    @rule(session_id=sessions, verb=st.sampled_from(["idle", "activate"]))
    def step(self, session_id: str, verb: str) -> None:
        with contextlib.suppress(InvalidTransition):  # it is in that status, or between two attempts
            self.do({"idle": self.client.idle_session, "activate": self.client.activate_session}[verb](session_id))

    @rule(session_id=sessions)
    def catch_up(self, session_id: str) -> None:
        self.do(eventually(lambda: self._worked_in(session_id)))

    @rule(session_id=consumes(sessions))
    def terminate(self, session_id: str) -> None:
        assert self.do(self.client.terminate_session(session_id)).status is Status.TERMINATED
        del self.accepted[session_id]

    async def _send(self, session_id: str, number: int) -> Any:
        return await self.client.send_message(session_id, "user", number, message_id=f"m{number}")

    async def _crash_now(self, session_id: str) -> None:
        self.workers.crash_now(session_id)

    def _worked_in(self, session_id: str) -> bool:
        return self.workers.states[session_id] == self.accepted[session_id]

    def teardown(self) -> None:
        try:
            self.do(self._check())
        finally:
            self.do(self.exit.aclose())
            self.runner.close()

    async def _check(self) -> None:
        self.workers.crash_at.clear()
        for session_id in self.accepted:
            await eventually(partial(self._worked_in, session_id))
            await self.client.wait(
                session_id, "active" if not await self._is_idle(session_id) else "idle", timeout_s=30
            )
            await self.client.terminate_session(session_id)
        await eventually(self._all_sealed)
        seen = await audit.read(self.server.url)
        assert audit.audit(seen.messages, seen.records, seen.leases, [], quiet=True, all_ended=True) == []

    async def _is_idle(self, session_id: str) -> bool:
        return (await self.client.get_session_info(session_id)).status is Status.IDLE

    async def _all_sealed(self) -> bool:
        return all(record.sealed for record in await self.client.list_sessions(include_terminated=True))


def test_every_accepted_message_is_in_the_state_once_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "PURGE_EVERY", 8)
    monkeypatch.setattr(conversation, "KNOWN_MAX", 3)
    run_state_machine_as_test(
        AttemptsMachine,
        settings=settings(
            max_examples=15, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
