"""Fixtures of the storage layer: the design's streams and buckets on the test's server."""

import pytest

from jido_nats import Settings
from jido_nats.broker.connection import Connection
from jido_nats.core.codec import Encoding
from jido_nats.store import topology
from jido_nats.store.event_log import EventLog
from jido_nats.store.records import SessionRecords


@pytest.fixture
async def declared(connection: Connection) -> Connection:
    """The same, with the design's streams and buckets."""
    await topology.declare(connection, Settings())
    return connection


@pytest.fixture
async def records(declared: Connection) -> SessionRecords:
    """The bucket of records, in which sealed ones live for a second."""
    return SessionRecords(declared, "JIDO_SESSIONS", terminated_ttl_s=1)


@pytest.fixture
async def event_log(declared: Connection) -> EventLog:
    """The event stream."""
    return EventLog(declared, "JIDO_CLIENT", Encoding.JSON)
