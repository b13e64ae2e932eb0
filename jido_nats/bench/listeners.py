"""Receiving transitions with our client: a core NATS subscription and a consumer. The baseline has its own two."""

import asyncio
import time
from contextlib import AsyncExitStack
from typing import Protocol

from jido_nats.client.client import Client
from jido_nats.client.streams import EventMessage, EventStream
from jido_nats.core import subjects


class Listener(Protocol):
    """Receives one event at a time."""

    async def open(self) -> None:
        """Start listening."""

    async def expect(self) -> None:
        """Wait for what arrives from now on."""

    async def wait(self) -> float:
        """Wait; the arrival time, by `time.perf_counter`."""

    async def close(self) -> None:
        """Stop listening."""


class Subscriber:
    """`Client.listen` on the subject of all events."""

    def __init__(self, client: Client, session_id: str) -> None:
        self._client = client
        self._session_id = session_id
        self._heard = asyncio.Event()
        self._at = 0.0
        self._exit = AsyncExitStack()

    async def open(self) -> None:
        """Start listening."""
        await self._exit.enter_async_context(self._client.listen(subjects.EVENTS, self._on_event))

    async def expect(self) -> None:
        """Wait for what arrives from now on."""
        self._heard.clear()

    async def wait(self) -> float:
        """The arrival time."""
        await self._heard.wait()
        return self._at

    async def close(self) -> None:
        """Stop listening."""
        await self._exit.aclose()

    def _on_event(self, message: EventMessage) -> None:
        if message.event.session_id == self._session_id:
            self._at = time.perf_counter()
            self._heard.set()


class Consumer:
    """`Client.events`, new ones only."""

    def __init__(self, client: Client, session_id: str) -> None:
        self._stream: EventStream = client.events(since="new")
        self._session_id = session_id

    async def open(self) -> None:
        """Start listening."""
        await self._stream.__aenter__()

    async def expect(self) -> None:
        """Nothing to do: events wait in the stream."""

    async def wait(self) -> float:
        """The arrival time."""
        while (await anext(self._stream)).event.session_id != self._session_id:
            pass
        return time.perf_counter()

    async def close(self) -> None:
        """Stop listening."""
        await self._stream.__aexit__(None, None, None)
