"""Forward commands to another manager: the session's owner, or a manager that has room.

A forwarded command carries how long its sender still waits. That is a duration and not a moment, since the clocks of
two machines differ.
"""

import contextlib
import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec

from jido_nats import trace
from jido_nats.broker.connection import Connection
from jido_nats.broker.micro import reply_error
from jido_nats.core import codec, subjects
from jido_nats.errors import BrokerError, NotSent, Unavailable

TIME_LEFT_MS: Final = "Jido-Time-Left-Ms"
# A moment by the sender's clock, for managers of version 0.1; not sent after the next version.
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
        try:
            reply = await self._connection.request(
                subjects.forwarded(manager_id, verb, session_id),
                codec.encode(request),
                headers=_time_headers(timeout_s) | trace.headers(trace.CURRENT.get()),
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


def time_left_s(headers: Mapping[str, str]) -> float:
    """How long the manager that forwarded a command still waits for the reply, in seconds; 0 or less: no longer.

    `math.inf` if the headers do not say. Only a manager of version 0.1 is believed on a moment.
    """
    with contextlib.suppress(KeyError, ValueError, OverflowError):
        return int(headers[TIME_LEFT_MS]) / 1000
    with contextlib.suppress(KeyError, ValueError, TypeError):
        return (datetime.fromisoformat(headers[DEADLINE]) - datetime.now(UTC)).total_seconds()
    return math.inf


def _time_headers(timeout_s: float) -> dict[str, str]:
    deadline = datetime.now(UTC) + timedelta(seconds=timeout_s)
    return {TIME_LEFT_MS: str(int(timeout_s * 1000)), DEADLINE: deadline.isoformat()}
