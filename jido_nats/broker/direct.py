"""Batched direct gets (ADR-31): read several messages of a stream in one request, without a consumer.

They may be answered by a replica that lags, so what they lack may still exist; what they return is true.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from jido_nats.broker.connection import Connection, Message
from jido_nats.broker.consumer import StreamMessage
from jido_nats.core.position import nanoseconds
from jido_nats.errors import OutcomeUnknown

TIMEOUT_S: Final = 5.0
END_OF_BATCH: Final = "204"
NOTHING_FOUND: Final = "404"
# The headers that a direct get adds to those of a message.
SUBJECT, SEQUENCE, TIME, PENDING = "Nats-Subject", "Nats-Sequence", "Nats-Time-Stamp", "Nats-Num-Pending"
_ADDED: Final = ("Nats-Stream", SUBJECT, SEQUENCE, TIME, PENDING, "Nats-Last-Sequence")


async def get_batch(connection: Connection, stream: str, request: Mapping[str, Any]) -> list[StreamMessage]:
    """The messages of one batch, in the order of their sequences.

    Raises `NotSent`, `NotAllowed`, and `OutcomeUnknown` if it was not answered as a whole.
    """
    async with connection.gate:
        *replies, last = await connection.request_many(
            f"{connection.js_api_prefix}.DIRECT.GET.{stream}",
            msgspec.json.encode(request),
            is_last=_ends_batch,
            timeout_s=TIMEOUT_S,
        )
    status = (last.headers or {}).get("Status")
    if status not in (END_OF_BATCH, NOTHING_FOUND):
        raise OutcomeUnknown(f"a direct get of {stream} was answered with {status}")
    try:
        return [_message_in(reply) for reply in replies]
    except (KeyError, ValueError) as error:
        raise OutcomeUnknown(f"a direct get of {stream} was answered by something else: {error}") from error


def _ends_batch(reply: Message) -> bool:
    return "Status" in (reply.headers or {})


def _message_in(reply: Message) -> StreamMessage:
    headers = reply.headers or {}
    return StreamMessage(
        headers[SUBJECT],
        int(headers[SEQUENCE]),
        reply.data,
        {name: value for name, value in headers.items() if name not in _ADDED},
        nanoseconds(headers[TIME]),
        int(headers.get(PENDING, 0)),
    )
