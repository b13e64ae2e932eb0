"""A NATS micro service (ADR-32): endpoints in one queue group, PING, INFO and STATS, the two error headers.

nats-py's own serves one request at a time, cancels requests in flight when it stops, and sends the caller the
`repr` of our bugs. Here every request is a task, their number is bounded, their senders take turns, and stopping waits
for them.
"""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from jido_nats.broker.admission import Lane, by_caller
from jido_nats.broker.connection import Connection, Message, Subscription
from jido_nats.broker.turns import PARTY, Party, Turns
from jido_nats.core import codec, subjects
from jido_nats.core.codec import DecodeError, Encoding
from jido_nats.core.requests import ErrorDetail, ErrorReply
from jido_nats.errors import BadRequest, CommandError, InternalError, JidoError, Overloaded, TooLarge, command_error

QUEUE_GROUP: Final = "q"
ERROR_CODE: Final = "Nats-Service-Error-Code"
ERROR_TEXT: Final = "Nats-Service-Error"
ERROR_TEXT_MAX: Final = 300
# How many requests are begun in one cycle of the event loop, so that it soon reads from the socket again: a server
# disconnects a client for which it has to buffer too much. A large one counts several times.
BEGUN_PER_CYCLE: Final = 4
BEGUN_BYTES: Final = 8192

log = logging.getLogger(__name__)

T = TypeVar("T")


class Request(NamedTuple):
    """A request: its subject, headers and payload; `size`: about how many bytes it has, headers included."""

    subject: str
    headers: Mapping[str, str]
    data: bytes
    size: int = 0

    @classmethod
    def of(cls, message: Message) -> "Request":
        """The request in a message."""
        headers = message.headers or {}
        size = len(message.data) + sum(len(name) + len(value) for name, value in headers.items())
        return cls(message.subject, headers, message.data, size)

    def encoding(self) -> Encoding:
        """The encoding of the request, and of its reply; `BadRequest` for an unknown one."""
        content_type = next((value for name, value in self.headers.items() if name.lower() == "content-type"), None)
        try:
            return codec.encoding_of(content_type)
        except DecodeError as error:
            raise BadRequest(str(error)) from error


class Reply(NamedTuple):
    """A reply; `error` is (status, one line of ASCII) if it is an error."""

    data: bytes
    content_type: str
    error: tuple[int, str] | None = None


Handler = Callable[[Request], Awaitable[Reply]]


def overloaded(request: Request) -> Reply:
    """The reply to a request for which there is no room."""
    try:
        encoding = request.encoding()
    except BadRequest:
        encoding = Encoding.JSON
    return _OVERLOADED[encoding]


@dataclass
class Endpoint:
    """One subject of the service, and its counters. An endpoint that is not `listed` is served, but not advertised.

    `lane`: what bounds its requests, perhaps together with those of other endpoints; `party_of`: whose turn a request
    takes; `refuse`: the reply to a request for which there is no room.
    """

    name: str
    subject: str
    handler: Handler
    queue: str = QUEUE_GROUP
    listed: bool = True
    lane: Lane = field(default_factory=Lane, repr=False)
    party_of: Callable[[Message], Party] = by_caller
    refuse: Callable[[Request], Reply] = overloaded
    requests: int = 0
    errors: int = 0
    last_error: str = ""
    processing_ns: int = 0
    subscription: Subscription | None = field(default=None, repr=False)


