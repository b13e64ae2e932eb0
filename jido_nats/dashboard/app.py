"""The dashboard's HTTP API: the page, snapshots, streams and commands."""

import asyncio
import contextlib
import hashlib
import importlib.resources
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any, Final

import msgspec
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from jido_nats.client.client import Client
from jido_nats.core import codec, requests, subjects
from jido_nats.core.position import Position, parse_position
from jido_nats.dashboard.access import AccessControl, refusal
from jido_nats.dashboard.addresses import Addresses
from jido_nats.dashboard.event_feed import EventFeed
from jido_nats.dashboard.logins import Logins
from jido_nats.dashboard.output_feed import OutputFeed
from jido_nats.dashboard.session_page import describe_session
from jido_nats.dashboard.state import DashboardState
from jido_nats.errors import (
    BadRequest,
    CommandError,
    InternalError,
    JidoError,
    NotAllowed,
    NotFound,
    TooLarge,
    Unavailable,
)

BODY_BYTES_MAX: Final = 1024 * 1024
LOAD_TIMEOUT_S: Final = 5.0
STATIC_TYPES: Final = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}

log = logging.getLogger(__name__)

Handler = Callable[[Request], Awaitable[Response]]


def build(pages: "Pages", *, addresses: Addresses, logins: Logins | None) -> ASGIApp:
    """The ASGI application; `logins` as for `AccessControl`."""
    app = Starlette(routes=[Route(path, _with_errors(handler), methods=[m]) for m, path, handler in pages.routes()])
    return AccessControl(app, addresses=addresses, logins=logins)


class Pages:
    """The request handlers; set `closing` to end every stream."""

    def __init__(
        self,
        client: Client,
        state: DashboardState,
        feed: EventFeed,
        outputs: OutputFeed,
        *,
        read_only: bool,
        logins: Logins | None,
    ) -> None:
        self.closing = asyncio.Event()
        self._client = client
        self._state = state
        self._feed = feed
        self._outputs = outputs
        self._read_only = read_only
        self._logins = logins
        self._static = _static_files()

    def routes(self) -> list[tuple[str, str, Handler]]:
        """(method, path, handler)."""
        return [
            ("GET", "/", self.page),
            ("GET", "/static/{name}", self.static),
            ("GET", "/api/sessions", self.sessions),
            ("GET", "/api/sessions/{session_id}", self.session),
            ("GET", "/api/sessions/{session_id}/output", self.output),
            ("GET", "/api/stream", self.stream),
            ("POST", "/api/logout", self.log_out),
            ("POST", "/api/sessions", self.create),
            ("POST", "/api/sessions/{session_id}/{verb}", self.command),
        ]

    async def page(self, request: Request) -> Response:
        """The page."""
        return self._file("index.html", request)

    async def static(self, request: Request) -> Response:
        """A script, the style sheet or the icon."""
        return self._file(request.path_params["name"], request)

    async def sessions(self, request: Request) -> Response:
        """All sessions, abbreviated, and the position after which `/api/stream` continues."""
        if not await self._feed.loaded(LOAD_TIMEOUT_S):
            raise Unavailable(self._feed.problem or "the sessions have not been loaded from NATS yet")
        mode = {"read_only": self._read_only, "requires_token": self._logins is not None}
        return _json({**self._state.snapshot(), **mode})

    async def session(self, request: Request) -> Response:
        """One session in full: its record, if not expired, and all its events in the stream."""
        session_id = _session_id(request)
        await self._feed.loaded(LOAD_TIMEOUT_S)
        return _json(await describe_session(self._client, self._state, session_id))

    async def output(self, request: Request) -> Response:
        """A session's output: everything that is stored, then live."""
        position = _position(request.headers.get("Last-Event-ID"))
        return EventSource([self._outputs.stream(_session_id(request), position)], self.closing)

    async def stream(self, request: Request) -> Response:
        """Every event after a position, then live; with `session`, its output after `output_after` too.

        A browser that reconnects sends the last id in a header, which takes precedence.
        """
        asked = request.query_params
        position = _position(request.headers.get("Last-Event-ID") or asked.get("after"))
        if position is None:
            raise BadRequest("?after=<the position_token of /api/sessions> is required")
        streams = [self._feed.stream(position)]
        if "session" in asked:
            session_id = subjects.check_session_id(asked["session"])
            streams.append(self._outputs.stream(session_id, _position(asked.get("output_after"))))
        return EventSource(streams, self.closing)

    async def log_out(self, request: Request) -> Response:
        """End the login of the request's cookie, and the streams that it has open."""
        response = Response(status_code=204)
        if self._logins is not None:
            response.headers["Set-Cookie"] = self._logins.end(request.headers.get("Cookie", ""))
        return response

    async def create(self, request: Request) -> Response:
        """Create a session; responds with its record."""
        asked = await self._body(request, requests.CreateRequest)
        created = await self._client.create_session(**msgspec.structs.asdict(asked))
        return _json(created, 201)

    async def command(self, request: Request) -> Response:
        """`idle`, `activate`, `terminate` or `send`; responds with the manager's reply."""
        session_id, verb = _session_id(request), request.path_params["verb"]
        match verb:
            case "idle":
                await self._body(request, requests.Empty)
                return _json(await self._client.idle_session(session_id))
            case "activate":
                await self._body(request, requests.Empty)
                return _json(await self._client.activate_session(session_id))
            case "terminate":
                ending = await self._body(request, requests.TerminateRequest)
                return _json(await self._client.terminate_session(session_id, detail=ending.detail))
            case "send":
                sent = await self._body(request, requests.SendRequest)
                return _json(
                    await self._client.send_message(session_id, sent.role, sent.content, message_id=sent.message_id)
                )
        raise NotFound("there is no such command")

    async def _body(self, request: Request, kind: "type[codec.T]") -> "codec.T":
        if self._read_only:
            raise ReadOnly("this dashboard is read-only")
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > BODY_BYTES_MAX:
                raise TooLarge(f"the request is larger than {BODY_BYTES_MAX} bytes")
        try:
            return codec.decode(body or b"{}", kind)
        except codec.DecodeError as error:
            raise BadRequest(str(error)) from error

    def _file(self, name: str, request: Request) -> Response:
        content = self._static.get(name)
        if content is None:
            raise NotFound("there is no such page")
        etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        headers = {"ETag": etag, "Cache-Control": "no-cache"}
        if request.headers.get("If-None-Match") == etag:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=STATIC_TYPES[name.rpartition(".")[2]], headers=headers)


