"""Which addresses the dashboard has: where it listens, and which hosts and origins a request may name.

What each check is for:
* the Host header, on loopback: a site whose name resolves to 127.0.0.1 (DNS rebinding) sends another name;
* the Origin header of requests that change something: a page of another site, whose requests the browser sends with
  our cookie. A browser always sends the origin of such a request; other programs may omit it.
"""

import ipaddress
import re
from typing import Final
from urllib.parse import urlsplit

from starlette.requests import Request

from jido_nats.errors import CommandError, ConfigurationError

LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})
DEFAULT_PORTS: Final = {"http": 80, "https": 443}
# RFC 9110, section 7.2, without what no browser sends: percent-encoding and other sub-delimiters.
HOST: Final = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9_-]+(?:\.[a-z0-9_-]+)*)(?::[0-9]{1,5})?")


class MalformedHost(CommandError):
    """The Host header is not a host with an optional port."""

    status = 400
    code = "bad_request"


class WrongHost(CommandError):
    """The Host header names an address that is not the dashboard's."""

    status = 421  # Misdirected Request
    code = "wrong_host"


class WrongOrigin(CommandError):
    """A page of another site sent the request."""

    status = 403
    code = "wrong_origin"


def check_reach(host: str, public_url: str | None, token: str | None) -> None:
    """Raise `ConfigurationError` if other machines could reach the dashboard without a token."""
    if token is not None and not token.strip():
        raise ConfigurationError("--token is empty: choose one that cannot be guessed, or omit it on loopback")
    reached = [f"--host {host}"] if not is_loopback(host) else []
    reached += [f"--public-url {public_url}"] if public_url is not None else []
    if token is None and reached:
        raise ConfigurationError(
            f"{reached[0]} lets other machines reach the dashboard and read and terminate every session: "
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


def parse_public_url(url: str) -> str:
    """The URL as browsers write an origin: `https://dash.example.org`. Raises `ConfigurationError`."""
    try:
        parts = urlsplit(url.strip().lower())
        port = parts.port
    except ValueError as error:
        raise ConfigurationError(f"--public-url {url}: {error}") from error
    is_origin = parts.scheme in DEFAULT_PORTS and HOST.fullmatch(parts.netloc)
    if not is_origin or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ConfigurationError(
            f"--public-url {url}: give the address that browsers open, as https://host or https://host:port, "
            "without a path"
        )
    return f"{parts.scheme}://{parts.netloc.removesuffix(f':{DEFAULT_PORTS[parts.scheme]}' if port else '')}"


class Addresses:
    """The addresses of a dashboard that listens on `host`, and is `public_url` for browsers if a proxy is in front.

    On loopback those are its names with any port, so that a forwarded port works: a page of another site cannot send
    such a name. Elsewhere any name may resolve to this machine, and the token is required, unless there is a
    `public_url`. A proxy may pass on the browser's Host, or name the dashboard as it reaches it.
    Raises `ConfigurationError` if `public_url` is not one.
    """

    def __init__(self, host: str, public_url: str | None) -> None:
        own = f"[{host}]" if ":" in host else host
        self._names = LOOPBACK | {own.lower()} if public_url is not None or is_loopback(host) else None
        self._public_origin = None if public_url is None else parse_public_url(public_url)
        self._public_host = None if self._public_origin is None else self._public_origin.partition("://")[2]

    @property
    def is_https(self) -> bool:
        """Whether browsers reach the dashboard by TLS."""
        return self._public_origin is not None and self._public_origin.startswith("https:")

    def check_host(self, request: Request) -> None:
        """Raise `MalformedHost` or `WrongHost` unless the request is for this dashboard."""
        host = request.headers.get("Host", "").lower()
        parsed = HOST.fullmatch(host)
        if parsed is None:
            raise MalformedHost("send a Host header with a name or an address, and optionally a port: localhost:8080")
        if host == self._public_host or self._names is None or parsed["name"] in self._names:
            return
        if self._public_origin is not None:
            raise WrongHost(f"this dashboard is {self._public_origin}: open that, or change its --public-url")
        raise WrongHost(
            "this dashboard answers on the loopback address only: open http://localhost with its port; "
            "behind a proxy, start it with --public-url"
        )

    def check_origin(self, request: Request) -> None:
        """Raise `WrongOrigin` if a page of another site sent the request."""
        origin = request.headers.get("Origin")
        if origin is not None and origin.lower() not in self._origins(request.headers.get("Host", "").lower()):
            raise WrongOrigin(
                "requests from another site may not change anything here; if this is the dashboard's own page behind "
                "a proxy, start it with --public-url and the address that browsers open"
            )

    def _origins(self, host: str) -> set[str]:
        """Those of the dashboard's own page, if it was requested from `host`."""
        public = set() if self._public_origin is None else {self._public_origin}
        return public if host == self._public_host else public | {f"http://{host}", f"https://{host}"}
