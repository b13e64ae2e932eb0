"""Access control of the dashboard: host, origin, token.

What each check is for:
* the Host header, on loopback: a site whose name resolves to 127.0.0.1 (DNS rebinding) sends another name;
* the Origin header and the Content-Type of requests that change something: a page of another site, whose requests the
  browser sends with our cookie. A browser always sends the origin of such a request; other programs may omit it;
* the token: everyone else who can reach the port. A link carries it once, then a cookie does.
"""

import hashlib
import hmac
import ipaddress
from http.cookies import CookieError, SimpleCookie
from typing import Final
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jido_nats.core import codec
from jido_nats.errors import ConfigurationError

SAFE_METHODS: Final = frozenset({"GET", "HEAD"})
COOKIE_AGE_S: Final = 30 * 24 * 3600

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


def check_reach(host: str, token: str | None) -> None:
    """Raise `ConfigurationError` if other machines could reach the dashboard without a token."""
    if token is not None and not token.strip():
        raise ConfigurationError("--token is empty: choose one that cannot be guessed, or omit it on loopback")
    if token is None and not is_loopback(host):
        raise ConfigurationError(
            f"--host {host} lets other machines reach the dashboard and read and terminate every session: "
            "add --token (a long random one), or listen on 127.0.0.1"
        )


def is_loopback(host: str) -> bool:
    """Whether `host` is reachable from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class AccessControl:
    """ASGI middleware; `port` separates the cookies of several dashboards on one machine."""

    def __init__(self, app: ASGIApp, *, host: str, port: int, token: str | None) -> None:
        self._app = app
        self._names = {"localhost", "127.0.0.1", "::1", host} if is_loopback(host) else None
        self._token = token
        self._cookie = f"jido_dashboard_{port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise AssertionError("only plain HTTP is served")
        request, entering = Request(scope), False
        refused = self._refused_host(request)
        if refused is None and self._token is not None and not _is_public(request):
            entering = self._is_token(_token_of_link(request))
            refused = None if entering or self._has_token(request) else _no_token(request)
        if refused is None and request.method not in SAFE_METHODS:
            refused = _refused_change(request)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                headers.setdefault("Cache-Control", "no-store")
                if entering:
                    headers.append("Set-Cookie", self._set_cookie())
            await send(message)

        await (self._app if refused is None else refused)(scope, receive, send_with_headers)

    def _refused_host(self, request: Request) -> Response | None:
        if self._names is None or _host_name(request) in self._names:
            return None
        return refusal(403, "wrong_host", "this dashboard answers on the loopback address only")

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


def refusal(status: int, code: str, text: str, session_id: str | None = None) -> Response:
    """An error response, in the form of the NATS API's errors."""
    error = {"code": code, "message": text} | ({"session_id": session_id} if session_id else {})
    return Response(codec.encode({"error": error}), status, media_type="application/json")


def _is_public(request: Request) -> bool:
    """The style and icon of the page that asks for the token."""
    return request.url.path in ("/static/style.css", "/static/icon.svg")


def _token_of_link(request: Request) -> str | None:
    """The token in a link; accepted only for the page itself."""
    if request.method not in SAFE_METHODS or request.url.path != "/":
        return None
    return parse_qs(request.url.query).get("token", [None])[0]


def _no_token(request: Request) -> Response:
    if request.url.path == "/":
        return HTMLResponse(ASK_FOR_TOKEN, 401)
    return refusal(401, "unauthorized", "this dashboard requires its token: reload the page")


def _refused_change(request: Request) -> Response | None:
    origin = request.headers.get("Origin")
    if origin is not None and _host_of(origin) != request.headers.get("Host", "").lower():
        return refusal(403, "wrong_origin", "requests from another site may not change anything here")
    media_type = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        return refusal(415, "bad_request", "send JSON, as Content-Type: application/json")
    return None


def _host_of(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


def _host_name(request: Request) -> str:
    try:
        return (urlsplit(f"//{request.headers.get('Host', '')}").hostname or "").lower()
    except ValueError:
        return ""
