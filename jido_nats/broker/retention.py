"""Whether a stream has removed messages before a reader received them.

Sequences do not show it: a reader of some subjects sees gaps all the time. So after each pull, once its first message
is here, one look at the stream decides: if it still has everything after the last message that was received before
the pull, nothing is missing. What the server sends for one pull it reads at once, so one look for each is enough.
A reader that receives nothing keeps up by the heartbeats: what the stream had at the last look, it has received.
"""

import asyncio
from collections import deque

from jido_nats.broker.connection import Connection
from jido_nats.broker.consumer import parse_ack_subject
from jido_nats.broker.stream_info import StreamState, stream_state
from jido_nats.errors import JidoError, PositionUnavailable


class RetentionGuard:
    """What one reader has received, compared with what its stream still has."""

    def __init__(self, connection: Connection, stream: str) -> None:
        self._connection = connection
        self._stream = stream
        # Everything up to this sequence that concerns the reader has been received.
        self.through = 0
        # The end of the stream at the last look.
        self._last = 0
        self._looks: set[asyncio.Task[None]] = set()
        self._failure: JidoError | None = None
        # Of the present consumer: the sequence after which it begins, how many messages have come from it, the reply
        # subject of the last of them, and which of them are the first ones of their pulls.
        self._after: int | None = None
        self._received = 0
        self._last_reply = ""
        self._firsts: deque[int] = deque()
        # For each heartbeat that has come and was not read: the end of the stream at the last look before it came.
        self._heartbeats: deque[int] = deque()

    def opened(self, through: int, state: StreamState) -> None:
        """The reader begins after `through`. Raises `PositionUnavailable` if the stream has less than that."""
        self.through, self._last = through, state.last
        self.check(through, state)

    def check(self, through: int, state: StreamState) -> None:
        """Raise `PositionUnavailable` unless the stream still has everything after `through`."""
        if through > state.last or state.first > through + 1:
            raise PositionUnavailable(through + 1, state.first, state.last)

    def began(self, after: int | None) -> None:
        """A consumer was created that begins after this sequence; None: with whatever the stream has."""
        self._after, self._received, self._last_reply = after, 0, ""
        self._firsts.clear()
        self._heartbeats.clear()

    def pulled(self, first: int, *, ended_at: int | None) -> None:
        """A pull was sent, and the consumer's message number `first` is the first that it brings.

        `ended_at`: the reader's position, if no earlier pull was waiting: the reader may have been idle for long.
        """
        self._firsts.append(first)
        if ended_at is not None and self._received:
            self.look(max(ended_at, self.through))

    def received(self, reply: str) -> None:
        """A message has come, with this reply subject."""
        self._received += 1
        if self._firsts and self._received >= self._firsts[0]:
            self._firsts.popleft()
            before = parse_ack_subject(self._last_reply)[0] if self._last_reply else self._after
            if before is not None:
                self.look(max(before, self.through))
        self._last_reply = reply

    def look(self, through: int) -> None:
        """Check, in the background, that the stream still has everything after `through`; see `settle`."""
        task = asyncio.create_task(self._look(through), name=f"look at the retention of {self._stream}")
        self._looks.add(task)
        task.add_done_callback(self._looks.discard)

    @property
    def pending(self) -> bool:
        """Whether `settle` has to be called before another message is returned."""
        return bool(self._looks) or self._failure is not None

    async def settle(self) -> None:
        """Wait for the looks. Raises `PositionUnavailable` if messages were removed before they were received."""
        while self._looks:
            await asyncio.wait(self._looks)
        if self._failure is not None:
            raise self._failure

    def heartbeat(self) -> None:
        """A heartbeat has come: the consumer had sent everything that the stream had at the last look."""
        self._heartbeats.append(self._last)

    def idle(self) -> None:
        """A heartbeat is read, and so is every message that came before it."""
        if self._heartbeats:
            self.through = max(self.through, self._heartbeats.popleft())

    async def close(self) -> None:
        """Forget the looks: the reader starts again at its position, or ends."""
        looks = list(self._looks)
        for task in looks:
            task.cancel()
        await asyncio.gather(*looks, return_exceptions=True)
        self._failure = None

    async def _look(self, through: int) -> None:
        try:
            state = await stream_state(self._connection, self._stream)
            self.check(through, state)
            self._last = state.last
        except JidoError as error:
            self._failure = self._failure or error
