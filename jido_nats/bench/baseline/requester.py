"""The caller's side of the baseline: it starts the responders and calls them with nats-py's `request`."""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from jido_nats.bench.baseline.responder import ERROR_HEADER, READY
from jido_nats.bench.baseline.storage import Names
from jido_nats.broker.options import ConnectOptions
from jido_nats.errors import JidoError, ServerUnusable

START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 10.0
REQUEST_TIMEOUT_S = 30.0
RECOVER_TIMEOUT_S = 600.0


class BaselineClient:
    """Sends requests to the responders."""

    def __init__(self, client: Client, names: Names, note: str) -> None:
        self._client = client
        self._prefix = f"{names.prefix}.session."
        self._note = note

    async def create(self, session_id: str) -> None:
        """Like `Client.create_session`."""
        payload = f'{{"session_id":"{session_id}","metadata":{{"bench":"{self._note}"}}}}'
        await self._ask("create", payload.encode(), REQUEST_TIMEOUT_S)

    async def terminate(self, session_id: str) -> None:
        """Like `Client.terminate_session`."""
        await self._ask(f"terminate.{session_id}", b"{}", REQUEST_TIMEOUT_S)

    async def recover(self, session_ids: Sequence[str], *, at_once: int, together: int) -> float:
        """Have sessions created and then taken over; returns how many seconds the takeover took."""
        wanted = {"session_ids": list(session_ids), "at_once": at_once, "together": together}
        reply = await self._ask("recover", json.dumps(wanted).encode(), RECOVER_TIMEOUT_S)
        return float(json.loads(reply.data)["seconds"])

    async def _ask(self, verb: str, payload: bytes, timeout_s: float) -> Msg:
        try:
            reply = await self._client.request(self._prefix + verb, payload, timeout=timeout_s)
        except nats.errors.Error as error:
            raise JidoError(f"the baseline's responder does not answer: {error!r}") from error
        if reply.headers and ERROR_HEADER in reply.headers:
            raise JidoError(f"the baseline's responder failed: {reply.headers[ERROR_HEADER]}")
        return reply


@contextlib.asynccontextmanager
async def responders(options: ConnectOptions, names: Names, note: str, count: int) -> AsyncIterator[list[int]]:
    """Run `count` responder processes inside the block; yields their process ids."""
    wanted = json.dumps({"options": asdict(options), "token": names.token, "note": note}).encode() + b"\n"
    processes: list[asyncio.subprocess.Process] = []
    try:
        for _ in range(count):
            processes.append(await _start(wanted))
        yield [process.pid for process in processes]
    finally:
        await asyncio.shield(asyncio.gather(*(_stop(process) for process in processes)))


async def _start(wanted: bytes) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "jido_nats.bench.baseline.responder"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for the bench, which stops them
    )
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(wanted)
    first_line = b""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(START_TIMEOUT_S):
            first_line = await process.stdout.readline()
    if first_line.strip() != READY.encode():
        await _stop(process)
        raise ServerUnusable("a responder of the baseline did not start; see its output above")
    return process


async def _stop(process: asyncio.subprocess.Process) -> None:
    assert process.stdin is not None
    process.stdin.close()
    try:
        async with asyncio.timeout(STOP_TIMEOUT_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
