"""What the streams store, read in order: events, and output of workers."""

import re
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Final, Generic, NamedTuple, Self, TypeVar

from jido_nats.broker.consumer import Consumer, Start, StreamMessage
from jido_nats.broker.durable import DurableConsumer
from jido_nats.core.events import Event
from jido_nats.core.output import Attempts, Output
from jido_nats.core.position import is_position_token, parse_position
from jido_nats.errors import BadRequest
from jido_nats.store.event_log import event_in
from jido_nats.store.output_log import output_in

if TYPE_CHECKING:  # a default, so that `EventMessage` alone is `EventMessage[Event]`; Python itself has it from 3.13 on
    from typing_extensions import TypeVar as TypeVarWithDefault

    E_co = TypeVarWithDefault("E_co", bound=Event, default=Event, covariant=True)
else:
    E_co = TypeVar("E_co", bound=Event, covariant=True)


class EventMessage(NamedTuple, Generic[E_co]):
    """One event as it is stored: its sequence in the stream, its subject, and its original bytes."""

    event: E_co
    sequence: int
    subject: str
    data: bytes


class OutputMessage(NamedTuple):
    """One output or message of a conversation; the other fields are those of `EventMessage`."""

    output: Output
    sequence: int
    subject: str
    data: bytes


M_co = TypeVar("M_co", bound=EventMessage | OutputMessage, covariant=True)


class MessageStream(ABC, Generic[M_co]):
    """Messages in order; `async with` it, then `async for`."""

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer
        self._until = 0

    @property
    def caught_up(self) -> bool:
        """Whether everything that was stored when this was opened has been delivered."""
        position = self._consumer.position
        return self._consumer.caught_up and (position == 0 or position >= self._until)

    @property
    def position_token(self) -> str:
        """The position of the last message that was returned: `since=` this resumes after it."""
        return self._consumer.at.token

    @property
    def until(self) -> int:
        """The sequence of the last message that was stored when this was opened; 0 if there was none."""
        return self._until

    async def stored(self) -> AsyncIterator[M_co]:
        """The messages that were stored when this was opened, and no more; messages of unknown form are skipped."""
        while not self.caught_up:
            message = self._read(self._consumer.take() or await self._consumer.next())
            if message is not None:
                yield message

    async def acknowledge(self) -> None:
        """Acknowledge a durable's last message without requesting the next."""
        if isinstance(self._consumer, DurableConsumer):
            await self._consumer.acknowledge()

    async def __aenter__(self) -> Self:
        await self._consumer.check()
        self._until = await self._consumer.last_position()
        await self._consumer.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._consumer.__aexit__(kind, error, trace)

    def __aiter__(self) -> AsyncIterator[M_co]:
        return self

    async def __anext__(self) -> M_co:
        while True:
            message = self._read(self._consumer.take() or await self._consumer.next())
            if message is not None:
                return message

    @abstractmethod
    def _read(self, message: StreamMessage) -> M_co | None:
        """The decoded message; None if it has an unknown form."""


class EventStream(MessageStream[EventMessage[E_co]], Generic[E_co]):
    """See `Client.events`."""

    def __init__(self, consumer: Consumer, kinds: tuple[type[E_co], ...]) -> None:
        super().__init__(consumer)
        self._kinds = kinds

    def _read(self, message: StreamMessage) -> EventMessage[E_co] | None:
        event = event_in(message)
        if not isinstance(event, self._kinds):
            return None
        return EventMessage(event, message.sequence, message.subject, message.data)


class OutputStream(MessageStream[OutputMessage]):
    """See `Client.output`."""

    def __init__(self, consumer: Consumer) -> None:
        super().__init__(consumer)
        self._attempts = Attempts()

    def _read(self, message: StreamMessage) -> OutputMessage | None:
        output = output_in(message)
        if output is None or self._attempts.is_late(output):
            return None
        return OutputMessage(output, message.sequence, message.subject, message.data)


def parse_since(since: str | int | datetime, now: datetime) -> Start:
    """Where to start reading: see `Client.events`. Raises `BadRequest`."""
    if isinstance(since, datetime):
        return Start("by_start_time", time=since if since.tzinfo else since.astimezone())
    if since in ("new", "all"):
        return Start(str(since))
    text = str(since)
    if is_position_token(text):
        return Start.following(parse_position(text))
    if text.isascii() and text.isdigit():
        return Start.at(int(text))
    try:
        if age := _AGE.match(text):
            return Start("by_start_time", time=now - timedelta(**{_UNITS[age[2]]: int(age[1])}))
        moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise BadRequest(
            f"{text!r} is not a position: use new, all, an age such as 90s, 15m, 1h or 7d, a time such as "
            "2025-01-24T10:30:00Z, a sequence, or a position_token"
        ) from None
    return Start("by_start_time", time=moment if moment.tzinfo else moment.astimezone())


_AGE: Final = re.compile(r"\A(\d{1,9})([smhd])\Z")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
