"""The baseline's own stream and bucket, configured like ours, removed afterwards."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

import nats.errors
from nats.aio.client import Client

from jido_nats.errors import ServerUnusable

API_TIMEOUT_S: Final = 5.0
REMOVE_TIMEOUT_S: Final = 30.0  # includes its files, which may be many


@dataclass(frozen=True)
class Names:
    """What the baseline uses on the server; `token` has three letters, so its subjects are as long as ours."""

    token: str

    @property
    def prefix(self) -> str:
        """The first token of every subject; ours is `jido`."""
        return f"b{self.token}"

    @property
    def stream(self) -> str:
        """The stream of events."""
        return f"JIDO_BENCH_{self.token}_EVENTS"

    @property
    def journals(self) -> str:
        """The stream of journals."""
        return f"JIDO_BENCH_{self.token}_JOURNALS"

    @property
    def bucket(self) -> str:
        """The bucket of records."""
        return f"JIDO_BENCH_{self.token}"

    @property
    def events(self) -> str:
        """The subject of all events; ours is `jido.client.events`."""
        return f"{self.prefix}.client.events"

    @property
    def subjects(self) -> list[str]:
        """The stream's subjects."""
        return [self.events, f"{self.prefix}.client.session.*", f"{self.prefix}.fence.*"]


@contextlib.asynccontextmanager
async def storage(client: Client, names: Names, *, events_like: str, records_like: str) -> AsyncIterator[None]:
    """The stream and the bucket, created like two existing streams. Raises `ServerUnusable` if that fails."""
    streams = {
        names.stream: (events_like, names.subjects),
        f"KV_{names.bucket}": (records_like, [f"$KV.{names.bucket}.>"]),
    }
    async with _copies(client, streams):
        yield


@contextlib.asynccontextmanager
async def journals(client: Client, names: Names, *, like: str) -> AsyncIterator[None]:
    """The stream of journals, created like an existing one."""
    async with _copies(client, {names.journals: (like, [f"{names.prefix}.journal.*"])}):
        yield


@contextlib.asynccontextmanager
async def _copies(client: Client, streams: dict[str, tuple[str, list[str]]]) -> AsyncIterator[None]:
    """Streams by name, each configured as another one is, with its own subjects."""
    begun: list[str] = []
    timeout_s = API_TIMEOUT_S
    try:
        for name, (like, subjects) in streams.items():
            config = (await _api(client, f"STREAM.INFO.{like}"))["config"]
            config |= {"name": name, "subjects": subjects, "description": "of 'jido-nats bench'; may be removed"}
            config.pop("metadata", None)
            begun.append(name)
            await _api(client, f"STREAM.CREATE.{name}", config)
        timeout_s = REMOVE_TIMEOUT_S
        yield
    finally:
        await asyncio.shield(_remove(client, begun, timeout_s))


async def _remove(client: Client, streams: list[str], timeout_s: float) -> None:
    for name in streams:
        with contextlib.suppress(nats.errors.Error):  # without permission to create it, it may not be removed either
            await client.request(f"$JS.API.STREAM.DELETE.{name}", b"", timeout=timeout_s)


async def _api(client: Client, subject: str, request: dict[str, Any] | None = None) -> dict[str, Any]:
    payload = json.dumps(request).encode() if request is not None else b""
    try:
        reply = await client.request(f"$JS.API.{subject}", payload, timeout=API_TIMEOUT_S)
    except nats.errors.Error as error:
        raise ServerUnusable(
            f"no answer on $JS.API.{subject}: the bench creates its own streams to compare with; "
            "use a user that may do everything in the account"
        ) from error
    answer: dict[str, Any] = json.loads(reply.data)
    if "error" in answer:
        raise ServerUnusable(f"JetStream refused {subject}: {answer['error'].get('description', '')}")
    return answer
