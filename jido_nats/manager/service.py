"""The request-reply API: decode and check requests, call the handler, encode replies and errors.

It knows nothing about sessions: the manager gives it one function that carries out a command. A reply has the
encoding of its request.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any, Final, Generic, NamedTuple, TypeVar

import msgspec

from jido_nats import trace
from jido_nats.broker.admission import Lane, by_caller, caller_of
from jido_nats.broker.connection import Message
from jido_nats.broker.micro import Endpoint, MicroService, Reply, Request, error_reply, overloaded
from jido_nats.broker.turns import Party, Turns
from jido_nats.core import codec, subjects
from jido_nats.core.codec import DecodeError, Encoding
from jido_nats.core.commands import COMMANDS, About, Admission
from jido_nats.core.settings import Settings
from jido_nats.errors import BadRequest, CommandError, InternalError, Overloaded, TooLarge, Unavailable
from jido_nats.manager.consumers import ConsumerRequests
from jido_nats.manager.forwarding import time_left_s
from jido_nats.manager.metrics import Stats

SERVICE_NAME: Final = "jido-session-manager"
# How long another manager waits at most for what it has forwarded.
FORWARDED_MAX_S: Final = 3600.0
# How many commands of a class are carried out at a time, and how many of them about one session (or of one caller).
READS_AT_ONCE, READS_EACH = 32, 4
SCANS_AT_ONCE, SCANS_EACH = 4, 1
CHANGES_EACH: Final = 8  # most of them wait for each other anyway

log = logging.getLogger(__name__)

Q = TypeVar("Q")


class Call(NamedTuple, Generic[Q]):
    """One command as its handler gets it; `session_id`: "" for a command that is not about one session."""

    verb: str
    session_id: str
    request: Q
    forwarded: bool = False  # by another manager, so it must not be forwarded again
    local: bool = False  # its caller is in this process, and waits for the whole start of a session


Handler = Callable[[Call[Any]], Coroutine[Any, Any, msgspec.Struct]]
"""Returns the reply to a command; raises `CommandError`."""


class Service:
    """A manager's handler as a NATS micro service, also for commands that other managers forward."""

    def __init__(
        self,
        endpoints: MicroService,
        settings: Settings,
        manager_id: str,
        handler: Handler,
        consumers: ConsumerRequests,
        stats: Stats,
    ) -> None:
        self._consumers = consumers
        self._endpoints = endpoints
        self._settings = settings
        self._manager_id = manager_id
        self._handler = handler
        self._stats = stats
        self._lanes = _lanes(settings.commands_max)
        self._creating: list[Endpoint] = []

    async def start(self) -> None:
        """Start serving requests."""
        public = [self._endpoint(verb) for verb in COMMANDS]
        self._creating = [endpoint for endpoint in public if COMMANDS[endpoint.name].admission is Admission.CREATE]
        forwarded = Endpoint(
            "forwarded",
            subjects.all_forwarded(self._manager_id),
            self._handle_forwarded,
            queue="",
            listed=False,
            lane=self._lanes[Admission.CHANGE],
            party_of=_by_subject,
            refuse=partial(self._refuse, "forwarded"),
        )
        await self._endpoints.start([*public, forwarded, self._consumers.endpoint()])

    def _endpoint(self, verb: str) -> Endpoint:
        command = COMMANDS[verb]
        return Endpoint(
            verb,
            command.subject,
            partial(self._handle, verb),
            lane=self._lanes[command.admission],
            party_of=by_caller if command.about is About.NOTHING else _by_subject,
            refuse=partial(self._refuse, verb),
        )

    def _refuse(self, verb: str, request: Request) -> Reply:
        self._stats.command_errors[verb, Overloaded.code] += 1
        return overloaded(request)

    async def take_creates(self, wanted: bool) -> None:
        """Join or leave the queue group of commands that create sessions."""
        for endpoint in self._creating:
            if wanted:
                await self._endpoints.subscribe(endpoint)
            else:
                await self._endpoints.unsubscribe(endpoint)

    async def stop(self) -> None:
        """Accept no more requests, and answer those in flight."""
        await self._endpoints.stop(self._settings.command_timeout_s)

    async def _handle_forwarded(self, request: Request) -> Reply:
        """Carry out a command that another manager forwards, as long as that one waits for the reply."""
        *_, manager_id, verb, session_id = request.subject.split(".")
        left_s = time_left_s(request.headers)
        if manager_id != self._manager_id or verb not in COMMANDS or left_s <= 0:
            why = "not done: the command came too late, or is not for this manager, or it does not know it"
            return error_reply(Unavailable(why), Encoding.JSON, session_id)
        try:
            async with asyncio.timeout(min(left_s, FORWARDED_MAX_S)):
                return await self._handle(verb, request, forwarded=True)
        except TimeoutError:
            why = "not done yet, or not known to be done: ask again with the same session id"
            return error_reply(Unavailable(why), Encoding.JSON, session_id)

    async def _handle(self, verb: str, request: Request, *, forwarded: bool = False) -> Reply:
        started = time.perf_counter()
        try:
            return await self._answer(verb, request, forwarded=forwarded)
        finally:
            self._stats.commands[verb].add(time.perf_counter() - started)

    async def _answer(self, verb: str, request: Request, *, forwarded: bool) -> Reply:
        trace.CURRENT.set(trace.traceparent_in(request.headers))  # of this request's task
        encoding = Encoding.JSON
        about_one = forwarded or COMMANDS[verb].about is not About.NOTHING
        session_id = subjects.session_of(request.subject) if about_one else ""
        try:
            encoding = request.encoding()
            if about_one:
                subjects.check_session_id(session_id)
            call = Call(verb, session_id, self._decode(verb, request, encoding), forwarded)
            answer = await self._handler(call)
            return Reply(codec.encode(answer, encoding), encoding.content_type)
        except CommandError as error:
            answered = error
        except Exception as error:
            answered = _hide(error, request)
        self._stats.command_errors[verb, answered.code] += 1
        return error_reply(answered, encoding, session_id)

    def _decode(self, verb: str, request: Request, encoding: Encoding) -> Any:
        size = len(request.data)
        if size > self._settings.request_bytes_max:
            raise TooLarge(f"the request is {size} bytes, the limit is {self._settings.request_bytes_max}")
        kind = COMMANDS[verb].request
        try:
            if not request.data:
                return codec.decode(b"{}", kind)
            return codec.decode(request.data, kind, encoding)
        except DecodeError as error:
            raise BadRequest(f"the request is not a valid {verb} command in {encoding}: {error}") from error


def _lanes(commands_max: int) -> Mapping[Admission, Lane]:
    """A lane for each class of commands. A caller gets a half of it at most, and an eighth for each of its sessions."""
    turns = {
        Admission.CREATE: Turns(),  # a start may take long; its JetStream requests take turns at their gate
        Admission.CHANGE: Turns(each=CHANGES_EACH),
        Admission.READ: Turns(READS_AT_ONCE, each=READS_EACH),
        Admission.SCAN: Turns(SCANS_AT_ONCE, each=SCANS_EACH),
    }
    half, eighth = max(1, commands_max // 2), max(1, commands_max // 8)
    return {
        kind: Lane(
            in_flight_max=commands_max,
            caller_max=half,
            each_max=half if kind is Admission.CREATE else eighth,
            turns=turns[kind],
        )
        for kind in Admission
    }


def _by_subject(message: Message) -> Party:
    return Party(caller_of(message), message.subject)


def _hide(error: Exception, request: Request) -> CommandError:
    """What a caller may see of an error that it did not cause; the rest is logged."""
    number = secrets.token_hex(4)
    log.error("a command failed", exc_info=error, extra={"subject": request.subject, "error_id": number})
    return InternalError(f"a bug in the manager; its log has the details under {number}")
