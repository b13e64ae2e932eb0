"""The command `jido-nats`: the click group and its commands, which are in files by topic."""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any, Final

import click

from jido_nats.cli import bench_command, logs, process, serve_commands, session_commands, stream_commands, tool_commands
from jido_nats.cli.escape import printable_lines
from jido_nats.manager.manager import VERSION
from jido_nats.worker.processes import become_undumpable

# In newer versions of click: a group without a command prints its help.
_HELP: Final = getattr(click.exceptions, "NoArgsIsHelpError", ())


class _Commands(click.Group):
    """A group whose errors are printable, although they repeat what was typed or pasted."""

    def invoke(self, ctx: click.Context) -> Any:
        with _printable_errors():
            return super().invoke(ctx)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        with _printable_errors():
            return super().parse_args(ctx, args)


@contextlib.contextmanager
def _printable_errors() -> Iterator[None]:
    try:
        yield
    except click.UsageError as error:
        text = error.format_message()
        if text.isprintable() or isinstance(error, _HELP):
            raise
        raise click.UsageError(printable_lines(text), error.ctx) from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="jido-nats")
@click.option("-v", "--verbose", is_flag=True, help="Log at level DEBUG.")
def main(verbose: bool) -> None:
    """Sessions whose every status change is an event on NATS."""
    become_undumpable()  # before anything else: secrets are in the environment
    process.repair_inherited()
    logs.configure(logging.DEBUG if verbose else logging.WARNING)


for _command in (
    *(serve_commands.demo, serve_commands.up, serve_commands.serve),
    *(session_commands.create, session_commands.list_, session_commands.get, session_commands.wait),
    *(session_commands.idle, session_commands.activate, session_commands.terminate),
    *(session_commands.send, session_commands.history),
    *(stream_commands.events, stream_commands.output, stream_commands.journal, stream_commands.watch),
    *(tool_commands.dashboard, tool_commands.doctor, tool_commands.schema_, tool_commands.conform),
    bench_command.bench,
):
    main.add_command(_command)
