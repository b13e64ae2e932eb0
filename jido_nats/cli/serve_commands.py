"""Commands that run a manager: `serve` on an existing server, `up` and `demo` with a local one."""

import contextlib
import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import click

from jido_nats.broker.local_server import LocalServer
from jido_nats.broker.options import ConnectOptions
from jido_nats.cli import demo as demonstration
from jido_nats.cli import logs, systemd
from jido_nats.cli.options import (
    DEFAULT_SERVER,
    IDENTITY,
    PORT,
    Common,
    common_options,
    config_option,
    load_settings,
)
from jido_nats.cli.printer import Printer
from jido_nats.cli.process import (
    end_on_sigterm,
    monitored,
    prepare_process,
    restore_sigchld,
    run_program,
    serve_until_signal,
)
from jido_nats.cli.worker_options import ONLY_WAITS, WorkerOptions, Workers, only_programs, only_waits, worker_options
from jido_nats.core.codec import Encoding
from jido_nats.core.session import DEFAULT_WORKER
from jido_nats.core.settings import Settings
from jido_nats.manager.manager import SessionManager
from jido_nats.worker.program import adopting_orphans

TRY_THESE: Final = """\
Try, in another terminal:
  jido-nats create --metadata project=demo{worker}{where}
  jido-nats list{where}
  jido-nats events --since all{where}
or with the nats CLI:
  nats sub 'jido.client.>'{nats_where}
  nats req jido.session.create '{request}'{nats_where}
  nats kv ls JIDO_SESSIONS{nats_where}
  nats sub --stream JIDO_CLIENT --all 'jido.client.>'{nats_where}
  nats micro info jido-session-manager{nats_where}
Ctrl-C stops it."""


@click.command()
@click.option("--nats-server", "binary", type=click.Path(path_type=Path), help="Path of the nats-server to run.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line on stdout.")
def demo(binary: Path | None, as_json: bool) -> None:
    """Run a demonstration on a local server, in seconds."""

    async def run() -> int:
        end_on_sigterm()
        return 0 if await demonstration.run(Printer(as_json=as_json), binary) else 1

    logs.configure(logging.ERROR)
    run_program(run())


@click.command()
@click.option("--port", type=PORT, default=4222, show_default=True, help="Port of the server, on loopback.")
@click.option(
    "--store-dir", type=click.Path(path_type=Path, file_okay=False), help="Keep the stored data in this directory."
)
@click.option("--nats-server", "binary", type=click.Path(path_type=Path), help="Path of the nats-server to run.")
@config_option
@worker_options
def up(
    port: int,
    store_dir: Path | None,
    binary: Path | None,
    config_file: Path | None,
    workers: tuple[str, ...],
    command: str | None,
    isolation: str | None,
    **overrides: Any,
) -> None:
    """Run a local server and a manager until Ctrl-C."""

    async def run() -> None:
        restore_sigchld()
        end_on_sigterm()
        settings = load_settings(config_file, **overrides)
        chosen = WorkerOptions(workers, command, isolation).load(settings)
        server = LocalServer(port=port, store_dir=store_dir, binary=binary)
        await _run_local(server, chosen, settings, temporary=store_dir is None)

    run_program(run())


async def _run_local(server: LocalServer, workers: Workers, settings: Settings, *, temporary: bool) -> None:
    async with server, SessionManager.connect(server.url, worker=workers, settings=settings) as manager:
        await manager.start_serving()
        click.echo(f"A NATS server with a session manager is running on {server.url}")
        if temporary:
            click.echo("Its data is deleted when it stops; --store-dir DIR keeps it.")
        if only_waits(workers):
            click.echo(f"{ONLY_WAITS}.")
        click.echo(_try_these(server.url, workers))
        await serve_until_signal(manager)


def _try_these(url: str, workers: Workers) -> str:
    """Commands that work with this server, and with one of its workers."""
    name = DEFAULT_WORKER if DEFAULT_WORKER in workers else next(iter(workers))
    chosen = {"worker": "", "request": ""}
    if name != DEFAULT_WORKER:
        chosen = {"worker": f" --worker {name}", "request": f'{{"worker":"{name}"}}'}
    elsewhere = url != DEFAULT_SERVER
    where = {"where": f" --server {url}" if elsewhere else "", "nats_where": f" -s {url}" if elsewhere else ""}
    return TRY_THESE.format(**chosen, **where)


@click.command()
@worker_options
@click.option("--encoding", type=click.Choice([e.value for e in Encoding]), help="Encoding of the events.")
@click.option("--replicas", type=int, help="Replicas of the streams and buckets.")
@click.option("--lease-s", type=int, help="Seconds without renewal after which a manager counts as dead.")
@click.option("--stop-timeout-s", type=float, help="Seconds that a worker has to stop before it is killed.")
@click.option(
    "--drain-timeout", "drain_timeout_s", type=float, help="Seconds that sessions may still run after SIGTERM."
)
@click.option("--metrics-port", type=PORT, help="Serve /metrics, /livez and /readyz on this port.")
@click.option("--metrics-host", default="127.0.0.1", show_default=True, help="Address for --metrics-port.")
@click.option("--log-format", type=click.Choice(["line", "json"]), default="line", show_default=True)
@config_option
@click.option(
    "--api-user", envvar="NATS_API_USER", help="User of the connection that answers commands.  [default: --user]"
)
@click.option("--api-password", envvar="NATS_API_PASSWORD", help="Its password; prefer NATS_API_PASSWORD.")
@partial(common_options, fast=True)
async def serve(
    common: Common,
    workers: tuple[str, ...],
    command: str | None,
    isolation: str | None,
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
    settings, api = load_settings(config_file, **overrides), _api_options(common.connection, api_user, api_password)
    chosen = WorkerOptions(workers, command, isolation).load(settings)
    async with (
        systemd.served(),
        _adopting_orphans(chosen),
        SessionManager.connect(common.connection, worker=chosen, settings=settings, api=api) as manager,
        monitored(manager, metrics_host, metrics_port),
    ):
        await manager.start_serving()
        systemd.notify("READY=1")
        logs.announce(f"{manager.manager_id} serves on {common.connection.safe_servers()}; Ctrl-C stops it")
        if only_waits(chosen):
            logs.announce(ONLY_WAITS)
        await serve_until_signal(manager)


def _adopting_orphans(workers: Workers) -> contextlib.AbstractAsyncContextManager[None]:
    """With programs alone as workers: this process starts nothing else, so it may adopt what they orphan."""
    programs = only_programs(workers)
    return adopting_orphans(programs) if programs else contextlib.nullcontext()


def _api_options(options: ConnectOptions, user: str | None, password: str | None) -> ConnectOptions:
    """Options of the connection that answers commands: the same user, unless another is named."""
    if user is None:
        return options
    return replace(options, **IDENTITY | {"user": user, "password": password}, inbox_prefix=None)
