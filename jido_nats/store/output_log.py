"""The output stream of workers: store one message, or publish one without storing it."""

from typing import Final

from jido_nats.broker.connection import Connection
from jido_nats.broker.consumer import StreamMessage, decoded
from jido_nats.broker.jetstream import CONTENT_TYPE, EXPECTED_STREAM, MESSAGE_ID, store
from jido_nats.core import codec
from jido_nats.core.codec import Encoding
from jido_nats.core.output import Output, OutputPublication

# No stream is called `none`: a message that expects it reaches plain subscribers, and no stream stores it (measured).
_NOT_STORED: Final = {EXPECTED_STREAM: "none"}


class OutputLog:
    """The output stream, for managers. Its connection is its own, so that output never delays a transition."""

    def __init__(self, connection: Connection, stream: str, encoding: Encoding) -> None:
        self._connection = connection
        self._stream = stream
        self._encoding = encoding

    @property
    def payload_bytes_max(self) -> int:
        """The limit on a payload, which leaves room for our headers."""
        return self._connection.payload_bytes_max

    def encode(self, publication: OutputPublication) -> bytes:
        """The payload."""
        return codec.encode(publication.output, self._encoding)

    async def store(self, publication: OutputPublication, payload: bytes, headers: dict[str, str]) -> None:
        """Store one kept message; repeated within the duplicate window, it is stored once.

        Raises `NotSent`, `OutcomeUnknown`: retry. `TooLarge`: above the server's `max_payload`.
        """
        assert publication.message_id is not None, "kept"
        named = {MESSAGE_ID: publication.message_id, CONTENT_TYPE: self._encoding.content_type}
        await store(self._connection, self._stream, publication.subject, payload, headers | named)

    async def publish(self, publication: OutputPublication, payload: bytes, headers: dict[str, str]) -> None:
        """Publish it to current subscribers only; nothing is stored. Raises `NotSent`, `TooLarge`."""
        named = {CONTENT_TYPE: self._encoding.content_type}
        await self._connection.publish(publication.subject, payload, headers=headers | named | _NOT_STORED)


def output_in(message: StreamMessage) -> Output | None:
    """The output in a stored message; None if its type is unknown, or if it is not output (logged)."""
    return decoded(message, codec.decode_output, "a message on an output subject is not output, skipping it")
