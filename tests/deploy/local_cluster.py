"""`deploy/cluster/local.sh` as a user runs it, and its three servers and two managers as a test sees them."""

import asyncio
import contextlib
import random
import signal
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import nats

from jido_nats import ConnectOptions
from tests.deploy.secrets import UMASK
from tests.tools.bound import bound
from tests.tools.programs import ROOT, Finished, Program
from tests.tools.proxy import HOST

SCRIPT = ROOT / "deploy/cluster/local.sh"
PORTS = 9
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 40.0


class LocalCluster:
    """A cluster that the script runs, in a folder of the test's."""

    def __init__(self, program: Program, folder: Path, port: int) -> None:
        self._program = program
        self._folder = folder
        self.urls = tuple(f"tls://{HOST}:{port + index}" for index in range(3))

    async def ready(self) -> None:
        """Return when all of it runs."""
        await self._program.said("Ctrl-C ends everything.", within_s=START_TIMEOUT_S)

    async def starting(self) -> None:
        """Return when the servers have been started, and no manager has."""
        async with asyncio.timeout(START_TIMEOUT_S):
            while len(self.pids) < 3:
                await asyncio.sleep(0.01)

    def pid(self, name: str) -> int:
        """The process that `n1`, `manager-2` … is now."""
        return int((self._folder / f"{name}.pid").read_text())

    @property
    def pids(self) -> list[int]:
        """Every process that the script has started last; it may be about to write one."""
        return [int(pid) for file in self._folder.glob("*.pid") if (pid := file.read_text())]

    @property
    def ca(self) -> Path:
        """The certificate that signs the servers'."""
        return self._folder / "certificates/ca.pem"

    def password(self, user: str) -> str:
        """A user's password, as the script has made it."""
        lines = dict(line.split("=") for line in (self._folder / "passwords").read_text().splitlines())
        return lines[f"JIDO_{user.upper()}_PASSWORD"]

    def as_user(self, user: str) -> ConnectOptions:
        """How our own clients connect in a role."""
        return ConnectOptions(servers=self.urls, user=user, password=self.password(user), tls_ca=str(self.ca))

    async def leader(self, stream: str) -> str:
        """The server that leads a stream."""
        context = ssl.create_default_context(cafile=str(self.ca))
        nc = await nats.connect(
            [*self.urls], user="operator", password=self.password("operator"), tls=context, connect_timeout=5
        )
        try:
            reply = await nc.request(f"$JS.API.STREAM.INFO.{stream}", b"", timeout=5)
        finally:
            await nc.close()
        name: str = msgspec.json.decode(reply.data)["cluster"]["leader"]
        return name

    async def interrupt(self) -> Finished:
        """Ctrl-C: how the script has ended."""
        self._program.send(signal.SIGINT)
        return await self._program.finished(within_s=STOP_TIMEOUT_S)


@contextlib.asynccontextmanager
async def local_cluster(folder: Path, *arguments: str) -> AsyncIterator[LocalCluster]:
    """The script, started; ended in the end, as a closed terminal does, where it still runs."""
    port = free_ports()
    process = await asyncio.create_subprocess_exec(
        *bound(str(SCRIPT), "--port", str(port), "--dir", str(folder), *arguments, number=signal.SIGHUP),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=ROOT,
        umask=UMASK,
    )
    program = Program(process)
    try:
        yield LocalCluster(program, folder, port)
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGHUP)
            with contextlib.suppress(TimeoutError):
                await program.finished(within_s=STOP_TIMEOUT_S)
        await program.kill()


def free_ports() -> int:
    """The first of nine free ports in a row, below those that the system gives to others."""
    while True:
        first = random.randrange(20_000, 32_000)
        if all(_is_free(port) for port in range(first, first + PORTS)):
            return first


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True
