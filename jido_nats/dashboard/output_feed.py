"""Output and conversation of one session, as Server-Sent Events whose `id` is a position of the output stream."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Final

from jido_nats.client.client import Client
from jido_nats.client.streams import OutputMessage
from jido_nats.core.position import Position
from jido_nats.dashboard.event_feed import BEAT_S, RECONNECT
from jido_nats.dashboard.state import message
from jido_nats.errors import JidoError, PositionUnavailable

WAITING_MAX: Final = 1000


async def stream_output(client: Client, session_id: str, position: Position | None) -> AsyncGenerator[bytes, None]:
    """Everything stored after `position` (None: all), then live; ephemeral output only live."""
    waiting: asyncio.Queue[bytes] = asyncio.Queue(WAITING_MAX)

    def on_output(received: OutputMessage) -> None:
        if getattr(received.output, "ephemeral", False):
            with contextlib.suppress(asyncio.QueueFull):  # a slow reader may miss ephemeral output
                waiting.put_nowait(message("output", received.output))

    yield RECONNECT
    async with client.listen_output(session_id, on_output):
        reading = asyncio.create_task(_read(client, session_id, position, waiting), name="dashboard: output")
        try:
            while not reading.done() or not waiting.empty():
                yield await _next(waiting)
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)


async def _read(client: Client, session_id: str, position: Position | None, waiting: "asyncio.Queue[bytes]") -> None:
    """Queue the stored output; an error is sent as a `problem`."""
    since: str | int = "all"
    if position is not None:
        since = position.token if position.is_verifiable else position.sequence + 1
    try:
        async with client.output(session_id=session_id, since=since) as outputs:
            caught_up = False
            while True:
                if outputs.caught_up and not caught_up:
                    caught_up = True
                    await waiting.put(message("caught_up", {}))
                kept = await anext(outputs)
                await waiting.put(message("output", kept.output, outputs.position_token))
    except PositionUnavailable:
        await waiting.put(message("reset", {}))
    except JidoError as error:
        await waiting.put(message("problem", {"message": str(error)}))


async def _next(waiting: "asyncio.Queue[bytes]") -> bytes:
    try:
        async with asyncio.timeout(BEAT_S):
            found = [await waiting.get()]
    except TimeoutError:
        return message("beat", {})
    while not waiting.empty():
        found.append(waiting.get_nowait())
    return b"".join(found)
