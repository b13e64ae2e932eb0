"""The command line: parse, wire, run. What the commands do is decided elsewhere."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final

import click
import msgspec

from jido_nats.bench import deployment
from jido_nats.bench import run as benchmark
from jido_nats.bench.plan import CONCURRENCY, SESSIONS, Part, Plan
from jido_nats.broker.local_server import LocalServer
from jido_nats.cli import bench_table as bench_ui
from jido_nats.cli import demo as story
from jido_nats.cli import logs, systemd
from jido_nats.cli.doctor import examine, exit_code
from jido_nats.cli.options import (
    DEFAULT_SERVER,
    IDENTITY,
    Common,
    common_options,
    connect_options,
    connection_options,
    json_object,
    load_settings,
    pairs_of,
    text_of_stdin,
)
from jido_nats.cli.printer import Printer
from jido_nats.cli.process import end_on_sigterm, fail, monitored, prepare_process, run_program, serve_until_signal
from jido_nats.cli.progress import prints_to_file, progress
from jido_nats.cli.table.screen import WatchScreen
from jido_nats.cli.table.terminal import is_screen
from jido_nats.cli.worker_options import choose_worker, worker_options
from jido_nats.client.client import Client
from jido_nats.client.streams import EventStream, OutputStream
from jido_nats.contract import asyncapi, schema
from jido_nats.contract.conform import Checker, check_file, check_server
from jido_nats.core import subjects
from jido_nats.core.codec import Encoding
from jido_nats.core.session import Status
from jido_nats.errors import ConfigurationError
from jido_nats.manager.manager import VERSION, SessionManager

PORT: Final = click.IntRange(0, 65535)
TRY_THESE: Final = """\
Try, in another terminal:
  jido-nats create --metadata project=demo{where}
  jido-nats list{where}
  jido-nats events --since all{where}
or with the nats CLI:
  nats sub 'jido.client.>'{nats_where}
  nats req jido.session.create ''{nats_where}
  nats kv ls JIDO_SESSIONS{nats_where}
  nats sub --stream JIDO_CLIENT --all 'jido.client.>'{nats_where}
  nats micro info jido-session-manager{nats_where}
