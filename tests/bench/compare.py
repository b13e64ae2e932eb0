"""jido_nats beside what people would write instead: scripts on nats-py, FastStream, and the original.

    python -m tests.bench.compare --faststream-python /tmp/faststream/bin/python

FastStream is not among our dependencies: `python3 -m venv /tmp/faststream && /tmp/faststream/bin/pip install
'faststream[nats]'`. All run on one server, one after the other, each a process of its own that is asked by
request-reply from here. The original's figures are constants: it was measured on the same kind of machine.
"""

import argparse
import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import nats
from nats.aio.client import Client as NatsClient
from nats.errors import NoRespondersError
from rich.console import Console
from rich.table import Table

from jido_nats import LocalServer
from jido_nats.bench.deployment import SYNC_INTERVALS
from jido_nats.bench.load import drive
from jido_nats.bench.plan import Part, Plan
from jido_nats.bench.samples import Samples
from jido_nats.ids import new_session_id
from tests.bench.audited import audited
from tests.bench.contenders import CREATE, READY

# Issue 8, "Where it must get": the original, in memory, nothing durable.
ORIGINAL_CREATES_PER_S = 1300
ORIGINAL_BYTES_PER_SESSION = 13_900
REQUEST_TIMEOUT_S = 30.0
START_TIMEOUT_S = 20.0


class Row(NamedTuple):
    """One contender: its figures (None: not known), and what of a session survives."""

    name: str
    per_s: float
    p50_ms: float | None
    p99_ms: float | None
    keeps: str


CONTENDERS = {
    "memory": ("nats-py script, in memory", "nothing: a kill loses every session, silently"),
    "durable": ("nats-py script, KV and stream", "records and events; a kill in a create leaves half of it for ever"),
    "side_by_side": ("the same, a task for each request", "the same; two programs can overwrite each other"),
}
FASTSTREAM = ("FastStream, KV and stream", "as the script: half a create after a kill, no owner, no end")
OURS = "all that was answered; every session ends, also after a kill"


async def compare(sync: str, sessions: int, concurrency: int, faststream: Path | None) -> list[Row]:
    """Every contender at one sync setting."""
    rows = [Row("the original (issue 8)", ORIGINAL_CREATES_PER_S, None, None, "nothing: it is in memory")]
    programs = {kind: [sys.executable, "-m", "tests.bench.contenders", kind] for kind in CONTENDERS}
    texts = dict(CONTENDERS)
    if faststream is not None:
        script = Path(__file__).with_name("faststream_contender.py")
        programs["faststream"] = [str(faststream), str(script)]
        texts["faststream"] = FASTSTREAM
    for kind, program in programs.items():
        samples = await _contender(program, sync, sessions, concurrency)
        name, keeps = texts[kind]
        rows.append(Row(name, samples.rate, samples.percentile_ms(50), samples.percentile_ms(99), keeps))
    results, violations = await audited(Plan(sessions, concurrency, frozenset({Part.COMMANDS})), sync=sync)
    if violations:
        raise RuntimeError(f"the auditor found {len(violations)} violations, such as {violations[0]}")
    ours = {result.statistic: result for result in results if result.measure == "create"}
    rate, p50, p99 = (ours[name] for name in ("rate", "p50", "p99"))
    rows.append(Row("the baseline of jido_nats", rate.baseline, p50.baseline, p99.baseline, "no recovery, no checks"))
    rows.append(Row("jido_nats", rate.ours, p50.ours, p99.ours, OURS))
    return rows


async def _contender(program: list[str], sync: str, sessions: int, concurrency: int) -> Samples:
    async with LocalServer(sync_interval=SYNC_INTERVALS[sync]) as server:
        async with _running([*program, server.url]):
            client = await nats.connect(server.url)
            try:
                await _until_answered(client)
                await _drive(client, min(sessions, 2 * concurrency), concurrency)  # to warm up
                return await _drive(client, sessions, concurrency)
            finally:
                await client.close()


async def _until_answered(client: NatsClient) -> None:
    """Its subscription may come after what it has said."""
    async with asyncio.timeout(START_TIMEOUT_S):
        while True:
            with contextlib.suppress(NoRespondersError):
                await client.request(CREATE, b'{"session_id":"first"}', timeout=REQUEST_TIMEOUT_S)
                return
            await asyncio.sleep(0.05)


async def _drive(client: NatsClient, sessions: int, concurrency: int) -> Samples:
    samples = Samples()

    async def create(session_id: str) -> None:
        payload = f'{{"session_id":"{session_id}","metadata":{{"bench":"0123abcd"}}}}'
        await client.request(CREATE, payload.encode(), timeout=REQUEST_TIMEOUT_S)

    ids = [new_session_id() for _ in range(sessions)]
    await drive(ids, create, at_once=concurrency, into=samples, step=lambda: None)
    return samples


@contextlib.asynccontextmanager
async def _running(program: list[str]) -> AsyncIterator[None]:
    """A contender that has said that it is ready; killed in the end."""
    process = await asyncio.create_subprocess_exec(
        *program, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(START_TIMEOUT_S):
            said = await process.stdout.readline()
        if said.strip() != READY.encode():
            raise RuntimeError(f"{' '.join(program)} did not start: run it by hand to see why")
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def show(sync: str, concurrency: int, rows: list[Row]) -> None:
    """Print them."""
    table = Table(title=f"creates, {concurrency} at a time, sync {sync}", title_justify="left")
    for column in ("what", "creates/s", "p50 ms", "p99 ms"):
        table.add_column(column, justify="left" if column == "what" else "right")
    table.add_column("what is kept")
    for row in rows:
        latencies = ("" if ms is None else f"{ms:,.1f}" for ms in (row.p50_ms, row.p99_ms))
        table.add_row(row.name, f"{row.per_s:,.0f}", *latencies, row.keeps)
    Console(width=140).print(table)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=2000)
    parser.add_argument("--concurrency", type=int, default=128)
    parser.add_argument("--sync", choices=list(SYNC_INTERVALS), action="append")
    parser.add_argument("--faststream-python", type=Path, help="a Python that has faststream[nats]")
    arguments = parser.parse_args()
    if arguments.faststream_python is None:
        print("FastStream is left out: install 'faststream[nats]' in a venv and name its python", file=sys.stderr)
    for sync in arguments.sync or SYNC_INTERVALS:
        rows = asyncio.run(compare(sync, arguments.sessions, arguments.concurrency, arguments.faststream_python))
        show(sync, arguments.concurrency, rows)
    print(f"memory of a live session in the original: {ORIGINAL_BYTES_PER_SESSION:,} bytes; ours: tests.bench.scale")


if __name__ == "__main__":
    main()
