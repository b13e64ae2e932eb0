"""A real manager driven at random, against a model of a dozen lines."""

import asyncio
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule, run_state_machine_as_test

from jido_nats import Client, InvalidTransition, LocalServer, SessionManager, Settings, Status
from tests.tools import audit
from tests.tools.support import Puppet, eventually

T = TypeVar("T")

ALLOWED = {"idle": Status.ACTIVE, "activate": Status.IDLE}
BECOMES = {"idle": Status.IDLE, "activate": Status.ACTIVE}


class ManagerMachine(RuleBasedStateMachine):
    """The model is `self.model`: session id to (status, reason)."""

    sessions = Bundle("sessions")

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.model: dict[str, tuple[str, str | None]] = {}
        self.puppet = Puppet()
        self.do(self.start())

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    async def start(self) -> None:
        self.exit = AsyncExitStack()
        self.server = await self.exit.enter_async_context(LocalServer(sync_interval="2m"))
        self.client = await self.exit.enter_async_context(Client.connect(self.server.url))
        await self.start_manager()

    async def start_manager(self) -> None:
        self.manager = SessionManager.connect(self.server.url, worker=self.puppet, settings=Settings(lease_s=2))
        await self.manager.__aenter__()
        await self.manager.start_serving()

    @rule(target=sessions, metadata=st.dictionaries(st.text(max_size=5), st.integers(-5, 5), max_size=3))
    def create(self, metadata: dict[str, int]) -> str:
        record = self.do(self.client.create_session(metadata=metadata))
        assert (record.status, record.metadata) == (Status.ACTIVE, metadata)
        self.model[record.session_id] = (Status.ACTIVE, None)
        return record.session_id

    @rule(session_id=sessions)
    def create_again(self, session_id: str) -> None:
        metadata = self.do(self.client.get_session_info(session_id)).metadata
        assert self.do(self.client.create_session(session_id=session_id, metadata=metadata)).replayed

    @rule(session_id=sessions, verb=st.sampled_from(["idle", "activate"]))
    def step(self, session_id: str, verb: str) -> None:
        call = {"idle": self.client.idle_session, "activate": self.client.activate_session}[verb]
        if self.model[session_id][0] == ALLOWED[verb]:
            assert self.do(call(session_id)).status is BECOMES[verb]
            self.model[session_id] = (BECOMES[verb], None)
        else:
            with pytest.raises(InvalidTransition):
                self.do(call(session_id))

    @rule(session_id=sessions)
    def terminate(self, session_id: str) -> None:
        record = self.do(self.client.terminate_session(session_id))
        self.end(session_id, "requested")
        assert (record.status, record.reason) == self.model[session_id]

    @rule(session_id=consumes(sessions), error=st.none() | st.sampled_from([RuntimeError("boom"), SystemExit(1)]))
    def worker_ends(self, session_id: str, error: BaseException | None) -> None:
        if self.model[session_id][0] == Status.TERMINATED:
            return
        if error is None:
            self.puppet.complete(session_id)
        else:
            self.puppet.crash(session_id, error)
        self.do(self.client.wait(session_id, Status.TERMINATED, timeout_s=10))
        self.end(session_id, "completed" if error is None else "crashed")

    @rule()
    def restart_manager(self) -> None:
        self.do(self.manager.close())
        for session_id in self.model:
            self.end(session_id, "manager_stopped")
        self.do(self.start_manager())

    @rule()
    def restart_server(self) -> None:
        self.do(self.server.kill())
        self.do(self.server.start())
        self.do(eventually(self.connected))

    def connected(self) -> bool:
        return self.manager._connections[0].connected and self.manager._ownership.may_write()

    @invariant()
    def the_bucket_is_as_the_model(self) -> None:
        records = self.do(self.client.list_sessions(include_terminated=True))
        assert {r.session_id: (r.status, r.reason) for r in records} == self.model

    def end(self, session_id: str, reason: str) -> None:
        if self.model[session_id][0] != Status.TERMINATED:
            self.model[session_id] = (Status.TERMINATED, reason)

    def teardown(self) -> None:
        self.do(self.finish())
        self.runner.close()

    async def finish(self) -> None:
        await self.manager.close()
        seen = await audit.read(self.server.url)
        await self.exit.aclose()
        assert audit.audit(*seen, quiet=True, all_ended=True) == []


@pytest.mark.timeout(170)
def test_a_manager_is_as_its_model() -> None:
    run_state_machine_as_test(
        ManagerMachine,
        settings=settings(
            max_examples=6, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
