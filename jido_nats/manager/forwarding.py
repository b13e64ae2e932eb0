"""Forward commands to another manager: the session's owner, or a manager that has room."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec

from jido_nats import trace
from jido_nats.broker.connection import Connection
from jido_nats.broker.micro import reply_error
from jido_nats.core import codec, subjects
from jido_nats.errors import BrokerError, NotSent, Unavailable

DEADLINE: Final = "Jido-Deadline"


class Forwarder:
    """Sends commands that this manager cannot carry out to one that can."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def forward(
        self, manager_id: str, verb: str, session_id: str, request: msgspec.Struct, *, timeout_s: float
    ) -> bytes:
        """That manager's reply, as JSON. Raises the error that it replied with.

        `NotSent`: the request did not reach it, so nothing was done. `Unavailable`: there was no reply.
        """
        deadline = datetime.now(UTC) + timedelta(seconds=timeout_s)
        try:
            reply = await self._connection.request(
                subjects.forwarded(manager_id, verb, session_id),
                codec.encode(request),
                headers={DEADLINE: deadline.isoformat()} | trace.headers(trace.CURRENT.get()),
                timeout_s=timeout_s,
            )
        except NotSent:
            raise
        except BrokerError as error:
            raise Unavailable(
                "the manager that has to do this does not answer; ask again", session_id=session_id
            ) from error
        if (error_answer := reply_error(reply)) is not None:
            raise error_answer
        return reply.data


def is_late(headers: Mapping[str, str]) -> bool:
    """Whether the manager that forwarded a command no longer waits for it."""
    try:
        return datetime.fromisoformat(headers[DEADLINE]) < datetime.now(UTC)
    except (KeyError, ValueError, TypeError):
        return False
