"""The faults: each a function that leaves things as they should be in the end, and a row of one table."""

import asyncio
import contextlib
import os
import shutil
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, NamedTuple

from jido_nats import Client
from tests.chaos.agreement import disagreements, unlisted
from tests.chaos.deployment import MANAGERS, RESTARTED_WITHIN_S, Deployment, Has
from tests.chaos.readers import readers
from tests.tools.audit import Restore
from tests.tools.programs import NEW


async def kill_manager(deployment: Deployment) -> None:
    """As `kill -9`; it is started again."""
    deployment.dice.choice(deployment.managers).send(signal.SIGKILL)


async def freeze_manager(deployment: Deployment) -> None:
    """SIGSTOP, for half a lease time or more: sometimes its lease expires."""
    manager = deployment.dice.choice(deployment.managers)
    manager.send(signal.SIGSTOP)
    await asyncio.sleep(deployment.lease_s * (0.5 + deployment.dice.random()))
    manager.send(signal.SIGCONT)


async def kill_server(deployment: Deployment) -> None:
    """It comes back within 2 s, with what it had stored."""
    await deployment.server.kill()
    await asyncio.sleep(2 * deployment.dice.random())
    await deployment.server.start()


async def freeze_server(deployment: Deployment) -> None:
    """SIGSTOP, for up to one and a half lease times."""
    os.kill(deployment.server.pid, signal.SIGSTOP)
    await asyncio.sleep(deployment.lease_s * 1.5 * deployment.dice.random())
    os.kill(deployment.server.pid, signal.SIGCONT)


async def cut_connection(deployment: Deployment) -> None:
    """Reset the connections of one manager."""
    deployment.proxy.cut()


async def black_hole(deployment: Deployment) -> None:
    """Nothing passes between one manager and the server, and neither side notices at once."""
    deployment.proxy.black_hole()
    await asyncio.sleep(deployment.lease_s * (0.5 + deployment.dice.random()))
    deployment.proxy.heal()


async def delay_connection(deployment: Deployment) -> None:
    """A slow network before one manager."""
    deployment.proxy.delay(0.2)
    await asyncio.sleep(1 + deployment.dice.random())
    deployment.proxy.delay(0)


async def fill_disk(deployment: Deployment) -> None:
    """The server cannot store; then there is room again."""
    filler = deployment.store / "filler"
    with contextlib.suppress(OSError), filler.open("wb") as file:
        while True:
            file.write(b"x" * 65536)
    await asyncio.sleep(2)
    filler.unlink()
    await kill_server(deployment)  # the stream stays frozen until then


async def kill_leader(deployment: Deployment) -> None:
    """The server that leads the stream of events, twice."""
    for _ in range(2):
        leader = await deployment.cluster.stream_leader(deployment.url, "JIDO_CLIENT")
        await deployment.cluster.kill(leader)
        await asyncio.sleep(1 + deployment.dice.random())
        await deployment.cluster.start(leader)
        await asyncio.sleep(5)


async def restart_rolling(deployment: Deployment) -> None:
    """Every server in turn, in an orderly way."""
    for number in range(3):
        await deployment.cluster.stop(number)
        await asyncio.sleep(0.5)
        await deployment.cluster.start(number)
        await asyncio.sleep(5)


async def kill_any_server(deployment: Deployment) -> None:
    """One of the three, for up to 3 s."""
    number = deployment.dice.randrange(3)
    await deployment.cluster.kill(number)
    await asyncio.sleep(3 * deployment.dice.random())
    await deployment.cluster.start(number)


async def restart_other_version(deployment: Deployment) -> None:
    """A manager dies, or is stopped in an orderly way, and comes back as the other of the two versions."""
    assert deployment.old is not None
    manager = deployment.dice.choice(deployment.managers)
    manager.version = deployment.old if manager.version is NEW else NEW
    manager.send(deployment.dice.choice([signal.SIGKILL, signal.SIGTERM]))


