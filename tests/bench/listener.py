"""A plain subscriber of everything, in a process of its own: `python -m tests.bench.listener URL [DELAY_S]`.

With a delay its link is a proxy's, and everything comes so much later. Prints a line when it listens, and at the end,
when its stdin ends, how much it heard.
"""

import asyncio
import contextlib
import sys
from urllib.parse import urlsplit

import nats
from nats.aio.msg import Msg

from tests.tools.proxy import Proxy

SUBJECT = "jido.client.>"
CONNECT_TIMEOUT_S = 10  # a connection needs several rounds, each of them twice the delay


async def run(url: str, delay_s: float) -> None:
    """Listen until stdin ends."""
    heard = 0

    async def on_message(_: Msg) -> None:
        nonlocal heard
        heard += 1

    async with contextlib.AsyncExitStack() as stack:
        if delay_s:
            proxy = await stack.enter_async_context(Proxy(urlsplit(url).port or 4222))
            url = proxy.url
            proxy.delay(delay_s)
        client = await nats.connect(url, connect_timeout=CONNECT_TIMEOUT_S)
        stack.push_async_callback(client.close)
        await client.subscribe(SUBJECT, cb=on_message)
        await client.request("$SYS.REQ.USER.INFO", b"", timeout=CONNECT_TIMEOUT_S)  # the server knows the subscription
        print("listening", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        await asyncio.sleep(2 * delay_s)  # what is on its way
        print(heard, flush=True)


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 0.0))
