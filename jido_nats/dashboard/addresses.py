"""Which addresses the dashboard has: where it listens, and which hosts and origins a request may name.

What each check is for:
* the Host header, on loopback: a site whose name resolves to 127.0.0.1 (DNS rebinding) sends another name;
* the Origin header of requests that change something: a page of another site, whose requests the browser sends with
  our cookie. A browser always sends the origin of such a request; other programs may omit it.
"""

import ipaddress
import re
from typing import Final

from starlette.requests import Request

from jido_nats.errors import CommandError, ConfigurationError

LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})
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


class Addresses:
    """The addresses of a dashboard that listens on `host`.

    On loopback those are its names with any port, so that a forwarded port works: a page of another site cannot send
    such a name. Elsewhere any name may resolve to this machine, and the token is required.
    """

    def __init__(self, host: str) -> None:
        own = f"[{host}]" if ":" in host else host
        self._names = LOOPBACK | {own.lower()} if is_loopback(host) else None

    def check_host(self, request: Request) -> None:
        """Raise `MalformedHost` or `WrongHost` unless the request is for this dashboard."""
        host = request.headers.get("Host", "").lower()
        parsed = HOST.fullmatch(host)
        if parsed is None:
            raise MalformedHost("send a Host header with a name or an address, and optionally a port: localhost:8080")
        if self._names is not None and parsed["name"] not in self._names:
            raise WrongHost("this dashboard answers on the loopback address only: open http://localhost with its port")

    def check_origin(self, request: Request) -> None:
        """Raise `WrongOrigin` if a page of another site sent the request."""
        origin = request.headers.get("Origin")
        host = request.headers.get("Host", "")
        if origin is not None and origin.lower() not in {f"{scheme}://{host.lower()}" for scheme in ("http", "https")}:
            raise WrongOrigin("requests from another site may not change anything here")
