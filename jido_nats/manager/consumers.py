"""Consumers for programs in other accounts: a manager checks the request, and passes it on to JetStream.

The answers are JetStream's, in its own format, or refusals that look like its own, so stock clients need not know.
"""

import secrets
from collections.abc import Collection
from typing import Final

import msgspec

from jido_nats.broker.admission import Lane
from jido_nats.broker.connection import Connection
from jido_nats.broker.consumer import ConsumerInfo
from jido_nats.broker.jetstream import CONSUMER_NOT_FOUND, JetStreamError, decode_answer
from jido_nats.broker.micro import Endpoint, Reply, Request
from jido_nats.broker.turns import Party, Turns
from jido_nats.core import consumers, subjects
from jido_nats.core.codec import Encoding
from jido_nats.core.consumers import ROLE
from jido_nats.errors import BadRequest, BrokerError

# Of each role. The managers' own writes come first: few at a time, and no more wait than are answered in seconds.
AT_ONCE: Final = 4
IN_FLIGHT_MAX: Final = 104
TIMEOUT_S: Final = 5.0
TYPE: Final = "io.nats.jetstream.api.v1.consumer_create_response"
# Codes of the JetStream API: a consumer that cannot be created, and resources that are insufficient (temporarily).
CREATE_FAILED: Final = 10012
INSUFFICIENT_RESOURCES: Final = 10023


class ConsumerRequests:
    """Creates consumers on these streams, for the role that is in the subject of the request."""

    def __init__(self, connection: Connection, streams: Collection[str]) -> None:
        self._connection = connection
        self._streams = streams

    def endpoint(self) -> Endpoint:
        """The endpoint that takes them."""
        return Endpoint(
            "consumers",
            subjects.CONSUMER_REQUESTS,
            self.handle,
            listed=False,
            lane=Lane(each_max=IN_FLIGHT_MAX, turns=Turns(each=AT_ONCE)),
            party_of=lambda message: Party(consumers.role_of(message.subject)),
            refuse=lambda _: _TOO_MANY,
        )

    async def handle(self, request: Request) -> Reply:
        """The reply to one request, always in the format of the JetStream API."""
        try:
            return _reply(await self._create(request))
        except BadRequest as error:
            return _refusal(400, CREATE_FAILED, str(error))
        except BrokerError as error:
            return _refusal(503, INSUFFICIENT_RESOURCES, f"not created, or not known to be: {error}; ask again")

    async def _create(self, request: Request) -> bytes:
        """JetStream's answer. Raises `BadRequest`, `BrokerError`."""
        wanted = consumers.parse(request.subject, request.data, unnamed=secrets.token_hex(8))
        if wanted.stream not in self._streams:
            raise BadRequest(f"consumers are created on {', '.join(sorted(self._streams))} only")
        subject, action = f"CONSUMER.INFO.{wanted.stream}.{wanted.name}", wanted.action
        answer = await self._ask(subject)
        try:
            found = decode_answer(answer, ConsumerInfo, subject)
        except JetStreamError as error:
            if error.code != CONSUMER_NOT_FOUND:
                return answer  # whose it is, is not known
            if action == "update":
                raise BadRequest(f"there is no consumer {wanted.name} to update") from None
            # If another role creates it at this moment, it has other metadata: then JetStream refuses to create it.
            action = "create"
        else:
            if (found.config.get("metadata") or {}).get(ROLE) != wanted.role:
                raise BadRequest(f"the consumer {wanted.name} was not created by this role, which cannot change it")
        body = {"stream_name": wanted.stream, "config": wanted.config, "action": action}
        return await self._ask(f"CONSUMER.CREATE.{wanted.stream}.{wanted.name}", msgspec.json.encode(body))

    async def _ask(self, subject: str, payload: bytes = b"") -> bytes:
        """JetStream's answer, errors too: those of a caller's request are no trouble of this manager's."""
        prefix = self._connection.js_api_prefix
        return (await self._connection.request(f"{prefix}.{subject}", payload, timeout_s=TIMEOUT_S)).data


def _reply(answer: bytes) -> Reply:
    return Reply(answer, Encoding.JSON.content_type)


def _refusal(status: int, code: int, description: str) -> Reply:
    error = {"code": status, "err_code": code, "description": description}
    return _reply(msgspec.json.encode({"type": TYPE, "error": error}))


_TOO_MANY: Final = _refusal(503, INSUFFICIENT_RESOURCES, "too many consumers are being created; ask again")