Ctrl-C ends it."""


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="jido-nats")
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
def main(verbose: bool) -> None:
    """Sessions whose every status change is an event on NATS."""
    logs.configure(logging.DEBUG if verbose else logging.WARNING)


@main.command()
@click.option("--nats-server", "binary", type=click.Path(path_type=Path), help="A nats-server to use.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line on stdout.")
def demo(binary: Path | None, as_json: bool) -> None:
    """Show the whole story on a server of its own, in seconds."""

    async def tell() -> int:
        end_on_sigterm()
        return 0 if await story.run(Printer(as_json=as_json), binary) else 1

    logs.configure(logging.ERROR)
    run_program(tell())


@main.command()
@click.option("--port", type=PORT, default=4222, show_default=True, help="Where the server listens, on loopback.")
@click.option("--store-dir", type=click.Path(path_type=Path, file_okay=False), help="Keep what is stored here.")
@click.option("--nats-server", "binary", type=click.Path(path_type=Path), help="A nats-server to use.")
@click.option("--config", "config_file", type=click.Path(path_type=Path, dir_okay=False), help="Settings, as TOML.")
@worker_options
def up(
    port: int,
    store_dir: Path | None,
    binary: Path | None,
    config_file: Path | None,
    worker: str | None,
    command: str | None,
    isolation: str,
    **overrides: Any,
) -> None:
    """Run a local server and a manager until Ctrl-C."""

    async def run() -> None:
        end_on_sigterm()
        settings = load_settings(config_file, **overrides)
        run_worker = choose_worker(worker, command, isolation, settings)
        async with LocalServer(port=port, store_dir=store_dir, binary=binary) as server:
            async with SessionManager.connect(server.url, worker=run_worker, settings=settings) as manager:
                await manager.start_serving()
                away = server.url != DEFAULT_SERVER
                click.echo(f"A NATS server with a session manager runs on {server.url}")
                if store_dir is None:
                    click.echo("What it stores goes when it ends; --store-dir DIR keeps it.")
                click.echo(
                    TRY_THESE.format(
                        where=f" --server {server.url}" if away else "", nats_where=f" -s {server.url}" if away else ""
                    )
                )
                await serve_until_signal(manager)

    run_program(run())


@main.command()
@worker_options
@click.option("--encoding", type=click.Choice([e.value for e in Encoding]), help="How events are written.")
@click.option("--replicas", type=int, help="Copies of the stream and the buckets.")
@click.option("--lease-s", type=int, help="Seconds after which a silent manager counts as dead.")
@click.option("--stop-timeout-s", type=float, help="Seconds that a session has to stop before it is killed.")
@click.option(
    "--drain-timeout", "drain_timeout_s", type=float, help="Seconds that sessions may still run when it is stopped."
)
@click.option("--metrics-port", type=PORT, help="Serve /metrics, /livez and /readyz there.")
@click.option("--metrics-host", default="127.0.0.1", show_default=True, help="The address for them.")
@click.option("--log-format", type=click.Choice(["line", "json"]), default="line", show_default=True)
@click.option("--config", "config_file", type=click.Path(path_type=Path, dir_okay=False), help="Settings, as TOML.")
@click.option("--api-user", envvar="NATS_API_USER", help="The user that answers commands.  [default: the same]")
@click.option("--api-password", envvar="NATS_API_PASSWORD", help="Its password; better in NATS_API_PASSWORD.")
@partial(common_options, fast=True)
async def serve(
    common: Common,
    worker: str | None,
    command: str | None,
    isolation: str,
    config_file: Path | None,
    api_user: str | None,
    api_password: str | None,
    metrics_port: int | None,
    metrics_host: str,
    log_format: str,
    **overrides: Any,
) -> None:
    """Run a manager against an existing server until SIGTERM or Ctrl-C."""
    prepare_process()
    logs.use_format(log_format)
    settings, api = load_settings(config_file, **overrides), common.connection
    if api_user is not None:
        api = replace(api, **IDENTITY | {"user": api_user, "password": api_password}, inbox_prefix=None)
    run_worker = choose_worker(worker, command, isolation, settings)
    async with (
        systemd.served(),
        SessionManager.connect(common.connection, worker=run_worker, settings=settings, api=api) as manager,
        monitored(manager, metrics_host, metrics_port),
    ):
        await manager.start_serving()
        systemd.notify("READY=1")
        logs.announce(f"{manager.manager_id} serves on {common.connection.safe_servers()}; Ctrl-C ends it")
        await serve_until_signal(manager)


@main.command()
@click.option("--session-id", help="Choose the id; then the same command again gives the same session.")
@click.option("--metadata", multiple=True, metavar="KEY=VALUE", help="Broadcast with the session; no secrets.")
@click.option("--llm-config", metavar="JSON", help="A JSON object, stored with the session; no secrets.")
@click.option("--idle-after-s", type=float, help="active → idle after so long without message or output; 0: never.")
@click.option("--idle-timeout-s", type=float, help="End it when it has been idle for so long; 0: never.")
@click.option("--max-lifetime-s", type=float, help="End it so long after its creation; 0: never.")
@common_options
async def create(
    common: Common,
    session_id: str | None,
    metadata: tuple[str, ...],
    llm_config: str | None,
    **limits: float | None,
) -> None:
    """Create a session; shows its record once it is active."""
    pairs, config = pairs_of(metadata), json_object("--llm-config", llm_config)
    async with Client.connect(common.connection) as client:
        common.show.record(
            await client.create_session(session_id=session_id, metadata=pairs, llm_config=config, **limits)
        )


@main.command("list")
@click.option("--all", "include_terminated", is_flag=True, help="Also those that have ended.")
@click.option("--status", type=click.Choice([s.value for s in Status]), help="Only those in this status.")
@click.option("--metadata", multiple=True, metavar="KEY=VALUE", help="Only those that have this.")
@common_options
async def list_(common: Common, include_terminated: bool, status: str | None, metadata: tuple[str, ...]) -> None:
    """List the live sessions, ordered by id."""
    async with Client.connect(common.connection) as client:
        common.show.records(
            await client.list_sessions(
                status=Status(status) if status else None,
                metadata=pairs_of(metadata),
                include_terminated=include_terminated,
            )
        )


@main.command()
@click.argument("session_id", metavar="ID")
@common_options
async def get(common: Common, session_id: str) -> None:
    """Show a session's record."""
    async with Client.connect(common.connection) as client:
        common.show.record(await client.get_session_info(session_id))


