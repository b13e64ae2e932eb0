"""HTTP as a program without a library speaks it: one request a connection, and Server-Sent Events."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, cast
from urllib.parse import urlsplit

READ_TIMEOUT_S = 20.0


class Answer(NamedTuple):
    """What a request was answered with; the names of the headers are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The code of the error in the body."""
        code: str = self.json["error"]["code"]
        return code


class ServerSent(NamedTuple):
    """One Server-Sent Event."""

    name: str
    id: str | None
    data: Any


async def ask(
    url: str,
    method: str = "GET",
    path: str = "/",
    body: Any = None,
    headers: Mapping[str, str] | None = None,
    tls: ssl.SSLContext | None = None,
) -> Answer:
    """The answer; a body that is no bytes goes as JSON, with its Content-Type unless one is given.

    `tls`: for an https URL; its host is then looked for on this machine.
    """
    content = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    implied = {} if body is None else {"Content-Type": "application/json", "Content-Length": str(len(content))}
    async with asyncio.timeout(READ_TIMEOUT_S):
        reader, writer = await _send(url, method, path, {**implied, **(headers or {})}, content, tls)
        try:
            status, found = await _head(reader)
            return Answer(status, found, await reader.read())
        finally:
            writer.close()


class EventSource:
    """A stream of Server-Sent Events; what a connection that broke had sent in part does not count, as in a browser."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._transport = cast(asyncio.Transport, writer.transport)

    async def __aiter__(self) -> AsyncIterator[ServerSent]:
        """Until the stream ends or breaks."""
        while True:
            try:
                async with asyncio.timeout(READ_TIMEOUT_S):
                    frame = await self._reader.readuntil(b"\n\n")
            except (asyncio.IncompleteReadError, ConnectionError):
                return
            fields = dict(line.split(": ", 1) for line in frame.decode().splitlines() if ": " in line)
            if "data" in fields:
                yield ServerSent(fields["event"], fields.get("id"), json.loads(fields["data"]))

    def pause(self) -> None:
        """Take nothing from the socket until the next event is asked for."""
        self._transport.pause_reading()

    def resume(self) -> None:
        """Take from the socket again."""
        self._transport.resume_reading()

    async def named(self, name: str) -> ServerSent:
        """The next one of that name."""
        async for event in self:
            if event.name == name:
                return event
        raise AssertionError(f"the stream ended before {name!r}")


@asynccontextmanager
async def listening(
    url: str, path: str, headers: Mapping[str, str] | None = None, tls: ssl.SSLContext | None = None
) -> AsyncIterator[EventSource]:
    """A stream that was opened; `tls` as for `ask`."""
    reader, writer = await _send(url, "GET", path, headers or {}, b"", tls)
    try:
        async with asyncio.timeout(READ_TIMEOUT_S):
            status, found = await _head(reader)
        assert (status, found["content-type"].partition(";")[0]) == (200, "text/event-stream")
        yield EventSource(reader, writer)
    finally:
        writer.transport.abort()


async def _send(
    url: str, method: str, path: str, headers: Mapping[str, str], body: bytes, tls: ssl.SSLContext | None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = urlsplit(url).hostname or "", urlsplit(url).port
    where = (host, port) if tls is None else ("127.0.0.1", port)
    reader, writer = await asyncio.open_connection(
        *where, limit=4 * 1024 * 1024, ssl=tls, server_hostname=None if tls is None else host
    )
    lines = {"Host": f"{host}:{port}", **headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    writer.write(f"{method} {path} HTTP/1.0\r\n{head}\r\n".encode() + body)  # 1.0: no chunks, the end is the end
    return reader, writer


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
    headers = dict(line.split(": ", 1) for line in lines if line)
    return int(status.split()[1]), {name.lower(): value for name, value in headers.items()}
