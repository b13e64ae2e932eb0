"""What people would write instead of jido_nats: a session manager as a script on nats-py, in three ways.

    python -m tests.bench.contenders memory|durable|side_by_side nats://127.0.0.1:4222

Each answers `contender.create` with the session's record once it is `active`, and tells of it on the same three
subjects' worth of events as we do. None fences, repairs, or survives its own death in the middle of a create.
"""

import asyncio
import json
import sys
from datetime import UTC, datetime
from typing import Any

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.kv import KeyValue

CREATE = "contender.create"
EVENTS = "contender.events"
SESSION = "contender.session"
READY = "ready"


def records(request: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """A session's first two records."""
    wanted = json.loads(request)
    now = datetime.now(UTC).isoformat()
    first = {**wanted, "status": "initializing", "version": 1, "created_at": now, "updated_at": now}
    return first, {**first, "status": "active", "version": 2, "updated_at": datetime.now(UTC).isoformat()}


def messages(record: dict[str, Any]) -> list[tuple[str, bytes]]:
    """What is told of a record."""
    kind = "session_created" if record["version"] == 1 else "session_status"
    data = json.dumps({"type": kind, **record}).encode()
    told = [(EVENTS, data)]
    return told if record["version"] == 1 else [*told, (f"{SESSION}.{record['session_id']}", data)]


class InMemory:
    """A dictionary and plain publishes: nothing is stored."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._sessions: dict[str, dict[str, Any]] = {}

    async def on_create(self, message: Msg) -> None:
        """Create, tell, answer."""
        for record in records(message.data):
            self._sessions[record["session_id"]] = record
            for subject, data in messages(record):
                await self._client.publish(subject, data)
        await message.respond(json.dumps(record).encode())


class Durable:
    """A KV bucket and a stream; one create after the other, as nats-py's callbacks run."""

    def __init__(self, js: JetStreamContext, bucket: KeyValue) -> None:
        self._js = js
        self._bucket = bucket

    async def on_create(self, message: Msg) -> None:
        """Create, store, tell, answer."""
        for record in records(message.data):
            await self._bucket.put(record["session_id"], json.dumps(record).encode())
            for subject, data in messages(record):
                await self._js.publish(subject, data)
        await message.respond(json.dumps(record).encode())


class SideBySide(Durable):
    """The same with a task for each request."""

    def __init__(self, js: JetStreamContext, bucket: KeyValue) -> None:
        super().__init__(js, bucket)
        self._tasks: set[asyncio.Task[None]] = set()

    async def on_create(self, message: Msg) -> None:
        """Begin to create."""
        task = asyncio.create_task(super().on_create(message))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def serve(kind: str, url: str) -> None:
    """Answer until killed."""
    client = await nats.connect(url)
    if kind == "memory":
        contender: InMemory | Durable = InMemory(client)
    else:
        js = client.jetstream()
        await js.add_stream(name="CONTENDER", subjects=[EVENTS, f"{SESSION}.*"])
        bucket = await js.create_key_value(bucket="CONTENDER")
        contender = Durable(js, bucket) if kind == "durable" else SideBySide(js, bucket)
    await client.subscribe(CREATE, cb=contender.on_create)
    print(READY, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(*sys.argv[1:]))
