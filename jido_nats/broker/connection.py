"""One connection to NATS that always reconnects, and requests whose outcome is always reported.

nats-py's own reconnecting is switched off: a client that lost its connection is discarded, and a new one
is made with the same subscriptions. That is one code path for a restarted server, a cut cable, a black hole and
every `-ERR` after which nats-py closes for good. Nothing is sent before the subscriptions are restored,
and every request in flight fails at once with `OutcomeUnknown`.
"""

import asyncio
import contextlib
import logging
import re
from collections.abc import Callable, Sequence
from typing import Final

import nats.errors

from jido_nats.broker.backoff import Backoff
from jido_nats.broker.clock import boottime
from jido_nats.broker.dial import CONNECT_TIMEOUT_S, cancel_and_wait, dial
from jido_nats.broker.nats_client import CLOSE_TIMEOUT_S, NatsClient
from jido_nats.broker.options import ConnectOptions
from jido_nats.broker.outage import Outage
from jido_nats.broker.requests import Pending, Requests
from jido_nats.broker.subscriptions import Handler, Message, Subscription, Subscriptions
from jido_nats.broker.troubles import Troubles
from jido_nats.broker.turns import Turns
from jido_nats.errors import JidoError, NoResponders, NotAllowed, NotSent, OutcomeUnknown, TooLarge

__all__ = ["Connection", "Handler", "Message", "Subscription"]

REQUEST_TIMEOUT_S: Final = 2.0
RECONNECT_WAIT_S: Final = 0.1
RECONNECT_WAIT_MAX_S: Final = 1.0
IN_FLIGHT_MAX: Final = 192
IN_FLIGHT_CALLER_MAX: Final = 32  # of them on behalf of one caller
POLL_S: Final = 0.5
ECHO_TIMEOUT_S: Final = 2.0
# Message id, content type, traceparent, an error's text, and the headers that NATS adds.
HEADER_BYTES_MAX: Final = 1024
PROBLEMS_REPORTED_MAX: Final = 100
JS_API_PREFIX: Final = "$JS.API"

log = logging.getLogger(__name__)

# How nats-py reports a permissions violation; it lowercases the text, and so the subject.
_REFUSED: Final = re.compile(r'permissions violation for (publish|subscription) to "([^"]*)"')


