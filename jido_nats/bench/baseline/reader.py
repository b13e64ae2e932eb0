"""A bare pull consumer that decodes nothing."""

import asyncio
import time
from typing import Final

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from jido_nats.bench.baseline.connect import PENDING_MAX

BATCH: Final = 4096
EXPIRES_S: Final = 60


class BaselineReader:
    """Reads one subject of a stream; `heard_at` is the arrival time of the last message."""

    def __init__(self, client: Client, stream: str, subject: str) -> None:
        self._client = client
        self._js = client.jetstream()
        self._stream = stream
        self._subject = subject
        self._left = 0
        self._asked = 0
        self._got = asyncio.Event()
        self.heard_at = 0.0

    async def open(self, *, everything: bool) -> int:
        """Create the consumer, from the first message or for new ones; returns how many messages are pending."""
        info = await self._js.add_consumer(
            self._stream,
            ConsumerConfig(
                deliver_policy=DeliverPolicy.ALL if everything else DeliverPolicy.NEW,
                ack_policy=AckPolicy.NONE,
                filter_subject=self._subject,
                mem_storage=True,
                num_replicas=1,
                inactive_threshold=EXPIRES_S,
            ),
        )
        self._name = info.name
        self._inbox = await self._client.subscribe(
            self._client.new_inbox(),
            cb=self._on_message,
            pending_msgs_limit=PENDING_MAX,
            pending_bytes_limit=PENDING_MAX,
        )
        return info.num_pending or 0

    async def expect(self, count: int) -> None:
        """Request `count` messages."""
        self._left = count
        self._got.clear()
        await self._ask()
        await self._ask()

    async def wait(self) -> None:
        """Return when they have arrived."""
        await self._got.wait()

    async def close(self) -> None:
        """Delete the consumer."""
        await self._inbox.unsubscribe()
        await self._js.delete_consumer(self._stream, self._name)

    async def _ask(self) -> None:
        """Request one more batch, so that the next one is requested before this one has arrived."""
        batch = min(BATCH, self._left - self._asked)
        if not batch:
            return
        self._asked += batch
        request = f'{{"batch":{batch},"expires":{EXPIRES_S * 1_000_000_000}}}'
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._name}"
        await self._client.publish(subject, request.encode(), reply=self._inbox.subject)

    async def _on_message(self, message: Msg) -> None:
        if not message.reply:
            return  # the status of a pull request
        self.heard_at = time.perf_counter()
        self._left -= 1
        self._asked -= 1
        if self._left == 0:
            self._got.set()
        elif self._asked <= BATCH and self._asked < self._left:
            await self._ask()
