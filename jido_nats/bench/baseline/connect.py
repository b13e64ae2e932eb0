"""A plain nats-py client. The options are ours, so the baseline uses the same server and user."""

import asyncio
from typing import Any, Final

import nats
import nats.errors
from nats.aio.client import Client

from jido_nats.broker.options import ConnectOptions, tls_context
from jido_nats.errors import ServerUnusable

CONNECT_TIMEOUT_S: Final = 5
PENDING_MAX: Final = -1  # never a slow consumer: a reader gets only what it has requested


async def connect(options: ConnectOptions) -> Client:
    """A connected client with nats-py's defaults. Raises `ServerUnusable`."""
    named = {
        "user": options.user,
        "password": options.password,
        "token": options.token,
        "nkeys_seed": options.nkey_seed_file,
        "user_credentials": options.credentials_file,
        "tls": tls_context(options),
        "tls_hostname": options.tls_hostname,
    }
    chosen: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            return await nats.connect(
                list(options.servers),
                name="jido-nats bench baseline",
                inbox_prefix=options.inbox(),
                allow_reconnect=False,
                error_cb=_ignore,
                **chosen,
            )
    except (nats.errors.Error, OSError, TimeoutError) as error:
        raise ServerUnusable(f"the baseline cannot connect to {options.safe_servers()}: {error}") from error


async def settle(client: Client) -> None:
    """Return when the server has every subscription: the PING of nats-py's `flush` can overtake them."""
    inbox = await client.subscribe(client.new_inbox())
    await client.publish(inbox.subject)
    await inbox.next_msg(timeout=CONNECT_TIMEOUT_S)
    await inbox.unsubscribe()


async def _ignore(error: Exception) -> None:
    """Errors that matter fail their request; nats-py would print a traceback."""
