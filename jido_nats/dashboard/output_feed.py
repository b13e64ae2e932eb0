"""Output and conversation of sessions, as Server-Sent Events whose `id` is a position of the output stream.

All browsers that show a session share one consumer and one subscription, which follow its output from the moment when
the first of them came until the last has left. What was stored before, each reads for itself: with a consumer that is
gone as soon as it has caught up with the shared one.
"""

import asyncio
import contextlib
import itertools
import logging
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final, NamedTuple

from jido_nats.client.client import Client
from jido_nats.client.streams import OutputMessage
from jido_nats.core.output import Attempts, Output
from jido_nats.core.position import Position
from jido_nats.dashboard.event_feed import BEAT_S, PACE_S, RECONNECT, woken
from jido_nats.dashboard.state import message
from jido_nats.errors import InternalError, JidoError, PositionUnavailable

TAIL_BYTES_MAX: Final = 4 * 1024 * 1024
RETRY_S: Final = 5.0

log = logging.getLogger(__name__)


class OutputFeed:
    """The output of every session that a browser shows, with a `stream` for each browser."""

    def __init__(self, client: Client, *, beat_s: float = BEAT_S) -> None:
        self._client = client
        self._beat_s = beat_s
        self._tails: dict[str, _Tail] = {}

    async def stream(self, session_id: str, position: Position | None) -> AsyncGenerator[bytes, None]:
        """Everything stored after `position` (None: all), then live; ephemeral output only live.

        `output_caught_up`: what was stored has been sent. `output_reset`: the stream is another one than that of
        `position`, and is sent from its beginning. `output_problem`: it cannot be read, and is tried again.
        Ends if the browser reads too slowly.
        """
        reader = _Reader(position)
        yield RECONNECT
        while True:
            try:
                async with contextlib.aclosing(self._follow(session_id, reader)) as messages:
                    async for data in messages:
                        yield data
                return
            except PositionUnavailable:
                reader = _Reader(None)
                yield message("output_reset", {})
            except JidoError as error:
                yield message("output_problem", {"message": str(error)})
                await asyncio.sleep(RETRY_S)

    async def _follow(self, session_id: str, reader: "_Reader") -> AsyncGenerator[bytes, None]:
        async with self._tail(session_id) as tail:
            place = tail.end
            async with self._client.output(session_id=session_id, since=reader.since) as outputs:
                async for stored in outputs.stored():
                    yield reader.take([_Item.of(stored, outputs.position_token)])
            yield message("output_caught_up", {})
            while (items := tail.after(place)) is not None:
                place += len(items)
                yield reader.take(items) or await tail.changed(self._beat_s)
                if items:
                    await asyncio.sleep(PACE_S)

    @contextlib.asynccontextmanager
    async def _tail(self, session_id: str) -> AsyncIterator["_Tail"]:
        """The session's shared tail, which is open; the last to leave closes it."""
        tail = self._tails.get(session_id)
        if tail is None:
            tail = self._tails[session_id] = _Tail(self._client, session_id)
        tail.readers += 1
        try:
            await tail.opened()
            yield tail
        finally:
            tail.readers -= 1
            if (tail.readers == 0 or tail.error is not None) and self._tails.get(session_id) is tail:
                del self._tails[session_id]
            if tail.readers == 0:
                await tail.close()


class _Item(NamedTuple):
    """One output, encoded; an ephemeral one has no position."""

    sequence: int
    position_token: str | None
    output: Output
    data: bytes

    @classmethod
    def of(cls, received: OutputMessage, position_token: str | None) -> "_Item":
        return cls(
            received.sequence, position_token, received.output, message("output", received.output, position_token)
        )


class _Reader:
    """How far one browser has read."""

    def __init__(self, position: Position | None) -> None:
        self._sequence = 0 if position is None else position.sequence
        self._attempts = Attempts()
        self.since: str | int = "all"
        if position is not None:
            self.since = position.token if position.is_verifiable else position.sequence + 1

    def take(self, items: "list[_Item]") -> bytes:
        """Those that it has not read yet, without what an older attempt says late."""
        new: list[bytes] = []
        for item in items:
            if item.position_token is not None:
                if item.sequence <= self._sequence:
                    continue
                self._sequence, self.since = item.sequence, item.position_token
            if not self._attempts.is_late(item.output):
                new.append(item.data)
        return b"".join(new)


class _Tail:
    """The last output of a session, from the moment when this was opened. Ends with `error`."""

    def __init__(self, client: Client, session_id: str) -> None:
        self.readers = 0
        self.error: JidoError | None = None
        self._items: deque[_Item] = deque()
        self._bytes = 0
        self._dropped = 0
        self._opened = asyncio.Event()
        self._changed = asyncio.Event()
        self._task = asyncio.create_task(self._run(client, session_id), name=f"dashboard: output of {session_id}")

    async def opened(self) -> None:
        """Return when everything that is stored from now on will be here. Raises what prevents it."""
        await self._opened.wait()
        if self.error is not None:
            raise self.error

    @property
    def end(self) -> int:
        """The place after the last item."""
        return self._dropped + len(self._items)

    def after(self, place: int) -> list[_Item] | None:
        """The items from that place on; None if some of them are no longer here. Raises the error that ended it."""
        if place < self._dropped:
            return None
        items = list(itertools.islice(reversed(self._items), self.end - place))[::-1]
        if not items and self.error is not None:
            raise self.error
        return items

    async def changed(self, within_s: float) -> bytes:
        """Wait for something new; a keep-alive message if nothing arrives in time."""
        return await woken(self._changed, within_s)

    async def close(self) -> None:
        """End the consumer and the subscription."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self, client: Client, session_id: str) -> None:
        try:
            async with (
                client.listen_output(session_id, self._on_live),
                client.output(session_id=session_id) as outputs,
            ):
                self._opened.set()
                async for stored in outputs:
                    self._add(_Item.of(stored, outputs.position_token))
        except JidoError as error:
            self.error = error
        except Exception:
            log.exception("reading the output of a session failed", extra={"session_id": session_id})
            self.error = InternalError("internal error of the dashboard; see its log")
        self._opened.set()
        self._wake()

    def _on_live(self, received: OutputMessage) -> None:
        if getattr(received.output, "ephemeral", False):
            self._add(_Item.of(received, None))

    def _add(self, item: _Item) -> None:
        self._items.append(item)
        self._bytes += len(item.data)
        while self._bytes > TAIL_BYTES_MAX:
            self._bytes -= len(self._items.popleft().data)
            self._dropped += 1
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
