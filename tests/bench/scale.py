"""How a manager grows: 1,000, 10,000 and 100,000 live sessions, and two managers against one.

    python -m tests.bench.scale --sizes 1000,10000,100000

For each size: memory of a live session with an idle coroutine, `list` of 100, the idle manager's CPU, and the start
of a manager that finds as many records of a dead one: how soon it answers, and how soon all of them are ended.
What grows faster than the sessions do is a defect. The auditor looks in the end.
"""

import argparse
import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

from rich.console import Console
from rich.table import Table

from jido_nats import Client, ConnectOptions, JidoError, LocalServer, Settings
from jido_nats.bench.deployment import SYNC_INTERVALS
from jido_nats.bench.load import drive
from jido_nats.bench.plan import Part, Plan
from jido_nats.bench.processes import cpu_s
from jido_nats.bench.samples import Samples
from jido_nats.broker.connection import Connection
from jido_nats.core import subjects
from jido_nats.core.events import SessionTerminated
from tests.bench.audited import audited
from tests.tools import audit

LISTS = 500
IDLE_S = 10.0
LEASE_EXPIRES_WITHIN_S = 0.5
FILL_TIMEOUT_S = 1800.0
END_TIMEOUT_S = 1800.0
SHOWN = {
    "creates_per_s": ("creates a second, called in Python", "{:,.0f}"),
    "slowest_create_s": ("the slowest of them, s", "{:.2f}"),
    "session_bytes": ("memory of a live session, bytes", "{:,.0f}"),
    "list_p50_ms": ("list of 100, p50 ms", "{:.1f}"),
    "list_p99_ms": ("list of 100, p99 ms", "{:.1f}"),
    "idle_cpu_percent": ("idle manager, % of a core", "{:.2f}"),
    "idle_server_cpu_percent": ("its server, % of a core", "{:.2f}"),
    "serves_s": ("start beside a dead one's records: answers after, s", "{:.2f}"),
    "ended_s": ("all of them ended after, s (a lease time of it is waiting)", "{:.1f}"),
    "violations": ("violations", "{}"),
}


async def measure(size: int, sync: str, lease_s: int, idle_s: float) -> dict[str, Any]:
    """Every figure at one size, on a server of its own."""
    async with LocalServer(sync_interval=SYNC_INTERVALS[sync]) as server:
        async with _manager(server.url, size, lease_s) as (process, lines):
            filled = await _next(lines, FILL_TIMEOUT_S)
            await asyncio.sleep(idle_s / 3)  # what is on its way arrives
            found = {
                "sessions": size,
                "creates_per_s": filled["per_s"],
                "slowest_create_s": filled["slowest_s"],
                "session_bytes": (filled["after"] - filled["before"]) / size,
                **await _idle(process.pid, server.pid, idle_s),
                **await _list(server.url),
            }
        await asyncio.sleep(lease_s + LEASE_EXPIRES_WITHIN_S)  # it was killed; its lease expires
        found |= await _take_over(server.url, lease_s)
        evidence = await audit.read(server.url)
        found["violations"] = len(audit.audit(*evidence, all_ended=False))
        return found


async def _idle(pid: int, server_pid: int, idle_s: float) -> dict[str, float]:
    """The CPU that a manager, and its server, need when nothing happens."""
    pids = (pid, server_pid)
    before = [cpu_s([process]) or 0.0 for process in pids]
    await asyncio.sleep(idle_s)
    used = [100 * ((cpu_s([process]) or 0.0) - was) / idle_s for process, was in zip(pids, before, strict=True)]
    return {"idle_cpu_percent": used[0], "idle_server_cpu_percent": used[1]}


async def _list(url: str) -> dict[str, float]:
    """Lists of 100, one at a time, each from another place among the sessions' ids."""
    samples = Samples()
    connection = await Connection.open(ConnectOptions(servers=(url,)), "scale")
    cursor: dict[str, str] = {}

    async def ask(_: int) -> None:
        reply = await connection.request(subjects.LIST, json.dumps(cursor).encode(), timeout_s=30)
        following = json.loads(reply.data).get("next_cursor")
        cursor.clear()
        cursor.update({"cursor": following} if following else {})

    try:
        await drive(range(LISTS), ask, at_once=1, into=samples, step=lambda: None)
    finally:
        await connection.close()
    return {"list_p50_ms": samples.percentile_ms(50), "list_p99_ms": samples.percentile_ms(99)}


