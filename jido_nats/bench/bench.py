"""The context of every measurement, and its result."""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from jido_nats.bench.baseline.baseline import Baseline
from jido_nats.bench.deployment import Deployment
from jido_nats.bench.load import drive
from jido_nats.bench.plan import Measure, Plan
from jido_nats.bench.samples import Samples
from jido_nats.client.client import Client
from jido_nats.ids import new_session_id

ReportProgress = Callable[[str, int, int], None]
"""(what is being done, how much of it is done, the total): for a progress bar."""


class Found(NamedTuple):
    """One figure, ours and the baseline's."""

    measure: Measure
    ours: float
    baseline: float
    samples: int
    more: dict[str, float]


Findings = AsyncIterator[Found]


@dataclass(frozen=True)
class Bench:
    """A deployment, a client of it, and the baseline. `note` is in the metadata of every session it creates."""

    deployment: Deployment
    plan: Plan
    client: Client
    baseline: Baseline
    note: str
    report: ReportProgress

    def steps(self, what: str, total: int) -> Callable[[], None]:
        """A function that reports progress, to be called `total` times."""
        done = 0
        self.report(what, 0, total)

        def step() -> None:
            nonlocal done
            done += 1
            self.report(what, done, total)

        return step

    async def create(self, session_id: str) -> None:
        """Create one session, by request-reply."""
        await self.client.create_session(session_id=session_id, metadata={"bench": self.note})

    async def terminate(self, session_id: str) -> None:
        """Terminate it."""
        await self.client.terminate_session(session_id)

    async def fill(self, what: str) -> Sequence[str]:
        """Create the plan's number of sessions, for the next measurement."""
        ids = new_ids(self.plan.sessions)
        step = self.steps(what, len(ids))
        await drive(ids, self.create, at_once=self.plan.concurrency, into=Samples(), step=step)
        return ids

    async def end(self, ids: Sequence[str]) -> None:
        """Terminate sessions, not measured."""
        step = self.steps("ending sessions", len(ids))
        await drive(ids, self.terminate, at_once=self.plan.concurrency, into=Samples(), step=step)


def new_ids(count: int) -> list[str]:
    """`count` new session ids."""
    return [new_session_id() for _ in range(count)]
