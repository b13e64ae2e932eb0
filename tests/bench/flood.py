"""One program that asks for too much: `python -m tests.bench.flood URL USER VERB OUTSTANDING RATE`.

At the lowest CPU priority. It keeps OUTSTANDING requests unanswered, or, if OUTSTANDING is 0, sends RATE requests a
second and waits for no answer. Prints a line when it is first answered and, at the end of its stdin, how much it sent
and was answered. Without a password it asks a server without users.
"""

import asyncio
import itertools
import json
import os
import sys
import threading
from collections import Counter

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from jido_nats import Session
from tests.tools.burst import code_of
from tests.tools.roles import PASSWORDS

SESSION = "example"
BURST_S = 0.01
TIMEOUT_S = 10.0


async def reader(session: Session) -> None:
    """The worker of every session: reads its messages."""
    async for _ in session.messages():
        pass


def requests_of(verb: str, number: int) -> list[tuple[str, bytes]]:
    """The subjects and payloads of one turn; whatever it creates, it ends."""
    if verb == "create":
        session_id = f"flood-{os.getpid()}-{number}"
        create = json.dumps({"session_id": session_id}).encode()
        return [("jido.session.create", create), (f"jido.session.terminate.{session_id}", b"")]
    if verb == "list":
        return [("jido.session.list", b"{}")]
    if verb in ("idle", "activate"):
        return [(f"jido.session.{name}.{SESSION}", b"") for name in ("idle", "activate")]
    return [(f"jido.session.{verb}.{SESSION}", b'{"role":"user","content":"x"}' if verb == "send" else b"")]


class Flood:
    """Requests of one verb, and the codes that answered them."""

    def __init__(self, client: Client, verb: str) -> None:
        self._client = client
        self._verb = verb
        self._numbers = itertools.count()
        self.sent = 0
        self.answers = Counter[str]()

    async def keep(self, outstanding: int) -> None:
        """Keep so many requests unanswered."""
        await asyncio.gather(*(self._ask() for _ in range(outstanding)))

    async def _ask(self) -> None:
        while True:
            for subject, payload in requests_of(self._verb, next(self._numbers)):
                self.sent += 1
                try:
                    self._count(await self._client.request(subject, payload, timeout=TIMEOUT_S))
                except TimeoutError:
                    self.answers["no answer"] += 1

    async def send(self, rate: float) -> None:
        """Send so many requests a second."""
        inbox = self._client.new_inbox()

        async def on_answer(message: Msg) -> None:
            self._count(message)

        await self._client.subscribe(inbox, cb=on_answer)
        loop = asyncio.get_running_loop()
        began = loop.time()
        while True:
            while self.sent < rate * (loop.time() - began):
                for subject, payload in requests_of(self._verb, next(self._numbers)):
                    await self._client.publish(subject, payload, reply=inbox)
                    self.sent += 1
            await asyncio.sleep(BURST_S)

    def _count(self, answer: Msg) -> None:
        self.answers[code_of(answer)] += 1


async def run(url: str, user: str, verb: str, outstanding: int, rate: float) -> None:
    """Flood until stdin ends."""
    os.nice(19)
    password = PASSWORDS.get(user)
    client = await nats.connect(url, user=user or None, password=password, inbox_prefix=f"_INBOX.{user or 'flood'}")
    flood = Flood(client, verb)
    work = asyncio.create_task(flood.keep(outstanding) if outstanding else flood.send(rate))
    while not (flood.answers or work.done()):
        await asyncio.sleep(BURST_S)
    print("flooding", flush=True)
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    threading.Thread(target=lambda: (sys.stdin.read(), loop.call_soon_threadsafe(ended.set)), daemon=True).start()
    await asyncio.wait({work, asyncio.create_task(ended.wait())}, return_when=asyncio.FIRST_COMPLETED)
    work.cancel()
    print(json.dumps({"sent": flood.sent, "answers": flood.answers}), flush=True)
    os._exit(0)  # what is still unanswered does not matter


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), float(sys.argv[5])))