class Connection:
    """A connection to NATS; make one with `Connection.open`."""

    def __init__(self, options: ConnectOptions, name: str, outage: Outage) -> None:
        self.options = options
        self.name = name
        self.reconnects = 0
        self.up_since: float | None = None
        self._client: NatsClient | None = None
        self._up = asyncio.Event()
        self._subscriptions = Subscriptions()
        self._replies: Subscription | None = None
        self._requests = Requests(self._start_echo)
        self._on_up: list[Callable[[], None]] = []
        # What the server does not do although it is connected; see `jetstream`.
        self.troubles = Troubles(name)
        self._outage = outage
        # Bounds the JetStream requests in flight: the others wait here, where their timeouts have not started.
        self.gate = Turns(IN_FLIGHT_MAX, each_caller=IN_FLIGHT_CALLER_MAX)
        self._reconnect_task: asyncio.Task[None] | None = None
        self._discards: set[asyncio.Task[None]] = set()
        self._echo: asyncio.Task[None] | None = None
        self._reported: set[str] = set()
        # Where the JetStream API is; `jetstream.api` corrects it.
        self.js_api_prefix = options.js_api_prefix or JS_API_PREFIX
        self._closing = False

    @classmethod
    async def open(
        cls,
        options: ConnectOptions,
        name: str,
        *,
        outage: Outage | None = None,
        timeout_s: float = CONNECT_TIMEOUT_S,
    ) -> "Connection":
        """Connect within `timeout_s`, then reconnect until `close`. Raises `ServerUnusable`, `ConfigurationError`.

        `outage`: shared by connections that are to log a reason for which they are down once.
        """
        self = cls(options, name, outage or Outage())
        client = await dial(options, name, self._on_error, timeout_s=timeout_s)
        self._requests.inbox = client.new_inbox() + "."
        self._replies = self._subscriptions.add(self._requests.inbox + "*", self._requests.answer)
        await self._attach(client)
        self._reconnect_task = asyncio.create_task(self._keep_open(), name=f"{name}: keep open")
        return self

    @property
    def connected(self) -> bool:
        """Whether a request would be sent now."""
        return self._up.is_set() and self._client is not None and self._client.is_connected

    @property
    def not_ready(self) -> list[str]:
        """A sentence for each reason why this connection cannot do all of its work; may be read in another thread."""
        if not self.connected:
            why = self._outage.why(self.name)
            return [f"no connection to NATS: {self.name}" + (f": {why}" if why else "")]
        refused = [f"{self.name} may not subscribe to {subject}" for subject in self._subscriptions.refused()]
        return refused + [f"{self.name} {trouble}" for trouble in self.troubles]

    @property
    def server_version(self) -> tuple[int, int, int]:
        """The version of the connected server."""
        assert self._client is not None
        version = self._client.connected_server_version
        return version.major, version.minor, version.patch

    @property
    def server_id(self) -> str:
        """The id of the connected server, another one after each of its starts."""
        assert self._client is not None
        return self._client.server_id

    @property
    def max_payload(self) -> int:
        """The server's limit on a message in bytes, headers included, as last reported."""
        assert self._client is not None
        return self._client.max_payload

    @property
    def payload_bytes_max(self) -> int:
        """The bytes of `max_payload` that our headers leave for a payload."""
        return self.max_payload - HEADER_BYTES_MAX

    def on_up(self, callback: Callable[[], None]) -> None:
        """Call `callback` after every reconnect, once the subscriptions are restored."""
        self._on_up.append(callback)

    def off_up(self, callback: Callable[[], None]) -> None:
        """Stop calling `callback`."""
        self._on_up.remove(callback)

    async def wait_up(self) -> None:
        """Return when connected, however long it takes."""
        await self._up.wait()

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        *,
        headers: dict[str, str] | None = None,
        timeout_s: float = REQUEST_TIMEOUT_S,
    ) -> Message:
        """The reply. `NotSent`, `NoResponders`, `NotAllowed`: certainly not done. `OutcomeUnknown`: possibly done."""
        return await self._exchange(self._open_request(subject, timeout_s), payload, headers)

    async def request_many(
        self, subject: str, payload: bytes, *, is_last: Callable[[Message], bool], timeout_s: float = REQUEST_TIMEOUT_S
    ) -> list[Message]:
        """All replies, up to the one of which `is_last` is true. Raises as `request` does."""
        pending = self._open_request(subject, timeout_s)
        replies = pending.expect_many(is_last)
        await self._exchange(pending, payload, None)
        return replies

    async def _exchange(self, pending: Pending, payload: bytes, headers: dict[str, str] | None) -> Message:
        """Send a request; its (last) reply."""
        try:
            await self.publish(pending.subject, payload, headers=headers, reply=pending.inbox)
            reply = await pending.future
        finally:
            self._requests.close(pending)
        if reply.headers and not reply.data and reply.headers.get("Status") == "503":
            raise NoResponders(f"no responders on {pending.subject}")
        return reply

    async def publish(
        self, subject: str, payload: bytes = b"", *, headers: dict[str, str] | None = None, reply: str = ""
    ) -> None:
        """Write a message to the socket; `NotSent` without a connection, `TooLarge` above the server's limit."""
        client = self._client
        if client is None or not self.connected:
            raise NotSent("not connected to NATS")
        try:
            await client.send(subject, payload, reply, headers)
        except nats.errors.MaxPayloadError as error:
            raise TooLarge(f"{len(payload)} bytes exceed the server's max_payload") from error
        except nats.errors.Error as error:
            raise NotSent(f"not connected to NATS: {error}") from error

    def publish_now(self, subject: str, payload: bytes, *, headers: dict[str, str] | None = None) -> bool:
        """Write a message to the socket if that is possible at once; whether it was."""
        client = self._client
        if client is None or not self.connected or not client.has_room:
            return False
        with contextlib.suppress(nats.errors.Error):
            client.send_now(subject, payload, "", headers)
            return True
        return False

    async def subscribe(self, subject: str, handler: Handler, *, queue: str = "") -> Subscription:
        """Receive a subject until `unsubscribe`; `handler` is called in message order and must not block."""
        subscription = self._subscriptions.add(subject, handler, queue)
        if self._client is not None and self.connected:
            with contextlib.suppress(nats.errors.Error):  # the connection was just lost: the reconnect attaches it
                await subscription.attach(self._client)
        return subscription

    async def unsubscribe(self, subscriptions: Sequence[Subscription]) -> None:
        """End these subscriptions, after delivering what the server has sent so far."""
        if not subscriptions:
            return
        for subscription in subscriptions:
            await subscription.pause()
        with contextlib.suppress(NotSent, OutcomeUnknown, NotAllowed):
            await self.flush()
        for subscription in subscriptions:
            await subscription.unsubscribe()

    async def flush(self) -> None:
        """Return when the server has processed everything sent before; raises as `request` does.

        `NotAllowed` also if a subscription was refused.
        """
        pending = self._open_request(None, REQUEST_TIMEOUT_S)
        try:
            await self.publish(pending.inbox)
            with contextlib.suppress(NotAllowed):  # a refusal is an answer too
                await pending.future
        finally:
            self._requests.close(pending)
        if refused := self._subscriptions.refused():
            raise NotAllowed(f"subscribe to {', '.join(refused)}", refused[0])

    def new_inbox(self) -> str:
        """A unique subject under this connection's own inbox."""
        return f"{self._requests.inbox[:-1]}_{self._requests.new_token()}"

    async def close(self) -> None:
        """Flush, and close."""
        self._closing = True
        for task in (self._reconnect_task, self._echo):
            if task is not None:
                await cancel_and_wait(task, every_s=CLOSE_TIMEOUT_S)  # a dial in progress closes its own client
        self._outage.over(self.name)
        self._up.clear()
        if self._client is not None:
            if self._client.is_connected:
                with contextlib.suppress(nats.errors.Error, OSError):
                    await self._client.flush(int(CLOSE_TIMEOUT_S))
            await self._client.discard()
        await asyncio.gather(*self._discards, return_exceptions=True)
        self._requests.fail(lambda: OutcomeUnknown("the connection was closed"))

    def __repr__(self) -> str:
        return f"<Connection {self.name} to {self.options.safe_servers()} {'up' if self.connected else 'down'}>"

    async def _keep_open(self) -> None:
        while not self._closing:
            if not await self._is_lost():
                continue
            self._mark_down()
            await self._reconnect()

    async def _is_lost(self) -> bool:
        """Whether the connection is lost; waits up to `POLL_S` for that. Does not rely on nats-py's callbacks alone."""
        assert self._client is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(POLL_S):
                await self._client.lost.wait()
        return self._client.lost.is_set() or not self._client.is_connected

    def _mark_down(self) -> None:
        assert self._client is not None
        self._up.clear()
        self.up_since = None
        last = self._client.last_error
        why = {"error": str(last)} if last is not None and _REFUSED.search(str(last)) is None else {}
        log.warning("connection lost, reconnecting", extra={"connection": self.name} | why)
        self._requests.fail(lambda: OutcomeUnknown("the connection was lost"))
        task = asyncio.create_task(self._client.discard(), name=f"{self.name}: discard")
        self._discards.add(task)
        task.add_done_callback(self._discards.discard)

    async def _reconnect(self) -> None:
        backoff = Backoff(RECONNECT_WAIT_S, RECONNECT_WAIT_MAX_S)
        while not self._closing:
            try:
                await self._connect_again()
            except Exception as error:  # whatever it was, keep trying
                self._report_down(error)
                await backoff.wait()
            else:
                break
        if self._closing:
            return
        self.reconnects += 1
        level = logging.WARNING if self._outage.over(self.name) else logging.INFO
        log.log(level, "reconnected", extra={"connection": self.name})
        for callback in list(self._on_up):
            callback()

    def _report_down(self, error: Exception) -> None:
        expected = isinstance(error, JidoError | nats.errors.Error | OSError)
        level = logging.WARNING if expected else logging.ERROR
        self._outage.failed(self.name, str(error) if expected else repr(error), level=level)

    async def _connect_again(self) -> None:
        assert self._client is not None
        await self._attach(await dial(self.options, self.name, self._on_error, cluster=self._client.cluster))

    async def _attach(self, client: NatsClient) -> None:
        try:
            await self._subscriptions.attach(client)
        except BaseException:
            await client.discard()
            raise
        self._client = client
        self.up_since = boottime()
        self._up.set()

    def _open_request(self, subject: str | None, timeout_s: float) -> Pending:
        if self._replies is not None and self._replies.refused:
            raise self._replies_not_allowed()
        return self._requests.open(subject, timeout_s)

    def _start_echo(self) -> None:
        if self._echo is None or self._echo.done():
            self._echo = asyncio.create_task(self._check_echo(), name=f"{self.name}: echo")

    async def _check_echo(self) -> None:
        """After an unanswered request, check that a message to itself arrives: nats-py's reader can die silently."""
        assert self._client is not None
        client = self._client
        pending = self._requests.open(None, 2 * ECHO_TIMEOUT_S)
        try:
            async with asyncio.timeout(ECHO_TIMEOUT_S):
                await self.publish(pending.inbox)
                await pending.future
        except TimeoutError:
            log.warning("no messages arrive on this connection; reconnecting", extra={"connection": self.name})
            client.lost.set()
        except (NotSent, OutcomeUnknown, NotAllowed):
            pass  # a refusal has arrived as well
        finally:
            self._requests.close(pending)

    def _on_error(self, error: Exception) -> None:
        """Pass a permissions violation to its requests and subscriptions; log every other error of nats-py."""
        refused = _REFUSED.search(str(error))
        if refused is None or not self._on_refused(refused[1], refused[2]):
            self._report(error)

    def _on_refused(self, kind: str, subject: str) -> bool:
        """The server does not allow this user a subject; returns whether a caller gets the error."""
        if kind == "publish":
            return self._requests.refuse(subject)
        self._subscriptions.refuse(subject)
        if self._replies is not None and self._replies.subject.lower() == subject:
            self._requests.fail(self._replies_not_allowed)
        return self.reconnects == 0  # `flush` raises it; after a reconnect no caller flushes

    def _replies_not_allowed(self) -> NotAllowed:
        prefix = self.options.inbox()
        return NotAllowed(f"receive replies under {prefix}: use the inbox prefix that it is allowed", f"{prefix}.>")

    def _report(self, error: Exception) -> None:
        """Log each distinct error once: nats-py reports some of them for every message."""
        text = f"{type(error).__name__}: {error}"
        if ".consumer.delete." in text:
            return  # a reader that may not delete its consumer leaves that to the server, which soon removes it
        if self._up.is_set() and text not in self._reported and len(self._reported) < PROBLEMS_REPORTED_MAX:
            self._reported.add(text)
            log.warning("nats-py reported an error", extra={"connection": self.name, "error": text})
