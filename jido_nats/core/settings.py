"""Every setting of a deployment, with its default, and how a TOML file is read into them."""

import math
from typing import Any

import msgspec

from jido_nats.core import subjects
from jido_nats.core.codec import Encoding
from jido_nats.errors import ConfigurationError


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of a manager; those that name or shape storage have to be the same in a whole deployment.

    Times are seconds (`_s`), sizes bytes; `None` and -1 mean no limit.
    """

    # storage, the same for the whole deployment
    events_stream: str = subjects.EVENTS_STREAM
    output_stream: str = subjects.OUTPUT_STREAM
    sessions_bucket: str = subjects.SESSIONS_BUCKET
    managers_bucket: str = subjects.MANAGERS_BUCKET
    replicas: int = 1
    retention_s: int = 7 * 24 * 3600
    events_bytes_max: int = -1
    output_retention_s: int = 24 * 3600
    output_bytes_max: int = -1
    consumers_max: int = 10_000
    duplicate_window_s: int = 120
    terminated_ttl_s: int = 3600
    marker_ttl_s: int = 3600
    lease_s: int = 10

    # this manager
    encoding: Encoding = Encoding.JSON
    wait_ready: bool = False
    start_timeout_s: float = 30.0
    stop_timeout_s: float = 3.0
    drain_timeout_s: float = 0.0
    command_timeout_s: float = 4.5
    sessions_max: int = 100_000
    commands_max: int = 4096
    request_bytes_max: int = 64 * 1024
    metadata_bytes_max: int = 32 * 1024
    idle_after_s: float | None = None
    idle_timeout_s: float | None = None
    max_lifetime_s: float | None = None
    inbox_messages_max: int = 100
    output_message_bytes_max: int = 256 * 1024

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "encoding", Encoding(self.encoding))  # "msgpack" from Python will do
        for name in ("events_stream", "output_stream", "sessions_bucket", "managers_bucket"):
            if not subjects.is_token(getattr(self, name)):
                raise ValueError(f"{name} has to be letters, digits, '_' or '-'")
        for name in _POSITIVE:
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} has to be greater than 0, and finite")
        for name in _LIMITS:
            if (limit := getattr(self, name)) is not None and not 0 <= limit < math.inf:
                raise ValueError(f"{name} cannot be less than 0, and has to be finite")
        if not 1 <= self.replicas <= 5:
            raise ValueError("replicas has to be 1 to 5")


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
    "commands_max",
    "request_bytes_max",
    "metadata_bytes_max",
    "inbox_messages_max",
    "output_message_bytes_max",
)
_LIMITS = ("drain_timeout_s", "idle_after_s", "idle_timeout_s", "max_lifetime_s")


def load(toml: bytes, **overrides: Any) -> Settings:
    """The settings of a TOML file's bytes; `overrides` win where they are not None.

    Raises `ConfigurationError` that names the setting.
    """
    try:
        values = msgspec.toml.decode(toml)
        values.update({name: value for name, value in overrides.items() if value is not None})
        return msgspec.convert(values, Settings)
    except (msgspec.MsgspecError, ValueError) as error:
        raise ConfigurationError(f"the settings cannot be used: {error}") from error
