"""What a nats-server's monitoring port says; None where it cannot be reached."""

import re
import urllib.request
from typing import Any, Final

import msgspec

TIMEOUT_S: Final = 1.0
CONNECTIONS_MAX: Final = 10_000


def syncs_always(url: str | None) -> bool | None:
    """Whether `sync_interval` is `always`."""
    found = _read(url, "varz")
    if found is None or "config" not in found.get("jetstream", {}):
        return None
    return bool(found["jetstream"]["config"].get("sync_always"))


def users_of(url: str | None, account: str, *, other_than: re.Pattern[str]) -> set[str] | None:
    """The users of an account that are connected now, without the connections whose name matches `other_than`."""
    found = _read(url, f"connz?auth=1&limit={CONNECTIONS_MAX}&acc={account}")
    if found is None:
        return None
    others = (c for c in found.get("connections", []) if not other_than.match(c.get("name", "")))
    return {str(connection.get("authorized_user")) for connection in others}


def _read(url: str | None, path: str) -> dict[str, Any] | None:
    if url is None:
        return None
    try:
        # The URL is the operator's own option.
        with urllib.request.urlopen(f"{url.rstrip('/')}/{path}", timeout=TIMEOUT_S) as reply:  # nosec B310
            return msgspec.json.decode(reply.read(), type=dict[str, Any])
    except (OSError, ValueError, msgspec.MsgspecError):
        return None
