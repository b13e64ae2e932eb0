"""What happens in one session, as Server-Sent Events for one browser."""

import asyncio
import contextlib
import json
from typing import Any, Final

from jido_nats import Client, ConversationAdded, OutputMessage, SessionOutput
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

FRAMES_MAX: Final = 100
BEAT_S: Final = 15.0
SEND_TIMEOUT_S: Final = 5.0


class StreamEnd(Exception):
    """The browser has left or takes nothing any more, or the server stops."""


class SessionStream(Response):
    """Everything that is kept of a session, then what comes, until the browser leaves or `stopping` is set.

    Events: `status` (a status), `message` (role and content, kept), `token` (a piece of an answer, live only).
    At most `FRAMES_MAX` wait for a slow browser: kept messages wait for room, tokens are dropped.
    """

    media_type = "text/event-stream"

    def __init__(self, client: Client, session_id: str, stopping: asyncio.Event) -> None:
        super().__init__(headers={"Cache-Control": "no-store"})
        del self.headers["Content-Length"]
        self._client = client
        self._session_id = session_id
        self._stopping = stopping
        self._frames: asyncio.Queue[bytes] = asyncio.Queue(FRAMES_MAX)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request (ASGI): every task and subscription ends with it."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async with self._client.listen_output(self._session_id, self._on_output), asyncio.TaskGroup() as tasks:
                tasks.create_task(self._relay_status())
                tasks.create_task(self._relay_conversation())
                tasks.create_task(self._write(send))
                tasks.create_task(_raise_when_disconnected(receive))
                tasks.create_task(_raise_when_set(self._stopping))
        except* StreamEnd:
            pass
        with contextlib.suppress(StreamEnd):
            await _send(send, b"", more_body=False)

    def _on_output(self, message: OutputMessage) -> None:
        output = message.output
        if isinstance(output, SessionOutput) and output.name == "token":
            with contextlib.suppress(asyncio.QueueFull):  # the whole answer follows
                self._frames.put_nowait(frame("token", output.data))

    async def _relay_status(self) -> None:
        async with self._client.events(session_id=self._session_id, since="all") as events:
            async for message in events:
                await self._frames.put(frame("status", message.event.status))

    async def _relay_conversation(self) -> None:
        async with self._client.output(session_id=self._session_id, since="all") as outputs:
            async for message in outputs:
                if isinstance(message.output, ConversationAdded):
                    said = {"role": message.output.role, "content": message.output.content}
                    await self._frames.put(frame("message", said))

    async def _write(self, send: Send) -> None:
        while True:
            try:
                async with asyncio.timeout(BEAT_S):
                    data = await self._frames.get()
            except TimeoutError:
                data = b": still here\n\n"
            await _send(send, data, more_body=True)


def frame(event: str, data: Any) -> bytes:
    """One Server-Sent Event; JSON has no line breaks that could end it early."""
    return f"event: {event}\ndata: {json.dumps(data)}\n\n".encode()


async def _send(send: Send, data: bytes, *, more_body: bool) -> None:
    try:
        async with asyncio.timeout(SEND_TIMEOUT_S):
            await send({"type": "http.response.body", "body": data, "more_body": more_body})
    except TimeoutError:
        raise StreamEnd from None


async def _raise_when_disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    raise StreamEnd


async def _raise_when_set(event: asyncio.Event) -> None:
    await event.wait()
    raise StreamEnd
