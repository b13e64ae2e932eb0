"""What is measured: an existing deployment, or a local server and managers that the bench starts."""

import contextlib
import os
import platform
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from jido_nats.bench.processes import ManagerProcess, running_manager
from jido_nats.broker.connection import Connection
from jido_nats.broker.local_server import LocalServer
from jido_nats.broker.options import ConnectOptions
from jido_nats.core.settings import Settings
from jido_nats.errors import ConfigurationError, NotAllowed, ServerUnusable
from jido_nats.store import topology
from jido_nats.store.adoption import compare
from jido_nats.store.leases import Leases

SYNC_INTERVALS: Final = {"always": "always", "default": "2m"}


@dataclass
class Deployment:
    """Its connection and settings. `processes`: the managers, if the bench started them; they end with `exit`."""

    connection: Connection
    settings: Settings
    managers: int
    sync_interval: str | None = None
    config_file: Path | None = None
    starts: bool = False
    processes: list[ManagerProcess] = field(default_factory=list)
    exit: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)

    @property
    def options(self) -> ConnectOptions:
        """The connection options."""
        return self.connection.options

    @property
    def server_version(self) -> str:
        """The version of nats-server."""
        return ".".join(map(str, self.connection.server_version))

    async def start_managers(self) -> None:
        """Start the requested managers; does nothing if the deployment has its own."""
        while self.starts and len(self.processes) < self.managers:
            await self.add_manager()

    async def add_manager(self) -> None:
        """Start one more manager process."""
        url, lease_s = self.options.servers[0], self.settings.lease_s
        manager = running_manager(url, lease_s=lease_s, config_file=self.config_file)
        self.processes.append(await self.exit.enter_async_context(manager))


@contextlib.asynccontextmanager
async def existing(options: ConnectOptions, settings: Settings) -> AsyncIterator[Deployment]:
    """A deployment with running managers. `settings` have to be theirs: the bench's manager must not change anything.

    Raises `ServerUnusable` without a manager, `ConfigurationError` if the settings differ.
    """
    connection = await Connection.open(options, "jido-nats bench")
    try:
        await _check_settings(connection, settings)
        leases = Leases(connection, settings.managers_bucket)
        async with leases.follow() as consumer:
            while not consumer.caught_up:
                leases.apply(await consumer.next())
        if not leases.managers:
            raise _no_manager()
        yield Deployment(connection, settings, len(leases.managers))
    finally:
        await connection.close()


@contextlib.asynccontextmanager
async def local(settings: Settings, config_file: Path | None, *, managers: int, sync: str) -> AsyncIterator[Deployment]:
    """A local server and managers; they end with the block. `sync`: a key of `SYNC_INTERVALS`."""
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(LocalServer(sync_interval=SYNC_INTERVALS[sync]))
        connection = await Connection.open(ConnectOptions(servers=(server.url,)), "jido-nats bench")
        stack.push_async_callback(connection.close)
        await topology.declare(connection, settings)
        yield Deployment(connection, settings, managers, sync, config_file, starts=True, exit=stack)


def machine() -> dict[str, Any]:
    """The machine, without which a figure means little."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


async def _check_settings(connection: Connection, settings: Settings) -> None:
    await topology.check_server(connection)
    for wanted in topology.stream_configs(settings):
        try:
            found = await topology.find_config(connection, wanted["name"])
        except NotAllowed as error:
            raise ServerUnusable(f"{error}; use a user that may do everything in the account") from error
        if found is None:
            raise _no_manager()
        comparison = compare(wanted, found)
        if differences := comparison.changes + comparison.refused:
            raise ConfigurationError(
                f"the managers' settings differ ({wanted['name']}: {'; '.join(differences)}); "
                "give their file with --config"
            )


def _no_manager() -> ServerUnusable:
    return ServerUnusable(
        "no session manager is running on this server: start one with 'jido-nats serve', "
        "or let the bench start a server and managers with --managers N"
    )
