"""Options for what a manager runs for each session, and for how long."""

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
    """Add the options for the worker and its time limits."""
    for option in reversed(_WORKER):
        command = option(command)
    return command


_WORKER: Final[tuple[Callable[..., Callable[..., None]], ...]] = (
    click.option("--worker", help="The worker, as package.module:callable; without one, sessions only wait."),
    click.option("--exec", "command", metavar="COMMAND", help="The worker: a program in any language."),
    click.option(
        "--isolation",
        type=click.Choice(["task", "process"]),
        default="task",
        show_default=True,
        help="Run --worker in the manager's process, or each session in its own process.",
    ),
    click.option(
        "--wait-ready", is_flag=True, default=None, help="A session becomes active only when its worker reports ready."
    ),
    click.option("--idle-after-s", type=float, help="active → idle after this long without a message or output."),
    click.option("--idle-timeout-s", type=float, help="End a session that has been idle for this long."),
    click.option("--max-lifetime-s", type=float, help="End a session this long after its creation."),
    click.option(
        "--worker-user", metavar="NAME|UID[:GID]", help="Run programs and isolated workers as this user; needs root."
    ),
    click.option(
        "--worker-limit",
        metavar="NAME=VALUE,…",
        help="Limit each of their processes: memory=512M,nofile=1024,cpu=60s,nproc=64,fsize=1G,core=0.",
    ),
    click.option(
        "--worker-env",
        multiple=True,
        metavar="NAME,…|NAME=VALUE",
        callback=lambda _context, _option, value: value or None,
        help="Of the environment they get only this, and PATH, HOME, USER, LANG, TZ; may be repeated.",
    ),
)


def choose_worker(worker: str | None, command: str | None, isolation: str, settings: Settings) -> Worker:
    """The worker: a coroutine in this process, a coroutine in its own process, or a program."""
    if worker is not None and command is not None:
        raise ConfigurationError("--worker and --exec exclude each other; give one")
    if command is not None:
        return Program(
            command,
            stop_timeout_s=settings.stop_timeout_s,
            wait_ready=settings.wait_ready,
            user=settings.worker_user,
            limit=settings.worker_limit,
            env=settings.worker_env,
        )
    if worker is None:
        return wait_forever
    loaded = load_worker(worker)  # even if it runs in another process: a wrong name is reported at once
    return isolated(worker, settings) if isolation == "process" else loaded


async def wait_forever(session: Session) -> None:
    """The default worker: does nothing until it is terminated."""
    await asyncio.Event().wait()
