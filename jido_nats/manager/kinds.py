"""The kinds of worker that a manager runs, each with its settings and the number of its sessions."""

from collections.abc import Mapping
from typing import Final

from jido_nats.core.manager_info import KindInfo
from jido_nats.core.requests import limits_of
from jido_nats.core.session import DEFAULT_WORKER
from jido_nats.core.settings import Settings
from jido_nats.core.subjects import is_token
from jido_nats.errors import ConfigurationError
from jido_nats.worker.confinement import check_confined
from jido_nats.worker.program import Program
from jido_nats.worker.session import Worker, wait_forever


class Kind:
    """One kind of worker; `sessions` run here."""

    def __init__(self, name: str, worker: Worker, settings: Settings) -> None:
        """`settings`: those of the kind, see `Settings.of_kind`."""
        self.name: Final = name
        self.worker: Final = worker
        self.settings: Final = settings
        self.default_limits: Final = {name: limit for name, limit in limits_of(settings).items() if limit}
        self.sessions = 0

    @property
    def waits(self) -> bool:
        """Whether its sessions do nothing but wait."""
        return self.worker is wait_forever

    @property
    def full(self) -> bool:
        """Whether it takes no more sessions."""
        return self.sessions >= self.settings.sessions_max

    def info(self, *, full: bool) -> KindInfo:
        """What the manager's lease says of it; `full`: whether the manager takes no more sessions of any kind."""
        return KindInfo(sessions=self.sessions, full=full or self.full, waits=self.waits)


Kinds = Mapping[str, Kind]
"""The kinds of one manager, by name."""


def kinds_of(worker: Worker | Mapping[str, Worker], settings: Settings) -> Kinds:
    """The kinds of a manager that runs `worker` (as `default`), or several by name.

    Raises `ConfigurationError` for what is no worker, or cannot be confined as its settings say.
    """
    workers = worker if isinstance(worker, Mapping) else {DEFAULT_WORKER: worker}
    if not workers:
        raise ConfigurationError("a manager needs at least one worker")
    return {name: _kind(name, run, settings) for name, run in workers.items()}


def _kind(name: str, worker: Worker, settings: Settings) -> Kind:
    if not is_token(name):
        raise ConfigurationError(f"the name of a worker must be 1 to 64 letters, digits, '_' or '-', not {name!r}")
    if not callable(worker):
        raise ConfigurationError(
            f"the worker {name} is {worker!r}, should be a coroutine function that takes a Session, or a Program"
        )
    if settings.isolation_of(name) == "process" and not isinstance(worker, Program) and worker is not wait_forever:
        raise ConfigurationError(f"workers.{name}: isolation is for `jido-nats serve` and `up`; here, pass a Program")
    of_kind = settings.of_kind(name)
    try:
        check_confined(of_kind, worker.confinement if isinstance(worker, Program) else None)
    except ConfigurationError as error:
        raise ConfigurationError(f"the worker {name}: {error}") from error
    return Kind(name, worker, of_kind)
