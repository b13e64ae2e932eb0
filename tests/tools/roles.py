"""The roles of `nats.conf`, as tests play them: a server that has them, and stock NATS clients that are one."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import nats
import nats.errors
from nats.aio.client import Client as NatsClient

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
# Who is in the account of the streams; everyone else reaches JetStream through imports.
INSIDE = frozenset({"manager", "manager-api", "operator"})

# For `LocalServer(config=…)`: a deployment that keeps everybody in the account of the streams, each without limits.
_USERS = ", ".join(f"{{ user: {user}, password: {secret} }}" for user, secret in PASSWORDS.items() if user != "system")
ONE_ACCOUNT = f"accounts {{ SYS {{}}, JIDO {{ jetstream: enabled, users: [{_USERS}] }} }}"


def js_prefix(user: str) -> str:
    """The prefix of the JetStream API in the user's account."""
    return "$JS.API" if user in INSIDE else "jido.js"


def environment(user: str) -> dict[str, str]:
    """What programs in other languages get in their environment, to be that user (tests/interop/README.md)."""
    return {
        "NATS_USER": user,
        "NATS_PASSWORD": PASSWORDS[user],
        "NATS_INBOX_PREFIX": f"_INBOX.{user}",
        "NATS_JS_API_PREFIX": js_prefix(user),
    }


def as_user(server: LocalServer, user: str) -> ConnectOptions:
    """How our own clients connect in a role."""
    return ConnectOptions(servers=(server.url,), user=user, password=PASSWORDS[user])


class Member(Stranger):
    """A program with a stock NATS client and a role; it knows what the server refused it."""

    def __init__(self, nc: NatsClient, user: str, refusals: list[str]) -> None:
        super().__init__(nc)
        self.js = nc.jetstream(prefix=js_prefix(user))
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

    async def api(self, subject: str, request: Any = None) -> dict[str, Any] | None:
        """What the JetStream API answers, or None if this user cannot reach that part of it."""
        payload = b"" if request is None else json.dumps(request).encode()
        full = f"{js_prefix(self.user)}.{subject}"
        if await self.publish_refused(full, payload):
            return None
        try:
            answer: dict[str, Any] = json.loads((await self.nc.request(full, payload, timeout=5)).data)
        except nats.errors.NoRespondersError:
            return None
        return answer

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