async def _take_over(url: str, lease_s: int) -> dict[str, float]:
    """A new manager beside the records of the dead one: how soon it answers, and how soon all of them are ended."""
    async with Client.connect(url, timeout_s=60) as client:
        left = await _unended(client)
        async with client.events(since="new") as events:
            started = time.perf_counter()
            async with _manager(url, 0, lease_s):
                await client.create_session(session_id="after_the_start")
                serves_s = time.perf_counter() - started
                async with asyncio.timeout(END_TIMEOUT_S):
                    while left:
                        event = (await anext(events)).event
                        if isinstance(event, SessionTerminated):
                            left.discard(event.session_id)
                ended_s = time.perf_counter() - started
    return {"serves_s": serves_s, "ended_s": ended_s}


async def _unended(client: Client) -> set[str]:
    """The sessions that were created and have not ended, by the stream: nobody is there to be asked."""
    found: set[str] = set()
    async with client.events(since="all") as events:
        while not events.caught_up:
            event = (await anext(events)).event
            (found.discard if isinstance(event, SessionTerminated) else found.add)(event.session_id)
    return found


@contextlib.asynccontextmanager
async def _manager(
    url: str, size: int, lease_s: int
) -> AsyncIterator[tuple[asyncio.subprocess.Process, asyncio.StreamReader]]:
    """A manager that serves, and fills itself; killed in the end."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench.scale_manager", url, str(size), str(lease_s)),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        await _next(process.stdout, 60)
        yield process, process.stdout
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _next(lines: asyncio.StreamReader, timeout_s: float) -> dict[str, Any]:
    async with asyncio.timeout(timeout_s):
        line = await lines.readline()
    if not line:
        raise JidoError("the manager ended; what it said stands above")
    message: dict[str, Any] = json.loads(line)
    return message


async def two_against_one(sync: str, sessions: int) -> dict[str, Any]:
    """Two managers' throughput as a multiple of one's; the baseline with two responders says what the machine has."""
    rates = []
    for managers in (1, 2):
        plan = Plan(sessions, 128, frozenset({Part.COMMANDS}))
        results, violations = await audited(plan, sync=sync, managers=managers)
        rates.append(next(r for r in results if (r.measure, r.statistic) == ("create", "rate")))
        if violations:
            raise RuntimeError(f"the auditor found {len(violations)} violations, such as {violations[0]}")
    one, two = rates
    return {
        "one_per_s": one.ours,
        "two_per_s": two.ours,
        "times": two.ours / one.ours,
        "baseline_one_per_s": one.baseline,
        "baseline_two_per_s": two.baseline,
        "baseline_times": two.baseline / one.baseline,
        "cores": one.machine["cores"],
    }


def show(rows: list[dict[str, Any]], sync: str) -> None:
    """Print the growth."""
    table = Table(title=f"growth of one manager, sync {sync}", title_justify="left")
    table.add_column("live sessions")
    for row in rows:
        table.add_column(f"{row['sessions']:,}", justify="right")
    for name, (label, form) in SHOWN.items():
        table.add_row(label, *(form.format(row[name]) for row in rows))
    Console(width=120).print(table)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1000,10000,100000")
    parser.add_argument("--sync", choices=list(SYNC_INTERVALS), default="default")
    parser.add_argument("--lease-s", type=int, default=Settings().lease_s)
    parser.add_argument("--sessions", type=int, default=3000, help="for two managers against one; 0 leaves it out")
    parser.add_argument("--idle-s", type=float, default=IDLE_S, help="how long an idle manager is looked at")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = []
    for size in map(int, filter(None, arguments.sizes.split(","))):
        rows.append(asyncio.run(measure(size, arguments.sync, arguments.lease_s, arguments.idle_s)))
        print(json.dumps(rows[-1]), file=sys.stdout if arguments.json else sys.stderr, flush=True)
    if rows and not arguments.json:
        show(rows, arguments.sync)
    if arguments.sessions:
        print(json.dumps(asyncio.run(two_against_one(arguments.sync, arguments.sessions))))


if __name__ == "__main__":
    main()
