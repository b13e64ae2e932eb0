"""Access control of the dashboard: the addresses that a request may name, the token, what a browser may load.

The token keeps out everyone else who can reach the port. A link carries it once, then a cookie does.
What a request may do without it is decided by `scope["path"]`, the very string that the router matches; an URL, as in
`request.url`, is put together from the Host header too.
"""

import hashlib
import hmac
from http.cookies import CookieError, SimpleCookie
from typing import Final
from urllib.parse import parse_qs

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jido_nats.core import codec
from jido_nats.dashboard.addresses import Addresses
from jido_nats.errors import CommandError

SAFE_METHODS: Final = frozenset({"GET", "HEAD"})
COOKIE_AGE_S: Final = 30 * 24 * 3600
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
    """ASGI middleware; `port` separates the cookies of several dashboards on one machine."""

    def __init__(self, app: ASGIApp, *, addresses: Addresses, port: int, token: str | None) -> None:
        self._app = app
        self._addresses = addresses
        self._token = token
        self._cookie = f"jido_dashboard_{port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise AssertionError("only plain HTTP is served")
        request = Request(scope)
        app, entering = self._app, False
        try:
            self._addresses.check_host(request)
            entering = self._check_token(request)
            if request.method not in SAFE_METHODS:
                self._check_change(request)
        except CommandError as error:
            app = _refused(scope, error)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                headers.setdefault("Cache-Control", "no-store")
                if entering:
                    headers.append("Set-Cookie", self._set_cookie())
            await send(message)

        await app(scope, receive, send_with_headers)

    def _check_token(self, request: Request) -> bool:
        """Whether the request is a link with the token. Raises `Unauthorized`."""
        if self._token is None or request.scope["path"] in PUBLIC:
            return False
        if self._is_token(_token_of_link(request)):
            return True
        if not self._has_token(request):
            raise Unauthorized("this dashboard requires its token: reload the page")
        return False

    def _check_change(self, request: Request) -> None:
        self._addresses.check_origin(request)
        media_type = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if media_type != "application/json":
            raise NotJson("send JSON, as Content-Type: application/json")

    def _has_token(self, request: Request) -> bool:
        scheme, _, credentials = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return self._is_token(credentials.strip())
        try:
            cookie = SimpleCookie(request.headers.get("Cookie", "")).get(self._cookie)
        except CookieError:
            return False
        return cookie is not None and hmac.compare_digest(cookie.value.encode(), self._cookie_value().encode())

    def _is_token(self, given: str | None) -> bool:
        return given is not None and hmac.compare_digest(given.encode(), (self._token or "").encode())

    def _cookie_value(self) -> str:
        """Proves the token without revealing it."""
        return hmac.new((self._token or "").encode(), b"jido_nats dashboard", hashlib.sha256).hexdigest()

    def _set_cookie(self) -> str:
        # Strict: not sent with requests that another site caused. Cookies ignore the port, hence the name.
        return f"{self._cookie}={self._cookie_value()}; Path=/; Max-Age={COOKIE_AGE_S}; HttpOnly; SameSite=Strict"


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