@main.command()
@click.argument("session_id", metavar="ID")
@click.option("--for", "status", type=click.Choice([s.value for s in Status]), default="terminated", show_default=True)
@click.option("--timeout", type=float, help="Give up after so many seconds.")
@common_options
async def wait(common: Common, session_id: str, status: str, timeout: float | None) -> None:
    """Wait until a session is in a status; shows its record."""
    async with Client.connect(common.connection) as client:
        common.show.record(await client.wait(session_id, status, timeout_s=timeout))


@main.command()
@click.argument("session_id", metavar="ID")
@click.option("--detail", help="Why, in your words; told in the events.")
@common_options
async def terminate(common: Common, session_id: str, detail: str | None) -> None:
    """End a session; shows its record."""
    async with Client.connect(common.connection) as client:
        common.show.record(await client.terminate_session(session_id, detail=detail))


@main.command()
@click.argument("session_id", metavar="ID")
@common_options
async def idle(common: Common, session_id: str) -> None:
    """Make an active session idle."""
    async with Client.connect(common.connection) as client:
        common.show.record(await client.idle_session(session_id))


@main.command()
@click.argument("session_id", metavar="ID")
@common_options
async def activate(common: Common, session_id: str) -> None:
    """Make an idle session active."""
    async with Client.connect(common.connection) as client:
        common.show.record(await client.activate_session(session_id))


@main.command()
@click.argument("session_id", metavar="ID")
@click.argument("content")
@click.option("--role", default="user", show_default=True, help="Who says it.")
@click.option("--message-id", help="Choose the id; then the same command again sends nothing more.")
@common_options
async def send(common: Common, session_id: str, content: str, role: str, message_id: str | None) -> None:
    """Send a message to a session's worker; - as CONTENT reads it from standard input."""
    text = text_of_stdin() if content == "-" else content
    async with Client.connect(common.connection) as client:
        common.show.sent(await client.send_message(session_id, role, text, message_id=message_id))


@main.command()
@click.argument("session_id", metavar="[ID]", required=False)
@click.option("--since", default="new", show_default=True, help="As of 'events'.")
@click.option("--no-follow", is_flag=True, help="End when everything stored was shown.")
@partial(common_options, follows=True)
async def output(common: Common, session_id: str | None, since: str, no_follow: bool) -> None:
    """Show what a session's worker says and is told (or all sessions'), live or replayed."""
    async with (
        Client.connect(common.connection) as client,
        client.output(session_id=session_id, since=since) as stream,
    ):
        with _replay_progress(stream, no_follow) as tell:
            async for message in stream.stored() if no_follow else stream:
                common.show.output(message)
                tell(message.sequence)


@main.command()
@click.option("--session", "session_id", metavar="ID", help="Only the status events of this session.")
@click.option(
    "--since", default="new", show_default=True, help="new, all, an age (1h), a time (RFC 3339) or a sequence."
)
@click.option("--durable", metavar="NAME", help="A consumer that the server keeps: carries on where it stopped.")
@click.option("--no-follow", is_flag=True, help="End when everything stored was shown.")
@partial(common_options, follows=True)
async def events(common: Common, session_id: str | None, since: str, durable: str | None, no_follow: bool) -> None:
    """Show events, live or replayed."""
    async with (
        Client.connect(common.connection) as client,
        client.events(session_id=session_id, since=since, durable=durable) as stream,
    ):
        with _replay_progress(stream, no_follow) as tell:
            async for message in stream.stored() if no_follow else stream:
                common.show.event(message)
                tell(message.sequence)
        await stream.acknowledge()


