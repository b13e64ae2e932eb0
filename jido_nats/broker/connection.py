"""One connection to NATS that is never given up, and requests whose outcome is always said.

nats-py's own reconnecting is switched off: a client that lost its connection is thrown away and a new one
is made with the same subscriptions. That is one path for a restarted server, a cut cable, a black hole and
every `-ERR` after which nats-py closes for good; nothing is sent before its subscriptions are there again,
and every request in flight is told at once that its outcome is unknown.
"""

import asyncio
import contextlib
import logging
import re
import ssl
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import nats
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as NatsSubscription

from jido_nats.broker.clock import boottime
from jido_nats.broker.nats_client import NatsClient
from jido_nats.broker.options import ConnectOptions, check_files, tls_context
from jido_nats.broker.requests import Pending, Requests
from jido_nats.errors import (
    JidoError,
    NoResponders,
    NotAllowed,
    NotSent,
    OutcomeUnknown,
    ServerUnusable,
    TooLarge,
)

CONNECT_TIMEOUT_S: Final = 2.5
REQUEST_TIMEOUT_S: Final = 2.0
RECONNECT_WAIT_S: Final = 0.1
RECONNECT_WAIT_MAX_S: Final = 1.0
IN_FLIGHT_MAX: Final = 192
PING_INTERVAL_S: Final = 3
POLL_S: Final = 0.5
CLOSE_TIMEOUT_S: Final = 2.0
ECHO_TIMEOUT_S: Final = 2.0
# Message id, content type, traceparent, an error's text, and what NATS adds.
HEADER_BYTES_MAX: Final = 1024
CANCELS_MAX: Final = 5
CANCEL_AGAIN_S: Final = 0.1

log = logging.getLogger(__name__)

# How nats-py tells what the server refused; it has put the text, and so the subject, in lower case.
_REFUSED: Final = re.compile(r'permissions violation for (publish|subscription) to "([^"]*)"')

Message = Msg
Handler = Callable[[Message], None]


class Subscription:
    """Interest in a subject that outlives every reconnect, until `unsubscribe`."""

    def __init__(self, connection: "Connection", subject: str, queue: str, handler: Handler) -> None:
        self._connection = connection
        self.subject = subject
        self.queue = queue
        self._handler = handler
        self._current: NatsSubscription | None = None
        self.client: NatsClient | None = None
        self.refused = False

    async def attach(self, client: NatsClient) -> None:
        """Subscribe on this client (the connection calls it, at every reconnect again)."""
        self.refused, self.client = False, client
        self._current = await client.subscribe(self.subject, queue=self.queue, cb=self._deliver)

    async def pause(self) -> None:
        """Tell the server to send no more; what is on its way is still heard, until `unsubscribe`."""
        self._connection.forget(self)
        if self._current is not None and self.client is not None:
            with contextlib.suppress(nats.errors.Error):
                await self.client.pause(self._current)

    async def unsubscribe(self) -> None:
        """Hear no more."""
        self._connection.forget(self)
        if self._current is not None:
            with contextlib.suppress(nats.errors.Error):
                await self._current.unsubscribe()

    def deliver(self, message: Msg) -> None:
        """Hand a message to the handler."""
        try:
            self._handler(message)
        except Exception:
            log.exception("a message handler failed", extra={"subject": message.subject})

    async def _deliver(self, message: Msg) -> None:
        self.deliver(message)


