"""Runs the dashboard: a NATS client and an HTTP server in this event loop."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Final

import uvicorn

from jido_nats.broker.options import ConnectOptions
from jido_nats.client.client import Client
from jido_nats.dashboard.addresses import Addresses, check_reach
from jido_nats.dashboard.app import Pages, build
from jido_nats.dashboard.connections import BACKLOG, CONNECTIONS_MAX, BoundedConnection
from jido_nats.dashboard.event_feed import BEAT_S, EventFeed
from jido_nats.dashboard.logins import LOGIN_IDLE_S, Logins
from jido_nats.dashboard.output_feed import OutputFeed
from jido_nats.dashboard.state import EVENTS_MAX, DashboardState
from jido_nats.errors import ConfigurationError

POLL_S: Final = 0.01
STOP_TIMEOUT_S: Final = 1
SEND_BUFFER_BYTES: Final = 256 * 1024


@contextlib.asynccontextmanager
async def dashboard(
    connection: ConnectOptions,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    public_url: str | None = None,
    token: str | None = None,
    login_idle_s: float = LOGIN_IDLE_S,
    read_only: bool = False,
    beat_s: float = BEAT_S,
    events_max: int = EVENTS_MAX,
    connections_max: int = CONNECTIONS_MAX,
) -> AsyncIterator[str]:
    """Serve inside the block, whose value is the URL; leaving it ends every stream. `port` 0: any free port.

    `public_url`: what browsers open, if a proxy is in front. `login_idle_s`: a browser that has not been used for so
    long has to show the token again. `beat_s`: the keep-alive interval of an idle stream. `events_max`: events kept
    in memory for browsers that reconnect; older ones are read from the stream. `connections_max`: of browsers; beyond
    it requests are answered with 503.
    Raises `ConfigurationError` (a token is required; the port is in use; `public_url` is none) and
    `ServerUnusable`.
    """
    check_reach(host, public_url, token)
    addresses = Addresses(host, public_url)
    with _listening(host, port) as listener:
        port = listener.getsockname()[1]
        logins = None if token is None else Logins(token, port=port, secure=addresses.is_https, idle_s=login_idle_s)
        async with Client.connect(connection) as client:
            state = DashboardState(events_max=events_max)
            async with EventFeed(client, state, beat_s=beat_s) as feed:
                outputs = OutputFeed(client, beat_s=beat_s)
                pages = Pages(client, state, feed, outputs, read_only=read_only, logins=logins)
                app = build(pages, addresses=addresses, logins=logins)
                async with _serving(_Server(_config(app, connections_max)), listener):
                    try:
                        yield f"http://{f'[{host}]' if ':' in host else host}:{port}"
                    finally:
                        pages.closing.set()  # uvicorn waits for open responses


class _Server(uvicorn.Server):
    """uvicorn, without its signal handlers."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _config(app: object, connections_max: int) -> uvicorn.Config:
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        http=BoundedConnection,
        limit_concurrency=connections_max,
        backlog=BACKLOG,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",  # errors are logged by their handlers
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=STOP_TIMEOUT_S,
    )


@contextlib.asynccontextmanager
async def _serving(server: uvicorn.Server, listener: socket.socket) -> AsyncIterator[None]:
    serving = asyncio.create_task(server.serve(sockets=[listener]), name="dashboard: http")
    try:
        while not server.started and not serving.done():
            await asyncio.sleep(POLL_S)
        yield
    finally:
        server.should_exit = True
        await asyncio.shield(serving)


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
    except OSError as error:
        raise ConfigurationError(f"--host {host} cannot be used: {error.strerror or error}") from error
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # By default up to 4 MB of the kernel's memory for each client that reads slowly, and a third of it has to be
        # read before its progress can be seen.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        try:
            listener.bind(address)
        except (OSError, OverflowError) as error:
            raise ConfigurationError(
                f"port {port} on {host} cannot be used: {error}; choose another with --port"
            ) from error
        listener.setblocking(False)
        yield listener
