"""Fixtures: one real nats-server a test, a stock NATS client on it, and managers."""

import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any, TypeAlias

import pytest
from hypothesis import HealthCheck, settings

from jido_nats import ConnectOptions, LocalServer, SessionManager, Settings
from jido_nats.broker.connection import Connection
from tests.tools.support import LEASE_S, Puppet, Stranger, stranger_at, wait_for_ever

# A busy machine is no defect: hypothesis has time limits of its own for an example and for generating some.
settings.register_profile("slow machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("slow machine")

# A shell starts what is in its background with SIGINT ignored, and the programs that tests start would inherit that:
# none could be interrupted. Nor could a worker of pytest-xdist, which ends so, and cleans up, when pytest was killed.
signal.signal(signal.SIGINT, signal.default_int_handler)

StartManager: TypeAlias = Callable[..., Coroutine[Any, Any, SessionManager]]


@pytest.fixture
async def server() -> AsyncIterator[LocalServer]:
    """A nats-server of the test's own."""
    async with LocalServer() as server:
        yield server


@pytest.fixture
async def stranger(server: LocalServer) -> AsyncIterator[Stranger]:
    """A stock NATS client."""
    async with stranger_at(server.url) as stranger:
        yield stranger


@pytest.fixture
async def connection(server: LocalServer) -> AsyncIterator[Connection]:
    """A connection to the server, with nothing declared on it."""
    connection = await Connection.open(ConnectOptions(servers=(server.url,)), "test")
    yield connection
    await connection.close()


@pytest.fixture
async def start_manager(server: LocalServer) -> AsyncIterator[StartManager]:
    """`await start_manager(worker, **settings)`: a manager that serves, closed with the test."""
    async with AsyncExitStack() as stack:

        async def start(worker: Any = wait_for_ever, **settings: Any) -> SessionManager:
            chosen = Settings(**{"lease_s": LEASE_S, **settings})
            manager = await stack.enter_async_context(
                SessionManager.connect(server.url, worker=worker, settings=chosen)
            )
            await manager.start_serving()
            return manager

        yield start


@pytest.fixture
def puppet() -> Puppet:
    """The worker of `manager`."""
    return Puppet()


@pytest.fixture
async def manager(start_manager: StartManager, puppet: Puppet) -> SessionManager:
    """A manager that serves, whose sessions do what the test tells `puppet`."""
    return await start_manager(puppet)
