"""What a manager of the command line runs for each session, and for how long."""

import asyncio
from collections.abc import Callable
from typing import Final

import click

from jido_nats.core.settings import Settings
from jido_nats.errors import ConfigurationError
from jido_nats.worker.loader import load_worker
from jido_nats.worker.program import Program, isolated
from jido_nats.worker.session import Session, Worker


def worker_options(command: Callable[..., None]) -> Callable[..., None]:
    """What a session runs, and for how long."""
    for option in reversed(_WORKER):
        command = option(command)
    return command


_WORKER: Final[tuple[Callable[..., Callable[..., None]], ...]] = (
    click.option("--worker", help="What a session runs, as package.module:callable; without one it only waits."),
    click.option("--exec", "command", metavar="COMMAND", help="What a session runs: a program, in any language."),
    click.option(
        "--isolation",
        type=click.Choice(["task", "process"]),
        default="task",
        show_default=True,
        help="Run --worker in the manager's own process, or each session in a process of its own.",
    ),
    click.option("--wait-ready", is_flag=True, default=None, help="A session is active when its worker says so."),
    click.option("--idle-after-s", type=float, help="active → idle after so long without message or output."),
    click.option("--idle-timeout-s", type=float, help="End a session that has been idle for so long."),
    click.option("--max-lifetime-s", type=float, help="End a session so long after its creation."),
)


def choose_worker(worker: str | None, command: str | None, isolation: str, settings: Settings) -> Worker:
    """What each session runs: a coroutine of this process, one in a process of its own, or a program."""
    if worker is not None and command is not None:
        raise ConfigurationError("--worker and --exec are two ways to say what a session runs; give one")
    if command is not None:
        return Program(command, stop_timeout_s=settings.stop_timeout_s, wait_ready=settings.wait_ready)
    if worker is None:
        return wait_for_ever
    loaded = load_worker(worker)  # also where it will run elsewhere: a wrong name is told at once
    return isolated(worker, settings) if isolation == "process" else loaded


async def wait_for_ever(session: Session) -> None:
    """The worker of a manager that was given none: it does nothing until it is terminated."""
    await asyncio.Event().wait()
