"""The load: clients that create and command sessions, and note every answer for the auditor."""

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from jido_nats import Client, JidoError

CLIENTS: Final = 16


class Load:
    """Clients that create and command sessions, and note every answer."""

    def __init__(self, url: str, sessions: int, seed: int, may_send: asyncio.Event) -> None:
        self._url = url
        self.wanted = sessions
        self._dice = random.Random(seed)
        self._ids: list[str] = []
        self.answers: list[dict[str, Any]] = []
        self.connected = asyncio.Event()
        self.done = asyncio.Event()
        self.pause_s = 0.0
        self._may_send = may_send

    async def run(self) -> None:
        """Until every session that is wanted has been created."""
        async with contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(Client.connect(self._url, timeout_s=20)) for _ in range(CLIENTS)]
            self.connected.set()
            await asyncio.gather(*(self._work(client) for client in clients))
        self.done.set()

    async def _work(self, client: Client) -> None:
        while len(self._ids) < self.wanted:
            await self._may_send.wait()
            await self._create(client)
            for _ in range(self._dice.randrange(3)):
                await self._command(client, self._dice.choice(self._ids))
            await asyncio.sleep(self.pause_s * self._dice.random())

    async def _create(self, client: Client) -> None:
        session_id = f"chaos_{len(self._ids):06}"
        self._ids.append(session_id)
        await self._note("create", session_id, lambda: client.create_session(session_id=session_id, metadata={"n": 1}))

    async def _command(self, client: Client, session_id: str) -> None:
        verb = self._dice.choice(["get", "get", "idle", "activate", "terminate", "create"])
        calls: dict[str, Callable[[], Awaitable[Any]]] = {
            "get": lambda: client.get_session_info(session_id),
            "idle": lambda: client.idle_session(session_id),
            "activate": lambda: client.activate_session(session_id),
            "terminate": lambda: client.terminate_session(session_id),
            "create": lambda: client.create_session(session_id=session_id, metadata={"n": 1}),
        }
        await self._note(verb, session_id, calls[verb])

    async def _note(self, verb: str, session_id: str, call: Callable[[], Awaitable[Any]]) -> None:
        started, record, code = time.time(), None, None
        try:
            record = msgspec.to_builtins(await call())
        except JidoError as error:
            code = getattr(error, "code", type(error).__name__)
        self.answers.append(
            {
                "started": started,
                "at": time.time(),
                "verb": verb,
                "session_id": session_id,
                "ok": code is None,
                "code": code,
                "record": record,
            }
        )