class ReadOnly(CommandError):
    """This dashboard is read-only."""

    status = 403
    code = "read_only"


class Forbidden(CommandError):
    """The dashboard's NATS user may not do that."""

    status = 403
    code = "not_allowed"


class EventSource(Response):
    """Streams of Server-Sent Events as one, until one ends, the browser disconnects, or `closing` is set."""

    def __init__(self, streams: Sequence[AsyncGenerator[bytes, None]], closing: asyncio.Event) -> None:
        super().__init__(media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
        del self.headers["Content-Length"]
        self._streams = streams
        self._closing = closing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        sending = [self._send(stream, send) for stream in self._streams]
        tasks = [asyncio.create_task(wait) for wait in (*sending, _disconnected(receive), self._closed())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await send({"type": "http.response.body", "body": b""})

    async def _send(self, stream: AsyncGenerator[bytes, None], send: Send) -> None:
        try:
            async with contextlib.aclosing(stream) as messages:
                async for data in messages:
                    if data:
                        await send({"type": "http.response.body", "body": data, "more_body": True})
        except JidoError as error:
            log.warning("a browser's stream ended", extra={"error": str(error)})
        except Exception:
            log.exception("a browser's stream failed")

    async def _closed(self) -> None:
        await self._closing.wait()


def _with_errors(handler: Handler) -> Handler:
    """The handler, with exceptions turned into error responses."""

    async def answered(request: Request) -> Response:
        try:
            return await handler(request)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody receives it
        except CommandError as error:
            return refusal(error)
        except NotAllowed as error:
            return refusal(Forbidden(str(error)))
        except JidoError as error:
            return refusal(Unavailable(str(error)))
        except Exception:
            log.exception("a request failed", extra={"path": request.scope["path"]})
            return refusal(InternalError("internal error of the dashboard; see its log"))

    return answered


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _session_id(request: Request) -> str:
    return subjects.check_session_id(request.path_params["session_id"])


def _position(text: str | None) -> Position | None:
    """Where a stream resumes; None from an empty text. Raises `BadRequest` unless it is a token or a sequence."""
    if not text:
        return None
    position = parse_position(text)
    if not position.is_verifiable:
        log.warning("a reader resumes from a bare sequence, which cannot be verified; use position_token")
    return position


def _json(value: Any, status: int = 200) -> Response:
    return Response(codec.encode(value), status, media_type="application/json")


def _static_files() -> dict[str, bytes]:
    folder = importlib.resources.files("jido_nats.dashboard") / "static"
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
