"""The messages sent to a session that its worker has not taken yet: in order, each once, and bounded."""

import asyncio
import base64
import hashlib
import itertools
import math
from collections import OrderedDict, deque
from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final, NamedTuple

import msgspec

from jido_nats.core import codec
from jido_nats.core.journal import KnownMessage
from jido_nats.core.requests import SendRequest
from jido_nats.errors import AlreadyExists, Overloaded

# How many message ids a session remembers, to recognize a repeated send.
SEEN_MAX: Final = 1000
DIGEST_BYTES: Final = 16


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="message"):
    """A message to a worker. `number`: that of its `conversation_added`; `traceparent`: that of the `send` request.

    `redelivered`: an earlier attempt of the session had it, and did not handle it, or not as far as is known.
    """

    role: str
    content: Any
    message_id: str
    number: int
    created_at: datetime
    traceparent: str | None = None
    redelivered: bool = False


class _Seen(NamedTuple):
    """What is remembered of a message. `sequence`: that in the journal, 0 without one."""

    number: int
    digest: str
    sequence: int


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

    __slots__ = ("_arrived", "_held", "_ids_max", "_seen", "_waiting", "taken")

    def __init__(self, held: HeldBytes | None = None, *, ids_max: int = SEEN_MAX) -> None:
        self._held = held or HeldBytes()
        self._ids_max = ids_max
        self._waiting: deque[tuple[Message, int, int]] = deque()  # with their sizes, and sequences in the journal
        self._seen: OrderedDict[str, _Seen] = OrderedDict()
        self._arrived = asyncio.Event()
        # The sequence in the journal of the last message that was taken; 0 without a journal.
        self.taken = 0

    def number_of(self, request: SendRequest) -> int | None:
        """The number of the message if the same request was accepted before, else None.

        Raises `AlreadyExists` if that `message_id` was used for different content.
        """
        if request.message_id is None or request.message_id not in self._seen:
            return None
        seen = self._seen[request.message_id]
        if seen.digest != _digest(_encoded(request.role, request.content)):
            raise AlreadyExists("that message_id was used for another message; choose another")
        return seen.number

    def check_room(self, messages_max: int) -> None:
        """Raise `Overloaded` if `messages_max` messages wait already, or too many bytes are held."""
        if len(self._waiting) >= messages_max:
            raise Overloaded(f"{messages_max} messages are waiting for the session's worker; send again later")
        if self._held.is_full:
            raise Overloaded("the sessions of this manager hold as many bytes as it may; send again later")

    def sequence_of(self, message_id: str) -> int | None:
        """The sequence in the journal of a message, None if no message of that id is known."""
        return None if message_id not in self._seen else self._seen[message_id].sequence

    def put(self, message: Message, sequence: int = 0) -> None:
        """Add a message, and remember its id. `sequence`: that in the journal, if the session has one."""
        content = _encoded(message.role, message.content)
        self._waiting.append((message, len(content), sequence))
        self._held.total += len(content)
        self._remember(message, content, sequence)
        self._arrived.set()

    def know(self, message: Message, sequence: int) -> None:
        """Remember the id of a message that was handled."""
        self._remember(message, _encoded(message.role, message.content), sequence)

    def remember(self, known: Iterable[KnownMessage]) -> None:
        """Remember the ids of messages that were handled and purged, unless they are known."""
        for message_id, number, digest in map(msgspec.structs.astuple, known):
            self._seen.setdefault(message_id, _Seen(number, digest, 0))

    def newest(self, limit: int) -> tuple[KnownMessage, ...]:
        """The ids of the last messages, in order."""
        newest = list(itertools.islice(reversed(self._seen.items()), limit))
        return tuple(KnownMessage(message_id, seen.number, seen.digest) for message_id, seen in reversed(newest))

    def add(self, message: Message) -> None:
        """Add a message whose id need not be remembered."""
        self._waiting.append((message, 0, 0))
        self._arrived.set()

    def successor(self) -> "Inbox":
        """An empty inbox for the next attempt, which knows the same ids; what still waits at this one gets nothing."""
        self.clear()
        following = Inbox(self._held, ids_max=self._ids_max)
        following._seen = self._seen
        return following

    def clear(self) -> None:
        """Drop what waits: the session has ended, or another attempt begins."""
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
        message, size, self.taken = self._waiting.popleft()
        self._held.total -= size
        return message

    def _remember(self, message: Message, content: bytes, sequence: int) -> None:
        self._seen[message.message_id] = _Seen(message.number, _digest(content), sequence)
        if len(self._seen) > self._ids_max:
            self._seen.popitem(last=False)

    async def _some(self) -> None:
        while not self._waiting:
            await self._wait()

    async def _wait(self) -> None:
        self._arrived.clear()
        await self._arrived.wait()


def _encoded(role: str, content: Any) -> bytes:
    return codec.encode([role, msgspec.json.encode(content, order="deterministic")])


def _digest(content: bytes) -> str:
    return base64.b85encode(hashlib.sha256(content).digest()[:DIGEST_BYTES]).decode()