@contextlib.contextmanager
def _replay_progress(stream: EventStream | OutputStream, no_follow: bool) -> Iterator[Callable[[int], None]]:
    """A bar by position, where the replay has an end and goes to a file; elsewhere it is seen itself."""
    if not no_follow or not prints_to_file():
        yield lambda position: None
        return
    first = 0
    with progress() as tell:

        def at(position: int) -> None:
            nonlocal first
            first = first or position
            tell("replaying", position - first + 1, max(stream.until, position) - first + 1)

        yield at


@main.command()
@click.argument("session_id", metavar="ID")
@common_options
async def history(common: Common, session_id: str) -> None:
    """Show every event of a session, by request-reply: also when its record has expired."""
    async with Client.connect(common.connection) as client:
        for event in await client.session_history(session_id):
            common.show.past_event(event)


@main.command()
@click.option("--session", "session_id", metavar="ID", help="Only this session.")
@click.option("--status", type=click.Choice([s.value for s in Status]), help="Only those in this status.")
@click.option("--metadata", multiple=True, metavar="KEY=VALUE", help="Only those that have this.")
@click.option("--cursor", type=click.IntRange(0), help="Resume behind this position, with no snapshot.")
@click.option("--plain", is_flag=True, help="A line for each session and change, also in a terminal.")
@partial(common_options, fast=True, follows=True)
async def watch(
    common: Common,
    session_id: str | None,
    status: str | None,
    metadata: tuple[str, ...],
    cursor: int | None,
    plain: bool,
) -> None:
    """Show the sessions there are, then every change: a live table in a terminal (? tells its keys), else lines."""
    asked: dict[str, Any] = {
        "session_id": session_id,
        "status": Status(status) if status else None,
        "metadata": pairs_of(metadata),
    }
    async with Client.connect(common.connection) as client:
        if is_screen() and not (plain or common.show.as_json):
            end_on_sigterm()
            await WatchScreen(client, common.connection.safe_servers(), **asked).run(cursor)
            return
        async with client.watch_sessions(cursor=cursor, **asked) as watched:
            async for message in watched:
                common.show.watched(message)


@main.command()
@click.option("--port", type=PORT, default=8080, show_default=True, help="Where it listens.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Beyond loopback only with --token.")
@click.option("--read-only", is_flag=True, help="Show, and change nothing.")
@click.option("--token", "page_token", envvar="JIDO_DASHBOARD_TOKEN", help="What a browser has to bring: /?token=…")
@partial(connection_options, token="--nats-token")
def dashboard(port: int, host: str, read_only: bool, page_token: str | None, **connection: Any) -> None:
    """Show sessions live in the browser, and command them."""
    try:
        from jido_nats.dashboard.serve import dashboard as serving
    except ImportError as error:
        fail(f"the dashboard needs more packages: pip install 'jido_nats[dashboard]' ({error})")

    async def run() -> None:
        end_on_sigterm()
        options = connect_options(**connection)
        async with serving(options, host=host, port=port, token=page_token, read_only=read_only) as url:
            click.echo(f"The dashboard of {options.safe_servers()} is on {url}; Ctrl-C ends it")
            if page_token is not None:
                click.echo(f"A browser gets in once with {url}/?token=… and is known from then on")
            await asyncio.Event().wait()

    run_program(run())


@main.command()
@click.option("--config", "config_file", type=click.Path(path_type=Path, dir_okay=False), help="Settings, as TOML.")
@click.option("--replicas", type=int, help="Copies of the stream and the buckets, as the managers have it.")
@click.option("--monitoring", default="http://127.0.0.1:8222", show_default=True, help="The server's monitoring URL.")
@common_options
async def doctor(common: Common, config_file: Path | None, monitoring: str, **overrides: Any) -> int:
    """Say what is wrong, and what to do: exit code 0, 1 with warnings, 2 with errors."""
    levels = set()
    settings = load_settings(config_file, **overrides)
    async for finding in examine(common.connection, settings, monitoring):
        common.show.finding(finding.level, finding.check, finding.says)
        levels.add(finding.level)
    return exit_code(levels)


