"""The subscriptions of one connection, which outlive the client that they are attached to."""

import contextlib
import logging
from collections.abc import Callable, Iterator

import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as NatsSubscription

from jido_nats.broker.nats_client import NatsClient

log = logging.getLogger(__name__)

Message = Msg
Handler = Callable[[Message], None]


class Subscription:
    """A subscription that survives every reconnect, until `unsubscribe`; made by `Subscriptions.add`."""

    def __init__(self, table: "Subscriptions", subject: str, queue: str, handler: Handler) -> None:
        self._table = table
        self.subject = subject
        self.queue = queue
        self._handler = handler
        self._current: NatsSubscription | None = None
        self.client: NatsClient | None = None
        self.refused = False

    async def attach(self, client: NatsClient) -> None:
        """Subscribe on this client (called by the connection, again after every reconnect)."""
        self.refused, self.client = False, client
        self._current = await client.subscribe(self.subject, queue=self.queue, cb=self._deliver)

    async def pause(self) -> None:
        """Send UNSUB; messages on their way are still delivered, until `unsubscribe`."""
        self._table.remove(self)
        if self._current is not None and self.client is not None:
            with contextlib.suppress(nats.errors.Error):
                await self.client.pause(self._current)

    async def unsubscribe(self) -> None:
        """End the subscription."""
        self._table.remove(self)
        if self._current is not None:
            with contextlib.suppress(nats.errors.Error):
                await self._current.unsubscribe()

    def deliver(self, message: Message) -> None:
        """Pass a message to the handler."""
        try:
            self._handler(message)
        except Exception:
            log.exception("a message handler failed", extra={"subject": message.subject})

    async def _deliver(self, message: Message) -> None:
        self.deliver(message)


class Subscriptions:
    """The subscriptions of one connection, in the order in which they were added."""

    def __init__(self) -> None:
        self._all: list[Subscription] = []

    def __iter__(self) -> Iterator[Subscription]:
        return iter(self._all)

    def add(self, subject: str, handler: Handler, queue: str = "") -> Subscription:
        """Add one; it is attached with the others, or at once by the caller."""
        subscription = Subscription(self, subject, queue, handler)
        self._all.append(subscription)
        return subscription

    def remove(self, subscription: Subscription) -> None:
        """Stop attaching it after a reconnect."""
        if subscription in self._all:
            self._all.remove(subscription)

    async def attach(self, client: NatsClient) -> None:
        """Attach all of them to a new client, including those that are added meanwhile."""
        while (missing := next((s for s in self._all if s.client is not client), None)) is not None:
            await missing.attach(client)

    def refuse(self, subject: str) -> None:
        """The server has refused a subject, which nats-py reports in lower case."""
        for subscription in self._all:
            if subscription.subject.lower() == subject:
                subscription.refused = True

    def refused(self) -> list[str]:
        """The subjects that the server has refused, sorted."""
        return sorted(subscription.subject for subscription in self._all if subscription.refused)
