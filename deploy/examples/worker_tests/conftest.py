"""One real nats-server a test, a manager that runs the worker, and a client."""

from collections.abc import AsyncIterator

import pytest
from jido_nats import Client, LocalServer, SessionManager

from worker import adder


@pytest.fixture
async def server() -> AsyncIterator[LocalServer]:
    """A nats-server on a free port; what it stores goes with it."""
    async with LocalServer() as server:
        yield server


@pytest.fixture
async def client(server: LocalServer) -> AsyncIterator[Client]:
    """A client; a manager answers it, whose sessions run `adder`."""
    async with (
        SessionManager.connect(server.url, worker=adder) as manager,
        Client.connect(server.url) as client,
    ):
        await manager.start_serving()
        yield client
