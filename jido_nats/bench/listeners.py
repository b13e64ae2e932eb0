"""How transitions are heard with our client: as a plain subscriber, and in a consumer. The baseline has its own two."""

import asyncio
import time
from contextlib import AsyncExitStack
from typing import Protocol

from jido_nats.client.client import Client
from jido_nats.client.streams import EventMessage, EventStream
from jido_nats.core import subjects


class Listener(Protocol):
    """Hears one event at a time."""

    async def open(self) -> None:
        """Begin to listen."""

    async def expect(self) -> None:
        """What comes from now on is meant."""

    async def wait(self) -> float:
        """When it came, on the clock `time.perf_counter`."""

    async def close(self) -> None:
        """End."""


class Subscriber:
    """`Client.listen` on the subject of all events."""

    def __init__(self, client: Client, session_id: str) -> None:
        self._client = client
        self._session_id = session_id
        self._heard = asyncio.Event()
        self._at = 0.0
        self._exit = AsyncExitStack()

    async def open(self) -> None:
        """Begin to listen."""
        await self._exit.enter_async_context(self._client.listen(subjects.EVENTS, self._on_event))

    async def expect(self) -> None:
        """What comes from now on is meant."""
        self._heard.clear()

    async def wait(self) -> float:
        """When it came."""
        await self._heard.wait()
        return self._at

    async def close(self) -> None:
        """End."""
        await self._exit.aclose()

    def _on_event(self, message: EventMessage) -> None:
        if message.event.session_id == self._session_id:
            self._at = time.perf_counter()
            self._heard.set()


class Consumer:
    """`Client.events`, from now on."""

    def __init__(self, client: Client, session_id: str) -> None:
        self._stream: EventStream = client.events(since="new")
        self._session_id = session_id

    async def open(self) -> None:
        """Begin to listen."""
        await self._stream.__aenter__()

    async def expect(self) -> None:
        """It waits in the stream."""

    async def wait(self) -> float:
        """When it came."""
        while (await anext(self._stream)).event.session_id != self._session_id:
            pass
        return time.perf_counter()

    async def close(self) -> None:
        """End."""
        await self._stream.__aexit__(None, None, None)
