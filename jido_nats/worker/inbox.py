"""The messages sent to a session that its worker has not taken yet: in order, each once, and bounded."""

import asyncio
import hashlib
import math
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Generator
from datetime import datetime
from typing import Any, Final

import msgspec

from jido_nats.core import codec
from jido_nats.core.requests import SendRequest
from jido_nats.errors import AlreadyExists, Overloaded

# How many message ids a session remembers, to recognize a repeated send.
SEEN_MAX: Final = 1000


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="message"):
    """A message to a worker. `number`: that of its `conversation_added`; `traceparent`: that of the `send` request."""

    role: str
    content: Any
    message_id: str
    number: int
    created_at: datetime
    traceparent: str | None = None


class HeldBytes:
    """How many bytes of their clients the sessions of one program hold in memory."""

    __slots__ = ("bytes_max", "total")

    def __init__(self, bytes_max: float = math.inf) -> None:
        self.bytes_max = bytes_max
        self.total = 0

    @property
    def is_full(self) -> bool:
        """Whether no more should be accepted."""
        return self.total >= self.bytes_max


class Inbox:
    """The messages of one session; their content counts as `held`."""

    __slots__ = ("_arrived", "_held", "_seen", "_waiting")

    def __init__(self, held: HeldBytes | None = None) -> None:
        self._held = held or HeldBytes()
        self._waiting: deque[tuple[Message, int]] = deque()  # with their sizes
        self._seen: OrderedDict[str, tuple[int, bytes]] = OrderedDict()
        self._arrived = asyncio.Event()

    def number_of(self, request: SendRequest) -> int | None:
        """The number of the message if the same request was accepted before, else None.

        Raises `AlreadyExists` if that `message_id` was used for different content.
        """
        if request.message_id is None or request.message_id not in self._seen:
            return None
        number, digest = self._seen[request.message_id]
        if digest != _digest(_encoded(request)):
            raise AlreadyExists("that message_id was used for another message; choose another")
        return number

    def check_room(self, messages_max: int) -> None:
        """Raise `Overloaded` if `messages_max` messages wait already, or too many bytes are held."""
        if len(self._waiting) >= messages_max:
            raise Overloaded(f"{messages_max} messages are waiting for the session's worker; send again later")
        if self._held.is_full:
            raise Overloaded("the sessions of this manager hold as many bytes as it may; send again later")

    def put(self, message: Message, request: SendRequest) -> None:
        """Add a message, and remember its id."""
        content = _encoded(request)
        self._waiting.append((message, len(content)))
        self._held.total += len(content)
        self._seen[message.message_id] = (message.number, _digest(content))
        if len(self._seen) > SEEN_MAX:
            self._seen.popitem(last=False)
        self._arrived.set()

    def add(self, message: Message) -> None:
        """Add a message whose id need not be remembered."""
        self._waiting.append((message, 0))
        self._arrived.set()

    def clear(self) -> None:
        """Drop what waits: the session has ended."""
        while self._waiting:
            self._pop()

    async def take(self) -> Message:
        """The next message, as soon as there is one."""
        await self._some()
        return self._pop()

    async def take_all(self) -> list[Message]:
        """All waiting messages, as soon as there is one."""
        await self._some()
        return [self._pop() for _ in range(len(self._waiting))]

    def _pop(self) -> Message:
        message, size = self._waiting.popleft()
        self._held.total -= size
        return message

    async def _some(self) -> None:
        while not self._waiting:
            await self._wait()

    async def _wait(self) -> None:
        self._arrived.clear()
        await self._arrived.wait()


class Messages:
    """See `Session.messages`: `await` returns all waiting messages (at least one); `async for` yields one at a time."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox

    def __await__(self) -> Generator[Any, None, list[Message]]:
        return self._inbox.take_all().__await__()

    def __aiter__(self) -> AsyncIterator[Message]:
        return self

    async def __anext__(self) -> Message:
        return await self._inbox.take()


def _encoded(request: SendRequest) -> bytes:
    return codec.encode([request.role, msgspec.json.encode(request.content, order="deterministic")])


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()
