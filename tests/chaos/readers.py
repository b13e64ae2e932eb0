"""Readers beside the managers: plain JetStream consumers, as stock clients have them, and watches of our own client."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec
import nats
from nats.aio.client import Client as NatsClient
from nats.errors import Error as NatsError

from jido_nats import Client, JidoError

WATCHES: Final = 10
# On each of the streams that a watch reads.
CONSUMERS: Final = 1000 - WATCHES
STREAMS: Final = ("KV_JIDO_SESSIONS", "JIDO_CLIENT")
AT_ONCE: Final = 64
REQUEST_TIMEOUT_S: Final = 5.0
INACTIVE_S: Final = 60  # the server removes what could not be deleted


@contextlib.asynccontextmanager
async def readers(url: str) -> AsyncIterator[None]:
    """1,000 readers of the sessions inside the block; they are gone after it."""
    nc = await nats.connect(url.split(","), error_cb=_ignore)
    names = [(stream, f"reader_{number}") for stream in STREAMS for number in range(CONSUMERS)]
    watches = [asyncio.create_task(_watch(url)) for _ in range(WATCHES)]
    try:
        await _each(nc, [(f"$JS.API.CONSUMER.CREATE.{s}.{name}", _consumer(s, name)) for s, name in names])
        yield
    finally:
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)
        await _each(nc, [(f"$JS.API.CONSUMER.DELETE.{s}.{name}", b"") for s, name in names])
        await nc.close()


def _consumer(stream: str, name: str) -> bytes:
    config: dict[str, Any] = {
        "name": name,
        "ack_policy": "none",
        "mem_storage": True,
        "num_replicas": 1,
        "inactive_threshold": INACTIVE_S * 1_000_000_000,
    }
    return msgspec.json.encode({"stream_name": stream, "config": config, "action": "create"})


async def _each(nc: NatsClient, requests: list[tuple[str, bytes]]) -> None:
    """All requests; a refused or unanswered one is the reader's loss: managers and servers die meanwhile."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def ask(subject: str, data: bytes) -> None:
        async with gate:
            with contextlib.suppress(NatsError, TimeoutError):
                await nc.request(subject, data, timeout=REQUEST_TIMEOUT_S)

    await asyncio.gather(*(ask(subject, data) for subject, data in requests))


async def _watch(url: str) -> None:
    """Read until cancelled, or until it is refused."""
    with contextlib.suppress(JidoError):
        async with Client.connect(url) as client, client.watch_sessions() as watch:
            async for _ in watch:
                pass


async def _ignore(_: Exception) -> None:
    """nats-py prints every error if it has no callback."""
