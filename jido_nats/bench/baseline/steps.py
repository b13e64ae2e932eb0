"""Transitions one at a time, and when they arrive, with bare nats-py."""

import asyncio
import time

from nats.aio.client import Client
from nats.aio.msg import Msg

from jido_nats.bench.baseline.connect import settle
from jido_nats.bench.baseline.reader import BaselineReader
from jido_nats.bench.baseline.session import BaselineSession, BaselineWriter
from jido_nats.bench.baseline.storage import Names


class BaselineSteps:
    """One session whose `idle` and `active` alternate."""

    def __init__(self, client: Client, names: Names, note: str, session_id: str) -> None:
        self._writer = BaselineWriter(client.jetstream(), names, note)
        self._session = BaselineSession(session_id)

    async def begin(self) -> None:
        """Create the session."""
        await self._writer.create(self._session)

    async def step(self) -> None:
        """Switch to the other status."""
        await self._writer.step(self._session, "idle" if self._session.status == "active" else "active")


class BaselineSubscriber:
    """A core NATS subscriber; its handler only records the time."""

    def __init__(self, client: Client, subject: str) -> None:
        self._client = client
        self._subject = subject
        self._heard = asyncio.Event()
        self._at = 0.0

    async def open(self) -> None:
        """Subscribe."""
        self._subscription = await self._client.subscribe(self._subject, cb=self._on_message)
        await settle(self._client)

    async def expect(self) -> None:
        """Wait for what arrives from now on."""
        self._heard.clear()

    async def wait(self) -> float:
        """The arrival time of the message."""
        await self._heard.wait()
        return self._at

    async def close(self) -> None:
        """Unsubscribe."""
        await self._subscription.unsubscribe()

    async def _on_message(self, _: Msg) -> None:
        self._at = time.perf_counter()
        self._heard.set()


class BaselineConsumer:
    """A pull consumer that requests one message at a time."""

    def __init__(self, client: Client, stream: str, subject: str) -> None:
        self._reader = BaselineReader(client, stream, subject)

    async def open(self) -> None:
        """Create the consumer."""
        await self._reader.open(everything=False)

    async def expect(self) -> None:
        """Request the next message."""
        await self._reader.expect(1)

    async def wait(self) -> float:
        """The arrival time."""
        await self._reader.wait()
        return self._reader.heard_at

    async def close(self) -> None:
        """Delete the consumer."""
        await self._reader.close()
