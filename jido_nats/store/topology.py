"""The streams and buckets of the design: created if missing, adopted if they exist.

What to do with one that exists is decided in `adoption`, for all of them before anything is touched. Nothing is ever
deleted and recreated.

The lease time, on which all managers have to agree, is stored in the metadata of the stream of events. Each lease
states its own, too (its entry's TTL), so that managers of versions that do not read the metadata are noticed.
"""

import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from jido_nats.broker.connection import Connection
from jido_nats.broker.jetstream import STREAM_NOT_FOUND, TOO_MANY_CONSUMERS, JetStreamError, api
from jido_nats.core import subjects
from jido_nats.core.settings import Settings
from jido_nats.errors import ConfigurationError, NoResponders, NotAllowed, OutcomeUnknown, ServerUnusable
from jido_nats.store.adoption import compare, overlaps
from jido_nats.store.leases import any_lease

SERVER_VERSION_MIN: Final = (2, 12, 0)
# Each watcher and each manager has a consumer on a bucket.
BUCKET_CONSUMERS_MAX: Final = 100_000
LEASE_TIME: Final = "lease_s"
_NS: Final = 1_000_000_000
_NAME_IN_USE: Final = 10058
_LEASE_TIME_S: Final = re.compile(r"\A[1-9][0-9]{0,8}\Z")

# What the streams have in common, unless they say otherwise.
_COMMON: Final[dict[str, Any]] = {
    "storage": "file",
    "retention": "limits",
    "discard": "old",
    "max_age": 0,
    "max_bytes": -1,
    "max_msgs": -1,
    "max_msgs_per_subject": -1,
    "max_msg_size": -1,
    "no_ack": False,
    "sealed": False,
}

log = logging.getLogger(__name__)


class Deployed(msgspec.Struct, frozen=True):
    """What this deployment's streams say, where that may differ from a manager's settings; in seconds."""

    lease_s: int
    marker_ttl_s: float


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


async def declare(connection: Connection, settings: Settings) -> Deployed:
    """Create or adopt every stream and bucket, and agree on the lease time with the managers that live.

    `ConfigurationError` names every field of what exists that is neither adopted nor changed; then nothing was touched.
    """
    wanted = stream_configs(settings)
    found = {config["name"]: await find_config(connection, config["name"]) for config in wanted}
    _check(wanted, found)
    configs = {c["name"]: await _declare_stream(connection, c, found[c["name"]]) for c in wanted}
    records = configs[subjects.bucket_stream(settings.sessions_bucket)]
    return Deployed(
        lease_s=await _agree_on_lease_time(connection, settings),
        marker_ttl_s=records["subject_delete_marker_ttl"] / _NS,
    )


async def declare_journal(connection: Connection, settings: Settings) -> None:
    """Create or adopt the stream of journals, which a manager can do without; raises as `declare`, and `NotAllowed`."""
    wanted, name = journal_config(settings), settings.journal_stream
    found = await find_config(connection, name)
    _check([wanted], {name: found})
    await _declare_stream(connection, wanted, found)


async def find_config(connection: Connection, stream: str) -> dict[str, Any] | None:
    """The configuration of a stream, or None if it does not exist. Raises `ServerUnusable` if it cannot be read."""
    try:
        config: dict[str, Any] = (await api(connection, f"STREAM.INFO.{stream}"))["config"]
    except JetStreamError as error:
        if error.code == STREAM_NOT_FOUND:
            return None
        raise ServerUnusable(f"the stream {stream} cannot be read: {error.description}") from error
    return config


async def stored_lease_time(connection: Connection, events_stream: str) -> int | None:
    """The lease time of the deployment, in seconds; None if it is not stored."""
    return lease_time_in(await find_config(connection, events_stream) or {})


def lease_time_in(config: Mapping[str, Any]) -> int | None:
    """The lease time in the configuration of the stream of events, in seconds; None if there is none."""
    text = (config.get("metadata") or {}).get(LEASE_TIME, "")
    return int(text) if _LEASE_TIME_S.match(text) else None


