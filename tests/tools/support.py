"""What tests share: waiting for a condition, and NATS as somebody who has none of our code sees it."""

import asyncio
import contextlib
import inspect
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import nats
from nats.aio.client import Client as NatsClient
from nats.aio.msg import Msg
from nats.js.errors import NotFoundError

from jido_nats import Session

DEADLINE_S = 30.0
LEASE_S = 5  # long enough for a machine that is busy; who waits for one to expire takes a shorter one
POLL_S = 0.01


async def eventually(condition: Callable[[], Any], *, within_s: float = DEADLINE_S) -> Any:
    """The condition's value (awaited where it can be) as soon as it is true; fails with the last after `within_s`."""
    deadline = time.monotonic() + within_s
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {within_s:g} s; at last {value!r}"
        await asyncio.sleep(POLL_S)


async def nothing(of: Callable[[], Any], *, within_s: float = DEADLINE_S) -> None:
    """As soon as there is nothing left of it; fails with what is left after `within_s`."""
    deadline = time.monotonic() + within_s
    while left := of():
        assert time.monotonic() < deadline, f"after {within_s:g} s there is still {left!r}"
        await asyncio.sleep(POLL_S)


class Listener:
    """What a plain subscriber hears, in order."""

    def __init__(self) -> None:
        self.messages: list[Msg] = []

    async def on_message(self, message: Msg) -> None:
        """The subscription's callback."""
        self.messages.append(message)

    def on(self, subject: str) -> list[dict[str, Any]]:
        """The payloads that were heard on one subject."""
        return [msgspec.json.decode(m.data) for m in self.messages if m.subject == subject]

    def told(self, subject: str) -> list[str]:
        """What was heard on one subject, in short: `1 created`, `2 active`, `3 ended`."""
        return [brief(event) for event in self.on(subject)]


def brief(event: dict[str, Any]) -> str:
    """An event in two words: its version, and what it says."""
    words = {"session_created": "created", "session_terminated": "ended"}
    return f"{event['version']} {words.get(event['type']) or event['status']}"


