"""Every setting of a deployment with its default, and how to load them from TOML."""

import math
from collections.abc import Callable
from typing import Any, Literal

import msgspec

from jido_nats.core import confinement, subjects
from jido_nats.core.codec import Encoding
from jido_nats.core.placement import check_labels
from jido_nats.errors import ConfigurationError


class WorkerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of one kind of worker, where they differ from the manager's. Each has the same meaning there."""

    isolation: Literal["task", "process"] | None = None  # Python: in the manager's process, or in one for each session
    sessions_max: int | None = None  # live sessions of this kind at one manager
    wait_ready: bool | None = None
    start_timeout_s: float | None = None
    stop_timeout_s: float | None = None
    idle_after_s: float | None = None
    idle_timeout_s: float | None = None
    max_lifetime_s: float | None = None
    worker_user: str | None = None
    worker_limit: str | None = None
    worker_env: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.isolation not in (None, "task", "process"):
            raise ValueError(f"isolation must be task or process, not {self.isolation!r}")


# The comments on the fields become deploy/docs/settings.md: run `python -m tests.tools.reference` after a change.
class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of a manager. Those about storage must be the same for every manager of a deployment.

    Times are in seconds (`_s`), sizes in bytes (`_bytes_max`); None and -1 mean no limit.
    """

    # Storage: the same for the whole deployment
    events_stream: str = subjects.EVENTS_STREAM  # the stream of events and claims
    output_stream: str = subjects.OUTPUT_STREAM  # the stream of output and conversations
    journal_stream: str = subjects.JOURNAL_STREAM  # the stream of what sessions with a restart policy need to go on
    sessions_bucket: str = subjects.SESSIONS_BUCKET  # the bucket of records
    managers_bucket: str = subjects.MANAGERS_BUCKET  # the bucket of leases
    replicas: int = 1  # copies of each stream and bucket, 1 to 5; more are kept
    retention_s: int = 7 * 24 * 3600  # how long events are kept
    events_bytes_max: int = -1  # size of the stream of events; beyond it the oldest events are removed
    output_retention_s: int = 24 * 3600  # how long output is kept
    output_bytes_max: int = -1  # size of the stream of output; beyond it the oldest output is removed
    journal_bytes_max: int = -1  # size of the stream of journals; beyond it messages are answered with overloaded
    consumers_max: int = 10_000  # consumers of each of the two streams; each bucket takes 100,000
    duplicate_window_s: int = 120  # deduplication window of the stream of events, at most its retention
    terminated_ttl_s: int = 3600  # how long the record of an ended session is kept
    marker_ttl_s: int = 3600  # how long the marker of an expired record is kept
    lease_s: int = 10  # a manager that does not renew its lease for this long counts as dead; see below

    # This manager
    encoding: Encoding = Encoding.JSON  # of events: "json" or "msgpack"
    wait_ready: bool = False  # a session becomes active when its worker reports that it is ready
    start_timeout_s: float = 30.0  # with wait_ready: a worker that is not ready by then has failed to start
    stop_timeout_s: float = 3.0  # a worker that does not stop by then is killed, or its caller gets stop_timeout
    drain_timeout_s: float = 0.0  # how long sessions may go on when the manager is stopped
    command_timeout_s: float = 4.5  # a command that takes longer is answered with unavailable
    sessions_max: int = 100_000  # live sessions; beyond it create is answered with overloaded
    sessions_bytes_max: int = 256 * 1024 * 1024  # metadata and waiting messages of live sessions; beyond it: overloaded
    commands_max: int = 4096  # commands in flight of each class (create, change, read, scan); beyond it: overloaded
    commands_bytes_max: int = 8 * 1024 * 1024  # size of all commands in flight; beyond it: overloaded
    request_bytes_max: int = 64 * 1024  # size of a request; beyond it: too_large
    metadata_bytes_max: int = 32 * 1024  # size of metadata and llm_config together; beyond it: too_large
    idle_after_s: float | None = None  # active → idle after this long without message, output or touch()
    idle_timeout_s: float | None = None  # a session that has been idle for this long ends with timed_out
    max_lifetime_s: float | None = None  # a session ends with timed_out this long after its creation
    inbox_messages_max: int = 100  # messages waiting for one session's worker; beyond it: overloaded
    output_message_bytes_max: int = 256 * 1024  # size of one output or message; beyond it: too_large
    worker_user: str | None = None  # user of the workers' programs: a name, or UID or UID:GID
    worker_limit: str | None = None  # their limits, such as "memory=512M,nofile=1024"
    worker_env: tuple[str, ...] | None = None  # what they inherit of the environment, as ["NAME,NAME", "NAME=VALUE"]
    labels: dict[str, str] = {}  # what sessions may ask for, such as {gpu = "true"}
    workers: dict[str, WorkerSettings] = {}  # of each kind of worker, by name, as [workers.NAME]; see below

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "encoding", Encoding(self.encoding))  # Python code may pass "msgpack"
        for name in ("events_stream", "output_stream", "journal_stream", "sessions_bucket", "managers_bucket"):
            if not subjects.is_token(getattr(self, name)):
                raise ValueError(f"{name} must be 1 to 64 letters, digits, '_' or '-'")
        for name in _POSITIVE:
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be greater than 0, and finite")
        for name in _LIMITS:
            if (limit := getattr(self, name)) is not None and not 0 <= limit < math.inf:
                raise ValueError(f"{name} must be 0 or more, and finite")
        if not 1 <= self.replicas <= 5:
            raise ValueError("replicas must be 1 to 5")
        _check("worker_limit", confinement.limits_of, self.worker_limit)
        _check("worker_env", confinement.variables_of, self.worker_env)
        _check("labels", check_labels, self.labels)
        for name in self.workers:
            _check(f"workers.{name}", self.of_kind, name)

    def of_kind(self, name: str) -> "Settings":
        """The settings of the sessions with that kind of worker: the manager's, with those of the kind in their place.

        Unlike the manager's, its `sessions_max` counts only these sessions.
        """
        if name not in self.workers:
            return self
        if not subjects.is_token(name):
            raise ValueError("the name of a kind of worker must be 1 to 64 letters, digits, '_' or '-'")
        if not isinstance(self.workers[name], WorkerSettings):
            raise ValueError(f"must be WorkerSettings, not {self.workers[name]!r}")
        values = msgspec.structs.asdict(self.workers[name])
        del values["isolation"]
        changed = {setting: value for setting, value in values.items() if value is not None}
        # Not `structs.replace`: old versions of msgspec do not check what that makes.
        return Settings(**msgspec.structs.asdict(self) | changed | {"workers": {}})

    def isolation_of(self, name: str) -> str | None:
        """Where a Python worker of that kind runs, "task" or "process"; None if not set."""
        return self.workers[name].isolation if name in self.workers else None


def _tables(workers: Any) -> list[tuple[str, Any]]:
    return list(workers.items()) if isinstance(workers, dict) else []


def _check(name: str, parse: Callable[[Any], object], value: object) -> None:
    """Parse a setting that is used as text. Raises `ValueError`, which names the setting."""
    if value is not None:
        try:
            parse(value)
        except (msgspec.MsgspecError, ValueError) as error:
            raise ValueError(f"{name}: {error}") from error


_POSITIVE = (
    "retention_s",
    "output_retention_s",
    "duplicate_window_s",
    "terminated_ttl_s",
    "marker_ttl_s",
    "lease_s",
    "consumers_max",
    "start_timeout_s",
    "stop_timeout_s",
    "command_timeout_s",
    "sessions_max",
    "sessions_bytes_max",
    "commands_max",
    "commands_bytes_max",
    "request_bytes_max",
    "metadata_bytes_max",
    "inbox_messages_max",
    "output_message_bytes_max",
)
_LIMITS = ("drain_timeout_s", "idle_after_s", "idle_timeout_s", "max_lifetime_s")


def load(toml: bytes, **overrides: Any) -> Settings:
    """Settings from the bytes of a TOML file; an override that is not None replaces the file's value.

    Raises `ConfigurationError`, which names the setting.
    """
    try:
        values = msgspec.toml.decode(toml)
        for name, table in _tables(values.get("workers")):
            _check(f"workers.{name}", lambda given: msgspec.convert(given, WorkerSettings), table)
        values.update({name: value for name, value in overrides.items() if value is not None})
        return msgspec.convert(values, Settings)
    except (msgspec.MsgspecError, ValueError) as error:
        raise ConfigurationError(f"invalid settings: {error}") from error
