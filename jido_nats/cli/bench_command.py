"""The command `bench`: which deployment, the size of the run, and how the results are printed."""

import contextlib
from functools import partial
from pathlib import Path
from typing import Any

import click

from jido_nats.bench import deployment
from jido_nats.bench import run as benchmark
from jido_nats.bench.deployment import Deployment
from jido_nats.bench.plan import CONCURRENCY, SESSIONS, Part, Plan, Result
from jido_nats.cli import bench_table
from jido_nats.cli.options import Common, common_options, config_option, load_settings
from jido_nats.cli.process import end_on_sigterm
from jido_nats.cli.progress import progress
from jido_nats.errors import ConfigurationError


@click.command()
@click.option("--sessions", type=click.IntRange(1), default=SESSIONS, show_default=True, help="How many sessions.")
@click.option(
    "--concurrency", type=click.IntRange(1), default=CONCURRENCY, show_default=True, help="Commands in flight."
)
@click.option(
    "--only", type=click.Choice([p.value for p in Part]), multiple=True, help="Measure only this part; may be repeated."
)
@click.option(
    "--managers",
    type=click.IntRange(1),
    help="Start a server and this many managers.  [default: 1 if no server is given]",
)
@click.option(
    "--sync",
    type=click.Choice(list(deployment.SYNC_INTERVALS)),
    help="sync_interval of that server.  [default: always]",
)
@click.option("--lease-s", type=int, help="Lease time of the managers, or for those that it starts.")
@click.option("--replicas", type=int, help="Replicas of the streams and buckets, as configured in the managers.")
@config_option
@partial(common_options, fast=True)
async def bench(
    common: Common,
    sessions: int,
    concurrency: int,
    only: tuple[str, ...],
    managers: int | None,
    sync: str | None,
    config_file: Path | None,
    **overrides: Any,
) -> None:
    """Measure a deployment, or a local server and managers, next to the same writes with bare nats-py."""
    end_on_sigterm()
    settings, named = load_settings(config_file, **overrides), _server_is_named()
    if named and (managers or sync):
        raise ConfigurationError("--managers and --sync apply to the bench's own server: leave out --server")
    plan = Plan(sessions, concurrency, frozenset(map(Part, only)) or frozenset(Part))
    plan = benchmark.check(plan, own_managers=not named)
    if named:
        measured = deployment.existing(common.connection, settings)
    else:
        measured = deployment.local(settings, config_file, managers=managers or 1, sync=sync or "always")
    async with measured as where:
        await _measure(common, where, plan)


async def _measure(common: Common, where: Deployment, plan: Plan) -> None:
    """Run the plan. With --json each result is printed as soon as it is known, otherwise a table at the end."""
    results: list[Result] = []
    with progress() as report:
        async with contextlib.aclosing(benchmark.run(where, plan, report)) as measured:
            async for result in measured:
                results.append(result)
                if common.printer.as_json:
                    bench_table.line(result)
    if not common.printer.as_json:
        common.printer.console.print(bench_table.table(results))


def _server_is_named() -> bool:
    """Whether the user named a server, rather than relying on the default."""
    context = click.get_current_context()
    sources = (click.core.ParameterSource.COMMANDLINE, click.core.ParameterSource.ENVIRONMENT)
    return any(context.get_parameter_source(name) in sources for name in ("server", "context"))
