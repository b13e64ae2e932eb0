"""Slow subscribers slow nobody: the throughput with a stopped one, with one on a delayed link, and without any.

    python -m tests.bench.slow_subscribers

The four take turns on one server, several times. A subscriber that keeps up needs a share of the same cores: compare
the slow ones with that one, not with none.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator

from rich.console import Console
from rich.table import Table

from jido_nats import Client, JidoError, Settings
from jido_nats.bench.deployment import SYNC_INTERVALS, Deployment, local
from jido_nats.bench.load import drive
from jido_nats.bench.samples import Samples
from jido_nats.ids import new_session_id
from tests.bench.audited import report, violations

DELAY_S = 0.5
ROUNDS = 4
START_TIMEOUT_S = 30.0
KINDS = {
    "none": "no subscriber",
    "prompt": "one that keeps up",
    "stopped": "one that is stopped (SIGSTOP)",
    "delayed": f"one on a link with {DELAY_S:g} s delay",
}


async def measure(
    sync: str, sessions: int, concurrency: int, *, rounds: int = ROUNDS
) -> tuple[dict[str, Samples], int]:
    """The samples of each kind, and the exit code."""
    found = {kind: Samples() for kind in KINDS}
    async with local(Settings(), None, managers=1, sync=sync) as deployment:
        await deployment.start_managers()
        url = deployment.options.servers[0]
        async with Client.connect(url, timeout_s=60) as client:
            await _round(client, 2 * concurrency, concurrency, Samples())
            for _ in range(rounds):
                for kind, samples in found.items():
                    async with _listening(url, kind):
                        await _round(client, sessions // rounds, concurrency, samples)
        return found, await _audit(deployment)


async def _round(client: Client, sessions: int, concurrency: int, samples: Samples) -> None:
    """Create sessions, which is measured, and end them."""
    ids = [new_session_id() for _ in range(sessions)]

    async def create(session_id: str) -> None:
        await client.create_session(session_id=session_id)

    async def terminate(session_id: str) -> None:
        await client.terminate_session(session_id)

    await drive(ids, create, at_once=concurrency, into=samples, step=lambda: None)
    await drive(ids, terminate, at_once=concurrency, into=Samples(), step=lambda: None)


@contextlib.asynccontextmanager
async def _listening(url: str, kind: str) -> AsyncIterator[None]:
    """A subscriber process of that kind."""
    if kind == "none":
        yield
        return
    delay = [str(DELAY_S)] if kind == "delayed" else []
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench.listener", url, *delay),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            if not await process.stdout.readline():
                raise JidoError("the listener did not start; what it said stands above")
        if kind == "stopped":
            os.kill(process.pid, signal.SIGSTOP)
        yield
        if kind != "stopped":
            process.stdin.close()
            heard = int(await process.stdout.readline())
            if not heard:
                raise JidoError(f"the listener ({KINDS[kind]}) heard nothing: it was no load")
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _audit(deployment: Deployment) -> int:
    return report(await violations(deployment))


def show(found: dict[str, Samples], sync: str, concurrency: int) -> None:
    """Print them."""
    table = Table(title=f"creates, {concurrency} at a time, sync {sync}, with a subscriber", title_justify="left")
    for column in ("subscriber", "creates/s", "p50 ms", "p99 ms", "of one that keeps up"):
        table.add_column(column, justify="left" if column == "subscriber" else "right")
    for kind, samples in found.items():
        share = f"{samples.rate / found['prompt'].rate:.2f}"
        latencies = (f"{samples.percentile_ms(percent):.1f}" for percent in (50, 99))
        table.add_row(KINDS[kind], f"{samples.rate:,.0f}", *latencies, share)
    Console(width=110).print(table)


def main() -> int:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=4000, help="of each kind")
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--sync", choices=list(SYNC_INTERVALS), default="default")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found, code = asyncio.run(measure(arguments.sync, arguments.sessions, arguments.concurrency))
    if arguments.json:
        rates = {kind: {"per_s": samples.rate, "p99_ms": samples.percentile_ms(99)} for kind, samples in found.items()}
        print(json.dumps(rates))
    else:
        show(found, arguments.sync, arguments.concurrency)
    return code


if __name__ == "__main__":
    sys.exit(main())