class Connection:
    """A connection to NATS; make one with `Connection.open`."""

    def __init__(self, options: ConnectOptions, name: str) -> None:
        self.options = options
        self.name = name
        self.reconnects = 0
        self.up_since: float | None = None
        self._client: NatsClient | None = None
        self._lost = asyncio.Event()
        self._up = asyncio.Event()
        self._subscriptions: list[Subscription] = []
        self._replies: Subscription | None = None
        self._requests = Requests(self._start_echo)
        self._on_up: list[Callable[[], None]] = []
        # How many JetStream requests are out at once: beyond it they wait here, where waiting is no time-out.
        self.gate = asyncio.Semaphore(IN_FLIGHT_MAX)
        self._reconnect_task: asyncio.Task[None] | None = None
        self._discards: set[asyncio.Task[None]] = set()
        self._echo: asyncio.Task[None] | None = None
        self._reported: set[str] = set()
        self._last_error: Exception | None = None
        self._closing = False

    @classmethod
    async def open(cls, options: ConnectOptions, name: str, *, timeout_s: float = CONNECT_TIMEOUT_S) -> "Connection":
        """Connect within `timeout_s`, then stay connected for ever. Raises `ServerUnusable`, `ConfigurationError`."""
        self = cls(options, name)
        client = await self._connect(timeout_s)
        self._requests.inbox = client.new_inbox() + "."
        self._replies = Subscription(self, self._requests.inbox + "*", "", self._requests.answer)
        self._subscriptions.append(self._replies)
        await self._attach(client)
        self._reconnect_task = asyncio.create_task(self._keep_open(), name=f"{name}: keep open")
        return self

    @property
    def connected(self) -> bool:
        """Whether a request would be sent now."""
        return self._up.is_set() and self._client is not None and self._client.is_connected

    @property
    def server_version(self) -> tuple[int, int, int]:
        """The version of the server at the other end."""
        assert self._client is not None
        version = self._client.connected_server_version
        return version.major, version.minor, version.patch

    @property
    def max_payload(self) -> int:
        """How many bytes a message may have, headers included, as the server said last."""
        assert self._client is not None
        return self._client.max_payload

    @property
    def payload_bytes_max(self) -> int:
        """How many of these a payload may have beside our headers."""
        return self.max_payload - HEADER_BYTES_MAX

    def on_up(self, callback: Callable[[], None]) -> None:
        """Call `callback` after every reconnect, when the subscriptions are there again."""
        self._on_up.append(callback)

    def off_up(self, callback: Callable[[], None]) -> None:
        """No longer call `callback`."""
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
    ) -> Msg:
        """The reply. `NotSent`, `NoResponders`, `NotAllowed`: surely not done. `OutcomeUnknown`: it may be."""
        pending = self._open_request(subject, timeout_s)
        try:
            await self.publish(subject, payload, headers=headers, reply=pending.inbox)
            reply = await pending.future
        finally:
            self._requests.close(pending)
        if reply.headers and not reply.data and reply.headers.get("Status") == "503":
            raise NoResponders(f"nobody answers on {subject}")
        return reply

    async def publish(
        self, subject: str, payload: bytes = b"", *, headers: dict[str, str] | None = None, reply: str = ""
    ) -> None:
        """Hand a message to the socket; `NotSent` without a connection, `TooLarge` beyond the server's limit."""
        client = self._client
        if client is None or not self.connected:
            raise NotSent("not connected to NATS")
        try:
            await client.send(subject, payload, reply, headers)
        except nats.errors.MaxPayloadError as error:
            raise TooLarge(f"{len(payload)} bytes are more than the server's max_payload") from error
        except nats.errors.Error as error:
            raise NotSent(f"not connected to NATS: {error}") from error

    async def subscribe(self, subject: str, handler: Handler, *, queue: str = "") -> Subscription:
        """Hear a subject until `unsubscribe`; `handler` is called in order and must not block."""
        subscription = Subscription(self, subject, queue, handler)
        self._subscriptions.append(subscription)
        if self._client is not None and self.connected:
            with contextlib.suppress(nats.errors.Error):  # lost right now: the keeper attaches it
                await subscription.attach(self._client)
        return subscription

    async def unsubscribe(self, subscriptions: Sequence[Subscription]) -> None:
        """Hear no more on these, once what the server had sent by now was heard."""
        if not subscriptions:
            return
        for subscription in subscriptions:
            await subscription.pause()
        with contextlib.suppress(NotSent, OutcomeUnknown, NotAllowed):
            await self.flush()
        for subscription in subscriptions:
            await subscription.unsubscribe()

    def forget(self, subscription: Subscription) -> None:
        """No longer subscribe it again after a reconnect."""
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)

    async def flush(self) -> None:
        """Return when the server has taken in all that was sent before; raises as `request`.

        `NotAllowed` also where a subscription was refused.
        """
        pending = self._open_request(None, REQUEST_TIMEOUT_S)
        try:
            await self.publish(pending.inbox)
            with contextlib.suppress(NotAllowed):  # a refusal is an answer too
                await pending.future
        finally:
            self._requests.close(pending)
        refused = sorted(subscription.subject for subscription in self._subscriptions if subscription.refused)
        if refused:
            raise NotAllowed(f"subscribe to {', '.join(refused)}", refused[0])

    def new_inbox(self) -> str:
        """A subject of this connection's own inbox that nobody else uses."""
        return f"{self._requests.inbox[:-1]}_{self._requests.next_token()}"

    async def close(self) -> None:
        """Send what is waiting, and close."""
        self._closing = True
        for task in (self._reconnect_task, self._echo):
            if task is not None:
                await _end(task, every_s=CLOSE_TIMEOUT_S)  # one that is just connecting closes what it has
        self._up.clear()
        if self._client is not None:
            if self._client.is_connected:
                with contextlib.suppress(nats.errors.Error, OSError):
                    await self._client.flush(int(CLOSE_TIMEOUT_S))
            await self._discard(self._client)
        await asyncio.gather(*self._discards, return_exceptions=True)
        self._requests.fail(lambda: OutcomeUnknown("the connection was closed"))

    def __repr__(self) -> str:
        return f"<Connection {self.name} to {self.options.safe_servers()} {'up' if self.connected else 'down'}>"

    async def _keep_open(self) -> None:
        while not self._closing:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await self._lost.wait()
            if self._client is not None and self._client.is_connected and not self._lost.is_set():
                continue
            self._mark_down()
            await self._reconnect()

    def _mark_down(self) -> None:
        self._up.clear()
        self.up_since = None
        log.warning("connection lost, reconnecting", extra={"connection": self.name})
        self._requests.fail(lambda: OutcomeUnknown("the connection was lost"))
        if self._client is not None:
            task = asyncio.create_task(self._discard(self._client), name=f"{self.name}: discard")
            self._discards.add(task)
            task.add_done_callback(self._discards.discard)

    async def _reconnect(self) -> None:
        wait_s = RECONNECT_WAIT_S
        while not self._closing:
            try:
                await self._attach(await self._connect(CONNECT_TIMEOUT_S))
            except Exception as error:  # whatever it was: this connection is never given up
                level = logging.DEBUG if isinstance(error, JidoError | nats.errors.Error | OSError) else logging.ERROR
                log.log(level, "still reconnecting", extra={"connection": self.name, "error": repr(error)})
                await asyncio.sleep(wait_s)
                wait_s = min(wait_s * 2, RECONNECT_WAIT_MAX_S)
            else:
                break
        if self._closing:
            return
        self.reconnects += 1
        log.info("connected again", extra={"connection": self.name})
        for callback in list(self._on_up):
            callback()

    async def _connect(self, timeout_s: float) -> NatsClient:
        """A connected nats-py client that never reconnects by itself; raises as `open`."""
        check_files(self.options)
        client, lost = NatsClient(), asyncio.Event()
        failed: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        async def on_error(error: Exception) -> None:
            if not client.is_connected and not failed.done() and _is_refusal(error):
                failed.set_result(error)
            self._last_error = error
            if not self._on_refused(str(error)):
                self._report(error)

        async def on_lost() -> None:
            lost.set()

        self._last_error = None
        connecting: asyncio.Task[None] = asyncio.create_task(
            client.connect(error_cb=on_error, disconnected_cb=on_lost, closed_cb=on_lost, **self._nats_options())
        )
        connected = False
        try:
            await asyncio.wait([connecting, failed], timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if connecting.done() and connecting.exception() is None:
                self._lost, connected = lost, True
                return client
        finally:
            failed.cancel()
            if not connecting.done():
                await _end(connecting, every_s=CANCEL_AGAIN_S)
            if not connected:
                await self._discard(client)
        error = connecting.exception() if connecting.done() and not connecting.cancelled() else None
        raise ServerUnusable(_why(error or self._last_error, self.options)) from error

    def _nats_options(self) -> dict[str, Any]:
        options = self.options
        servers = list(options.servers)
        if self._client is not None:
            servers += _others_of_the_cluster(servers, self._client.cluster)
        chosen: Mapping[str, Any] = {
            "user": options.user,
            "password": "" if options.user and options.password is None else options.password,
            "token": options.token,
            "nkeys_seed": options.nkey_seed_file,
            "user_credentials": options.credentials_file,
            "tls": tls_context(options),
            "tls_hostname": options.tls_hostname,
        }
        return {
            "servers": servers,
            "name": self.name,
            "allow_reconnect": False,
            "max_reconnect_attempts": -1,
            "connect_timeout": max(1, int(CONNECT_TIMEOUT_S) // len(servers)),
            "reconnect_time_wait": RECONNECT_WAIT_S,
            "ping_interval": PING_INTERVAL_S,
            "max_outstanding_pings": 2,
            "inbox_prefix": options.inbox(),
            **{name: value for name, value in chosen.items() if value is not None},
        }

    async def _attach(self, client: NatsClient) -> None:
        try:
            # While one is attached, another may be added.
            while (missing := next((s for s in self._subscriptions if s.client is not client), None)) is not None:
                await missing.attach(client)
        except BaseException:
            await self._discard(client)
            raise
        self._client = client
        self.up_since = boottime()
        self._up.set()

    async def _discard(self, client: Client) -> None:
        """Close a client that may hang while it does; its socket goes in any case."""
        try:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await client.close()
        finally:
            # nats-py waits for the peer to take what is buffered, for ever in a black hole; it has no abort of its own.
            writer = getattr(client._transport, "_io_writer", None)
            if writer is not None:
                writer.transport.abort()

    def _open_request(self, subject: str | None, timeout_s: float) -> Pending:
        if self._replies is not None and self._replies.refused:
            raise self._cannot_hear()
        return self._requests.open(subject, timeout_s)

    def _start_echo(self) -> None:
        if self._echo is None or self._echo.done():
            self._echo = asyncio.create_task(self._check_echo(), name=f"{self.name}: echo")

    async def _check_echo(self) -> None:
        """After an unanswered request: does this connection hear itself? nats-py's reader can die silently."""
        pending = self._requests.open(None, 2 * ECHO_TIMEOUT_S)
        lost = self._lost
        try:
            async with asyncio.timeout(ECHO_TIMEOUT_S):
                await self.publish(pending.inbox)
                await pending.future
        except TimeoutError:
            log.warning("the connection is deaf, making it anew", extra={"connection": self.name})
            lost.set()
        except (NotSent, OutcomeUnknown, NotAllowed):
            pass  # a refusal was heard too
        finally:
            self._requests.close(pending)

    def _on_refused(self, text: str) -> bool:
        """The server does not allow this user a subject: tell who waits for an answer; whether somebody is told."""
        found = _REFUSED.search(text)
        if found is None:
            return False
        if found[1] == "publish":
            return self._on_publish_refused(found[2])
        for subscription in self._subscriptions:
            if subscription.subject.lower() == found[2]:
                subscription.refused = True
                if subscription is self._replies:
                    self._requests.fail(self._cannot_hear)
        return self.reconnects == 0  # `flush` tells it; later there is nobody to tell

    def _on_publish_refused(self, subject: str) -> bool:
        asked = self._requests.asked(subject)
        if len({pending.subject for pending in asked}) != 1:
            return False  # several that differ by case alone: which one was refused is not known, so they time out
        for pending in asked:
            if not pending.future.done():
                pending.future.set_exception(NotAllowed(f"publish to {pending.subject}", pending.subject))
        return True

    def _cannot_hear(self) -> NotAllowed:
        prefix = self.options.inbox()
        return NotAllowed(f"hear replies under {prefix}: use the inbox prefix that it has", f"{prefix}.>")

    def _report(self, error: Exception) -> None:
        """One line for each kind of trouble: nats-py reports some of it once a message."""
        text = f"{type(error).__name__}: {error}"
        if "$js.api.consumer.delete." in text:
            return  # a reader who may not delete leaves its consumer to the server, which drops it soon
        if self._up.is_set() and text not in self._reported and len(self._reported) < 100:
            self._reported.add(text)
            log.warning("nats reported a problem", extra={"connection": self.name, "error": text})


async def _end(task: "asyncio.Task[None]", *, every_s: float) -> None:
    """Cancel a task and wait for its end; nats-py may swallow a cancellation, so that it is repeated, some times."""
    for _ in range(CANCELS_MAX):
        task.cancel()
        await asyncio.wait({task}, timeout=every_s)
        if task.done():
            if not task.cancelled():
                task.exception()  # it was told where it belongs
            return


def _others_of_the_cluster(servers: Sequence[str], addresses: Sequence[str]) -> list[str]:
    """URLs of the addresses (`host:port`) that are not among the servers, with the first one's scheme and userinfo."""
    scheme, _, rest = servers[0].rpartition("://")
    userinfo, at, _ = rest.rpartition("@")
    known = {server.rpartition("://")[2].rpartition("@")[2].rstrip("/") for server in servers}
    return [f"{scheme or 'nats'}://{userinfo}{at}{address}" for address in addresses if address not in known]


def _is_refusal(error: Exception) -> bool:
    """Whether trying again at once cannot help."""
    text = str(error).lower()
    return (
        "authorization" in text
        or "authentication" in text
        or isinstance(error, ssl.SSLError | nats.errors.SecureConnWantedError)
    )


def _why(error: BaseException | None, options: ConnectOptions) -> str:
    servers = options.safe_servers()
    if isinstance(error, ModuleNotFoundError):
        return f"nkeys and .creds files need a package: pip install 'jido_nats[nkeys]' ({error})"
    if isinstance(error, ssl.SSLError):
        return f"the TLS handshake with {servers} failed: {error.reason or error}; check the CA and the certificate"
    if isinstance(error, nats.errors.SecureConnWantedError):
        return f"the server at {servers} offers no TLS, which was asked for; nothing was sent to it"
    text = str(error or "").lower()
    if "authorization" in text or "authentication" in text:
        return f"the server at {servers} refused the credentials; check user, password, token or key"
    if isinstance(error, OSError | None) or not text:
        return f"no NATS server answers at {servers}; start one ('jido-nats up' does) or name it with --server"
    return f"cannot connect to {servers}: {str(error).removeprefix('nats: ')}"
