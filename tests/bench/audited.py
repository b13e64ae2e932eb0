"""A bench on a server of its own, and then the auditor: fast is worth nothing where a promise was broken for it.

    python -m tests.bench.audited --sync always --sessions 2000 --concurrency 128

Prints the table of `jido-nats bench` and every violation; exit 1 if there is one.
"""

import argparse
import asyncio
import sys
import time

from rich.console import Console

from jido_nats import Client, Settings
from jido_nats.bench.deployment import SYNC_INTERVALS, Deployment, local
from jido_nats.bench.plan import CONCURRENCY, SESSIONS, Part, Plan, Result
from jido_nats.bench.run import run
from jido_nats.cli import bench_table
from jido_nats.cli.progress import progress
from tests.tools import audit

QUIET_TIMEOUT_S = 120.0
POLL_S = 0.2


async def audited(
    plan: Plan, *, sync: str, managers: int = 1, lease_s: int = Settings().lease_s
) -> tuple[list[Result], list[audit.Violation]]:
    """What a bench on a server of its own found, and what the auditor did."""
    async with local(Settings(lease_s=lease_s), None, managers=managers, sync=sync) as deployment:
        with progress() as report_progress:
            results = [result async for result in run(deployment, plan, report_progress)]
        return results, await violations(deployment)


async def violations(deployment: Deployment) -> list[audit.Violation]:
    """What the auditor says once every session has ended and is sealed."""
    await deployment.start_managers()
    url = deployment.options.servers[0]
    async with Client.connect(url, timeout_s=60) as client:
        deadline = time.monotonic() + QUIET_TIMEOUT_S
        while not all(record.sealed for record in await client.list_sessions(include_terminated=True)):
            if time.monotonic() > deadline:
                break  # the auditor will say what is wrong
            await asyncio.sleep(POLL_S)
    evidence = await audit.read(url)
    return audit.audit(*evidence, quiet=True, all_ended=True)


def report(found: list[audit.Violation]) -> int:
    """Print what the auditor found; the exit code."""
    for violation in found[:50]:
        print(f"VIOLATION {violation}")
    print(f"violations: {len(found)}")
    return 1 if found else 0


def main() -> int:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sync", choices=list(SYNC_INTERVALS), default="always")
    parser.add_argument("--sessions", type=int, default=SESSIONS)
    parser.add_argument("--concurrency", type=int, default=CONCURRENCY)
    parser.add_argument("--managers", type=int, default=1)
    parser.add_argument("--lease-s", type=int, default=Settings().lease_s)
    parser.add_argument("--only", choices=list(Part), action="append")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    plan = Plan(arguments.sessions, arguments.concurrency, frozenset(map(Part, arguments.only or Part)))
    results, found = asyncio.run(
        audited(plan, sync=arguments.sync, managers=arguments.managers, lease_s=arguments.lease_s)
    )
    if arguments.json:
        for result in results:
            bench_table.line(result)
    else:
        Console().print(bench_table.table(results))
    return report(found)


if __name__ == "__main__":
    sys.exit(main())
