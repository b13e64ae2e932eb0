"""A whole bench: set up the baseline next to the deployment, measure each part, and clean up."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime
from typing import Any, Final

from jido_nats.bench import commands, journal, recovery, replay, transitions
from jido_nats.bench.baseline.baseline import open_baseline
from jido_nats.bench.bench import Bench, Findings, Found, ReportProgress
from jido_nats.bench.deployment import Deployment, machine
from jido_nats.bench.plan import Part, Plan, Result
from jido_nats.client.client import Client
from jido_nats.core import subjects
from jido_nats.errors import ConfigurationError, JidoError
from jido_nats.manager.manager import VERSION

COMMAND_TIMEOUT_S: Final = 60.0
CLEAN_UP_TIMEOUT_S: Final = 30.0

MEASURES: Final[dict[Part, Callable[[Bench], Findings]]] = {
    # With a manager in this process, so before the other managers start: they follow every record and use CPU too.
    Part.TRANSITION: transitions.measure_transition,
    Part.HEARD: transitions.measure_heard,
    Part.JOURNAL: journal.measure,
    Part.COMMANDS: commands.measure,
    Part.REPLAY: replay.measure,
    Part.RECOVER: recovery.measure,  # last: it kills a manager
}


def check(plan: Plan, *, own_managers: bool) -> Plan:
    """The plan without what cannot be measured. Raises `ConfigurationError` if nothing is left."""
    if own_managers or Part.RECOVER not in plan.parts:
        return plan
    if plan.parts == {Part.RECOVER}:
        raise ConfigurationError("recovery kills a manager, so it needs managers that the bench started: --managers N")
    return plan._replace(parts=plan.parts - {Part.RECOVER})


async def run(deployment: Deployment, plan: Plan, report: ReportProgress) -> AsyncGenerator[Result, None]:
    """Yield each result. Removes what it creates on the server, except its sessions' records and events."""
    note = secrets.token_hex(4)
    settings = deployment.settings
    surroundings = await asyncio.to_thread(machine)
    async with (
        _client(deployment) as client,
        open_baseline(
            deployment.options,
            note=note,
            managers=deployment.managers,
            events_like=settings.events_stream,
            journals_like=settings.journal_stream,
            records_like=subjects.bucket_stream(settings.sessions_bucket),
        ) as baseline,
    ):
        bench = Bench(deployment, plan, client, baseline, note, report)
        try:
            for part, measure in MEASURES.items():
                if part in plan.parts:
                    if part not in (Part.TRANSITION, Part.HEARD, Part.JOURNAL):
                        await deployment.start_managers()
                    async for found in measure(bench):
                        yield _result(found, bench, surroundings)
        finally:
            await asyncio.shield(_end_sessions(bench))


def _client(deployment: Deployment) -> Client:
    settings = deployment.settings
    return Client.connect(
        deployment.options,
        timeout_s=COMMAND_TIMEOUT_S,
        events_stream=settings.events_stream,
        sessions_bucket=settings.sessions_bucket,
    )


async def _end_sessions(bench: Bench) -> None:
    """Terminate what an interrupted bench has left running."""
    with contextlib.suppress(JidoError, TimeoutError):
        async with asyncio.timeout(CLEAN_UP_TIMEOUT_S):
            live = await bench.client.list_sessions(metadata={"bench": bench.note})
            if live:
                await bench.end([record.session_id for record in live])


def _result(found: Found, bench: Bench, surroundings: dict[str, Any]) -> Result:
    measure, deployment = found.measure, bench.deployment
    ratio = found.ours / found.baseline
    return Result(
        measure=measure.name,
        statistic=measure.statistic,
        label=measure.label,
        unit=measure.unit,
        more_is_better=measure.more_is_better,
        ours=found.ours,
        baseline=found.baseline,
        ratio=ratio,
        goal=measure.goal,
        met=measure.meets(ratio),
        samples=found.samples,
        concurrency=bench.plan.concurrency,
        sessions=bench.plan.sessions,
        managers=deployment.managers,
        sync_interval=deployment.sync_interval,
        server_version=deployment.server_version,
        jido_nats=VERSION,
        machine=surroundings,
        at=datetime.now(UTC),
        more=found.more,
    )
