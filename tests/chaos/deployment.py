"""What faults happen to: one server or a cluster, a proxy before it, and managers as real processes."""

import asyncio
import contextlib
import itertools
import os
import random
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from enum import StrEnum
from pathlib import Path
from typing import Final, NamedTuple

from jido_nats import LocalServer
from tests.tools.audit import Restore, Violation
from tests.tools.cluster import Cluster
from tests.tools.old_version import NotInHistory, old_version
from tests.tools.programs import NEW, Version
from tests.tools.proxy import Proxy

MANAGERS: Final = 3
RESTARTED_WITHIN_S: Final = 1.0
DISK_MB: Final = 96


class Options(NamedTuple):
    """What was asked for on the command line."""

    seed: int
    faults: int
    sessions: int
    lease_s: int
    cluster: bool
    old: bool
    watchers: bool
    restore: bool
    keep: bool


class Has(StrEnum):
    """What a deployment may have, and some faults need."""

    MANAGERS = "managers"
    ONE_SERVER = "one server"
    CLUSTER = "a cluster"
    SMALL_DISK = "a disk that can be filled"
    OLD_VERSION = "the old version beside this one"
    READERS = "readers in large numbers"
    COPIES = "copies of the store, to put back"


class ManagerProcess:
    """One manager, as `jido-nats serve`, started again whenever it is gone (a new incarnation each time)."""

    def __init__(
        self, url: str, lease_s: int, *, version: Version, failpoints: str, extra: list[str], log: Path
    ) -> None:
        self.url = url
        # Of its next start; only this version has failpoints.
        self.version = version
        self._runs = version
        self._lease_s = lease_s
        self._failpoints = failpoints
        self._extra = extra
        self._log = log
        self._starts = itertools.count()
        self._process: asyncio.subprocess.Process | None = None
        self._stopped = False
        self.deaths: list[float] = []

    async def keep(self) -> None:
        """Run it until `stop`."""
        while not self._stopped:
            number = next(self._starts)
            self._runs = self.version
            environment = os.environ | {"JIDO_FAILPOINTS": self._failpoints, "JIDO_FAILPOINTS_SEED": str(number)}
            with self._log.open("ab") as log:
                self._process = await asyncio.create_subprocess_exec(
                    *(*self._runs.manager, "serve", "--worker", "tests.tools.agents:chaotic"),
                    *("--server", self.url),
                    *("--lease-s", str(self._lease_s), *self._extra),
                    stdout=subprocess.DEVNULL,
                    stderr=log,
                    cwd=self._runs.folder,
                    env=environment,
                )
            await self._process.wait()
            self.deaths.append(time.time())
            await asyncio.sleep(RESTARTED_WITHIN_S * random.random())

    def send(self, number: signal.Signals) -> None:
        """Signal it, if it runs."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    async def stop(self) -> None:
        """End it in an orderly way, and for good."""
        self._stopped = True
        self.send(signal.SIGCONT)
        self.send(signal.SIGTERM)
        if self._process is not None:
            await self._process.wait()


class Deployment:
    """One server or a cluster, and managers on it; `running` starts all of it, and ends it with the block."""

    def __init__(self, options: Options, folder: Path) -> None:
        self.lease_s = options.lease_s
        self.folder = folder
        self.dice = random.Random(options.seed)
        self.managers: list[ManagerProcess] = []
        self.store = folder / "store"
        self.restores: list[Restore] = []
        self.violations: list[Violation] = []
        # Set while the clients send commands.
        self.under_load = asyncio.Event()
        self.under_load.set()
        self._options = options
        self.old = _old_version() if options.old else None
        self._server: LocalServer | None = None
        self._cluster: Cluster | None = None
        self._proxy: Proxy | None = None
        self._disk_is_small = False

    @property
    def has(self) -> frozenset[Has]:
        """What it offers to faults."""
        offered = {Has.MANAGERS, Has.CLUSTER if self._options.cluster else Has.ONE_SERVER}
        if self._disk_is_small:
            offered.add(Has.SMALL_DISK)
        if self.old is not None:
            offered.add(Has.OLD_VERSION)
        if self._options.watchers:
            offered.add(Has.READERS)
        if self._options.restore and not self._options.cluster:
            offered.add(Has.COPIES)
        return frozenset(offered)

    @property
    def settling_s(self) -> float:
        """After so long every manager knows of every session, and nothing is an orphan any more."""
        return 2 * self.lease_s + 10

    @property
    def url(self) -> str:
        """Of the server, or of every server."""
        return self.cluster.urls if self._options.cluster else self.server.url

    @property
    def server(self) -> LocalServer:
        """The one server."""
        assert self._server is not None
        return self._server

    @property
    def cluster(self) -> Cluster:
        """The three servers."""
        assert self._cluster is not None
        return self._cluster

    @property
    def proxy(self) -> Proxy:
        """Before the server that one of the managers is connected to."""
        assert self._proxy is not None
        return self._proxy

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """All of it runs inside the block."""
        async with contextlib.AsyncExitStack() as stack:
            port = await (self._start_cluster(stack) if self._options.cluster else self._start_server(stack))
            self._proxy = await stack.enter_async_context(Proxy(port))
            await self._start_managers(stack, self._proxy.url)
            yield

    @contextlib.asynccontextmanager
    async def without_load(self) -> AsyncIterator[None]:
        """The clients send nothing new inside the block."""
        self.under_load.clear()
        try:
            yield
        finally:
            self.under_load.set()

    async def _start_cluster(self, stack: contextlib.AsyncExitStack) -> int:
        """The port of one of its servers."""
        self._cluster = await stack.enter_async_context(Cluster(3))
        await self._cluster.ready()
        port: int = self._cluster.ports[0]
        return port

    async def _start_server(self, stack: contextlib.AsyncExitStack) -> int:
        """Its port."""
        self._disk_is_small = _mount_small_disk(self.store, stack)
        # A killed process, not a power cut, is what happens here.
        self._server = await stack.enter_async_context(LocalServer(store_dir=self.store, sync_interval="2m"))
        return self._server.port

    async def _start_managers(self, stack: contextlib.AsyncExitStack, proxied: str) -> None:
        extra = ["--replicas", "3"] if self._options.cluster else []
        # With the old version beside this one, both run from the beginning.
        plans = [(self.url, NEW, ""), (proxied, self.old or NEW, ""), (self.url, NEW, "*:die:0.0004")]
        for number, (url, version, failpoints) in enumerate(plans[:MANAGERS]):
            log = self.folder / f"manager{number}.log"
            manager = ManagerProcess(url, self.lease_s, version=version, failpoints=failpoints, extra=extra, log=log)
            self.managers.append(manager)
            stack.push_async_callback(_end, manager, asyncio.create_task(manager.keep()))


def _old_version() -> Version | None:
    """The old version, unless this checkout does not have it."""
    try:
        return old_version()
    except NotInHistory as error:
        print(f"{error}: no old version among the managers")
        return None


def _mount_small_disk(folder: Path, stack: contextlib.AsyncExitStack) -> bool:
    """Make the folder a file system that can be filled, if mounting is allowed."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(folder)], check=False, capture_output=True
    )
    if mounted.returncode != 0:
        print("mounting is not allowed here: no full disk among the faults")
        return False
    stack.callback(subprocess.run, ["umount", "-l", str(folder)], check=False)
    return True


async def _end(manager: ManagerProcess, task: "asyncio.Task[None]") -> None:
    await manager.stop()
    await task
