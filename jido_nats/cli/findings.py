"""What the doctor's checks have in common: what is checked, and what they find."""

from collections.abc import AsyncIterator
from enum import StrEnum
from typing import Any, NamedTuple

from jido_nats.broker.connection import Connection
from jido_nats.core.session import SessionRecord
from jido_nats.core.settings import Settings
from jido_nats.store.leases import Leases


class Level(StrEnum):
    """How bad it is; the worst decides the exit code."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


class Finding(NamedTuple):
    """One line of the report: what was checked, what was found, and what to do."""

    level: Level
    check: str
    message: str


Findings = AsyncIterator[Finding]


class CheckContext(NamedTuple):
    """What is checked, and what was read once for several checks."""

    connection: Connection
    settings: Settings
    monitoring_url: str | None
    records: dict[str, SessionRecord]
    leases: Leases
    seen: set[str]
    replicas: dict[str, int]
    user: dict[str, Any]
