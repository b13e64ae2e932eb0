"""Commands that inspect a deployment or the contract: `dashboard`, `doctor`, `schema`, `conform`."""

import asyncio
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import click
import msgspec

from jido_nats.cli.doctor import examine, exit_code
from jido_nats.cli.escape import printable
from jido_nats.cli.options import (
    PORT,
    Common,
    common_options,
    config_option,
    connect_options,
    connection_options,
    load_settings,
)
from jido_nats.cli.process import end_on_sigterm, fail, prepare_process, run_program
from jido_nats.cli.progress import progress
from jido_nats.contract import asyncapi, schema
from jido_nats.contract.conform import Checker, check_file, check_server
from jido_nats.core import subjects


@click.command()
@click.option("--port", type=PORT, default=8080, show_default=True, help="Port to listen on.")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; other than loopback only with --token.",
)
@click.option(
    "--public-url",
    envvar="JIDO_DASHBOARD_PUBLIC_URL",
    metavar="URL",
    help="What browsers open if a proxy is in front of it: https://dash.example.org",
)
@click.option("--read-only", is_flag=True, help="Offer no commands.")
@click.option("--token", "browser_token", envvar="JIDO_DASHBOARD_TOKEN", help="Token that a browser needs: /?token=…")
@click.option(
    "--login-idle-s",
    envvar="JIDO_DASHBOARD_LOGIN_IDLE_S",
    type=click.FloatRange(min=1),
    default=3600,
    show_default=True,
    help="A browser that has not been used for this many seconds needs the token again.",
)
@partial(connection_options, token="--nats-token")  # the name of an option  # nosec B106
def dashboard(port: int, browser_token: str | None, **others: Any) -> None:
    """Show sessions live in a browser, and control them."""
    try:
        from jido_nats.dashboard.serve import dashboard as serving
    except ImportError as error:
        fail(f"the dashboard needs more packages: pip install 'jido_nats[dashboard]' ({error})")

    prepare_process()
    served = {name: others.pop(name) for name in ("host", "public_url", "login_idle_s", "read_only")}

    async def run() -> None:
        end_on_sigterm()
        options = connect_options(**others)
        async with serving(options, port=port, token=browser_token, **served) as url:
            click.echo(printable(f"The dashboard of {options.safe_servers()} is on {url}; Ctrl-C stops it"))
            if browser_token is not None:
                click.echo(f"Open {served['public_url'] or url}/?token=… once; the browser keeps a cookie")
            await asyncio.Event().wait()

    run_program(run())


@click.command()
@config_option
@click.option("--replicas", type=int, help="Replicas of the streams and buckets, as configured in the managers.")
@click.option("--monitoring", default="http://127.0.0.1:8222", show_default=True, help="The server's monitoring URL.")
@common_options
async def doctor(common: Common, config_file: Path | None, monitoring: str, **overrides: Any) -> int:
    """Report what is wrong and what to do: exit code 0, 1 with warnings, 2 with errors."""
    levels = set()
    settings = load_settings(config_file, **overrides)
    async for finding in examine(common.connection, settings, monitoring):
        common.printer.finding(finding.level, finding.check, finding.message)
        levels.add(finding.level)
    return exit_code(levels)


@click.command("schema")
@click.option(
    "--format", "kind", type=click.Choice(["jsonschema", "asyncapi"]), default="jsonschema", show_default=True
)
def schema_(kind: str) -> None:
    """Print the contract: every event, command and reply."""
    contract = schema.document() if kind == "jsonschema" else asyncapi.document()
    click.echo(msgspec.json.format(msgspec.json.encode(contract)).decode())


@click.command()
@click.option("--file", type=click.File("rb"), help="A recording, as 'events --json' prints it; - for stdin.")
@click.option("--partial", is_flag=True, help="The recording starts or ends in the middle of sessions.")
@click.option(
    "--stream", default=subjects.EVENTS_STREAM, show_default=True, help="The stream to check, without --file."
)
@common_options
async def conform(common: Common, file: BinaryIO | None, partial: bool, stream: str) -> int:
    """Report where events violate the contract, in a recording or in the stream: exit code 0 or 1."""
    checker = Checker(partial=partial)
    if file is not None:
        for finding in check_file(file, checker):
            common.printer.violation(finding)
    else:
        await _check_stream(common, stream, checker)
    common.printer.note(f"{checker.messages} messages of {checker.sessions} sessions, {checker.violations} violations")
    return 1 if checker.violations else 0


async def _check_stream(common: Common, stream: str, checker: Checker) -> None:
    with progress() as bar:

        def report(done: int, of: int) -> None:
            bar("checking", done, of)

        async for finding in check_server(common.connection, stream, checker, report):
            with bar.aside():
                common.printer.violation(finding)
