"""Fixtures of the broker layer: one connection of ours to the test's server."""

from collections.abc import AsyncIterator

import pytest

from jido_nats import LocalServer, Settings
from jido_nats.broker import topology
from jido_nats.broker.connect_options import ConnectOptions
from jido_nats.broker.connection import Connection
from jido_nats.broker.event_log import EventLog
from jido_nats.broker.registry import Registry
from jido_nats.core.codec import Encoding


@pytest.fixture
async def connection(server: LocalServer) -> AsyncIterator[Connection]:
    """A connection to the server, with nothing declared on it."""
    connection = await Connection.open(ConnectOptions(servers=(server.url,)), "test")
    yield connection
    await connection.close()


@pytest.fixture
async def declared(connection: Connection) -> Connection:
    """The same, with the design's streams and buckets."""
    await topology.declare(connection, Settings())
    return connection


@pytest.fixture
async def registry(declared: Connection) -> Registry:
    """The bucket of records, in which sealed ones live for a second."""
    return Registry(declared, "JIDO_SESSIONS", terminated_ttl_s=1)


@pytest.fixture
async def event_log(declared: Connection) -> EventLog:
    """The event stream."""
    return EventLog(declared, "JIDO_CLIENT", Encoding.JSON)
