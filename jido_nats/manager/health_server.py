"""`/metrics` for Prometheus, `/livez` and `/readyz`, served on their own thread.

Every answer is computed in the manager's event loop: a loop that does not answer within seconds is not alive.
"""

import asyncio
import logging
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from socketserver import ThreadingMixIn
from typing import Any, Final, Self, TypeVar
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIEnvironment

from jido_nats.core.session import Status
from jido_nats.errors import ConfigurationError
from jido_nats.manager.metrics import BOUNDS_S, Durations, Snapshot

ANSWER_TIMEOUT_S: Final = 2.0

log = logging.getLogger(__name__)

T = TypeVar("T")


class HealthServer:
    """An HTTP server for snapshots of a manager; a context manager."""

    def __init__(self, snapshot: Callable[[], Snapshot], *, host: str, port: int) -> None:
        """`port` 0 picks a free one, see `.port`. Raises `ConfigurationError` if it cannot listen there."""
        try:
            from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
        except ImportError as error:
            raise ConfigurationError("metrics need a package: pip install 'jido_nats[metrics]'") from error
        self._content_type = CONTENT_TYPE_LATEST
        self._generate = generate_latest
        self._snapshot = snapshot
        self._loop = asyncio.get_running_loop()
        address = host.removeprefix("[").removesuffix("]")  # an IPv6 address as it is written in URLs
        written = f"[{address}]" if ":" in address else address
        try:
            server_class = _server_class(address, port)
            self._server = make_server(address, port, self._answer, server_class, _QuietHandler)
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or error
            raise ConfigurationError(f"metrics cannot be served on {written}:{port}: {why}") from error
        self.port = self._server.server_port
        self.url = f"http://{written}:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="jido_nats metrics", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, environment: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        status, kind, body = self._page(environment)
        start(status, [("Content-Type", kind), ("Content-Length", str(len(body))), ("Cache-Control", "no-store")])
        return [body]

    def _page(self, environment: WSGIEnvironment) -> tuple[str, str, bytes]:
        text = "text/plain; charset=utf-8"
        if environment["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return "405 Method Not Allowed", text, b"only GET\n"
        path = environment.get("PATH_INFO", "")
        if path not in ("/metrics", "/livez", "/readyz"):
            return "404 Not Found", text, b"there are /metrics, /livez and /readyz\n"
        try:
            snapshot = self._in_loop(self._snapshot)
            if path == "/metrics":
                return "200 OK", self._content_type, self._in_loop(lambda: self._generate(_Collector(snapshot)))
        except TimeoutError:
            return "503 Service Unavailable", text, b"the manager's event loop does not answer\n"
        if path == "/readyz" and snapshot.not_ready:
            return "503 Service Unavailable", text, "".join(f"{reason}\n" for reason in snapshot.not_ready).encode()
        return "200 OK", text, _ok(path, snapshot).encode()

    def _in_loop(self, work: Callable[[], T]) -> T:
        async def run() -> T:
            return work()

        future = asyncio.run_coroutine_threadsafe(run(), self._loop)
        return future.result(timeout=ANSWER_TIMEOUT_S)


def _ok(path: str, snapshot: Snapshot) -> str:
    """The body of a success, with what an operator should know although the manager is ready."""
    lines = ["ok"]
    if path == "/readyz" and snapshot.foreign:
        lines.append(f"{snapshot.foreign} sessions of a newer version are left to its managers")
    if path == "/readyz" and snapshot.without_consumer:
        polled = ", ".join(snapshot.without_consumer)
        lines.append(f"no consumer is free: {polled} followed by direct gets; raise the stream's max_consumers")
    return "\n".join([*lines, ""])


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 16

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what a request ended with; the base class prints it, also that a client has gone."""
        gone = isinstance(sys.exc_info()[1], OSError)
        log.log(logging.DEBUG if gone else logging.ERROR, "a request for metrics or health failed", exc_info=True)


class _ServerOfIPv6(_Server):
    address_family = socket.AF_INET6

    def server_bind(self) -> None:
        """`::` means every address of this machine, those of IPv4 too, whatever the system's default is."""
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


def _server_class(address: str, port: int) -> type[_Server]:
    """The server for an address or a name; a name that has both kinds of addresses means that of IPv4."""
    found = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    families = {family for family, *_ in found}
    return _Server if socket.AF_INET in families else _ServerOfIPv6


class _QuietHandler(WSGIRequestHandler):
    timeout = 5

    def log_message(self, format: str, *args: Any) -> None:
        """Do not log every scrape."""


class _Collector:
    """A snapshot as Prometheus metrics; the registry of one scrape."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Any]:
        """Every metric."""
        from prometheus_client.metrics_core import CounterMetricFamily as Counter
        from prometheus_client.metrics_core import GaugeMetricFamily as Gauge

        now, stats = self._snapshot, self._snapshot.stats
        info = Gauge("jido_manager_info", "This manager; always 1.", labels=["manager_id", "version"])
        info.add_metric([now.manager_id, now.version], 1)
        yield info
        sessions = Gauge("jido_sessions", "Sessions that this manager runs.", labels=["status", "worker"])
        for worker, counts in now.workers.items():
            for status in Status:
                sessions.add_metric([status, worker], counts.get(status, 0))
        yield sessions
        yield Gauge(
            "jido_sessions_foreign", "Sessions that only managers of newer versions may write.", value=now.foreign
        )
        transitions = Counter(
            "jido_transitions",
            "Status changes of sessions, stored and published.",
            labels=["from", "to", "reason", "worker"],
        )
        for labels, number in stats.transitions.items():
            transitions.add_metric(labels, number)
        yield transitions
        yield _durations(stats.commands)
        errors = Counter("jido_command_errors", "Commands answered with an error.", labels=["verb", "code"])
        for answered, number in stats.command_errors.items():
            errors.add_metric(answered, number)
        yield errors
        yield Counter("jido_events_published", "Events that were stored.", value=stats.events_published)
        yield Gauge(
            "jido_events_unpublished",
            "Versions of sessions that are committed and whose events are not all stored yet.",
            value=stats.versions_unpublished,
        )
        yield Gauge(
            "jido_lease_age_seconds",
            "Seconds since the last acknowledged renewal of the manager's lease.",
            value=now.lease_age_s,
        )
        yield Counter("jido_takeovers", "Sessions taken over from dead managers.", value=stats.takeovers)
        yield Counter("jido_reconnects", "Reconnects to NATS.", value=now.reconnects)


def _durations(commands: dict[str, Durations]) -> Any:
    from prometheus_client.metrics_core import HistogramMetricFamily

    family = HistogramMetricFamily("jido_command_seconds", "Time from a command to its reply.", labels=["verb"])
    bounds = [*map(str, BOUNDS_S), "+Inf"]
    for verb, durations in commands.items():
        buckets = list(zip(bounds, accumulate(durations.counts), strict=True))
        family.add_metric([verb], buckets, durations.sum_s)
    return family
