"""The output of workers on its way to the stream: in order for each session, many in flight, independent of records.

A message whose outcome is unknown is sent again with the same id. After a change of the stream's leader a few may be
stored out of order or, if the server was unavailable for longer than its duplicate window, twice: readers detect
both by `number`.

While a session lives, its output is tried forever, and its worker waits when there is too much of it. A session that
has ended without it has said so (`output_incomplete`): what is still queued then is tried for `AFTER_END_S`, and
dropped, since otherwise it would only add up while the stream is gone.
"""

import asyncio
import contextlib
import itertools
import logging
from collections import deque
from collections.abc import Coroutine
from typing import Any, Final, NamedTuple

from jido_nats import trace
from jido_nats.broker.backoff import Backoff
from jido_nats.core.output import ConversationAdded, Output, OutputPublication, publication_of
from jido_nats.errors import BrokerError, JidoError, NotSent, TooLarge, Unavailable
from jido_nats.store.output_log import OutputLog

WAITING_MAX: Final = 256
BYTES_MAX: Final = 64 * 1024 * 1024
IN_FLIGHT_MAX: Final = 16
RETRY_WAIT_S: Final = 0.1
RETRY_WAIT_MAX_S: Final = 2.0
REFUSED_MAX: Final = 100
# How long the output of a session that has ended is still tried.
AFTER_END_S: Final = 120.0
# What many ends have dropped is logged in one line.
DROPS_LOGGED_EVERY_S: Final = 1.0

log = logging.getLogger(__name__)


class Item(NamedTuple):
    """One output, ready to send."""

    publication: OutputPublication
    payload: bytes
    headers: dict[str, str]


class OutputQueue:
    """The output of one session. `kept` and `ephemeral`: the numbers of the last of each kind."""

    __slots__ = (
        "_finished",
        "_flushed",
        "_gives_up_at",
        "_outbox",
        "_refused",
        "_sending",
        "_stored",
        "_task",
        "_waiting",
        "ephemeral",
        "kept",
        "lost",
        "moved",
    )

    def __init__(self, outbox: "Outbox") -> None:
        self._outbox = outbox
        self.kept = 0
        self.ephemeral = 0
        self._stored = 0
        self._refused: dict[int, JidoError] = {}
        self._flushed = 0
        self._waiting: deque[Item] = deque()
        self._task: asyncio.Task[None] | None = None
        self._finished = False
        # Until when (of the loop's clock) it is sent; None until `finish`.
        self._gives_up_at: float | None = None
        self._sending: asyncio.Timeout | None = None
        # Whether some output will never be stored.
        self.lost = False
        self.moved = asyncio.Event()

    @property
    def has_room(self) -> bool:
        """Whether one more may be pushed without waiting."""
        return len(self._waiting) < WAITING_MAX and self._outbox.bytes_waiting < BYTES_MAX

    async def wait_moved(self) -> None:
        """Return when some of it is stored, or after `RETRY_WAIT_S`: another queue may have made room."""
        self.moved.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RETRY_WAIT_S):
                await self.moved.wait()

    def push(self, output: Output) -> None:
        """Queue a kept output; its number has to be the next one. Raises `TooLarge`."""
        self.push_item(self._outbox.item(output))

    def push_item(self, item: Item, *, after_s: float = 0.0) -> None:
        """As `push`. `after_s`: how long it may wait before it is sent."""
        output = item.publication.output
        assert output.number == self.kept + 1, "in order"
        self.kept += 1
        self._waiting.append(item)
        self._outbox.bytes_waiting += len(item.payload)
        if self._task is None:
            self._task = self._outbox.start(self._send(after_s), output.session_id)

    async def stored(self, number: int) -> None:
        """Return when all kept output up to `number` is stored; raises the error if that one was refused."""
        await self._wait_sent(number)
        if (error := self._refused.get(number)) is not None:
            raise error

    async def flushed(self) -> None:
        """Return when all kept output is stored; raises the first error since the last flush."""
        since, self._flushed = self._flushed, self.kept
        await self._wait_sent(self.kept)
        for number, error in self._refused.items():
            if number > since:
                raise error

    async def finish(self, timeout_s: float) -> bool:
        """The session ends: whether all of its kept output is stored, at the latest after `timeout_s`.

        What is not is still tried, for `AFTER_END_S`, but no caller waits for it any longer.
        """
        if self._stored < self.kept:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._wait_sent(self.kept)
        self._finished = True
        if self._gives_up_at is None:
            self._gives_up_at = asyncio.get_running_loop().time() + AFTER_END_S
            if self._sending is not None:
                self._sending.reschedule(self._gives_up_at)
        self.moved.set()
        return self._stored == self.kept and not self.lost

    def refuse(self, number: int, error: JidoError) -> None:
        """Drop a message that can never be stored."""
        self.lost = True
        self._refused[number] = error
        if len(self._refused) > REFUSED_MAX:
            del self._refused[min(self._refused)]

    async def _wait_sent(self, number: int) -> None:
        """Return when everything up to `number` is stored or refused. `Unavailable`: the session has ended before."""
        while self._stored < number:
            if self._finished:
                raise Unavailable("the session has ended, and it is unknown whether this was stored")
            self.moved.clear()
            await self.moved.wait()

    async def _send(self, after_s: float) -> None:
        if after_s:
            await asyncio.sleep(after_s)
        try:
            async with asyncio.timeout_at(self._gives_up_at) as self._sending:
                await self._send_all()
        except TimeoutError:
            self._drop()
        finally:
            self._task = self._sending = None

    async def _send_all(self) -> None:
        while self._waiting:
            batch = list(itertools.islice(self._waiting, IN_FLIGHT_MAX))
            await self._outbox.store(batch, self)
            for item in batch:
                self._waiting.popleft()
                self._outbox.bytes_waiting -= len(item.payload)
            self._stored = batch[-1].publication.output.number
            self.moved.set()

    def _drop(self) -> None:
        """Give up what is still waiting."""
        self.lost = True
        self._outbox.bytes_waiting -= sum(len(item.payload) for item in self._waiting)
        self._outbox.on_dropped(len(self._waiting))
        self._waiting.clear()