async def watchers_1000(deployment: Deployment) -> None:
    """1,000 readers, while a manager dies; its next incarnation follows sessions, claims and leases beside them."""
    session_id = f"beside_readers_{deployment.dice.getrandbits(32):08x}"
    async with readers(deployment.url), Client.connect(deployment.url, timeout_s=30) as client:
        await kill_manager(deployment)
        await asyncio.sleep(RESTARTED_WITHIN_S)
        await client.create_session(session_id=session_id, metadata={"task": "wait"})
        deployment.violations += await unlisted(deployment.url, session_id, MANAGERS, deployment.settling_s)
        await client.terminate_session(session_id)


async def restore_older_store(deployment: Deployment) -> None:
    """The server comes back with what it had some seconds ago."""
    copy = deployment.folder / "copy"
    await deployment.server.stop()
    copied = time.time()
    await asyncio.to_thread(shutil.copytree, deployment.store, copy)
    await deployment.server.start()
    await asyncio.sleep(3 + 3 * deployment.dice.random())
    await deployment.server.kill()
    await asyncio.to_thread(_replace, deployment.store, copy)
    deployment.restores.append(Restore(copied, time.time()))
    await deployment.server.start()
    await asyncio.sleep(2 + deployment.dice.random())
    # Now, since a manager that dies later takes with it what it should not have had.
    async with deployment.without_load():
        deployment.violations += await disagreements(deployment.url, deployment.settling_s)


async def freeze_one_of_three(deployment: Deployment) -> None:
    """SIGSTOP one server, for up to one and a half lease times, while a manager and a client start with its URL too."""
    number = deployment.dice.randrange(3)
    frozen_s = deployment.lease_s * 1.5 * deployment.dice.random()
    manager = deployment.dice.choice([manager for manager in deployment.managers if manager.url == deployment.url])
    deployment.cluster.pause(number)
    manager.send(signal.SIGKILL)
    asking = asyncio.create_task(_connect_and_ask(deployment.url))
    await asyncio.sleep(frozen_s)
    deployment.cluster.resume(number)
    await asking


async def _connect_and_ask(url: str) -> None:
    async with Client.connect(url, timeout_s=30) as client:
        await client.list_sessions()


def _replace(store: Path, copy: Path) -> None:
    """Put the copy back; the folder itself may be a mount point."""
    for entry in store.iterdir():
        shutil.rmtree(entry)
    shutil.copytree(copy, store, dirs_exist_ok=True)
    shutil.rmtree(copy)


class Fault(NamedTuple):
    """One kind of fault: how often it is drawn beside the others, and what it needs."""

    cause: Callable[[Deployment], Awaitable[None]]
    weight: int
    needs: Has

    @property
    def name(self) -> str:
        """As it is counted."""
        return self.cause.__name__


# The order matters: the same seed draws the same faults.
FAULTS: Final = (
    Fault(kill_manager, 2, Has.MANAGERS),
    Fault(freeze_manager, 1, Has.MANAGERS),
    Fault(cut_connection, 2, Has.MANAGERS),
    Fault(black_hole, 1, Has.MANAGERS),
    Fault(delay_connection, 1, Has.MANAGERS),
    Fault(kill_leader, 1, Has.CLUSTER),
    Fault(restart_rolling, 1, Has.CLUSTER),
    Fault(kill_any_server, 1, Has.CLUSTER),
    Fault(kill_server, 2, Has.ONE_SERVER),
    Fault(freeze_server, 1, Has.ONE_SERVER),
    Fault(fill_disk, 1, Has.SMALL_DISK),
    Fault(restart_other_version, 4, Has.OLD_VERSION),
    Fault(watchers_1000, 1, Has.READERS),
    Fault(restore_older_store, 2, Has.COPIES),
    Fault(freeze_one_of_three, 2, Has.CLUSTER),
)


def possible_on(deployment: Deployment) -> list[Fault]:
    """Every kind that can happen to it, the frequent ones more than once."""
    return [fault for fault in FAULTS if fault.needs in deployment.has for _ in range(fault.weight)]
