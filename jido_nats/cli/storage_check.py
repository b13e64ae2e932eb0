"""The doctor's check of the streams and buckets."""

from collections.abc import Mapping
from typing import Any, Final

from jido_nats.broker.jetstream import STREAM_NOT_FOUND, JetStreamError, api
from jido_nats.cli.findings import CheckContext, Finding, Findings, Level
from jido_nats.errors import NotAllowed
from jido_nats.store import topology
from jido_nats.store.adoption import Comparison, compare

CONSUMERS_SHARE: Final = 0.9
FULL_SHARE: Final = 0.9


async def check_storage(context: CheckContext) -> Findings:
    """Whether each stream and bucket exists, and is configured as the settings say."""
    journal = context.settings.journal_stream
    for wanted in (*topology.stream_configs(context.settings), topology.journal_config(context.settings)):
        name = wanted["name"]
        try:
            info = await api(context.connection, f"STREAM.INFO.{name}")
        except NotAllowed as error:
            yield Finding(Level.WARNING, "storage", f"{name} was not checked: {error}")
            continue
        except JetStreamError as error:
            if error.code != STREAM_NOT_FOUND:
                raise
            text = f"{name} is missing; a manager creates it when it starts"
            if name == journal:
                text += ", if it may: without it no session with a restart policy can be created"
            yield Finding(Level.WARNING if name == journal else Level.ERROR, "storage", text)
            continue
        found = info["config"]
        context.replicas[name] = found["num_replicas"]
        findings = _differences(name, compare(wanted, found)) + _consumers(name, info) + _fullness(name, info)
        for finding in findings or [Finding(Level.OK, "storage", f"{name} is configured correctly")]:
            yield finding
        stored = topology.lease_time_in(found)
        if name == context.settings.events_stream and stored not in (None, context.settings.lease_s):
            text = f"the managers agreed on lease_s {stored}, the setting is {context.settings.lease_s}; "
            yield Finding(Level.WARNING, "storage", text + "it applies once every manager was stopped")


def _consumers(name: str, info: Mapping[str, Any]) -> list[Finding]:
    """Whether readers soon have every consumer that a stream accepts."""
    number, limit = info["state"].get("consumer_count", 0), info["config"].get("max_consumers", -1)
    if limit < 1 or number < CONSUMERS_SHARE * limit:
        return []
    text = f"{name} has {number} of {limit} consumers; new readers are refused beyond that, and managers read without"
    return [Finding(Level.WARNING, "storage", f"{text} ('nats consumer ls {name}' lists them)")]


def _fullness(name: str, info: Mapping[str, Any]) -> list[Finding]:
    """Whether a stream that refuses new messages when it is full soon is."""
    size, limit = info["state"].get("bytes", 0), info["config"].get("max_bytes", -1)
    if info["config"].get("discard") != "new" or limit < 1 or size < FULL_SHARE * limit:
        return []
    text = f"{name} has {size} of {limit} bytes; when it is full, messages are answered with overloaded: raise "
    return [Finding(Level.WARNING, "storage", f"{text}journal_bytes_max, or 'nats stream edit {name}'")]


def _differences(name: str, comparison: Comparison) -> list[Finding]:
    """What a manager that starts would do about a stream that differs from the settings."""
    if comparison.refused:
        text = f"{name} is configured differently, and no manager will start: {'; '.join(comparison.refused)}"
        return [Finding(Level.ERROR, "storage", text)]
    found: list[Finding] = []
    if comparison.changes:
        text = f"{name} is configured differently; the next manager to start updates it: "
        found.append(Finding(Level.WARNING, "storage", text + "; ".join(comparison.changes)))
    if comparison.kept:
        text = f"{name} has more than the settings, which no manager lowers ('nats stream edit' does): "
        found.append(Finding(Level.WARNING, "storage", text + "; ".join(map(str, comparison.kept))))
    return found
