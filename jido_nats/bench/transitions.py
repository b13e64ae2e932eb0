"""One transition at a time, called in Python, and how soon its event arrives.

The manager is embedded in this process and serves no commands; the baseline's session is written from here too.
"""

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, NamedTuple

from jido_nats.bench.bench import Bench, Findings, Found, new_ids
from jido_nats.bench.listeners import Consumer, Listener, Subscriber
from jido_nats.bench.load import drive
from jido_nats.bench.plan import latency
from jido_nats.bench.samples import Samples
from jido_nats.errors import JidoError
from jido_nats.manager.manager import SessionManager
from jido_nats.worker.session import Session

TRANSITIONS_MAX: Final = 1000
HEARD_MAX: Final = 500
BLOCK: Final = 50
HEAR_TIMEOUT_S: Final = 10.0

TRANSITION: Final = latency("transition", "p50", "one transition in Python", goal=1.25)
SUBSCRIBER: Final = latency("heard_by_subscriber", "p50", "received by a subscriber", goal=1.3)
CONSUMER: Final = latency("heard_by_consumer", "p50", "received by a consumer")

Step = Callable[[int], Awaitable[object]]
"""Performs the next transition; ignores its argument."""


class _Steppers(NamedTuple):
    """A session of ours and one of the baseline's, whose `idle` and `active` alternate."""

    session_id: str
    ours: Step
    baseline: Step


async def measure_transition(bench: Bench) -> Findings:
    """The duration of a call."""
    ours, baseline = Samples(), Samples()
    count = min(bench.plan.sessions, TRANSITIONS_MAX)
    step = bench.steps("transitions", 2 * count)
    async with _steppers(bench) as steppers:
        for block in blocks(count):
            await drive(range(block), steppers.ours, at_once=1, into=ours, step=step)
            await drive(range(block), steppers.baseline, at_once=1, into=baseline, step=step)
    yield Found(TRANSITION, ours.percentile_ms(50), baseline.percentile_ms(50), len(ours.seconds), {})


async def measure_heard(bench: Bench) -> Findings:
    """The time from the call to the event, received in this process on another connection."""
    count = min(bench.plan.sessions, HEARD_MAX)
    step = bench.steps("events received", 4 * count)
    async with _steppers(bench) as steppers:
        for measure, our_listener, baseline_listener in (
            (SUBSCRIBER, Subscriber(bench.client, steppers.session_id), bench.baseline.subscriber()),
            (CONSUMER, Consumer(bench.client, steppers.session_id), bench.baseline.consumer()),
        ):
            ours, baseline = Samples(), Samples()
            async with _open(our_listener), _open(baseline_listener):
                for block in blocks(count):
                    await _hear(steppers.ours, our_listener, block, ours, step)
                    await _hear(steppers.baseline, baseline_listener, block, baseline, step)
            yield Found(measure, ours.percentile_ms(50), baseline.percentile_ms(50), len(ours.seconds), {})


async def _hear(call: Step, listener: Listener, count: int, into: Samples, step: Callable[[], None]) -> None:
    seconds = []
    begun = time.perf_counter()
    try:
        for number in range(count):
            async with asyncio.timeout(HEAR_TIMEOUT_S):
                await listener.expect()
                started = time.perf_counter()
                _, heard_at = await asyncio.gather(call(number), listener.wait())
            seconds.append(heard_at - started)
            step()
    except TimeoutError:
        raise JidoError(f"an event was not received within {HEAR_TIMEOUT_S:g} s") from None
    into.add(seconds, time.perf_counter() - begun)


@contextlib.asynccontextmanager
async def _steppers(bench: Bench) -> AsyncIterator[_Steppers]:
    session_id, baseline_id = new_ids(2)
    baseline = bench.baseline.steps(baseline_id)
    await baseline.begin()
    deployment = bench.deployment
    async with SessionManager.connect(deployment.options, worker=_wait, settings=deployment.settings) as manager:
        await manager.create_session(session_id=session_id, metadata={"bench": bench.note})
        calls = itertools.cycle((manager.idle_session, manager.activate_session))
        yield _Steppers(session_id, lambda _: next(calls)(session_id), lambda _: baseline.step())
        await manager.terminate_session(session_id)


@contextlib.asynccontextmanager
async def _open(listener: Listener) -> AsyncIterator[None]:
    await listener.open()
    try:
        yield
    finally:
        await listener.close()


def blocks(count: int) -> list[int]:
    """The count in blocks; ours and the baseline's alternate after each."""
    return [min(BLOCK, count - begun) for begun in range(0, count, BLOCK)]


async def _wait(_: Session) -> None:
    await asyncio.Event().wait()