class Outbox:
    """The output queues of one manager."""

    def __init__(self, output_log: OutputLog, message_bytes_max: int) -> None:
        self._log = output_log
        self._message_bytes_max = message_bytes_max
        self._tasks: set[asyncio.Task[None]] = set()
        self.bytes_waiting = 0
        # How many messages each ended session has given up, since that was last logged.
        self._dropped: list[int] = []

    def queue(self) -> OutputQueue:
        """The queue of a new session."""
        return OutputQueue(self)

    def item(self, output: Output) -> Item:
        """The output, ready to send. Raises `TooLarge`."""
        publication = publication_of(output)
        payload = self._log.encode(publication)
        bytes_max = min(self._message_bytes_max, self._log.payload_bytes_max)
        if len(payload) > bytes_max:
            raise TooLarge(
                f"the output is {len(payload)} bytes, the limit is {bytes_max}: "
                "store it elsewhere and emit a reference",
                session_id=output.session_id,
            )
        return Item(publication, payload, trace.headers(trace.CURRENT.get()))

    async def conversation(self, session_id: str, limit: int) -> list[ConversationAdded]:
        """See `OutputLog.conversation`."""
        return await self._log.conversation(session_id, limit)

    async def publish(self, item: Item) -> None:
        """Publish an ephemeral output to current subscribers; without a connection it is dropped."""
        with contextlib.suppress(NotSent):
            await self._log.publish(item.publication, item.payload, item.headers)

    def start(self, work: Coroutine[Any, Any, None], session_id: str) -> "asyncio.Task[None]":
        """Run the task that sends a queue."""
        task = asyncio.create_task(work, name=f"output of {session_id}")
        self._tasks.add(task)
        task.add_done_callback(self._on_end)
        return task

    async def store(self, batch: list[Item], queue: OutputQueue) -> None:
        """Store the whole batch, however long it takes; what the server can never store is refused to the queue."""
        backoff = Backoff(RETRY_WAIT_S, RETRY_WAIT_MAX_S)
        while batch := await self._try(batch, queue):
            await backoff.wait()

    def on_dropped(self, messages: int) -> None:
        """A session that has ended gives up so many messages."""
        if not self._dropped:
            asyncio.get_running_loop().call_later(DROPS_LOGGED_EVERY_S, self._log_dropped)
        self._dropped.append(messages)

    async def close(self, timeout_s: float) -> int:
        """Wait for all queues to be sent, at most `timeout_s`; how many were not."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=timeout_s)
        left = list(self._tasks)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        self._log_dropped()
        return len(left)

    def _log_dropped(self) -> None:
        dropped, self._dropped = self._dropped, []
        if dropped:
            log.error(
                "output of ended sessions could not be stored and was dropped",
                extra={"messages": sum(dropped), "sessions": len(dropped), "tried_s": AFTER_END_S},
            )

    def _on_end(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a session's output queue failed", exc_info=error, extra={"task": task.get_name()})

    async def _try(self, batch: list[Item], queue: OutputQueue) -> list[Item]:
        """Send a batch once; returns the items that are not known to be stored."""
        results = await asyncio.gather(*(self._log.store(*item) for item in batch), return_exceptions=True)
        left = []
        for item, result in zip(batch, results, strict=True):
            if isinstance(result, BrokerError):
                left.append(item)
            elif isinstance(result, JidoError):
                log.error(
                    "an output message cannot be stored",
                    extra={"session_id": item.publication.output.session_id, "error": str(result)},
                )
                queue.refuse(item.publication.output.number, result)
            elif result is not None:
                raise result
        return left