def stream_configs(settings: Settings) -> list[dict[str, Any]]:
    """The stream configurations of the design under these settings."""
    events = {
        "name": settings.events_stream,
        "description": "every event of every session, and the claims on sessions",
        "subjects": [subjects.EVENTS, subjects.ALL_SESSIONS, subjects.ALL_FENCES],
        "max_age": settings.retention_s * _NS,
        "max_bytes": settings.events_bytes_max,
        "duplicate_window": min(settings.duplicate_window_s, settings.retention_s) * _NS,
        "max_consumers": settings.consumers_max,
        "allow_direct": True,
        "metadata": {LEASE_TIME: str(settings.lease_s)},
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
    return [_COMMON | {"num_replicas": settings.replicas} | config for config in (events, output, *buckets)]


def journal_config(settings: Settings) -> dict[str, Any]:
    """The configuration of the stream of journals, which a manager can do without."""
    return _COMMON | {
        "name": settings.journal_stream,
        "description": "what sessions with a restart policy need to go on",
        "subjects": [subjects.ALL_JOURNALS],
        "num_replicas": settings.replicas,
        "discard": "new",
        "max_bytes": settings.journal_bytes_max,
        "allow_direct": True,
    }


def readable(settings: Settings) -> frozenset[str]:
    """The streams that programs in other accounts may read."""
    return frozenset({settings.events_stream, settings.output_stream, subjects.bucket_stream(settings.sessions_bucket)})


def _bucket(name: str, description: str, marker_ttl_s: int) -> dict[str, Any]:
    # History 1, so that an entry's TTL may be shorter than its marker's. Every KV bucket has `deny_delete` (ADR-8);
    # the streams leave it to permissions who may delete and purge.
    return {
        "name": subjects.bucket_stream(name),
        "description": description,
        "subjects": [subjects.bucket_subjects(name)],
        "max_msgs_per_subject": 1,
        "max_consumers": BUCKET_CONSUMERS_MAX,
        "discard": "new",
        "allow_rollup_hdrs": True,
        "allow_direct": True,
        "deny_delete": True,
        "allow_msg_ttl": True,
        "subject_delete_marker_ttl": marker_ttl_s * _NS,
    }


def _check(wanted: Iterable[Mapping[str, Any]], found: Mapping[str, Mapping[str, Any] | None]) -> None:
    """Raise `ConfigurationError` if something that exists can be neither adopted nor changed."""
    problems: list[str] = []
    planned: dict[str, Iterable[str]] = {}
    for config in wanted:
        name, have = config["name"], found[config["name"]]
        planned[name] = config["subjects"]
        if have is not None:
            comparison = compare(config, have)
            planned[name] = comparison.update.get("subjects", have.get("subjects", []))
            if comparison.refused:
                problems.append(f"the stream {name} exists and differs: {'; '.join(comparison.refused)}")
    problems += overlaps(planned)
    if problems:
        raise ConfigurationError(f"{'. '.join(problems)}. Change it or the settings; nothing was touched")


async def _declare_stream(
    connection: Connection, wanted: Mapping[str, Any], found: Mapping[str, Any] | None
) -> Mapping[str, Any]:
    """Create the stream, or adopt the one that was found; its configuration."""
    if found is None:
        try:
            return await _create(connection, wanted)
        except JetStreamError as error:
            if error.code != _NAME_IN_USE:
                raise ServerUnusable(f"the stream {wanted['name']} cannot be created: {error.description}") from error
        found = await find_config(connection, wanted["name"]) or {}  # another manager has just created it
        _check([wanted], {wanted["name"]: found})
    comparison = compare(wanted, found)
    for kept in comparison.kept:
        extra = {"stream": wanted["name"], "field": kept.field, "value": kept.value, "setting": kept.setting}
        log.info("a stream keeps a value that is larger than the setting", extra=extra)
    if comparison.update:
        return await _update(connection, found, comparison.update, "; ".join(comparison.changes))
    return found


async def _create(connection: Connection, wanted: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        answer = await api(connection, f"STREAM.CREATE.{wanted['name']}", wanted, timeout_s=10.0)
    except JetStreamError as error:
        if error.code != TOO_MANY_CONSUMERS or wanted["max_consumers"] < 0:
            raise
        _report_consumers(wanted, error)
        return await _create(connection, {**wanted, "max_consumers": -1})
    config: dict[str, Any] = answer["config"]
    return config


async def _update(
    connection: Connection, found: Mapping[str, Any], update: Mapping[str, Any], changes: str
) -> Mapping[str, Any]:
    """Change some fields of a stream. `max_consumers` is left as it is where that is refused."""
    name = found["name"]
    try:
        answer = await api(connection, f"STREAM.UPDATE.{name}", {**found, **update}, timeout_s=10.0)
    except (JetStreamError, NotAllowed) as error:
        others = {field: value for field, value in update.items() if field != "max_consumers"}
        if others != update:
            updated = await _update(connection, found, others, changes) if others else found
            _report_consumers(found, error)
            return updated
        if isinstance(error, NotAllowed):
            raise
        raise ConfigurationError(f"the stream {name} differs ({changes}) and cannot be updated: {error}") from error
    config: dict[str, Any] = answer["config"]
    return config


def _report_consumers(config: Mapping[str, Any], error: Exception) -> None:
    extra = {"stream": config["name"], "error": str(error)}
    log.warning("max_consumers of a stream cannot be raised; it may accept too few readers", extra=extra)


async def _agree_on_lease_time(connection: Connection, settings: Settings) -> int:
    """The lease time of the deployment: the stored one while a manager lives, else this manager's setting, stored."""
    found = await find_config(connection, settings.events_stream) or {}
    stored = lease_time_in(found)
    if stored == settings.lease_s:
        return stored
    if stored is not None and await any_lease(connection, settings.managers_bucket):
        return stored
    metadata = {**(found.get("metadata") or {}), LEASE_TIME: str(settings.lease_s)}
    try:
        await _update(connection, found, {"metadata": metadata}, f"metadata lacks {LEASE_TIME}={settings.lease_s}")
    except NotAllowed as error:
        log.warning("lease_s cannot be stored in the stream of events", extra={"error": str(error)})
        return stored or settings.lease_s
    return settings.lease_s
