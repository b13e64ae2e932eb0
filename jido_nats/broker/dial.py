"""Connect to one of several servers: a connected nats-py client, or a sentence that says why there is none."""

import asyncio
import math
import random
import ssl
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import nats.errors

from jido_nats.broker.nats_client import NatsClient
from jido_nats.broker.options import ConnectOptions, check_options, tls_context
from jido_nats.broker.refusal import refusal_of
from jido_nats.errors import ServerUnusable

CONNECT_TIMEOUT_S: Final = 2.5
# How long an attempt has the field to itself: after that the next server is tried too, and the first answer counts.
HEAD_START_S: Final = 0.3
# How long a server that did not answer, or hung up, is left alone.
SERVER_WAIT_S: Final = 0.1
PING_INTERVAL_S: Final = 3
CANCELS_MAX: Final = 5
CANCEL_AGAIN_S: Final = 0.1

OnError = Callable[[Exception], None]


async def dial(
    options: ConnectOptions,
    name: str,
    on_error: OnError,
    *,
    cluster: Sequence[str] = (),
    timeout_s: float = CONNECT_TIMEOUT_S,
) -> NatsClient:
    """A connected client that does not reconnect by itself: its `lost` is set when the connection is lost.

    The servers are tried in random order, again and again until `timeout_s`; one that hangs does not hold up the
    next. `cluster`: more servers, `host:port`, that an earlier client discovered. `on_error` gets every error that
    nats-py reports, while connecting and later. Raises `ServerUnusable`, `ConfigurationError`.
    """
    check_options(options)
    race = _Race(options, name, on_error, cluster, timeout_s)
    winner = None
    try:
        winner = await race.run(timeout_s)
    finally:
        await race.end(winner)
    if winner is not None:
        return winner.client
    why = _why(race.error, options)
    if (hung_up := race.hung_up) is not None and (said := await refusal_of(hung_up)) is not None:
        why = f"the server at {options.safe_servers()} refused the connection: {said}"
    raise ServerUnusable(why) from race.error


async def cancel_and_wait(task: "asyncio.Task[None]", *, every_s: float) -> None:
    """Cancel a task and wait for its end; repeated a few times, since nats-py may swallow a cancellation."""
    for _ in range(CANCELS_MAX):
        task.cancel()
        await asyncio.wait({task}, timeout=every_s)
        if task.done():
            if not task.cancelled():
                task.exception()  # already reported; otherwise asyncio would log it as never retrieved
            return


class _Attempt:
    """One server: a client that is connecting to it, until `ended` is done."""

    def __init__(self, server: str, on_error: OnError) -> None:
        self.server = server
        self.client = NatsClient()
        self.error: Exception | None = None
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._on_error = on_error
        self._connecting: asyncio.Task[None] | None = None

    @property
    def connected(self) -> bool:
        """Whether it has ended with a connection."""
        task = self._connecting
        return self.error is None and task is not None and task.done() and not task.cancelled()

    @property
    def can_be_repeated(self) -> bool:
        """Whether another attempt may succeed; not after wrong credentials, failed TLS or an unusable URL or key."""
        return isinstance(self.error, OSError | nats.errors.Error) and not _is_refusal(self.error)

    def start(self, nats_options: Mapping[str, Any]) -> None:
        """Start connecting."""
        connecting = self.client.connect(
            servers=[self.server],
            error_cb=self._report,
            disconnected_cb=self._mark_lost,
            closed_cb=self._mark_lost,
            **nats_options,
        )
        self._connecting = asyncio.create_task(connecting)
        self._connecting.add_done_callback(self._on_done)

    async def end(self) -> None:
        """Hang up, unless it is connected by now; nats-py itself may retry forever."""
        assert self._connecting is not None
        await cancel_and_wait(self._connecting, every_s=CANCEL_AGAIN_S)
        await self.client.discard()

    async def _report(self, error: Exception) -> None:
        """The first error ends an attempt, after which nats-py would try the same server again."""
        if not self.client.is_connected:
            self._fail(error)
        self._on_error(error)

    def _on_done(self, task: "asyncio.Task[None]") -> None:
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception):
            self._fail(error)
        elif not self.ended.done():
            self.ended.set_result(None)

    def _fail(self, error: Exception) -> None:
        if not self.ended.done():
            self.error = error
            self.ended.set_result(None)

    async def _mark_lost(self) -> None:
        self.client.lost.set()


