"""Who may ask the dashboard: the right host, the right origin, the token.

What each check is for:
* the Host header, on loopback: a site whose name is made to point to 127.0.0.1 (DNS rebinding) is of another name;
* the Origin header and the Content-Type of what changes something: another site's page, which the browser sends with
  our cookie. A browser always names the origin of such a request; what is no browser may leave it out;
* the token: everybody else who can reach the port. A link carries it once, a cookie from then on.
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
    # Nothing from elsewhere, nothing inline; and no text can become markup, even by a defect (trusted types).
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
    "object-src 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",  # the link may have the token in it
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

ASK_FOR_TOKEN: Final = """\
<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Token wanted · jido sessions</title>
<link rel="icon" href="/static/icon.svg"><link rel="stylesheet" href="/static/style.css"></head>
<body class="gate"><main><form class="card" method="get" action="/">
<h1>This dashboard wants a token</h1>
<p>It is the one that <code>jido-nats dashboard --token …</code> was started with.</p>
<label for="token">Token</label>
<input id="token" name="token" type="password" autocomplete="current-password" required autofocus>
<button class="primary">Open the dashboard</button>
</form></main></body></html>
"""


def check_reach(host: str, token: str | None) -> None:
    """`ConfigurationError` where others than this machine's users could come in without a token."""
    if token is not None and not token.strip():
        raise ConfigurationError("--token is empty: choose one that nobody guesses, or leave it out on loopback")
    if token is None and not is_loopback(host):
        raise ConfigurationError(
            f"--host {host} lets others reach the dashboard, who could read and end every session: "
            "add --token (a long random one), or listen on 127.0.0.1"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens on `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class AccessControl:
    """ASGI middleware; `port` sets cookies of several dashboards on one machine apart."""

    def __init__(self, app: ASGIApp, *, host: str, port: int, token: str | None) -> None:
        self._app = app
        self._names = {"localhost", "127.0.0.1", "::1", host} if is_loopback(host) else None
        self._token = token
        self._cookie = f"jido_dashboard_{port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise AssertionError("plain HTTP is all there is")
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
        # Strict: the browser sends it with no request that another site caused. It keeps no port apart, hence the name.
        return f"{self._cookie}={self._cookie_value()}; Path=/; Max-Age={COOKIE_AGE_S}; HttpOnly; SameSite=Strict"


def refusal(status: int, code: str, text: str, session_id: str | None = None) -> Response:
    """An error, in the shape that the API's errors have."""
    error = {"code": code, "message": text} | ({"session_id": session_id} if session_id else {})
    return Response(codec.encode({"error": error}), status, media_type="application/json")


def _is_public(request: Request) -> bool:
    """What the page that asks for the token needs: nothing but looks."""
    return request.url.path in ("/static/style.css", "/static/icon.svg")


def _token_of_link(request: Request) -> str | None:
    """The token of a link, which opens the page and nothing else."""
    if request.method not in SAFE_METHODS or request.url.path != "/":
        return None
    return parse_qs(request.url.query).get("token", [None])[0]


def _no_token(request: Request) -> Response:
    if request.url.path == "/":
        return HTMLResponse(ASK_FOR_TOKEN, 401)
    return refusal(401, "unauthorized", "this dashboard wants its token: open its page anew")


def _refused_change(request: Request) -> Response | None:
    origin = request.headers.get("Origin")
    if origin is not None and _host_of(origin) != request.headers.get("Host", "").lower():
        return refusal(403, "wrong_origin", "another site may not change anything here")
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
