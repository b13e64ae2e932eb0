"""Access control of the dashboard: the addresses that a request may name, the token, what a browser may load.

The token keeps out everyone else who can reach the port. A link carries it once, then a login's cookie does.
What a request may do without it is decided by `scope["path"]`, the very string that the router matches; an URL, as in
`request.url`, is put together from the Host header too.
"""

import asyncio
from typing import Final, NamedTuple
from urllib.parse import parse_qs

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jido_nats.core import codec
from jido_nats.dashboard.addresses import Addresses
from jido_nats.dashboard.logins import Login, Logins
from jido_nats.errors import CommandError

SAFE_METHODS: Final = frozenset({"GET", "HEAD"})
ENTRANCE: Final = "/"
# The style and icon of the page that asks for the token.
PUBLIC: Final = frozenset({"/static/style.css", "/static/icon.svg"})

HEADERS: Final = {
    # Nothing from other origins, nothing inline; and no text can become markup, even through a bug (trusted types).
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
    "object-src 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",  # the link may contain the token
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

ASK_FOR_TOKEN: Final = """\
<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Token required · jido sessions</title>
<link rel="icon" href="/static/icon.svg"><link rel="stylesheet" href="/static/style.css"></head>
<body class="gate"><main><form class="card" method="get" action="/">
<h1>This dashboard requires a token</h1>
<p>Enter the one given to <code>jido-nats dashboard --token …</code>.</p>
<label for="token">Token</label>
<input id="token" name="token" type="password" autocomplete="current-password" required autofocus>
<button class="primary">Open the dashboard</button>
</form></main></body></html>
"""


class Unauthorized(CommandError):
    """The request has no valid token."""

    status = 401
    code = "unauthorized"


class NotJson(CommandError):
    """A request that changes something is no JSON: a form of another site could send it."""

    status = 415
    code = "bad_request"


class AccessControl:
    """ASGI middleware. `logins`: None if no token is required."""

    def __init__(self, app: ASGIApp, *, addresses: Addresses, logins: Logins | None) -> None:
        self._app = app
        self._addresses = addresses
        self._logins = logins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise AssertionError("only plain HTTP is served")
        request = Request(scope)
        app, granted = self._app, _Granted()
        try:
            self._addresses.check_host(request)
            granted = self._check_token(request)
            if request.method not in SAFE_METHODS:
                self._check_change(request)
        except CommandError as error:
            app = _refused(scope, error)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                headers.setdefault("Cache-Control", "no-store")
                if granted.cookie is not None:
                    headers.append("Set-Cookie", granted.cookie)
            await send(message)

        if granted.login is None:
            return await app(scope, receive, send_with_headers)
        with granted.login.used():
            return await app(scope, _until(granted.login.ended, receive), send_with_headers)

    def _check_token(self, request: Request) -> "_Granted":
        """By what the request may be answered. Raises `Unauthorized`."""
        if self._logins is None or request.scope["path"] in PUBLIC:
            return _Granted()
        if self._logins.is_token(_token_of_link(request)):
            return _Granted(cookie=self._logins.begin())
        if (bearer := _bearer(request)) is None:
            login = self._logins.find(request.headers.get("Cookie", ""))
            if login is not None:
                return _Granted(login)
        elif self._logins.is_token(bearer):
            return _Granted()
        raise Unauthorized("this dashboard requires its token: reload the page")

    def _check_change(self, request: Request) -> None:
        self._addresses.check_origin(request)
        media_type = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if media_type != "application/json":
            raise NotJson("send JSON, as Content-Type: application/json")


class _Granted(NamedTuple):
    """A request that may be answered: the login that it uses, and the cookie of a new one."""

    login: Login | None = None
    cookie: str | None = None


def refusal(error: CommandError) -> Response:
    """An error response, in the form of the NATS API's errors."""
    details = {"code": error.code, "message": str(error)}
    if error.session_id:
        details["session_id"] = error.session_id
    return Response(codec.encode({"error": details}), error.status, media_type="application/json")


def _refused(scope: Scope, error: CommandError) -> Response:
    if isinstance(error, Unauthorized) and scope["path"] == ENTRANCE:
        return HTMLResponse(ASK_FOR_TOKEN, error.status)
    return refusal(error)


def _token_of_link(request: Request) -> str | None:
    """The token in a link; accepted only for the page itself."""
    if request.method not in SAFE_METHODS or request.scope["path"] != ENTRANCE:
        return None
    return parse_qs(str(request.scope["query_string"], "latin-1")).get("token", [None])[0]


def _bearer(request: Request) -> str | None:
    scheme, _, credentials = request.headers.get("Authorization", "").partition(" ")
    return credentials.strip() if scheme.lower() == "bearer" else None


def _until(ended: asyncio.Event, receive: Receive) -> Receive:
    """`receive`, for which the client has disconnected once the login has ended."""

    async def received() -> Message:
        receiving, ending = asyncio.ensure_future(receive()), asyncio.create_task(ended.wait())
        try:
            await asyncio.wait((receiving, ending), return_when=asyncio.FIRST_COMPLETED)
            return receiving.result() if receiving.done() else {"type": "http.disconnect"}
        finally:
            receiving.cancel()
            ending.cancel()

    return received
