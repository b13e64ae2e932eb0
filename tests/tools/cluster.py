"""A cluster of real nats-servers on loopback, whose members a test kills, stops, pauses and starts again."""

import asyncio
import contextlib
import json
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import nats
from nats.aio.client import Client
from nats.errors import Error as NatsError

from jido_nats.broker.local_server import find_binary
from tests.tools.bound import bound
from tests.tools.proxy import HOST, reserve_port

START_TIMEOUT_S: Final = 5.0
STOP_TIMEOUT_S: Final = 10.0
READY_TIMEOUT_S: Final = 30.0
LEADER_TIMEOUT_S: Final = 15.0
REQUEST_TIMEOUT_S: Final = 2.0
POLL_S: Final = 0.05


class Cluster:
    """`async with Cluster(3) as cluster:` starts the servers; `await cluster.ready()` before JetStream is used.

    `config`: lines added to every server's configuration. `jetstream`: settings inside its `jetstream` block.
    Servers are named by their index, from 0.
    """

    def __init__(self, size: int = 3, *, config: str = "", jetstream: str = "") -> None:
        self._config = config
        self._jetstream = jetstream
        self._reserved = [reserve_port() for _ in range(3 * size)]
        ports = [reserved.getsockname()[1] for reserved in self._reserved]
        self.ports, self._route_ports, self._http_ports = ports[:size], ports[size : 2 * size], ports[2 * size :]
        self._processes: list[asyncio.subprocess.Process | None] = [None] * size
        self._folder = Path()

    @property
    def urls(self) -> str:
        """Where clients connect: all servers, with commas."""
        return ",".join(self.url(index) for index in range(len(self.ports)))

    def url(self, index: int) -> str:
        """Where clients of one server connect."""
        return f"nats://{HOST}:{self.ports[index]}"

    def pid(self, index: int) -> int:
        """The process of one server that runs."""
        return self._running(index).pid

    @property
    def running(self) -> list[int]:
        """The servers that run, paused ones too."""
        return [index for index, process in enumerate(self._processes) if process and process.returncode is None]

    def log(self, index: int) -> str:
        """What one server has written."""
        file = self._folder / f"n{index}.log"
        return file.read_text() if file.exists() else ""

    async def __aenter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="jido-cluster-"))
        try:
            await asyncio.gather(*(self.start(index) for index in range(len(self.ports))))
        except BaseException:
            await self._clean_up()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._clean_up()

    async def start(self, index: int) -> None:
        """Start one server (again, on what it had stored), and wait until it takes connections."""
        assert index not in self.running, f"server {index} runs"
        file = self._folder / f"n{index}.conf"
        file.write_text(self._configuration(index))
        with (self._folder / f"n{index}.log").open("ab") as log:  # a file: an unread pipe would stall the server
            process = await asyncio.create_subprocess_exec(
                *bound(str(find_binary()), "-c", str(file)), stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log
            )
        self._processes[index] = process

        def takes_connections() -> bool:
            assert process.returncode is None, f"nats-server {index} ended: {self.log(index)[-500:]}"
            return _listens(self.ports[index])

        await _poll(takes_connections, START_TIMEOUT_S, f"nats-server {index} did not start")

    async def kill(self, index: int) -> None:
        """End one server at once, as `kill -9` does."""
        await self._end(index, signal.SIGKILL)

    async def stop(self, index: int) -> None:
        """End one server in an orderly way."""
        await self._end(index, signal.SIGTERM)

    def pause(self, index: int) -> None:
        """Stop one server with SIGSTOP: its connections stay, and nothing answers."""
        self._running(index).send_signal(signal.SIGSTOP)

    def resume(self, index: int) -> None:
        """Let a paused server go on."""
        self._running(index).send_signal(signal.SIGCONT)

    async def ready(self) -> None:
        """Return when the servers that run have a leader for JetStream and every one of them is up to date."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + READY_TIMEOUT_S
        while not await self._is_ready():
            assert loop.time() < deadline, f"the cluster is not ready within {READY_TIMEOUT_S:g} s"
            await asyncio.sleep(POLL_S)

    async def stream_leader(self, url: str, stream: str) -> int:
        """The server that leads a stream now; waits for an election. `url`: of any server that runs."""
        client = await nats.connect(url.split(","), connect_timeout=2, error_cb=_ignore)
        try:
            return await self._stream_leader(client, stream)
        finally:
            await client.close()

    async def _stream_leader(self, client: Client, stream: str) -> int:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + LEADER_TIMEOUT_S
        while True:
            with contextlib.suppress(NatsError, TimeoutError):
                reply = await client.request(f"$JS.API.STREAM.INFO.{stream}", b"", timeout=REQUEST_TIMEOUT_S)
                leader = json.loads(reply.data).get("cluster", {}).get("leader")
                if leader and (index := int(leader.removeprefix("n"))) in self.running:
                    return index
            assert loop.time() < deadline, f"the stream {stream} has no leader within {LEADER_TIMEOUT_S:g} s"
            await asyncio.sleep(POLL_S)

    async def _is_ready(self) -> bool:
        running = self.running
        try:
            for index in running:
                if (await self._http(index, "/healthz")).get("status") != "ok":
                    return False
            meta = (await self._http(running[0], "/jsz"))["meta_cluster"]
            leader = int(meta["leader"].removeprefix("n"))
            replicas = (await self._http(leader, "/jsz"))["meta_cluster"]["replicas"]
        except (OSError, TimeoutError, ValueError, KeyError):
            return False
        current = {replica["name"] for replica in replicas if replica["current"] and not replica.get("offline")}
        return {f"n{index}" for index in running} <= current | {f"n{leader}"}

    async def _http(self, index: int, path: str) -> dict[str, Any]:
        """The JSON that a server's monitoring port answers with."""
        async with asyncio.timeout(REQUEST_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(HOST, self._http_ports[index])
            try:
                writer.write(f"GET {path} HTTP/1.0\r\n\r\n".encode())
                answer = await reader.read()
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
        content: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])
        return content

    async def _end(self, index: int, signal_number: signal.Signals) -> None:
        process = self._running(index)
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal_number)
            process.send_signal(signal.SIGCONT)
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()

    async def _clean_up(self) -> None:
        await asyncio.gather(*(self.kill(index) for index in self.running))
        for reserved in self._reserved:
            reserved.close()
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    def _running(self, index: int) -> asyncio.subprocess.Process:
        process = self._processes[index]
        assert process is not None and process.returncode is None, f"server {index} does not run"
        return process

    def _configuration(self, index: int) -> str:
        routes = ", ".join(f'"nats://{HOST}:{port}"' for port in self._route_ports)
        store = json.dumps(str(self._folder / f"n{index}"))
        return "\n".join(
            [
                f"server_name: n{index}",
                f'listen: "{HOST}:{self.ports[index]}"',
                f'http: "{HOST}:{self._http_ports[index]}"',
                f"jetstream {{ store_dir: {store} {self._jetstream} }}",
                f'cluster {{ name: jido, listen: "{HOST}:{self._route_ports[index]}", routes: [{routes}] }}',
                self._config,
            ]
        )


async def _ignore(_: Exception) -> None:
    """nats-py prints every error where it is given no callback."""


async def _poll(condition: Callable[[], bool], timeout_s: float, complaint: str) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while not condition():
        assert loop.time() < deadline, complaint
        await asyncio.sleep(POLL_S)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0
