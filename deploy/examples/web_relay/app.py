"""One session in the browser: messages in by POST, Server-Sent Events out. `python app.py`"""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import uvicorn
from jido_nats import Client, CommandError, JidoError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from relay import SessionStream

NATS_URL: Final = os.environ.get("NATS_URL", "nats://127.0.0.1:4222")
PORT: Final = int(os.environ.get("PORT", "8000"))
STATIC: Final = Path(__file__).parent / "static"
BODY_BYTES_MAX: Final = 16 * 1024
STOPPING: Final = asyncio.Event()


class Line(msgspec.Struct):
    """What the form sends."""

    text: Annotated[str, msgspec.Meta(min_length=1, max_length=2000)]


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
    """One client and one session, for as long as the app runs; handlers find them in `request.state`."""
    async with Client.connect(NATS_URL) as client:
        session_id = (await client.create_session(metadata={"example": "web_relay"})).session_id
        yield {"client": client, "session_id": session_id}
        with contextlib.suppress(JidoError):  # no manager any more: then the session has ended, too
            await client.terminate_session(session_id, detail="the web app has stopped")


async def stream(request: Request) -> Response:
    """The session's events, as Server-Sent Events."""
    return SessionStream(request.state.client, request.state.session_id, STOPPING)


async def send(request: Request) -> Response:
    """Send a line to the session's worker."""
    if request.headers.get("Content-Type") != "application/json":  # what a form on another site cannot send
        raise HTTPException(415)
    try:
        line = msgspec.json.decode(await body_of(request), type=Line)
    except msgspec.DecodeError as error:
        raise HTTPException(400, str(error)) from error
    client: Client = request.state.client
    reply = await client.send_message(request.state.session_id, "user", line.text)
    return JSONResponse({"number": reply.number}, 202)


async def body_of(request: Request) -> bytes:
    """The body, unless it is too large."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > BODY_BYTES_MAX:
            raise HTTPException(413)
    return body


async def refused(request: Request, error: Exception) -> Response:
    """The answer where a command was refused: each has its HTTP status."""
    return Response(str(error), error.status if isinstance(error, CommandError) else 500)


app = Starlette(
    routes=[
        Route("/messages", send, methods=["POST"]),
        Route("/stream", stream),
        Mount("/", StaticFiles(directory=STATIC, html=True)),
    ],
    # A site whose name is made to point to 127.0.0.1 sends another Host.
    middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])],
    exception_handlers={CommandError: refused},
    lifespan=lifespan,
)


class Server(uvicorn.Server):
    """uvicorn, which waits for every response when it stops: the streams have to end first."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop (uvicorn calls it)."""
        STOPPING.set()
        await super().shutdown(sockets)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn has stopped, and raises it again
        Server(uvicorn.Config(app, port=PORT, timeout_graceful_shutdown=5)).run()
