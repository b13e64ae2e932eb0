"""Commands about one session, and the list of sessions: each is one call of `Client`, and prints the reply."""

import click

from jido_nats.cli.options import (
    Common,
    common_options,
    json_object,
    labels_of,
    pairs_of,
    restart_policy,
    text_of_stdin,
)
from jido_nats.client.client import Client
from jido_nats.core.session import DEFAULT_WORKER, Status


@click.command()
@click.option("--session-id", help="Choose the id; repeating the command then returns the same session.")
@click.option("--metadata", multiple=True, metavar="KEY=VALUE", help="Published in the events; no secrets.")
@click.option("--llm-config", metavar="JSON", help="JSON object, stored in the record; no secrets.")
@click.option("--worker", default=DEFAULT_WORKER, show_default=True, help="The kind of worker.")
@click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="Only at a manager with this label.")
@click.option("--idle-after-s", type=float, help="active → idle after this long without a message or output; 0: never.")
@click.option("--idle-timeout-s", type=float, help="End it when it has been idle for this long; 0: never.")
@click.option("--max-lifetime-s", type=float, help="End it this long after its creation; 0: never.")
@click.option(
    "--restart", metavar="CAUSES", help="Go on with a new attempt after: crashed, start_failed, owner_lost (commas)."
)
@click.option("--attempts-max", type=int, help="With --restart: failures in a row that end it; 0: no limit.  [5]")
@click.option("--backoff-s", type=float, help="With --restart: wait before the second attempt, then doubled.  [1]")
@common_options
async def create(
    common: Common,
    session_id: str | None,
    metadata: tuple[str, ...],
    llm_config: str | None,
    worker: str,
    labels: tuple[str, ...],
    restart: str | None,
    attempts_max: int | None,
    backoff_s: float | None,
    **limits: float | None,
) -> None:
    """Create a session; prints its record once it is active."""
    pairs, config = pairs_of(metadata), json_object("--llm-config", llm_config)
    policy = restart_policy(restart, attempts_max=attempts_max, backoff_s=backoff_s)
    async with Client.connect(common.connection) as client:
        common.printer.record(
            await client.create_session(
                session_id=session_id,
                metadata=pairs,
                llm_config=config,
                worker=worker,
                labels=labels_of(labels),
                restart=policy,
                **limits,
            )
        )


@click.command("list")
@click.option("--all", "include_terminated", is_flag=True, help="Include sessions that have ended.")
@click.option("--status", type=click.Choice([s.value for s in Status]), help="Only sessions in this status.")
@click.option("--metadata", multiple=True, metavar="KEY=VALUE", help="Only sessions with this metadata.")
@click.option("--worker", help="Only sessions with this kind of worker.")
@common_options
async def list_(
    common: Common, include_terminated: bool, status: str | None, metadata: tuple[str, ...], worker: str | None
) -> None:
    """List the live sessions, ordered by id."""
    async with Client.connect(common.connection) as client:
        common.printer.records(
            await client.list_sessions(
                status=Status(status) if status else None,
                metadata=pairs_of(metadata),
                worker=worker,
                include_terminated=include_terminated,
            )
        )


@click.command()
@click.argument("session_id", metavar="ID")
@common_options
async def get(common: Common, session_id: str) -> None:
    """Print a session's record."""
    async with Client.connect(common.connection) as client:
        common.printer.record(await client.get_session_info(session_id))


@click.command()
@click.argument("session_id", metavar="ID")
@click.option("--for", "status", type=click.Choice([s.value for s in Status]), default="terminated", show_default=True)
@click.option("--timeout", type=float, help="Give up after this many seconds.")
@common_options
async def wait(common: Common, session_id: str, status: str, timeout: float | None) -> None:
    """Wait until a session is in a status; prints its record."""
    async with Client.connect(common.connection) as client:
        common.printer.record(await client.wait(session_id, status, timeout_s=timeout))


@click.command()
@click.argument("session_id", metavar="ID")
@common_options
async def idle(common: Common, session_id: str) -> None:
    """Make an active session idle."""
    async with Client.connect(common.connection) as client:
        common.printer.record(await client.idle_session(session_id))


@click.command()
@click.argument("session_id", metavar="ID")
@common_options
async def activate(common: Common, session_id: str) -> None:
    """Make an idle session active."""
    async with Client.connect(common.connection) as client:
        common.printer.record(await client.activate_session(session_id))


@click.command()
@click.argument("session_id", metavar="ID")
@click.option("--detail", help="Why, in your words; published in the events.")
@common_options
async def terminate(common: Common, session_id: str, detail: str | None) -> None:
    """Terminate a session; prints its record."""
    async with Client.connect(common.connection) as client:
        common.printer.record(await client.terminate_session(session_id, detail=detail))


@click.command()
@click.argument("session_id", metavar="ID")
@click.argument("content")
@click.option("--role", default="user", show_default=True, help="Role of the sender.")
@click.option("--message-id", help="Choose the id; repeating the command then sends nothing new.")
@common_options
async def send(common: Common, session_id: str, content: str, role: str, message_id: str | None) -> None:
    """Send a message to a session's worker; CONTENT - reads standard input."""
    text = text_of_stdin() if content == "-" else content
    async with Client.connect(common.connection) as client:
        common.printer.sent(await client.send_message(session_id, role, text, message_id=message_id))


@click.command()
@click.argument("session_id", metavar="ID")
@common_options
async def history(common: Common, session_id: str) -> None:
    """Print every event of a session, by request-reply, even after its record has expired."""
    async with Client.connect(common.connection) as client:
        for event in await client.session_history(session_id):
            common.printer.past_event(event)
