"""Which life of a stream a reader is in: a stream that was made again, or came back older, uses its sequences again."""

from collections import deque
from typing import Final

from jido_nats.broker.connection import Connection
from jido_nats.broker.consumer import Start
from jido_nats.broker.stream_info import StreamState, check_latest, check_position
from jido_nats.core.position import Position

# How many of the last messages prove that a bucket is not older than it was: some may have been replaced since.
RECENT: Final = 32


class StreamLife:
    """Where a reader is in its stream, and whether that is still the same stream.

    `supersedes`: the stream keeps only the last message of each subject (a bucket), so that the one at the reader's
    position may be gone.
    """

    def __init__(self, connection: Connection, stream: str, *, supersedes: bool) -> None:
        self._connection = connection
        self._stream = stream
        self._supersedes = supersedes
        self._begin = Position(0)
        self._sequence = self._time_ns = 0
        self._recent: deque[tuple[str, int, int]] = deque(maxlen=RECENT)
        self._reconnects = connection.reconnects

    @property
    def at(self) -> Position:
        """The position of the last message; before the first, that where the reader begins."""
        return Position(self._sequence, self._time_ns, self._begin.created_ns) if self._sequence else self._begin

    async def begin(self, start: Start) -> tuple[Start, StreamState]:
        """Note where the reader begins; the start as a sequence if it was "new", and the state of the stream.

        Raises `PositionUnavailable` if the start is a position of another life.
        """
        after = start.after or Position(0)
        state = await check_position(self._connection, self._stream, after)
        if start.policy == "new":
            start = Start.at(state.last + 1)
        before, created_ns = (start.sequence or 1) - 1, state.end.created_ns
        self._begin = state.end if before and before == state.last else Position(before, after.stored_ns, created_ns)
        return start, state

    def passed(self, subject: str, sequence: int, time_ns: int) -> None:
        """The reader has taken this message."""
        self._sequence, self._time_ns = sequence, time_ns
        if self._supersedes:
            self._recent.append((subject, sequence, time_ns))

    async def check(self) -> StreamState:
        """The state of the stream, before the reader goes on. Raises `PositionUnavailable` if it is another one."""
        state = await check_position(self._connection, self._stream, self.at)
        if self._supersedes and self._connection.reconnects != self._reconnects:  # else it is the same server
            self._reconnects = self._connection.reconnects
            await check_latest(self._connection, self._stream, list(self._recent))
        return state