class MicroService:
    """The service. Its handlers make the replies, except for two errors of its own.

    `Overloaded`: the endpoint's lane has no room, the requests in flight have more than `bytes_max` bytes, or the
    request has waited for its turn for more than `wait_max_s`. `TooLarge`: the reply exceeds the server's
    `max_payload`.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        name: str,
        service_id: str,
        version: str,
        description: str,
        bytes_max: float = math.inf,
        wait_max_s: float | None = None,
    ) -> None:
        self._connection = connection
        self._identity = {"name": name, "id": service_id, "version": version, "metadata": {}}
        self._description = description
        self._bytes_max = bytes_max
        self._bytes = 0
        self._wait_max_s = wait_max_s
        self._intake = Turns(BEGUN_PER_CYCLE)
        self._started = datetime.now(UTC)
        self._endpoints: list[Endpoint] = []
        self._stopped = False
        self._monitoring: list[Subscription] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, endpoints: list[Endpoint]) -> None:
        """Serve all of the endpoints; INFO and STATS report the listed ones."""
        self._endpoints = endpoints
        name, service_id = self._identity["name"], self._identity["id"]
        for verb, answer in (("PING", self._ping), ("INFO", self._info), ("STATS", self._stats)):
            for suffix in ("", f".{name}", f".{name}.{service_id}"):
                subscription = await self._connection.subscribe(f"$SRV.{verb}{suffix}", self._monitor(answer))
                self._monitoring.append(subscription)
        for endpoint in endpoints:
            await self.subscribe(endpoint)

    async def subscribe(self, endpoint: Endpoint) -> None:
        """Serve one endpoint (again)."""
        if endpoint.subscription is None and not self._stopped:
            endpoint.subscription = await self._connection.subscribe(
                endpoint.subject, lambda message: self._on_request(endpoint, message), queue=endpoint.queue
            )

    async def unsubscribe(self, endpoint: Endpoint) -> None:
        """Leave the queue group of one endpoint; requests in flight, or on their way here, are still answered."""
        await self._leave([endpoint])

    async def _leave(self, endpoints: list[Endpoint]) -> None:
        left = [e.subscription for e in endpoints if e.subscription is not None]
        for endpoint in endpoints:
            endpoint.subscription = None
        await self._connection.unsubscribe(left)

    async def stop(self, timeout_s: float) -> None:
        """Accept no more requests, and wait for those in flight, at most `timeout_s`."""
        self._stopped = True
        await self._leave(self._endpoints)
        await self._connection.unsubscribe(self._monitoring)
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=timeout_s)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _on_request(self, endpoint: Endpoint, message: Message) -> None:
        if not subjects.is_inbox(message.reply):
            return  # no reply subject, or one that is not an inbox: not executed
        request = Request.of(message)
        party = endpoint.party_of(message)
        if (self._bytes and self._bytes + request.size > self._bytes_max) or not endpoint.lane.enter(party):
            self._refuse(endpoint, message.reply, request)
            return
        self._bytes += request.size
        work = self._handle(endpoint, message.reply, request, party)
        task = asyncio.create_task(work, name=f"{endpoint.name} {request.subject}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _refuse(self, endpoint: Endpoint, reply_to: str, request: Request) -> None:
        """Reply without a task of its own, since there may be very many of these; not if even replies queue up."""
        reply = endpoint.refuse(request)
        self._connection.publish_now(reply_to, reply.data, headers=_count(endpoint, reply))

    async def _handle(self, endpoint: Endpoint, reply_to: str, request: Request, party: Party) -> None:
        started = time.perf_counter_ns()
        try:
            reply = await self._take_turn(endpoint, request, party)
        except Exception:
            log.exception("an endpoint's handler failed", extra={"subject": request.subject})
            return
        finally:
            endpoint.lane.leave(party)
            self._bytes -= request.size
        await self._respond(endpoint, reply_to, request, reply)
        endpoint.processing_ns += time.perf_counter_ns() - started

    async def _take_turn(self, endpoint: Endpoint, request: Request, party: Party) -> Reply:
        PARTY.set(party)  # of this request's task, and of those that it starts
        turns = endpoint.lane.turns
        try:
            async with asyncio.timeout(self._wait_max_s):
                await turns.acquire()
        except TimeoutError:
            return endpoint.refuse(request)
        try:
            async with self._intake:
                for _ in range(1 + request.size // BEGUN_BYTES):
                    await asyncio.sleep(0)
            return await endpoint.handler(request)
        finally:
            turns.release()

    async def _respond(self, endpoint: Endpoint, reply_to: str, request: Request, reply: Reply) -> None:
        if len(reply.data) > self._connection.payload_bytes_max:
            log.warning("a reply is larger than max_payload", extra={"subject": request.subject})
            reply = _too_large(request)
        try:
            await self._connection.publish(reply_to, reply.data, headers=_count(endpoint, reply))
        except JidoError as error:
            log.warning("a reply could not be sent", extra={"error": str(error)})

    def _monitor(self, answer: Callable[[], dict[str, Any]]) -> Callable[[Message], None]:
        def on_message(message: Message) -> None:
            if subjects.is_inbox(message.reply):
                self._connection.publish_now(message.reply, msgspec.json.encode(answer()))

        return on_message

    def _listed(self) -> list[Endpoint]:
        return [endpoint for endpoint in self._endpoints if endpoint.listed]

    def _ping(self) -> dict[str, Any]:
        return {"type": "io.nats.micro.v1.ping_response", **self._identity}

    def _info(self) -> dict[str, Any]:
        endpoints = [
            {"name": e.name, "subject": e.subject, "queue_group": e.queue, "metadata": {}} for e in self._listed()
        ]
        return {
            "type": "io.nats.micro.v1.info_response",
            **self._identity,
            "description": self._description,
            "endpoints": endpoints,
        }

    def _stats(self) -> dict[str, Any]:
        endpoints = [
            {
                "name": e.name,
                "subject": e.subject,
                "queue_group": e.queue,
                "num_requests": e.requests,
                "num_errors": e.errors,
                "last_error": e.last_error,
                "processing_time": e.processing_ns,
                "average_processing_time": e.processing_ns // e.requests if e.requests else 0,
            }
            for e in self._listed()
        ]
        return {
            "type": "io.nats.micro.v1.stats_response",
            **self._identity,
            "started": self._started,
            "endpoints": endpoints,
        }


def error_reply(error: CommandError, encoding: Encoding, session_id: str) -> Reply:
    """An error as its two headers and its body; `session_id`: from the request's subject, if it can be an id."""
    about = error.session_id or (session_id if subjects.is_token(session_id) else None)
    body = ErrorReply(ErrorDetail(error.code, str(error), about))
    return Reply(codec.encode(body, encoding), encoding.content_type, (error.status, _one_line(str(error))))


