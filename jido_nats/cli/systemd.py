"""The notifications that systemd expects of a service of `Type=notify`: ready, alive, stopping.

https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html: a datagram to the socket that NOTIFY_SOCKET
names. Without systemd nothing is sent.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator

_MICROSECONDS = 1_000_000


def notify(state: str) -> None:
    """Send a state to systemd, if it listens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.connect("\0" + address[1:] if address[0] == "@" else address)
        sock.sendall(state.encode())


@contextlib.asynccontextmanager
async def served() -> AsyncIterator[None]:
    """For a service's whole life, shutdown included: its event loop feeds systemd's watchdog."""
    feeding = asyncio.create_task(_feed(), name="systemd's watchdog")
    try:
        yield
    finally:
        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)


async def _feed() -> None:
    try:
        interval_s = int(os.environ["WATCHDOG_USEC"]) / _MICROSECONDS / 2
    except (KeyError, ValueError):
        return
    while True:
        notify("WATCHDOG=1")
        await asyncio.sleep(interval_s)
