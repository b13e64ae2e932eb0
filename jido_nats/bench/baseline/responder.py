"""A process that answers `create`, `terminate` and `recover` on bare nats-py, as a manager does.

`responders` starts it. It reads on stdin where to connect, and exits when stdin is closed, so that it never
outlives the bench.
"""

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

from nats.aio.client import Client
from nats.aio.msg import Msg

from jido_nats.bench.baseline.connect import PENDING_MAX, connect, settle
from jido_nats.bench.baseline.session import OWNER, BaselineSession, BaselineWriter
from jido_nats.bench.baseline.storage import Names
from jido_nats.broker.options import ConnectOptions

READY: Final = "ready"
ERROR_HEADER: Final = "Baseline-Error"
REQUESTED: Final = ',"reason":"requested"'
OWNER_LOST: Final = f',"reason":"owner_lost","error":"the manager {OWNER} is gone"'
FINISH_TIMEOUT_S: Final = 5.0


class Responder:
    """Answers requests, each in its own task."""

    def __init__(self, client: Client, names: Names, note: str) -> None:
        self._client = client
        self._writer = BaselineWriter(client.jetstream(), names, note)
        self._prefix = names.prefix
        self._sessions: dict[str, BaselineSession] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Subscribe to requests."""
        for verb, queue, handler in (
            ("create", "q", self._create),
            ("terminate.*", "", self._terminate),  # every responder gets it, the one with the session replies
            ("recover", "q", self._recover),
        ):
            await self._client.subscribe(
                f"{self._prefix}.session.{verb}", queue=queue, cb=self._taking(handler), pending_bytes_limit=PENDING_MAX
            )
        await settle(self._client)

    async def finish(self) -> None:
        """Wait for tasks in progress: a session is sealed after its reply."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=FINISH_TIMEOUT_S)

    def _taking(self, handler: Callable[[Msg], Awaitable[None]]) -> Callable[[Msg], Awaitable[None]]:
        async def take(message: Msg) -> None:
            task = asyncio.create_task(self._answer(handler, message))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        return take

    async def _answer(self, handler: Callable[[Msg], Awaitable[None]], message: Msg) -> None:
        try:
            await handler(message)
        except Exception as error:
            await self._client.publish(message.reply, headers={ERROR_HEADER: " ".join(repr(error).split())})

    async def _create(self, message: Msg) -> None:
        session = BaselineSession(json.loads(message.data)["session_id"])
        self._sessions[session.session_id] = session
        await self._reply(message, await self._writer.create(session))

    async def _terminate(self, message: Msg) -> None:
        session = self._sessions.pop(message.subject.rpartition(".")[2], None)
        if session is None:
            return
        await self._writer.step(session, "terminating", REQUESTED)
        await self._reply(message, await self._writer.step(session, "terminated", REQUESTED))
        await self._writer.seal(session, REQUESTED)

    async def _recover(self, message: Msg) -> None:
        """Create sessions, then take them over as a survivor does: claim all, end all; replies with the time."""
        wanted = json.loads(message.data)
        sessions = [BaselineSession(session_id) for session_id in wanted["session_ids"]]
        at_once, together = wanted["at_once"], wanted["together"]
        await _concurrently((self._writer.create(session) for session in sessions), at_once)
        started = time.perf_counter()
        for begin in range(0, len(sessions), together):
            part = sessions[begin : begin + together]
            await _concurrently((self._writer.claim(session) for session in part), at_once)
            await _concurrently((self._writer.step(session, "terminated", OWNER_LOST) for session in part), at_once)
            ended = time.perf_counter()
            await _concurrently((self._writer.seal(session, OWNER_LOST) for session in part), at_once)
        await self._reply(message, json.dumps({"seconds": ended - started}).encode())

    async def _reply(self, message: Msg, data: bytes) -> None:
        await self._client.publish(message.reply, data, headers={"Content-Type": "application/json"})


async def _concurrently(works: Iterable[Awaitable[Any]], at_once: int) -> None:
    waiting = iter(works)

    async def worker() -> None:
        for work in waiting:
            await work

    await asyncio.gather(*(worker() for _ in range(at_once)))


async def _main() -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    wanted = json.loads(await reader.readline())
    options = ConnectOptions(**{**wanted["options"], "servers": tuple(wanted["options"]["servers"])})
    client = await connect(options)
    responder = Responder(client, Names(wanted["token"]), wanted["note"])
    await responder.start()
    print(READY, flush=True)
    await reader.read()
    await responder.finish()
    await client.close()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The event loop that `jido-nats serve` runs on."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_main())
