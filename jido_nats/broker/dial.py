"""One attempt to connect: a connected nats-py client, or a sentence that says why it failed."""

import asyncio
import ssl
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import nats.errors

from jido_nats.broker.nats_client import NatsClient
from jido_nats.broker.options import ConnectOptions, check_files, tls_context
from jido_nats.errors import ServerUnusable

CONNECT_TIMEOUT_S: Final = 2.5
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

    `cluster`: more servers, `host:port`, that an earlier client discovered. `on_error` gets every error that
    nats-py reports, while connecting and later. Raises `ServerUnusable`, `ConfigurationError`.
    """
    check_files(options)
    attempt = _Attempt(on_error)
    connecting = attempt.start(_nats_options(options, name, cluster))
    connected = False
    try:
        await asyncio.wait([connecting, attempt.refused], timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        connected = connecting.done() and connecting.exception() is None
    finally:
        attempt.refused.cancel()
        if not connected:
            await cancel_and_wait(connecting, every_s=CANCEL_AGAIN_S)
            await attempt.client.discard()
    if connected:
        return attempt.client
    error = connecting.exception() if connecting.done() and not connecting.cancelled() else None
    raise ServerUnusable(_why(error or attempt.last_error, options)) from error


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
    """A client that is connecting.

    `refused` is done once retrying cannot help, though nats-py keeps retrying (TLS at a `wss://`).
    """

    def __init__(self, on_error: OnError) -> None:
        self.client = NatsClient()
        self.refused: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.last_error: Exception | None = None
        self._on_error = on_error

    def start(self, nats_options: Mapping[str, Any]) -> "asyncio.Task[None]":
        """Start connecting; nats-py may retry forever, so the caller has to end it."""
        connecting = self.client.connect(
            error_cb=self._report, disconnected_cb=self._mark_lost, closed_cb=self._mark_lost, **nats_options
        )
        return asyncio.create_task(connecting)

    async def _report(self, error: Exception) -> None:
        if not self.client.is_connected and not self.refused.done() and _is_refusal(error):
            self.refused.set_result(None)
        self.last_error = error
        self._on_error(error)

    async def _mark_lost(self) -> None:
        self.client.lost.set()


def _nats_options(options: ConnectOptions, name: str, cluster: Sequence[str]) -> dict[str, Any]:
    servers = [*options.servers, *_others_of_the_cluster(options.servers, cluster)]
    return {
        "servers": servers,
        "name": name,
        "allow_reconnect": False,
        "max_reconnect_attempts": -1,
        "connect_timeout": max(1, int(CONNECT_TIMEOUT_S) // len(servers)),
        "reconnect_time_wait": SERVER_WAIT_S,
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


def _is_refusal(error: Exception) -> bool:
    """Whether retrying at once cannot help."""
    return _is_about_credentials(error) or isinstance(error, ssl.SSLError | nats.errors.SecureConnWantedError)


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
    if isinstance(error, OSError | None) or not str(error):
        return f"no NATS server answers at {servers}; start one ('jido-nats up' does) or name it with --server"
    return f"cannot connect to {servers}: {str(error).removeprefix('nats: ')}"
