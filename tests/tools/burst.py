"""Many requests of one client at once, and the codes of the replies."""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Iterable

from nats.aio.client import Client
from nats.aio.msg import Msg

POLL_S = 0.01
FLUSH_TIMEOUT_S = 240
# How many requests are sent before others of this process get a turn.
AT_ONCE = 50


def code_of(reply: Msg) -> str:
    """The status code of a reply; 200 if it is no error."""
    return (reply.headers or {}).get("Nats-Service-Error-Code", "200")


class Burst:
    """Requests that are sent without waiting for each reply."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.codes = Counter[str]()

    async def ask(
        self, requests: Iterable[tuple[str, bytes]], *, unanswered_max: float = math.inf, within_s: float = 240.0
    ) -> bool:
        """Send all of them, and wait for the replies; whether all have come in time."""
        inbox, sent, deadline = self._client.new_inbox(), 0, time.monotonic() + within_s

        async def on_reply(message: Msg) -> None:
            self.codes[code_of(message)] += 1

        await self._client.subscribe(inbox, cb=on_reply)
        for subject, payload in requests:
            await self._client.publish(subject, payload, reply=inbox)
            sent += 1
            if sent % AT_ONCE == 0:
                await asyncio.sleep(0)
            while sent - self.codes.total() > unanswered_max and time.monotonic() < deadline:
                await asyncio.sleep(POLL_S)
        await self._client.flush(FLUSH_TIMEOUT_S)
        while self.codes.total() < sent and time.monotonic() < deadline:
            await asyncio.sleep(POLL_S)
        return self.codes.total() == sent
