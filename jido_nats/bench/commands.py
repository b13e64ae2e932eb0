"""How many sessions can be created and terminated per second by request-reply, and how long a command takes."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from jido_nats.bench.bench import Bench, Findings, Found, new_ids
from jido_nats.bench.load import drive, rounds
from jido_nats.bench.plan import latency, rate
from jido_nats.bench.processes import cpu_s
from jido_nats.bench.samples import Samples

ROUNDS: Final = 5
PERCENTILES: Final = {"p50": 50.0, "p99": 99.0, "p99.9": 99.9}
VERBS: Final = {"create": "create to active", "terminate": "terminate"}
GOALS: Final = {"create": 0.85}

CPU: Final = latency("manager", "CPU", "manager, per session")

Call = Callable[[str], Awaitable[None]]


async def measure(bench: Bench) -> Findings:
    """Alternate ours and the baseline's, so that both run under the same conditions."""
    samples = {verb: (Samples(), Samples()) for verb in VERBS}
    ids = new_ids(bench.plan.sessions)
    parts = rounds(ids, bench.plan.concurrency, ROUNDS)
    warm_up = new_ids(min(len(ids), 2 * bench.plan.concurrency))
    step = bench.steps("create and terminate", 4 * (len(warm_up) + len(ids)))
    await _round(bench, warm_up, {verb: (Samples(), Samples()) for verb in VERBS}, step)
    used = _cpu_s(bench)
    for part in parts:
        await _round(bench, part, samples, step)
    ours_s, baseline_s = (after - before for after, before in zip(_cpu_s(bench), used, strict=True))
    for verb, (ours, baseline) in samples.items():
        yield Found(
            rate(verb, VERBS[verb], goal=GOALS.get(verb)),
            ours.rate,
            baseline.rate,
            len(ours.seconds),
            {},
        )
        for name, percent in PERCENTILES.items():
            found = latency(verb, name, VERBS[verb])
            yield Found(found, ours.percentile_ms(percent), baseline.percentile_ms(percent), len(ours.seconds), {})
    if ours_s and baseline_s:
        yield Found(CPU, 1000 * ours_s / len(ids), 1000 * baseline_s / len(ids), len(ids), {})


def _cpu_s(bench: Bench) -> tuple[float, float]:
    """CPU time of the managers that the bench started, and of the baseline's responders; 0 if unknown."""
    ours = cpu_s(process.pid for process in bench.deployment.processes)
    return ours or 0.0, cpu_s(bench.baseline.pids) or 0.0


async def _round(
    bench: Bench, ids: Sequence[str], samples: dict[str, tuple[Samples, Samples]], step: Callable[[], None]
) -> None:
    client = bench.baseline.client
    calls: dict[str, tuple[Call, Call]] = {
        "create": (bench.create, client.create),
        "terminate": (bench.terminate, client.terminate),
    }
    for verb, both in calls.items():
        for call, into in zip(both, samples[verb], strict=True):
            await drive(ids, call, at_once=bench.plan.concurrency, into=into, step=step)
