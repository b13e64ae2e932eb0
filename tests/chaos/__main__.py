"""Managers as real processes under load, and faults drawn from a seed; then an auditor who knows nothing of us.

    python -m tests.chaos --seed 7 --faults 200 --sessions 5000 [--cluster] [--old] [--watchers] [--restore]

Prints the seed, the faults by kind, what was counted, how long orphans took to end, and every violation.
Exit 1 if there is one.
"""

import argparse
import asyncio
import contextlib
import logging
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Final

from jido_nats import Client, JidoError
from jido_nats.cli import logs
from tests.chaos.agreement import disagreements
from tests.chaos.clients import CLIENTS, Load
from tests.chaos.deployment import MANAGERS, Deployment, Has, Options
from tests.chaos.faults import possible_on
from tests.chaos.report import Measured, report

QUIET_TIMEOUT_S: Final = 120.0
FAULT_S: Final = 2.0  # what one fault takes, about: the load is spread over all of them
SLOW_FAULT_S: Final = 4.0  # with readers or restores among them


async def run(options: Options, folder: Path) -> int:
    """One chaos run; the exit code."""
    deployment = Deployment(options, folder)
    async with deployment.running(), Client.connect(deployment.url, timeout_s=30) as client:
        await _until_answered(client)
        load = Load(deployment.url, options.sessions, options.seed, deployment.under_load)
        faults = await _make_faults_under(load, deployment, options)
        deployment.violations += await disagreements(deployment.url, deployment.settling_s)
        answered_s = await _restart_and_ask(deployment, client)
        orphaned_s = await _orphan_many(deployment, client, options.sessions)
        await _end_all(client)
        deployment.violations += await disagreements(deployment.url, deployment.settling_s, include_terminated=True)
        return await report(deployment, load, options.seed, Measured(faults, answered_s, orphaned_s))


async def _make_faults_under(load: Load, deployment: Deployment, options: Options) -> Counter[str]:
    fault_s = SLOW_FAULT_S if options.watchers or options.restore else FAULT_S
    load.pause_s = options.faults * fault_s * CLIENTS / options.sessions
    working = asyncio.create_task(load.run())
    await load.connected.wait()
    counted = await _make_faults(deployment, options.faults)
    load.pause_s = 0
    await asyncio.wait({working}, timeout=QUIET_TIMEOUT_S)
    await working if working.done() else print("the load did not finish in time")
    return counted


async def _make_faults(deployment: Deployment, number: int) -> Counter[str]:
    counted: Counter[str] = Counter()
    kinds = possible_on(deployment)
    for done in range(number):
        fault = deployment.dice.choice(kinds)
        counted[fault.name] += 1
        await fault.cause(deployment)
        await asyncio.sleep(deployment.dice.random())
        if (done + 1) % 20 == 0:
            print(f"{done + 1} faults", file=sys.stderr)
    return counted


async def _restart_and_ask(deployment: Deployment, client: Client) -> float:
    """Seconds from the server's return, after 2 s away, to the first answer."""
    if Has.ONE_SERVER not in deployment.has:
        return 0.0
    await deployment.server.kill()
    await asyncio.sleep(2)
    await deployment.server.start()
    started = time.monotonic()
    await client.create_session(session_id="after_the_restart")
    return time.monotonic() - started


async def _orphan_many(deployment: Deployment, client: Client, number: int) -> float:
    """Seconds from the death of all managers but one, with `number` sessions on them, to the last orphan's end."""
    await asyncio.sleep(2 * deployment.lease_s)  # all is calm: what is measured is the takeover
    gate = asyncio.Semaphore(128)

    async def create(index: int) -> str:
        async with gate:
            session_id = f"orphan_{index:06}"
            return (await client.create_session(session_id=session_id, metadata={"task": "wait"})).owner

    share = number * MANAGERS // (MANAGERS - 1)
    owners = Counter(await asyncio.gather(*(create(index) for index in range(share))))
    killed = time.monotonic()
    for manager in deployment.managers[1:]:
        manager.send(signal.SIGKILL)
    while len(await client.list_sessions(metadata={"task": "wait"})) > max(owners.values()):
        await asyncio.sleep(0.1)
    took_s = time.monotonic() - killed
    orphans = share - max(owners.values())
    print(f"{orphans} or more orphans: the last ended {took_s:.1f} s after their managers died")
    return took_s


async def _until_answered(client: Client) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            await client.list_sessions()
            return
        except JidoError:
            if time.monotonic() > deadline:
                raise


async def _end_all(client: Client) -> None:
    """End every session, then wait until every record is sealed, so that nothing is under way any more."""
    try:
        async with asyncio.timeout(QUIET_TIMEOUT_S):
            while not await _all_sealed(client):
                await asyncio.sleep(0.5)
    except TimeoutError:
        print("some sessions were still not sealed")


async def _all_sealed(client: Client) -> bool:
    """Whether every session has ended for good; what is alive is terminated."""
    with contextlib.suppress(JidoError):
        live = await client.list_sessions()
        if not live:
            return all(record.sealed for record in await client.list_sessions(include_terminated=True))
        gate = asyncio.Semaphore(64)
        await asyncio.gather(*(_terminate(client, record.session_id, gate) for record in live))
    return False


async def _terminate(client: Client, session_id: str, gate: asyncio.Semaphore) -> None:
    async with gate:
        with contextlib.suppress(JidoError):
            await client.terminate_session(session_id)


def main() -> None:
    """Parse, run, exit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", type=int, default=20)
    parser.add_argument("--sessions", type=int, default=500)
    parser.add_argument("--lease-s", type=int, default=3)
    parser.add_argument("--cluster", action="store_true", help="three servers")
    parser.add_argument("--old", action="store_true", help="managers of the old version beside this one, alternately")
    parser.add_argument("--watchers", action="store_true", help="1,000 readers at a time, beside managers that die")
    parser.add_argument("--restore", action="store_true", help="the one server comes back with an older store")
    parser.add_argument("--keep", action="store_true", help="keep the logs of the managers")
    options = Options(**vars(parser.parse_args()))
    folder = Path(tempfile.mkdtemp(prefix="jido-chaos-"))
    logs.configure(logging.ERROR)
    try:
        sys.exit(asyncio.run(run(options, folder)))
    finally:
        if options.keep:
            print(f"logs: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
