"""The cluster of the tests is one, and survives its leader."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import nats
import pytest
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js.api import PubAck

from tests.tools.cluster import Cluster

DEADLINE_S = 30.0
STREAM = "S"

pytestmark = pytest.mark.timeout(180)


async def ignore(_: Exception) -> None:
    """nats-py prints errors where it is given no callback."""


@asynccontextmanager
async def client_of(cluster: Cluster) -> AsyncIterator[Client]:
    """A client that knows every server."""
    client = await nats.connect(
        cluster.urls.split(","), error_cb=ignore, max_reconnect_attempts=-1, reconnect_time_wait=0.05
    )
    try:
        yield client
    finally:
        await client.close()


async def publish(client: Client, data: bytes) -> PubAck:
    """Store a message under an id of its own, however long that takes."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + DEADLINE_S
    while True:
        try:
            return await client.jetstream().publish("s.x", data, timeout=1, headers={"Nats-Msg-Id": data.decode()})
        except (NatsError, TimeoutError):
            assert loop.time() < deadline, "nothing can be stored"
            await asyncio.sleep(0.05)


async def test_a_replicated_stream_survives_the_kill_of_its_leader() -> None:
    async with Cluster(3) as cluster:
        await cluster.ready()
        async with client_of(cluster) as client:
            await client.jetstream().add_stream(name=STREAM, subjects=["s.>"], num_replicas=3)
            for number in range(20):
                await publish(client, b"before %d" % number)
            leader = await cluster.stream_leader(cluster.urls, STREAM)

            await cluster.kill(leader)

            for number in range(20):
                await publish(client, b"after %d" % number)
            assert await cluster.stream_leader(cluster.urls, STREAM) != leader
            assert (await client.jetstream().stream_info(STREAM)).state.messages == 40
            await cluster.start(leader)
            await cluster.ready()
            assert cluster.running == [0, 1, 2]


async def test_nothing_of_a_cluster_is_left_behind() -> None:
    async with Cluster(3) as cluster:
        folder = cluster._folder
        processes = [process for process in cluster._processes if process is not None]
        cluster.pause(0)
    assert not folder.exists()
    assert all(process.returncode is not None for process in processes)
