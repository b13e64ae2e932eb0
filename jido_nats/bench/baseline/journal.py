"""Appends to a journal, one after the other, with bare nats-py: each asserts the sequence of the one before it."""

from nats.aio.client import Client

from jido_nats.bench.baseline.session import EXPECTED
from jido_nats.bench.baseline.storage import Names


class BaselineJournal:
    """One journal."""

    def __init__(self, client: Client, names: Names, session_id: str) -> None:
        self._js = client.jetstream()
        self._stream = names.journals
        self._subject = f"{names.prefix}.journal.{session_id}"
        self._last = 0

    async def append(self, data: bytes) -> None:
        """Append one entry."""
        headers = {EXPECTED: str(self._last)}
        self._last = (await self._js.publish(self._subject, data, stream=self._stream, headers=headers)).seq
