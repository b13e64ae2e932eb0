"""Which life of a stream a reader is in: a stream that was made again, or came back older, uses its sequences again."""

from collections.abc import Iterator
from typing import Final

from jido_nats.broker.connection import Connection
from jido_nats.broker.consumer import Start
from jido_nats.broker.stream_info import StreamState, check_latest, check_position
from jido_nats.core.position import Position

# How many subjects' last messages prove that a bucket is not older than it was: some may have been replaced since.
RECENT: Final = 32


class RecentChanges:
    """The last messages of a bucket's stream that were read, or stored by this program, one per subject.

    A bucket that has lost one of them is older than it was. A writer notes its own, which its reader may not have
    received yet.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[int, int]] = {}

    def note(self, subject: str, sequence: int, time_ns: int = 0) -> None:
        """A message was read, or was stored (then its time is not known)."""
        if not time_ns and self._known.get(subject, (0, 0))[0] >= sequence:
            return
        self._known.pop(subject, None)
        self._known[subject] = sequence, time_ns
        if len(self._known) > RECENT:
            del self._known[next(iter(self._known))]

    def clear(self) -> None:
        """Forget all, before the bucket is read again."""
        self._known.clear()

    def __iter__(self) -> Iterator[tuple[str, int, int]]:
        return iter([(subject, *where) for subject, where in self._known.items()])


class StreamLife:
    """Where a reader is in its stream, and whether that is still the same stream.

    `recent`: given if the stream keeps only the last message of each subject (a bucket), so that the one at the
    reader's position may be gone.
    """

    def __init__(self, connection: Connection, stream: str, *, recent: RecentChanges | None) -> None:
        self._connection = connection
        self._stream = stream
        self._recent = recent
        self._begin = Position(0)
        self._sequence = self._time_ns = 0
        self._reconnects = connection.reconnects

    @property
    def at(self) -> Position:
        """The position of the last message; before the first, that where the reader begins."""
        return Position(self._sequence, self._time_ns, self._begin.created_ns) if self._sequence else self._begin

    @property
    def reconnected(self) -> bool:
        """Whether there has been a reconnect since the last check; without one it is the same server."""
        return self._connection.reconnects != self._reconnects

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
        if self._recent is not None:
            self._recent.note(subject, sequence, time_ns)

    async def check(self) -> StreamState:
        """The state of the stream, before the reader goes on. Raises `PositionUnavailable` if it is another one."""
        reconnected, reconnects = self.reconnected, self._connection.reconnects
        state = await check_position(self._connection, self._stream, self.at)
        if reconnected and self._recent is not None:
            await check_latest(self._connection, self._stream, self._recent)
        self._reconnects = reconnects
        return state
