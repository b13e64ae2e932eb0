"""The streams and buckets of the design: created if missing, adopted if they exist.

A difference that is safe to change is updated; any other is refused, with the fields named.
Nothing is ever deleted and recreated.
"""

from collections.abc import Mapping
from typing import Any, Final

from jido_nats.broker.connection import Connection
from jido_nats.broker.jetstream import STREAM_NOT_FOUND, JetStreamError, api
from jido_nats.core import subjects
from jido_nats.core.settings import Settings
from jido_nats.errors import ConfigurationError, NoResponders, NotAllowed, OutcomeUnknown, ServerUnusable

SERVER_VERSION_MIN: Final = (2, 12, 0)
_NS: Final = 1_000_000_000
_NAME_IN_USE: Final = 10058
# Limits that may grow: -1 and 0 mean no limit. Shrinking one would remove stored messages, so it is refused.
_GROWING: Final = frozenset({"max_age", "max_bytes", "max_msgs", "max_msgs_per_subject", "max_msg_size"})
_FREE: Final = frozenset({"duplicate_window", "max_consumers", "num_replicas", "description", "allow_direct"})
_ENABLING: Final = frozenset({"allow_msg_ttl", "allow_rollup_hdrs", "deny_delete", "deny_purge"})
_NO_LIMIT: Final = (0, -1)
# Settings that would move messages to other subjects, import others, or acknowledge them before they are stored.
_MUST_BE_UNSET: Final = ("mirror", "sources", "subject_transform", "persist_mode", "allow_msg_counter")
_UNSET: Final[tuple[Any, ...]] = (None, False, "", "default", [], {})


async def check_server(connection: Connection) -> None:
    """Raise `ServerUnusable` unless the server is new enough and this account has JetStream."""
    version = connection.server_version
    if version < SERVER_VERSION_MIN:
        found, needed = (".".join(map(str, v)) for v in (version, SERVER_VERSION_MIN[:2]))
        raise ServerUnusable(f"the NATS server is version {found}; jido_nats needs {needed} or newer")
    try:
        await api(connection, "INFO")
    except NoResponders as error:
        raise ServerUnusable("the NATS server has no JetStream: start it with -js, or with our nats.conf") from error
    except JetStreamError as error:
        raise ServerUnusable(f"JetStream cannot be used: {error.description}") from error
    except (OutcomeUnknown, NotAllowed) as error:
        raise ServerUnusable("JetStream does not answer; this user may not be allowed to use it") from error


async def declare(connection: Connection, settings: Settings) -> None:
    """Create or adopt every stream and bucket; `ConfigurationError` names the fields that differ."""
    for config in stream_configs(settings):
        await _declare_stream(connection, config)


def stream_configs(settings: Settings) -> list[dict[str, Any]]:
    """The stream configurations of the design under these settings."""
    common = {
        "storage": "file",
        "retention": "limits",
        "num_replicas": settings.replicas,
        "discard": "old",
        "max_age": 0,
        "max_bytes": -1,
        "max_msgs": -1,
        "max_msgs_per_subject": -1,
        "max_msg_size": -1,
        "no_ack": False,
        "sealed": False,
    }
    events = {
        "name": settings.events_stream,
        "description": "every event of every session, and the claims on sessions",
        "subjects": [subjects.EVENTS, subjects.ALL_SESSIONS, subjects.ALL_FENCES],
        "max_age": settings.retention_s * _NS,
        "max_bytes": settings.events_bytes_max,
        "duplicate_window": min(settings.duplicate_window_s, settings.retention_s) * _NS,
        "max_consumers": settings.consumers_max,
        "allow_direct": True,
        "deny_delete": True,
        "deny_purge": True,
    }
    output = {
        "name": settings.output_stream,
        "description": "what the workers of sessions say",
        "subjects": [subjects.ALL_OUTPUT],
        "max_age": settings.output_retention_s * _NS,
        "max_bytes": settings.output_bytes_max,
        "max_consumers": settings.consumers_max,
        "allow_direct": True,
    }
    buckets = [
        _bucket(settings.sessions_bucket, "the truth about each session", settings.marker_ttl_s),
        _bucket(settings.managers_bucket, "which managers are alive", 60),
    ]
    return [common | config for config in (events, output, *buckets)]


def differences(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """(safe, unsafe): the fields that differ, each as `field is X, should be Y`."""
    safe: list[str] = []
    unsafe: list[str] = []
    for field, want in wanted.items():
        have = found.get(field, _unset(want))
        if have == want or (field == "subjects" and set(have) == set(want)):
            continue
        if field in _GROWING and want in _NO_LIMIT and have in _NO_LIMIT:
            continue
        (safe if _is_safe(field, want, have) else unsafe).append(f"{field} is {have}, should be {want}")
    for field in _MUST_BE_UNSET:
        if (have := found.get(field)) not in _UNSET:
            unsafe.append(f"{field} is {have}, should not be set")
    return safe, unsafe


def _bucket(name: str, description: str, marker_ttl_s: int) -> dict[str, Any]:
    # History 1, so that an entry's TTL may be shorter than its marker's.
    return {
        "name": subjects.bucket_stream(name),
        "description": description,
        "subjects": [subjects.bucket_subjects(name)],
        "max_msgs_per_subject": 1,
        "max_consumers": -1,
        "discard": "new",
        "allow_rollup_hdrs": True,
        "allow_direct": True,
        "deny_delete": True,
        "allow_msg_ttl": True,
        "subject_delete_marker_ttl": marker_ttl_s * _NS,
    }


async def _declare_stream(connection: Connection, wanted: dict[str, Any]) -> None:
    name = wanted["name"]
    try:
        found = (await api(connection, f"STREAM.INFO.{name}"))["config"]
    except JetStreamError as error:
        if error.code != STREAM_NOT_FOUND:
            raise ServerUnusable(f"the stream {name} cannot be read: {error.description}") from error
        try:
            await api(connection, f"STREAM.CREATE.{name}", wanted, timeout_s=10.0)
            return
        except JetStreamError as other:
            if other.code != _NAME_IN_USE:  # otherwise another manager has just created it
                raise ServerUnusable(f"the stream {name} cannot be created: {other.description}") from other
        found = (await api(connection, f"STREAM.INFO.{name}"))["config"]
    safe, unsafe = differences(wanted, found)
    if unsafe:
        raise ConfigurationError(
            f"the stream {name} exists and differs: {'; '.join(unsafe)}. Change it or the settings; nothing was touched"
        )
    if safe:
        try:
            await api(connection, f"STREAM.UPDATE.{name}", found | wanted, timeout_s=10.0)
        except JetStreamError as error:
            raise ConfigurationError(
                f"the stream {name} differs ({'; '.join(safe)}) and cannot be updated: {error.description}"
            ) from error


def _is_safe(field: str, want: Any, have: Any) -> bool:
    if field == "subject_delete_marker_ttl":
        return bool(want > have)  # 0: none
    if field in _GROWING:
        return want in _NO_LIMIT or (have not in _NO_LIMIT and want > have)
    return field in _FREE or (field in _ENABLING and want is True)


def _unset(want: Any) -> Any:
    """The value of a field that the server omits."""
    return {bool: False, int: 0, str: "", list: []}[type(want)]
