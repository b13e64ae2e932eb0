"""The roles of `nats.conf`, as tests play them: a server that has them, and stock NATS clients that are one."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import nats
import nats.errors
from nats.aio.client import Client as NatsClient
from nats.aio.msg import Msg

from jido_nats import ConnectOptions, LocalServer
from tests.tools.support import Listener, Stranger

VARIABLES = {
    "manager": "JIDO_MANAGER_PASSWORD",
    "manager-api": "JIDO_MANAGER_API_PASSWORD",
    "client": "JIDO_CLIENT_PASSWORD",
    "observer": "JIDO_OBSERVER_PASSWORD",
    "operator": "JIDO_OPERATOR_PASSWORD",
    "session-example": "JIDO_EXAMPLE_PASSWORD",
    "system": "JIDO_SYSTEM_PASSWORD",
}
PASSWORDS = {user: f"secret-of-{user}" for user in VARIABLES}
SECRETS = {variable: PASSWORDS[user] for user, variable in VARIABLES.items()}


def as_user(server: LocalServer, user: str) -> ConnectOptions:
    """How our own clients connect in a role."""
    return ConnectOptions(servers=(server.url,), user=user, password=PASSWORDS[user])


class Member(Stranger):
    """A program with a stock NATS client and a role; it knows what the server refused it."""

    def __init__(self, nc: NatsClient, user: str, refusals: list[str]) -> None:
        super().__init__(nc)
        self.user = user
        self.refusals = refusals

    async def flush(self) -> None:
        """As a stranger's, for users who may ask nothing: the second PING cannot overtake what the first sent."""
        for _ in range(2):
            await self.nc.flush()

    async def publish_refused(self, subject: str, payload: bytes = b"", *, reply: str = "") -> bool:
        """Publish; whether the server refused it."""
        await self.nc.publish(subject, payload, reply=reply)
        return await self._refused(f'publish to "{subject}"')

    async def subscribe_refused(self, subject: str, queue: str = "") -> bool:
        """Subscribe; whether the server refused it."""
        await self.nc.subscribe(subject, queue=queue, cb=Listener().on_message)
        return await self._refused(f'subscription to "{subject}"')

    async def api(self, subject: str, payload: bytes = b"") -> Msg | None:
        """What the JetStream API answers, or None where the server refuses the request."""
        if await self.publish_refused(f"$JS.API.{subject}", payload):
            return None
        return await self.nc.request(f"$JS.API.{subject}", payload, timeout=5)

    async def _refused(self, what: str) -> bool:
        await self.flush()
        return any(what.lower() in refusal for refusal in self.refusals)


@asynccontextmanager
async def member_at(server: LocalServer, user: str) -> AsyncIterator[Member]:
    """A stock NATS client in that role."""
    refusals: list[str] = []

    async def on_error(error: Exception) -> None:
        refusals.append(str(error))

    nc = await nats.connect(
        server.url, user=user, password=PASSWORDS[user], inbox_prefix=f"_INBOX.{user}", error_cb=on_error
    )
    try:
        yield Member(nc, user, refusals)
    finally:
        await nc.close()