class Stranger:
    """A program with a stock NATS client: it asks, hears and reads, and knows nothing of jido_nats."""

    def __init__(self, nc: NatsClient) -> None:
        self.nc = nc
        self.js = nc.jetstream()

    async def hear(self, *subjects: str) -> Listener:
        """Listen from now on."""
        ear = Listener()
        for subject in subjects:
            await self.nc.subscribe(subject, cb=ear.on_message)
        await self.flush()
        return ear

    async def flush(self) -> None:
        """Return when the server knows every subscription: nats-py's own `flush` lets its PING overtake them."""
        await self.nc.request("$SYS.REQ.USER.INFO", b"", timeout=10)

    async def request(self, subject: str, payload: Any = b"", *, headers: dict[str, str] | None = None) -> Msg:
        """The reply; a payload that is no bytes goes as JSON."""
        data = payload if isinstance(payload, bytes) else msgspec.json.encode(payload)
        return await self.nc.request(subject, data, timeout=DEADLINE_S, headers=headers)

    async def ask(self, subject: str, payload: Any = b"") -> dict[str, Any]:
        """The reply's JSON; an error's too."""
        answer: dict[str, Any] = msgspec.json.decode((await self.request(subject, payload)).data)
        return answer

    async def create(self, session_id: str, **fields: Any) -> dict[str, Any]:
        """A session's record, created under a chosen id; asked for again while it is starting."""
        while True:
            answer = await self.ask("jido.session.create", {"session_id": session_id, **fields})
            if not answer.get("error", {}).get("message", "").startswith("starting"):
                return answer

    async def say(self, session_id: str, number: int, *, attempt: int | None = None, **fields: Any) -> None:
        """Store an output as a worker of that attempt would; with `ephemeral`, publish it to those who listen."""
        output = {"type": "session_output", "session_id": session_id, "number": number, "name": "step", "data": number}
        output |= {"created_at": "2025-01-24T10:30:00Z", "attempt": attempt, **fields}
        headers = {"Nats-Expected-Stream": "none" if fields.get("ephemeral") else "JIDO_OUTPUT"}
        subject = f"jido.client.session.{session_id}.output"
        await self.nc.publish(subject, msgspec.json.encode(output), headers=headers)
        await self.nc.flush()

    async def stored(self, stream: str = "JIDO_CLIENT") -> list[Msg]:
        """Every message that the stream holds, in order."""
        state = (await self.js.stream_info(stream)).state
        found: list[Msg] = []
        if not state.messages:
            return found
        for sequence in range(state.first_seq, state.last_seq + 1):
            try:
                message = await self.js.get_msg(stream, sequence)
            except NotFoundError:
                continue
            found.append(Msg(self.nc, message.subject or "", "", message.data or b"", message.headers))
        return found

    async def stored_events(self, subject: str = "jido.client.events") -> list[dict[str, Any]]:
        """The events that are stored on one subject, in order."""
        return [msgspec.json.decode(m.data) for m in await self.stored() if m.subject == subject]

    async def stored_brief(self, subject: str = "jido.client.events") -> list[str]:
        """The same in short."""
        return [brief(event) for event in await self.stored_events(subject)]

    async def record(self, session_id: str) -> dict[str, Any] | None:
        """What the bucket holds, or None."""
        with contextlib.suppress(NotFoundError):
            entry = await self.js.get_last_msg("KV_JIDO_SESSIONS", f"$KV.JIDO_SESSIONS.{session_id}")
            if entry.data:
                record: dict[str, Any] = msgspec.json.decode(entry.data)
                return record
        return None

    async def ends(self, session_id: str, *, within_s: float = DEADLINE_S) -> dict[str, Any]:
        """The record, once it is sealed."""
        await eventually(lambda: self._is_sealed(session_id), within_s=within_s)
        return await self.record(session_id) or {}

    async def _is_sealed(self, session_id: str) -> bool:
        record = await self.record(session_id)
        return record is not None and record.get("sealed", False)

    async def positions(self) -> tuple[int, int]:
        """The last sequences of the events and of the records: they move with every write."""
        streams = ("JIDO_CLIENT", "KV_JIDO_SESSIONS")
        events, records = [(await self.js.stream_info(stream)).state.last_seq for stream in streams]
        return events, records


@asynccontextmanager
async def stranger_at(url: str) -> AsyncIterator[Stranger]:
    """A stock NATS client, connected."""

    async def quiet(_: Exception) -> None:
        """nats-py prints a traceback where it is given none."""

    nc = await nats.connect(
        url, error_cb=quiet, max_reconnect_attempts=-1, reconnect_time_wait=0.05, connect_timeout=5, ping_interval=10
    )
    try:
        yield Stranger(nc)
    finally:
        await nc.close()


class Puppet:
    """A worker whose sessions do what the test says."""

    def __init__(self) -> None:
        self.sessions: dict[str, Session] = {}
        self._orders: dict[str, asyncio.Future[None]] = {}

    async def __call__(self, session: Session) -> None:
        self.sessions[session.session_id] = session
        self._orders[session.session_id] = asyncio.get_running_loop().create_future()
        await self._orders[session.session_id]

    def complete(self, session_id: str) -> None:
        """Let the worker return."""
        self._orders[session_id].set_result(None)

    def crash(self, session_id: str, error: BaseException) -> None:
        """Let the worker raise."""
        self._orders[session_id].set_exception(error)


# What the `error` of a session that it crashed ends with.
IN_PUPPET = f" (support.py:{Puppet.__call__.__code__.co_firstlineno + 3} in __call__)"


class Stubborn:
    """A worker that ignores every cancellation until it is let go."""

    def __init__(self) -> None:
        self.cancels = 0
        self.let_go = asyncio.Event()

    async def __call__(self, session: Session) -> None:
        while not self.let_go.is_set():
            try:
                await self.let_go.wait()
            except asyncio.CancelledError:
                self.cancels += 1


async def wait_for_ever(session: Session) -> None:
    """A worker that does nothing until it is cancelled."""
    await asyncio.Event().wait()