class _Race:
    """Attempts at the servers, of which the first that succeeds counts.

    Each starts `HEAD_START_S` after the one before, or as soon as that has failed.
    """

    def __init__(
        self, options: ConnectOptions, name: str, on_error: OnError, cluster: Sequence[str], timeout_s: float
    ) -> None:
        self._on_error = on_error
        self._nats_options = _nats_options(options, name, timeout_s)
        servers = [*options.servers, *_others_of_the_cluster(options.servers, cluster)]
        # The servers to be tried, in this order, and when.
        self._waiting = [(server, 0.0) for server in random.sample(servers, len(servers))]  # spreads load  # nosec B311
        self._running: list[_Attempt] = []
        self._errors: dict[str, Exception] = {}

    @property
    def error(self) -> Exception | None:
        """The reason why there is no connection; the same each time, whatever the order: a refusal says most."""
        return max(self._errors.values(), key=_rank, default=None)

    @property
    def hung_up(self) -> str | None:
        """A server that closed the connection, if there is no better reason."""
        if not _is_hang_up(self.error):
            return None
        return next(server for server, error in self._errors.items() if error is self.error)

    async def run(self, timeout_s: float) -> _Attempt | None:
        """The attempt that has succeeded; None if no server can be used, or after `timeout_s`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while (now := loop.time()) < deadline and (self._waiting or self._running):
            self._start_next(now)
            wait_s = min(deadline - now, HEAD_START_S if self._running else SERVER_WAIT_S)
            if not self._running:
                await asyncio.sleep(wait_s)
                continue
            ended = [attempt.ended for attempt in self._running]
            await asyncio.wait(ended, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
            if (winner := next((attempt for attempt in self._running if attempt.connected), None)) is not None:
                return winner
            await self._end_failed(loop.time())
        return None

    async def end(self, winner: _Attempt | None) -> None:
        """Hang up everywhere else."""
        others = [attempt.end() for attempt in self._running if attempt is not winner]
        await asyncio.gather(*others)

    def _start_next(self, now: float) -> None:
        """Start an attempt at the first server whose time has come, if there is one."""
        ready = next((entry for entry in self._waiting if entry[1] <= now), None)
        if ready is not None:
            self._waiting.remove(ready)
            attempt = _Attempt(ready[0], self._on_error)
            attempt.start(self._nats_options)
            self._running.append(attempt)

    async def _end_failed(self, now: float) -> None:
        for attempt in [attempt for attempt in self._running if attempt.error is not None]:
            assert attempt.error is not None
            self._errors[attempt.server] = attempt.error
            await attempt.end()
            self._running.remove(attempt)
            if attempt.can_be_repeated:
                self._waiting.append((attempt.server, now + SERVER_WAIT_S))


def _nats_options(options: ConnectOptions, name: str, timeout_s: float) -> dict[str, Any]:
    return {
        "name": name,
        "allow_reconnect": False,
        "max_reconnect_attempts": -1,
        "connect_timeout": max(1, math.ceil(timeout_s)),
        "ping_interval": PING_INTERVAL_S,
        "max_outstanding_pings": 2,
        "inbox_prefix": options.inbox(),
        **_identity(options),
    }


def _identity(options: ConnectOptions) -> dict[str, Any]:
    """Credentials and TLS: the options that are set, and no others."""
    given: Mapping[str, Any] = {
        "user": options.user,
        "password": "" if options.user and options.password is None else options.password,
        "token": options.token,
        "nkeys_seed": options.nkey_seed_file,
        "user_credentials": options.credentials_file,
        "tls": tls_context(options),
        "tls_hostname": options.tls_hostname,
    }
    return {name: value for name, value in given.items() if value is not None}


def _others_of_the_cluster(servers: Sequence[str], addresses: Sequence[str]) -> list[str]:
    """URLs of the addresses (`host:port`) that are not in `servers`, with the first one's scheme and userinfo."""
    scheme, _, rest = servers[0].rpartition("://")
    userinfo, at, _ = rest.rpartition("@")
    known = {server.rpartition("://")[2].rpartition("@")[2].rstrip("/") for server in servers}
    return [f"{scheme or 'nats'}://{userinfo}{at}{address}" for address in addresses if address not in known]


def _rank(error: Exception) -> tuple[int, str]:
    """How much an error says: a refusal most, silence least."""
    return 2 if _is_refusal(error) else 1 if not isinstance(error, OSError) or _is_hang_up(error) else 0, str(error)


def _is_refusal(error: Exception) -> bool:
    """Whether retrying at once cannot help."""
    return _is_about_credentials(error) or isinstance(error, ssl.SSLError | nats.errors.SecureConnWantedError)


def _is_hang_up(error: BaseException | None) -> bool:
    return isinstance(error, ConnectionResetError | BrokenPipeError | nats.errors.UnexpectedEOF)


def _is_about_credentials(error: BaseException | None) -> bool:
    text = str(error or "").lower()
    return "authorization" in text or "authentication" in text


def _why(error: BaseException | None, options: ConnectOptions) -> str:
    servers = options.safe_servers()
    if isinstance(error, ModuleNotFoundError):
        return f"nkeys and .creds files need a package: pip install 'jido_nats[nkeys]' ({error})"
    if isinstance(error, ssl.SSLError):
        return f"the TLS handshake with {servers} failed: {error.reason or error}; check the CA and the certificate"
    if isinstance(error, nats.errors.SecureConnWantedError):
        return f"the server at {servers} does not offer TLS, which was requested; nothing was sent to it"
    if _is_about_credentials(error):
        return f"the server at {servers} refused the credentials; check user, password, token or key"
    if _is_hang_up(error):
        return f"the server at {servers} closes the connection at once; its log says why"
    if isinstance(error, OSError | None) or not str(error):
        return f"no NATS server answers at {servers}; start one ('jido-nats up' does) or name it with --server"
    return f"cannot connect to {servers}: {str(error).removeprefix('nats: ')}"
