"""One entry of a journal at a time: an accepted message, and checkpoints, called in Python.

The manager is embedded in this process and serves no commands; the baseline appends entries of the same size.
"""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from jido_nats.bench.bench import Bench, Findings, Found, new_ids
from jido_nats.bench.load import drive
from jido_nats.bench.plan import latency
from jido_nats.bench.samples import Samples
from jido_nats.bench.transitions import blocks
from jido_nats.core import journal
from jido_nats.core.journal import AcceptedMessage, Checkpoint
from jido_nats.core.session import Cause, RestartPolicy
from jido_nats.manager.manager import SessionManager
from jido_nats.worker.session import Session

APPENDS_MAX: Final = 1000
LARGE_APPENDS_MAX: Final = 300
GOAL: Final = 1.25

MESSAGE: Final = latency("message_accepted", "p50", "a message accepted", goal=GOAL)
SMALL: Final = latency("checkpoint_1k", "p50", "a checkpoint of 1 KB", goal=GOAL)
LARGE: Final = latency("checkpoint_100k", "p50", "a checkpoint of 100 KB", goal=GOAL)

_AT: Final = datetime(2025, 1, 24, 10, 30, 0, 1, UTC)


async def measure(bench: Bench) -> Findings:
    """The duration of a call, next to a bare append of an entry of the same size."""
    count = min(bench.plan.sessions, APPENDS_MAX)
    large = min(bench.plan.sessions, LARGE_APPENDS_MAX)
    step = bench.steps("journal", 4 * count + 2 * large)
    async with _durable_session(bench) as (manager, session), bench.baseline.journal(session.session_id) as baseline:

        async def send(number: int) -> None:
            await manager.send_message(session.session_id, "user", "hello", message_id=f"message-{number}")

        message = AcceptedMessage(
            attempt=1,
            created_at=_AT,
            role="user",
            content="hello",
            message_id="message-1000",
            number=1000,
            accepted_at=_AT,
        )
        found = await _compare(range(count), send, lambda: baseline.append(journal.encode(message)), step)
        yield Found(MESSAGE, *found, count, {})
        for size_measure, size, times in ((SMALL, 1000, count), (LARGE, 100_000, large)):
            state = {"history": "x" * size}
            entry = Checkpoint(attempt=1, created_at=_AT, handled=0, state=state)
            checkpoint, append = partial(_checkpoint, session, state), partial(baseline.append, journal.encode(entry))
            found = await _compare(range(times), checkpoint, append, step)
            yield Found(size_measure, *found, times, {})


async def _checkpoint(session: Session, state: Any, _: int) -> None:
    await session.checkpoint(state)


async def _compare(
    numbers: range,
    ours: Callable[[int], Awaitable[Any]],
    baseline: Callable[[], Awaitable[None]],
    step: Callable[[], None],
) -> tuple[float, float]:
    """The medians of both, in milliseconds; they take turns."""
    our_samples, baseline_samples = Samples(), Samples()
    begun = 0
    for block in blocks(len(numbers)):
        await drive(numbers[begun : begun + block], ours, at_once=1, into=our_samples, step=step)
        await drive(range(block), lambda _: baseline(), at_once=1, into=baseline_samples, step=step)
        begun += block
    return our_samples.percentile_ms(50), baseline_samples.percentile_ms(50)


@contextlib.asynccontextmanager
async def _durable_session(bench: Bench) -> AsyncIterator[tuple[SessionManager, Session]]:
    """A session with a restart policy, whose worker takes what it is sent, at a manager in this process."""
    sessions: list[Session] = []

    async def take(session: Session) -> None:
        sessions.append(session)
        async for _ in session.messages():
            pass

    [session_id] = new_ids(1)
    deployment = bench.deployment
    async with SessionManager.connect(deployment.options, worker=take, settings=deployment.settings) as manager:
        await manager.create_session(
            session_id=session_id, metadata={"bench": bench.note}, restart=RestartPolicy(on=(Cause.CRASHED,))
        )
        yield manager, sessions[0]
        await manager.terminate_session(session_id)
