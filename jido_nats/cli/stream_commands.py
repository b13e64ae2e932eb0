"""Commands that read streams: events, output, and the table of sessions."""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click

from jido_nats.broker.connection import Connection
from jido_nats.broker.stream_info import check_stream
from jido_nats.cli.options import Common, common_options, config_option, load_settings, pairs_of
from jido_nats.cli.process import end_on_sigterm
from jido_nats.cli.progress import prints_to_file, progress
from jido_nats.cli.table.screen import WatchScreen
from jido_nats.cli.table.terminal import is_screen
from jido_nats.client.client import Client
from jido_nats.client.streams import EventStream, OutputStream
from jido_nats.core.position import parse_position
from jido_nats.core.session import Status
from jido_nats.core.subjects import check_session_id
from jido_nats.store.journal_log import JournalLog


@click.command()
@click.argument("session_id", metavar="[ID]", required=False)
@click.option("--since", default="new", show_default=True, help="As for 'events'.")
@click.option("--no-follow", is_flag=True, help="Exit after everything that is stored.")
@partial(common_options, follows=True)
async def output(common: Common, session_id: str | None, since: str, no_follow: bool) -> None:
    """Print output and conversation of a session (or of all sessions), live or replayed."""
    async with (
        Client.connect(common.connection) as client,
        client.output(session_id=session_id, since=since) as stream,
    ):
        with _replay_progress(stream, no_follow) as report:
            async for message in stream.stored() if no_follow else stream:
                common.printer.output(message)
                report(message.sequence)


@click.command()
@click.option("--session", "session_id", metavar="ID", help="Only the status events of this session.")
@click.option(
    "--since", default="new", show_default=True, help="new, all, an age (1h), a time (RFC 3339) or a sequence."
)
@click.option("--durable", metavar="NAME", help="Durable consumer: resumes where it stopped.")
@click.option("--no-follow", is_flag=True, help="Exit after everything that is stored.")
@partial(common_options, follows=True)
async def events(common: Common, session_id: str | None, since: str, durable: str | None, no_follow: bool) -> None:
    """Print events, live or replayed."""
    async with (
        Client.connect(common.connection) as client,
        client.events(session_id=session_id, since=since, durable=durable) as stream,
    ):
        with _replay_progress(stream, no_follow) as report:
            async for message in stream.stored() if no_follow else stream:
                common.printer.event(message)
                report(message.sequence)
        await stream.acknowledge()


@contextlib.contextmanager
def _replay_progress(stream: EventStream | OutputStream, no_follow: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar, if the replay has an end and goes to a file; otherwise the replay itself is visible."""
    if not no_follow or not prints_to_file():
        yield lambda position: None
        return
    first = 0
    with progress() as bar:

        def report(position: int) -> None:
            nonlocal first
            first = first or position
            bar("replaying", position - first + 1, max(stream.until, position) - first + 1)

        yield report


@click.command()
@click.argument("session_id", metavar="ID")
@config_option
@common_options
async def journal(common: Common, session_id: str, config_file: Path | None) -> int:
    """Print what a session with a restart policy needs to go on; for operators. Exit code 1 if there is nothing."""
    check_session_id(session_id)
    settings = load_settings(config_file)
    connection = await Connection.open(common.connection, "jido-nats journal")
    try:
        await check_stream(connection, settings.journal_stream)
        messages = await JournalLog(connection, settings.journal_stream).messages(session_id)
    finally:
        await connection.close()
    for message in messages:
        common.printer.journal_entry(message)
    if not messages:
        common.printer.note(f"no journal of {session_id}: it has no restart policy, or has ended")
    return 0 if messages else 1


@click.command()
@click.option("--session", "session_id", metavar="ID", help="Only this session.")
@click.option("--status", type=click.Choice([s.value for s in Status]), help="Only sessions in this status.")
@click.option("--metadata", multiple=True, metavar="KEY=VALUE", help="Only sessions with this metadata.")
@click.option("--worker", help="Only sessions with this kind of worker.")
@click.option("--position", metavar="TOKEN", help="Resume after this position_token, without a snapshot.")
@click.option("--cursor", hidden=True)
@click.option("--plain", is_flag=True, help="Print a line for each session and change, even in a terminal.")
@partial(common_options, fast=True, follows=True)
async def watch(
    common: Common,
    session_id: str | None,
    status: str | None,
    metadata: tuple[str, ...],
    worker: str | None,
    position: str | None,
    cursor: str | None,
    plain: bool,
) -> None:
    """Show the sessions, then every change: a live table in a terminal (? lists its keys), else lines."""
    if cursor is not None:
        click.echo("jido-nats: --cursor is deprecated; use --position", err=True)
        position = cursor if position is None else position
    if position is not None and not parse_position(position).is_verifiable:
        click.echo("jido-nats: a bare sequence cannot be verified; use the position_token that --json prints", err=True)
    filters: dict[str, Any] = {
        "session_id": session_id,
        "status": Status(status) if status else None,
        "metadata": pairs_of(metadata),
        "worker": worker,
    }
    async with Client.connect(common.connection) as client:
        if is_screen() and not (plain or common.printer.as_json):
            end_on_sigterm()
            await WatchScreen(client, common.connection.safe_servers(), **filters).run(position)
            return
        async with client.watch_sessions(position=position, **filters) as watched:
            async for message in watched:
                common.printer.watched(message)
