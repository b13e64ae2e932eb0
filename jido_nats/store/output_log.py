"""The output stream of workers: store one message, or publish one without storing it."""

import asyncio
from collections import deque
from typing import Final

from jido_nats.broker.connection import Connection
from jido_nats.broker.consumer import Start, StreamMessage, decoded
from jido_nats.broker.jetstream import CONTENT_TYPE, MESSAGE_ID, NOT_STORED, acknowledged, get_message
from jido_nats.broker.polled import PolledConsumer
from jido_nats.broker.stream_info import last_position
from jido_nats.core import codec
from jido_nats.core.codec import Encoding
from jido_nats.core.output import Attempts, ConversationAdded, Output, OutputPublication
from jido_nats.core.subjects import output
from jido_nats.errors import AlreadyExists, NotAllowed, Unavailable

CONVERSATION_BYTES_MAX: Final = 1024 * 1024
# A conversation is read in small batches, since each message may be large; one that takes longer waits for a message
# that has expired meanwhile.
READ_BATCH: Final = 32
READ_MAX_S: Final = 30.0


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

        Raises `NotSent`, `OutcomeUnknown`: retry. `TooLarge`: above the server's `max_payload`. `AlreadyExists`: the
        stream has another one under the same message id.
        """
        assert publication.message_id is not None, "kept"
        named = {MESSAGE_ID: publication.message_id, CONTENT_TYPE: self._encoding.content_type}
        ack = await acknowledged(self._connection, self._stream, publication.subject, payload, headers | named)
        if ack.duplicate and publication.output.attempt is not None:
            await self._check_same(ack.sequence, publication, payload)

    async def _check_same(self, sequence: int, publication: OutputPublication, payload: bytes) -> None:
        """Raise `AlreadyExists` if the message at that sequence, which this is said to repeat, is another one."""
        try:
            message = await get_message(self._connection, self._stream, {"seq": sequence})
        except NotAllowed:  # of a deployment whose permissions are older: it is believed
            return
        if message is not None and (message.subject, message.data) != (publication.subject, payload):
            raise AlreadyExists(
                f"output {publication.message_id} is not stored: the stream has another one under its number",
                session_id=publication.output.session_id,
            )

    async def conversation(self, session_id: str, limit: int) -> list[ConversationAdded]:
        """The last `limit` messages of a session's conversation, as stored, in order; at most 1 MB of them.

        Raises `Unavailable` if they cannot be read in time.
        """
        try:
            async with asyncio.timeout(READ_MAX_S):
                return await self._conversation(session_id, limit)
        except TimeoutError as error:
            raise Unavailable("the conversation could not be read in time; ask again", session_id=session_id) from error

    async def _conversation(self, session_id: str, limit: int) -> list[ConversationAdded]:
        found, size = deque[tuple[ConversationAdded, int]](), 0
        subject, attempts, seen = output(session_id), Attempts(), set[tuple[int | None, int]]()
        until = await last_position(self._connection, self._stream, subject)
        if not until:
            return []
        consumer = PolledConsumer(self._connection, self._stream, [subject], Start.at(1), batch=READ_BATCH)
        async with consumer:
            while consumer.position < until:
                message = await consumer.next()
                said = output_in(message)
                if said is None or attempts.is_late(said) or (said.attempt, said.number) in seen:
                    continue
                seen.add((said.attempt, said.number))
                if isinstance(said, ConversationAdded):
                    found.append((said, len(message.data)))
                    size += len(message.data)
                while len(found) > limit or size > CONVERSATION_BYTES_MAX:
                    size -= found.popleft()[1]
        return [said for said, _ in found]

    async def publish(self, publication: OutputPublication, payload: bytes, headers: dict[str, str]) -> None:
        """Publish it to current subscribers only; nothing is stored. Raises `NotSent`, `TooLarge`."""
        named = {CONTENT_TYPE: self._encoding.content_type}
        await self._connection.publish(publication.subject, payload, headers=headers | named | NOT_STORED)


def output_in(message: StreamMessage) -> Output | None:
    """The output in a stored message; None if its type is unknown, or if it is not output (logged)."""
    return decoded(message, codec.decode_output, "a message on an output subject is not output, skipping it")
