"""How many stored events per second `Client.events` delivers."""

import time
from typing import Final

from jido_nats.bench.bench import Bench, Findings, Found
from jido_nats.bench.plan import rate
from jido_nats.broker.jetstream import api
from jido_nats.core import subjects

ROUNDS: Final = 5
EVENTS_MAX: Final = 200_000
EVENTS_OF_A_SESSION: Final = 5  # on the subject of all events: created, active, terminating, terminated, ended

REPLAY: Final = rate("replay", "replay", unit="events/s", goal=0.7)


async def measure(bench: Bench) -> Findings:
    """Both read the same messages of our stream, alternately."""
    if await _stored(bench) < EVENTS_OF_A_SESSION * bench.plan.sessions:
        await bench.end(await bench.fill("events to replay"))
    count = min(await _stored(bench), EVENTS_MAX)
    stream = bench.deployment.settings.events_stream
    ours_s = baseline_s = 0.0
    step = bench.steps("replay", 2 * ROUNDS)
    for _ in range(ROUNDS):
        ours_s += await _read(bench, count)
        step()
        baseline_s += await bench.baseline.read(stream, subjects.EVENTS, count)
        step()
    total = ROUNDS * count
    yield Found(REPLAY, total / ours_s, total / baseline_s, total, {})


async def _read(bench: Bench, count: int) -> float:
    started = time.perf_counter()
    async with bench.client.events(since="all") as events:
        for _ in range(count):
            await anext(events)
        return time.perf_counter() - started


async def _stored(bench: Bench) -> int:
    """How many events are stored."""
    stream = bench.deployment.settings.events_stream
    request = {"subjects_filter": subjects.EVENTS}
    info = await api(bench.deployment.connection, f"STREAM.INFO.{stream}", request)
    found: int = (info["state"].get("subjects") or {}).get(subjects.EVENTS, 0)
    return found