def reply_error(reply: Message) -> CommandError | None:
    """The error in a reply, or None for a success."""
    if not reply.headers or ERROR_CODE not in reply.headers:
        return None
    try:
        detail = codec.decode(reply.data, ErrorReply).error
    except DecodeError:  # another service's: it has the headers of ADR-32, and a body of its own
        return InternalError(f"another service has answered: {reply.headers.get(ERROR_TEXT, 'an error')}")
    return command_error(detail.code, detail.message, detail.session_id)


def reply_value(data: bytes, kind: type[T]) -> T:
    """The value in a reply that is no error. Raises `InternalError` if it is something else."""
    try:
        return codec.decode(data, kind)
    except DecodeError as error:
        raise InternalError(f"the reply is not one of a session manager, or of an incompatible one: {error}") from error


def _count(endpoint: Endpoint, reply: Reply) -> dict[str, str]:
    """Count a reply; its headers."""
    headers = {"Content-Type": reply.content_type}
    endpoint.requests += 1
    if reply.error is not None:
        status, text = reply.error
        headers |= {ERROR_CODE: str(status), ERROR_TEXT: text}
        endpoint.errors += 1
        endpoint.last_error = f"{status}:{text}"
    return headers


def _too_large(request: Request) -> Reply:
    error = TooLarge("the reply is larger than the server's max_payload: ask for less")
    return error_reply(error, request.encoding(), subjects.session_of(request.subject))


def _one_line(text: str) -> str:
    """A header's value: ASCII, one line."""
    return " ".join(text.encode("ascii", "replace").decode().split())[:ERROR_TEXT_MAX]


_OVERLOADED: Final = {
    encoding: error_reply(Overloaded("too many commands are in flight; ask again later"), encoding, "")
    for encoding in Encoding
}
