"""What a manager says of itself in its lease: where it runs, which kinds of worker it has, and its room."""

from collections.abc import Mapping
from datetime import datetime
from typing import Final

import msgspec

from jido_nats.core.session import DEFAULT_WORKER

# What a manager takes that does not say: one of a version before kinds of worker.
SESSIONS_MAX: Final = 100_000


class KindInfo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One kind of worker at a manager: how many sessions of it run there, and whether it takes no more.

    `waits`: its sessions do nothing but wait, because the manager was started without a worker.
    """

    sessions: int = 0
    full: bool = False
    waits: bool = False


class ManagerInfo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A lease's entry: what `nats kv get JIDO_MANAGERS <id>` shows an operator."""

    manager_id: str
    host: str
    pid: int
    started_at: datetime
    version: str
    sessions: int = 0
    # Whether it takes no more sessions, of any kind.
    full: bool = False
    # It is stopping: it takes no new sessions, and the number of its sessions only falls.
    draining: bool = False
    # Whether it answers commands; an embedded manager need not.
    serves: bool = True
    # The features that this manager knows; see `SessionRecord.needs`.
    knows: tuple[str, ...] = ()
    # How many sessions it takes, of all kinds.
    sessions_max: int = SESSIONS_MAX
    # Its kinds of worker by name; None: of a version before kinds, which runs one, `default`.
    workers: dict[str, KindInfo] | None = None
    # What sessions may ask for.
    labels: dict[str, str] = {}

    @property
    def kinds(self) -> Mapping[str, KindInfo]:
        """Its kinds of worker, by name."""
        if self.workers is None:
            return {DEFAULT_WORKER: KindInfo(sessions=self.sessions, full=self.full)}
        return self.workers
