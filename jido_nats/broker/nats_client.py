"""nats-py's client with five differences, in methods that it calls itself (as of 2.16; tests detect a change)."""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Any, Final

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

SEND_BUFFER_BYTES_MAX: Final = 2 * 1024 * 1024
ROOM_POLL_S: Final = 0.01
READ_BUFFER_BYTES: Final = 1024 * 1024
MESSAGES_PER_CYCLE: Final = 64
CLOSE_TIMEOUT_S: Final = 2.0


class NatsClient(Client):
    """A client whose reader survives any message that another client can send, and delivers at once.

    A subject, reply subject or header that is not UTF-8 raises in nats-py's read loop and ends it: the connection
    would receive nothing until its pings time out. Here such a message is skipped.
    nats-py puts each message into a queue for a task of the subscription's own; if the callback's object has a
    method `deliver`, that is called from the read loop instead, at a fifth of the cost per reply.
    `send` writes a message with headers in one piece, while nats-py's `publish` checks and copies each header.
    nats-py reads 64 KiB in a cycle of the event loop, which in a busy program is too slow: the server disconnects a
    client for which it has to buffer too much. Here more is read at once, but the loop runs between the messages.
    nats-py uses TLS only if the server requires it, and otherwise sends the credentials in clear text, even to a
    `tls://`. Here, if TLS was requested, a server that does not offer it is disconnected before anything is sent.
    """

    def __init__(self) -> None:
        super().__init__()
        self._room = asyncio.Lock()
        self._waiting = 0
        self._delivered = 0
        # The servers of the cluster, `host:port`, as last reported by the server.
        self.cluster: tuple[str, ...] = ()
        # Set once the connection is lost or closed; a lost client is discarded.
        self.lost = asyncio.Event()

    @property
    def server_id(self) -> str:
        """The id that the connected server has had since its start."""
        return str(self._server_info.get("server_id", ""))

    async def connect(self, *servers: Any, **options: Any) -> None:
        """Connect, as nats-py does, and read more at once from then on."""
        await super().connect(*servers, **options)
        reader = getattr(self._transport, "_io_reader", None)  # a WebSocket has none
        if isinstance(reader, asyncio.StreamReader):
            reader._limit = READ_BUFFER_BYTES  # type: ignore[attr-defined]

    @property
    def has_room(self) -> bool:
        """Whether a message can be sent without waiting for others that are still in the send buffer."""
        return not self._waiting and self._pending_data_size <= SEND_BUFFER_BYTES_MAX

    async def send(self, subject: str, payload: bytes, reply: str, headers: Mapping[str, str] | None) -> None:
        """Write a message to the socket, as `publish` does; subject and headers have to be well formed.

        Raises `nats.errors.Error` without a connection, `nats.errors.MaxPayloadError`.
        """
        if not self.is_connected:
            raise nats.errors.ConnectionClosedError
        if not self.has_room:  # no send overtakes one that waits
            await self._wait_for_room()
        self.send_now(subject, payload, reply, headers)

    def send_now(self, subject: str, payload: bytes, reply: str, headers: Mapping[str, str] | None) -> None:
        """As `send`, even if the send buffer has no room."""
        if self._flush_queue is None:
            raise nats.errors.ConnectionClosedError
        block = _header_block(headers) if headers else b""
        if len(block) + len(payload) > self._max_payload:
            raise nats.errors.MaxPayloadError
        if headers:
            command = f"HPUB {subject} {reply} {len(block)} {len(block) + len(payload)}\r\n"
        else:
            command = f"PUB {subject} {reply} {len(payload)}\r\n"
        data = b"".join((command.encode(), block, payload, b"\r\n"))
        self._pending.append(data)
        self._pending_data_size += len(data)
        if self._flush_queue.empty():
            self._flush_queue.put_nowait(_unawaited())

    async def _wait_for_room(self) -> None:
        """Return when the send buffer has room.

        This does not use nats-py's flush queue: a waiter there never returns if the connection is lost, and a thousand
        waiters keep nats-py's pings out, so that the loss is not even noticed.
        """
        self._waiting += 1
        try:
            async with self._room:
                while self._pending_data_size > SEND_BUFFER_BYTES_MAX and self.is_connected:
                    await asyncio.sleep(ROOM_POLL_S)
        finally:
            self._waiting -= 1
        if not self.is_connected:
            raise nats.errors.ConnectionClosedError

    async def pause(self, subscription: Subscription) -> None:
        """Send UNSUB, but keep delivering what is still on its way, until `unsubscribe`."""
        await self._send_unsubscribe(subscription._id, 0)

    async def discard(self) -> None:
        """Close, with a timeout, since that may hang; the socket is closed in any case."""
        try:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await self.close()
        finally:
            # nats-py waits for the peer to read what is buffered, forever in a black hole, and it cannot abort.
            writer = getattr(self._transport, "_io_writer", None)
            if writer is not None:
                writer.transport.abort()

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        server = self._current_server
        if initial_connection and "tls" in self.options and server is not None and server.uri.scheme != "wss":
            info["tls_required"] = info.get("tls_required") or info.get("tls_available")
            if not info["tls_required"]:
                raise nats.errors.SecureConnWantedError
        self.cluster = tuple(info.get("connect_urls") or self.cluster)
        await super()._process_info(info, initial_connection)

    async def _process_msg(self, sid: int, subject: Any, reply: Any, data: Any, headers: Any) -> None:
        subscription = self._subs.get(sid)
        deliver = _direct(subscription._cb) if subscription is not None else None
        if deliver is None:
            await super()._process_msg(sid, subject, reply, data, headers)
            return
        parsed = await self._process_headers(headers) if headers else None
        message = self._build_message(sid, subject, reply, data, parsed)
        if message is not None:
            deliver(message)
        self._delivered += 1
        if self._delivered % MESSAGES_PER_CYCLE == 0:
            await asyncio.sleep(0)

    def _build_message(self, *parts: Any, **named: Any) -> Any:
        try:
            return super()._build_message(*parts, **named)
        except UnicodeDecodeError:
            return None

    async def _process_headers(self, headers: Any) -> dict[str, str] | None:
        try:
            parsed: dict[str, str] | None = await super()._process_headers(headers)
        except (UnicodeDecodeError, IndexError):
            return None
        return parsed


def _header_block(headers: Mapping[str, str]) -> bytes:
    text = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if text.count("\n") != len(headers) or text.count("\r") != len(headers):
        raise nats.errors.BadHeaderError("a header with a line break")
    return f"NATS/1.0\r\n{text}\r\n".encode()


def _unawaited() -> "asyncio.Future[None]":
    """A future to wake nats-py's flusher with; nothing waits for it."""
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    return future


def _direct(callback: Any) -> Callable[[Msg], None] | None:
    deliver: Callable[[Msg], None] | None = getattr(getattr(callback, "__self__", None), "deliver", None)
    return deliver
