"""Replay of many events: what it takes in memory and time, beside a bare pull consumer that decodes nothing.

    python -m tests.bench.replay --sizes 10000,100000,1000000

A server with that many events, then each reader in a process of its own: its peak of memory before and after reading
all. Memory that grows with the number of events is a defect.
"""

import argparse
import asyncio
import json
import resource
import sys
import time
from datetime import UTC, datetime

import nats
from rich.console import Console
from rich.table import Table

from jido_nats import Client, ConnectOptions, LocalServer, SessionStatus, Settings, Status
from jido_nats.bench.baseline.connect import connect
from jido_nats.bench.baseline.reader import BaselineReader
from jido_nats.bench.deployment import SYNC_INTERVALS
from jido_nats.broker.connection import Connection
from jido_nats.core import codec, subjects
from jido_nats.store import topology

READ_TIMEOUT_S = 1800.0
STEPS_EACH = 100


async def fill(url: str, events: int) -> None:
    """So many events, stored as fast as the server takes them."""
    connection = await Connection.open(ConnectOptions(servers=(url,)), "bench")
    await topology.declare(connection, Settings())
    await connection.close()
    client = await nats.connect(url)
    at = datetime.now(UTC)
    for number in range(events):
        session, version = divmod(number, STEPS_EACH)
        event = SessionStatus(
            session_id=f"session_{session:08}",
            version=version + 2,
            status=Status.IDLE if version % 2 else Status.ACTIVE,
            previous_status=Status.ACTIVE if version % 2 else Status.IDLE,
            updated_at=at,
        )
        await client.publish(subjects.EVENTS, codec.encode(event))
        if number % 10_000 == 9_999:
            await client.flush()
    await client.flush()
    stored = 0
    while stored < events:  # the stream takes them in behind the server's back
        await asyncio.sleep(0.1)
        stored = (await client.jetstream().stream_info(subjects.EVENTS_STREAM)).state.messages
    await client.close()


async def read_ours(url: str, events: int) -> int:
    """How many events our client gives."""
    seen = 0
    async with Client.connect(url) as client, client.events(since="all") as stream:
        async for _ in stream.stored():
            seen += 1
            if seen == events:
                break
    return seen


async def read_baseline(url: str, events: int) -> int:
    """How many messages the baseline fetches."""
    client = await connect(ConnectOptions(servers=(url,)))
    reader = BaselineReader(client, subjects.EVENTS_STREAM, subjects.EVENTS)
    await reader.open(everything=True)
    await reader.expect(events)
    await reader.wait()
    await reader.close()
    await client.close()
    return events


READERS = {"ours": read_ours, "baseline": read_baseline}


def peak_bytes() -> int:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


async def read(name: str, url: str, events: int) -> dict[str, float | int | str]:
    """What one reader takes, in this process."""
    await READERS[name](url, min(events, 1000))
    before, started = peak_bytes(), time.perf_counter()
    seen = await READERS[name](url, events)
    took_s = time.perf_counter() - started
    return {"reader": name, "events": seen, "per_s": seen / took_s, "grew_bytes": peak_bytes() - before}


async def in_own_process(name: str, url: str, events: int) -> dict[str, float | int | str]:
    """The same in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench.replay", "--read", name, "--server", url, "--sizes", str(events)),
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(READ_TIMEOUT_S):
        out, _ = await process.communicate()
    result: dict[str, float | int | str] = json.loads(out)
    return result


async def main() -> int:
    """Measure, print, and say with the exit code whether every event was read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="10000,100000,1000000")
    parser.add_argument("--read", choices=list(READERS), help="in this process; for this script itself")
    parser.add_argument("--server")
    chosen = parser.parse_args()
    sizes = [int(size) for size in chosen.sizes.split(",")]
    if chosen.read:
        print(json.dumps(await read(chosen.read, chosen.server, sizes[0])))
        return 0
    table = Table("events", "reader", "read", "events a second", "grew by, MiB", title="replay of all events")
    whole = True
    for size in sizes:
        async with LocalServer(sync_interval=SYNC_INTERVALS["default"]) as server:
            await fill(server.url, size)
            for name in READERS:
                result = await in_own_process(name, server.url, size)
                whole = whole and result["events"] == size
                grew = float(result["grew_bytes"]) / 2**20
                rate = float(result["per_s"])
                table.add_row(f"{size:,}", name, f"{result['events']:,}", f"{rate:,.0f}", f"{grew:.1f}")
    Console().print(table)
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
