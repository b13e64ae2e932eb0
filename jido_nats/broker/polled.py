"""Read a stream without a consumer, by batched direct gets (ADR-31): what a manager does when no consumer is left.

A stream takes a limited number of consumers, and readers may use them all. A direct get needs none. It may be
answered by a replica that lags: then the messages come later, still in order and without a gap.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

import msgspec

from jido_nats.broker.connection import Connection, Message
from jido_nats.broker.consumer import Consumer, Start, StreamMessage
from jido_nats.broker.stream_info import check_position, stream_state
from jido_nats.core.position import Position, nanoseconds
from jido_nats.core.subjects import matches
from jido_nats.errors import NotSent

BATCH: Final = 500
POLL_S: Final = 0.25
ANSWER_TIMEOUT_S: Final = 5.0
END_OF_BATCH: Final = "204"
NOTHING_FOUND: Final = "404"


class PolledConsumer(Consumer):
    """Every message of a stream on some subjects, in order, from a sequence; async context manager and iterator.

    Start policies: those with a sequence; any other begins with the first message that the stream has.
    `next` raises `PositionUnavailable` as `OrderedConsumer.next` does.
    """

    def __init__(self, connection: Connection, stream: str, filters: Sequence[str], start: Start) -> None:
        super().__init__(connection, stream, filters, start)
        self._messages: deque[StreamMessage] = deque()
        # The sequence from which to ask for more.
        self._wanted = start.sequence or 1
        self._start_is_new = start.policy == "new"
        self._at = Position(0)
        self._reconnects = connection.reconnects

    @property
    def at(self) -> Position:
        """See `Consumer.at`."""
        return self._at

    async def __aenter__(self) -> Self:
        state = await stream_state(self._connection, self._stream)
        if self._start_is_new:
            self._wanted = state.last + 1
        self._at = Position(0, 0, state.end.created_ns)
        while not self._messages and not self.caught_up:
            await self._fetch()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._messages.clear()

    async def next(self) -> StreamMessage:
        """See `Consumer.next`."""
        while not self._messages:
            if self._connection.reconnects != self._reconnects:
                await check_position(self._connection, self._stream, self._at)
                self._reconnects = self._connection.reconnects
            if not await self._fetch():
                await asyncio.sleep(POLL_S)
        return self._returned(self._messages.popleft())

    def take(self) -> StreamMessage | None:
        """See `Consumer.take`."""
        return self._returned(self._messages.popleft()) if self._messages else None

    def _returned(self, message: StreamMessage) -> StreamMessage:
        self.position = message.sequence
        self._at = Position(message.sequence, message.time_ns, self._at.created_ns)
        self.caught_up = self.caught_up or message.pending == 0
        return message

    async def _fetch(self) -> bool:
        """Ask for the next batch; whether the stream had any message after the last one."""
        single = self._filters[0] if len(self._filters) == 1 else ">"
        request = {"seq": self._wanted, "batch": BATCH, "next_by_subj": single}
        replies = await self._ask(msgspec.json.encode(request))
        if replies is None:
            return False
        self.caught_up = self.caught_up or not replies
        for reply in replies:
            message = _message_of(reply)
            self._wanted = message.sequence + 1
            if any(matches(pattern, message.subject) for pattern in self._filters):
                self._messages.append(message)
        return bool(replies)

    async def _ask(self, request: bytes) -> list[Message] | None:
        """The messages of a batch; None if it was not answered as a whole."""
        replies: list[Message] = []
        finished = asyncio.get_running_loop().create_future()

        def on_reply(reply: Message) -> None:
            status = (reply.headers or {}).get("Status")
            if status is None:
                replies.append(reply)
            elif not finished.done():
                finished.set_result(status in (END_OF_BATCH, NOTHING_FOUND))

        inbox = await self._connection.subscribe(self._connection.new_inbox(), on_reply)
        try:
            await self._connection.publish(f"$JS.API.DIRECT.GET.{self._stream}", request, reply=inbox.subject)
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                return replies if await finished else None
        except (NotSent, TimeoutError):
            await self._connection.wait_up()
            return None
        finally:
            await inbox.unsubscribe()


def _message_of(reply: Message) -> StreamMessage:
    headers = dict(reply.headers or {})
    own = {name: headers.pop(name, "") for name in _ADDED}
    return StreamMessage(
        own["Nats-Subject"],
        int(own["Nats-Sequence"]),
        reply.data,
        headers,
        nanoseconds(own["Nats-Time-Stamp"]),
        int(own["Nats-Num-Pending"] or 0),
    )


# The headers that a direct get adds to those of the message.
_ADDED: Final = (
    "Nats-Stream",
    "Nats-Subject",
    "Nats-Sequence",
    "Nats-Time-Stamp",
    "Nats-Num-Pending",
    "Nats-Last-Sequence",
)