@main.command("schema")
@click.option(
    "--format", "kind", type=click.Choice(["jsonschema", "asyncapi"]), default="jsonschema", show_default=True
)
def schema_(kind: str) -> None:
    """Print the contract: every event, command and reply."""
    contract = schema.document() if kind == "jsonschema" else asyncapi.document()
    click.echo(msgspec.json.format(msgspec.json.encode(contract)).decode())


@main.command()
@click.option("--file", type=click.File("rb"), help="A recording, as 'events --json' prints it; - for stdin.")
@click.option("--partial", is_flag=True, help="The recording begins and ends in the middle of sessions' lives.")
@click.option("--stream", default=subjects.EVENTS_STREAM, show_default=True, help="The stream, without --file.")
@common_options
async def conform(common: Common, file: BinaryIO | None, partial: bool, stream: str) -> int:
    """Say where events break the contract, in a recording or in the stream: exit code 0 or 1."""
    checker = Checker(partial=partial)
    if file is not None:
        for finding in check_file(file, checker):
            common.show.violation(finding)
    else:
        with progress() as bar:

            def tell(done: int, of: int) -> None:
                bar("checking", done, of)

            async for finding in check_server(common.connection, stream, checker, tell):
                with bar.aside():
                    common.show.violation(finding)
    common.show.say(f"{checker.messages} messages of {checker.sessions} sessions, {checker.violations} violations")
    return 1 if checker.violations else 0


@main.command()
@click.option("--sessions", type=click.IntRange(1), default=SESSIONS, show_default=True, help="How many sessions.")
@click.option("--concurrency", type=click.IntRange(1), default=CONCURRENCY, show_default=True, help="Commands at once.")
@click.option(
    "--only", type=click.Choice([p.value for p in Part]), multiple=True, help="Measure this; may be repeated."
)
@click.option(
    "--managers",
    type=click.IntRange(1),
    help="Start a server and so many managers.  [default: 1 where no server is named]",
)
@click.option("--sync", type=click.Choice(list(deployment.SYNC_INTERVALS)), help="Of that server.  [default: always]")
@click.option("--lease-s", type=int, help="As the managers have it; of managers that are started, theirs.")
@click.option("--replicas", type=int, help="Copies of the stream and the buckets, as the managers have it.")
@click.option("--config", "config_file", type=click.Path(path_type=Path, dir_okay=False), help="Settings, as TOML.")
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
    """Measure a deployment, or a server and managers of its own, beside the same writes in bare nats-py."""
    end_on_sigterm()
    settings, named = load_settings(config_file, **overrides), _server_is_named()
    if named and (managers or sync):
        raise ConfigurationError("--managers and --sync are for a server of the bench's own: leave out --server")
    plan = Plan(sessions, concurrency, frozenset(map(Part, only)) or frozenset(Part))
    plan = benchmark.check(plan, own_managers=not named)
    found = (
        deployment.existing(common.connection, settings)
        if named
        else deployment.local(settings, config_file, managers=managers or 1, sync=sync or "always")
    )
    results = []
    async with found as where:
        with progress() as tell:
            async with contextlib.aclosing(benchmark.run(where, plan, tell)) as measured:
                async for result in measured:
                    results.append(result)
                    if common.show.as_json:
                        bench_ui.line(result)
    if not common.show.as_json:
        common.show.console.print(bench_ui.table(results))


def _server_is_named() -> bool:
    """Whether the user has said where the server is, and not only the default."""
    context = click.get_current_context()
    sources = (click.core.ParameterSource.COMMANDLINE, click.core.ParameterSource.ENVIRONMENT)
    return any(context.get_parameter_source(name) in sources for name in ("server", "context"))
