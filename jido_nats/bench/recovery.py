"""How quickly another manager ends the sessions of a manager that was killed.

Ours is measured from the expiry of its lease, as the server reports it, to the last end in the stream. The baseline
is what a survivor has to store for as many sessions, with the same concurrency, from claims to ends.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Final

from jido_nats.bench.bench import Bench, Findings, Found, new_ids
from jido_nats.bench.plan import Measure
from jido_nats.core.events import SessionTerminated
from jido_nats.errors import JidoError
from jido_nats.manager.takeover import AT_ONCE, TOGETHER
from jido_nats.store.leases import Leases

RECOVER_TIMEOUT_S: Final = 300.0

RECOVER: Final = Measure("recover", "time", "s", False, "recovery after the lease")


async def measure(bench: Bench) -> Findings:
    """Kill the manager that has the most sessions."""
    deployment = bench.deployment
    await bench.fill("sessions to recover")
    live = await bench.client.list_sessions(metadata={"bench": bench.note})
    ((owner, count),) = Counter(record.owner for record in live).most_common(1)
    victim = next(process for process in deployment.processes if process.manager_id == owner)
    if len(deployment.processes) == 1:
        await deployment.add_manager()
        bench.report("waiting until the survivor may declare others dead", 0, 0)
        await asyncio.sleep(deployment.settings.lease_s)  # only a manager up for that long declares others dead
    orphans = [record.session_id for record in live if record.owner == owner]
    step = bench.steps("recovery", count)
    async with _lease_end(bench, owner) as lease_end, bench.client.events(since="new") as events:
        killed_at = time.perf_counter()
        await victim.kill()
        left = set(orphans)
        try:
            async with asyncio.timeout(deployment.settings.lease_s + RECOVER_TIMEOUT_S):
                while left:
                    event = (await anext(events)).event
                    if isinstance(event, SessionTerminated) and event.session_id in left:
                        left.remove(event.session_id)
                        step()
                ended_at = time.perf_counter()
                expired_at = await lease_end
        except TimeoutError:
            raise JidoError(f"{len(left)} of {count} sessions were not recovered in time") from None
    baseline_s = await bench.baseline.client.recover(new_ids(count), at_once=AT_ONCE, together=TOGETHER)
    more = {"sessions_lost": count, "from_kill_s": ended_at - killed_at, "lease_s": deployment.settings.lease_s}
    yield Found(RECOVER, ended_at - expired_at, baseline_s, count, more)
    await _end_others(bench, orphans)


async def _end_others(bench: Bench, orphans: Sequence[str]) -> None:
    live = await bench.client.list_sessions(metadata={"bench": bench.note})
    await bench.end([record.session_id for record in live if record.session_id not in set(orphans)])


@contextlib.asynccontextmanager
async def _lease_end(bench: Bench, manager_id: str) -> AsyncIterator["asyncio.Task[float]"]:
    """A task whose result is the time at which that manager's lease ended."""
    following = asyncio.Event()

    async def wait() -> float:
        leases = Leases(bench.deployment.connection, bench.deployment.settings.managers_bucket)
        async with leases.follow() as consumer:
            async for message in consumer:
                if leases.apply(message) and manager_id not in leases.managers:
                    return time.perf_counter()
                if manager_id in leases.managers:
                    following.set()
        raise AssertionError("a consumer never ends")

    task = asyncio.create_task(wait(), name=f"lease of {manager_id}")
    try:
        await following.wait()
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
