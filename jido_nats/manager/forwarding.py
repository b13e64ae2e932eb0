"""Commands passed on to another manager: to the session's owner, or one that has room; and what an answer means."""

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
    """The other managers, as those who can carry out what this one cannot."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def forward(
        self, manager_id: str, verb: str, session_id: str, request: msgspec.Struct, *, timeout_s: float
    ) -> bytes:
        """That manager's answer, as JSON. Raises the error that it answered with.

        `NotSent`: it was not heard there, so nothing was done. `Unavailable`: no answer came.
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
            raise Unavailable("the manager that does this does not answer; ask again", session_id=session_id) from error
        if (error_answer := reply_error(reply)) is not None:
            raise error_answer
        return reply.data


def is_late(headers: Mapping[str, str]) -> bool:
    """Whether whoever passed a command on has given it up."""
    try:
        return datetime.fromisoformat(headers[DEADLINE]) < datetime.now(UTC)
    except (KeyError, ValueError, TypeError):
        return False
