"""Options for what a manager runs for each session, and for how long."""

import logging
import re
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import click

from jido_nats.core.session import DEFAULT_WORKER
from jido_nats.core.settings import Settings
from jido_nats.core.subjects import is_token
from jido_nats.errors import ConfigurationError
from jido_nats.worker.loader import load_worker
from jido_nats.worker.program import NO_PROGRAM, Program, configured, isolated
from jido_nats.worker.session import Worker, wait_forever

_NAMED: Final = re.compile(r"\s*([\w.-]*)\s*=(.*)", re.DOTALL)

ONLY_WAITS: Final = "No worker was given, so sessions only wait until they are terminated; --worker or --exec gives one"

Workers = Mapping[str, Worker]
"""The workers of a manager, by name."""

log = logging.getLogger(__name__)


def worker_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options for the worker and its time limits."""
    for option in reversed(_WORKER):
        command = option(command)
    return command


_WORKER: Final[tuple[Callable[..., Callable[..., None]], ...]] = (
    click.option(
        "--worker",
        "workers",
        multiple=True,
        metavar="[NAME=]WORKER",
        help="The worker: package.module:callable, or a program in any language. Several kinds: each with a NAME. "
        "Without one, sessions only wait.",
    ),
    click.option("--exec", "command", metavar="COMMAND", help="The worker without a name: a program."),
    click.option(
        "--isolation",
        type=click.Choice(["task", "process"]),
        help="Run the Python worker without a name in the manager's process, or each session in its own process.  "
        "[default: task]",
    ),
    click.option(
        "--label",
        "labels",
        multiple=True,
        metavar="NAME=VALUE",
        help="What sessions may ask for in a manager (create --label); may be repeated.",
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


class WorkerOptions(NamedTuple):
    """What the options `--worker`, `--exec` and `--isolation` say."""

    workers: tuple[str, ...]
    command: str | None
    isolation: str | None

    def load(self, settings: Settings) -> Workers:
        """The workers by name; without any, one that only waits. Raises `ConfigurationError`."""
        chosen = self._by_name()
        if not chosen:
            return {DEFAULT_WORKER: wait_forever}
        if self.isolation is not None and DEFAULT_WORKER not in chosen:
            raise ConfigurationError(
                "--isolation is for the worker without a name; set isolation under [workers.NAME] in the settings file"
            )
        for name in settings.workers.keys() - chosen.keys():
            log.warning("the settings name a worker that this manager does not run", extra={"worker": name})
        return {name: self._load(name, text, settings) for name, text in chosen.items()}

    def _by_name(self) -> dict[str, str]:
        chosen: dict[str, str] = {}
        for given in self.workers:
            named = _NAMED.fullmatch(given)
            name, text = (named[1], named[2].strip()) if named else (DEFAULT_WORKER, given)
            if not is_token(name):
                raise ConfigurationError(
                    f"--worker {given}: the name of a worker must be 1 to 64 letters, digits, '_' or '-', not {name!r}"
                )
            if name in chosen:
                raise ConfigurationError(f"--worker names {name!r} twice; give each worker a name of its own")
            chosen[name] = text
        if self.command is not None:
            if DEFAULT_WORKER in chosen:
                raise ConfigurationError(
                    "--worker and --exec exclude each other; give one of them, or --worker NAME=… for several workers"
                )
            chosen[DEFAULT_WORKER] = self.command
        return chosen

    def _load(self, name: str, text: str, settings: Settings) -> Worker:
        of_kind, is_default = settings.of_kind(name), name == DEFAULT_WORKER
        isolation = (self.isolation if is_default else None) or settings.isolation_of(name)
        by_exec = is_default and self.command is not None
        if by_exec or not _is_python(text):
            if settings.isolation_of(name) == "task":
                raise ConfigurationError(f"the worker {name!r} is a program, which always has a process of its own")
            return _program(text, of_kind, "--exec" if by_exec else "--worker")
        loaded = load_worker(text)  # even if it runs in another process: a wrong name is reported at once
        return isolated(text, of_kind) if isolation == "process" else loaded


def _program(command: str, settings: Settings, option: str) -> Program:
    try:
        return configured(command, settings)
    except ConfigurationError as error:
        if option == "--exec" or not str(error).startswith(NO_PROGRAM):
            raise
        raise ConfigurationError(f"{error}; a Python worker is --worker package.module:callable") from error


def only_waits(workers: Workers) -> bool:
    """Whether no worker was given."""
    return wait_forever in workers.values()


def only_programs(workers: Workers) -> list[Program]:
    """The workers, if all of them are programs; else none."""
    programs = [worker for worker in workers.values() if isinstance(worker, Program)]
    return programs if len(programs) == len(workers) else []


def _is_python(text: str) -> bool:
    """Whether it is package.module:callable; anything else is a command line."""
    return ":" in text and not re.search(r"[\s/]", text)
