"""What a stream's leader reports: whether the stream exists, its first and last sequence, what it still has."""

import asyncio
from datetime import datetime, timedelta
from typing import Any, Final

from jido_nats.broker.connection import Connection
from jido_nats.broker.jetstream import STREAM_NOT_FOUND, JetStreamError, api, last_message, settled
from jido_nats.core import codec
from jido_nats.errors import NoResponders, NotSent, OutcomeUnknown, ServerUnusable

CHECK_ATTEMPTS_MAX: Final = 5
CHECK_WAIT_S: Final = 0.2


async def last_position(connection: Connection, stream: str, subject: str) -> int:
    """The sequence of the last message on a subject (wildcards allowed), at the leader; 0 if there is none.

    A reader always reaches this one; the message at the stream's last sequence may have expired.
    """
    message = await settled(connection, lambda: last_message(connection, stream, subject))
    return 0 if message is None else message.sequence


async def check_stream(connection: Connection, stream: str) -> None:
    """Raise `ServerUnusable` if there is no JetStream or no such stream; waits for a server that is just starting."""
    for attempt in range(CHECK_ATTEMPTS_MAX):
        try:
            await api(connection, f"STREAM.INFO.{stream}")
            return
        except NoResponders as error:
            if attempt == CHECK_ATTEMPTS_MAX - 1:
                raise ServerUnusable("the NATS server has no JetStream: start it with -js") from error
            await asyncio.sleep(CHECK_WAIT_S)
        except JetStreamError as error:
            if error.code == STREAM_NOT_FOUND:
                raise ServerUnusable(f"there is no stream {stream}; a manager creates it: 'jido-nats serve'") from error
            raise ServerUnusable(f"the stream {stream} cannot be read: {error.description}") from error
        except (NotSent, OutcomeUnknown):
            await connection.wait_up()
            return


async def stream_state(connection: Connection, stream: str) -> tuple[int, int]:
    """The first and last sequence of a stream, at its leader."""
    state = (await _stream_info(connection, stream))["state"]
    return state["first_seq"], state["last_seq"]


async def stream_memory(connection: Connection, stream: str) -> tuple[int, datetime]:
    """What the stream still has: (its first sequence, a moment before which everything was removed by age).

    If nothing was removed by age, the moment is that of the first message.
    """
    info = await _stream_info(connection, stream)
    first, now = (codec.decode(b'"%s"' % at.encode(), datetime) for at in (info["state"]["first_ts"], info["ts"]))
    age_max = timedelta(microseconds=info["config"].get("max_age", 0) / 1000)
    return info["state"]["first_seq"], min(first, now - age_max) if age_max else first


async def _stream_info(connection: Connection, stream: str) -> dict[str, Any]:
    return await settled(connection, lambda: api(connection, f"STREAM.INFO.{stream}"))
