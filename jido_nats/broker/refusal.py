"""Why a server hangs up on a new connection. It says so before it reads anything, and nats-py does not keep that."""

import asyncio
import contextlib
import re
from typing import Final
from urllib.parse import urlsplit

TIMEOUT_S: Final = 0.5
DEFAULT_PORT: Final = 4222

_ERROR: Final = re.compile(rb"-ERR '([^']*)'")


async def refusal_of(server: str) -> str | None:
    """What the server says to a new connection that it does not accept; None if it says nothing of that kind.

    `server`: a URL; a WebSocket's cannot be asked.
    """
    url = urlsplit(server if "://" in server else f"nats://{server}")
    if url.scheme not in ("nats", "tls") or url.hostname is None:
        return None
    said = bytearray()
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(TIMEOUT_S):
            reader, writer = await asyncio.open_connection(url.hostname, url.port or DEFAULT_PORT)
            try:
                while data := await reader.read(4096):
                    said += data
            finally:
                writer.transport.abort()
                await asyncio.sleep(0)  # until it is closed
    found = _ERROR.search(said)
    return found[1].decode("utf-8", "replace") if found else None
