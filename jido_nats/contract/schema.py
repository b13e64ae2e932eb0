"""The contract as JSON Schema (2020-12), generated from the message types so that the two cannot differ."""

import inspect
from typing import Any, Final

import msgspec

from jido_nats.core import requests, subjects
from jido_nats.core.commands import COMMANDS
from jido_nats.core.events import KnownEvent
from jido_nats.core.journal import JournalEntry
from jido_nats.core.lifecycle import TRANSITIONS, WITH_RESTART
from jido_nats.core.manager_info import ManagerInfo
from jido_nats.core.output import Output
from jido_nats.core.restarts import BACKOFF_MAX_S, BACKOFF_MIN_S
from jido_nats.core.session import SessionRecord
from jido_nats.errors import COMMAND_ERRORS, CommandError

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
CONTRACT_VERSION: Final = "1.0.0"
EVENTS: Final = KnownEvent.__args__
OUTPUTS: Final = Output.__args__
ENTRIES: Final = JournalEntry.__args__
_ERROR_KINDS: Final[list[type[CommandError]]] = [CommandError, *COMMAND_ERRORS]
ERRORS: Final = {kind.code: kind.status for kind in _ERROR_KINDS}
DESCRIPTION: Final = (
    "Every event, command, reply and stored value of a jido_nats session manager. "
    "Readers ignore unknown fields and unknown event types; a request with an unknown field is rejected. "
    "The schema is of the JSON encoding. In MessagePack (application/msgpack) the fields are the same, and times are "
    "MessagePack timestamps (extension type -1)."
)
KINDS: Final = (
    *EVENTS,
    *OUTPUTS,
    *ENTRIES,
    SessionRecord,
    ManagerInfo,
    *dict.fromkeys(kind for command in COMMANDS.values() for kind in (command.request, command.reply)),
    requests.ErrorReply,
)

_SESSION_ID: Final = {"pattern": "^[A-Za-z0-9_-]{1,64}$"}
_TIME: Final = {"format": "date-time", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)$"}
_COUNT: Final = {"minimum": 0}
_LIMIT: Final = {"minimum": 0, "maximum": requests.LIMIT_MAX_S}
# Constraints that the code checks or guarantees beyond the types, by field and type.
_FIELDS: Final[dict[tuple[str, str], dict[str, Any]]] = {
    ("session_id", "string"): _SESSION_ID,
    ("cursor", "string"): _SESSION_ID,
    ("next_cursor", "string"): _SESSION_ID,
    ("created_at", "string"): _TIME,
    ("updated_at", "string"): _TIME,
    ("started_at", "string"): _TIME,
    ("began_at", "string"): _TIME,
    ("not_before", "string"): _TIME,
    ("accepted_at", "string"): _TIME,
    ("attempt", "integer"): {"minimum": 1},
    ("attempts_max", "integer"): _COUNT,
    ("failures", "integer"): _COUNT,
    ("handled", "integer"): _COUNT,
    ("backoff_s", "number"): {"minimum": BACKOFF_MIN_S, "maximum": BACKOFF_MAX_S},
    ("version", "integer"): {"minimum": 1},
    ("number", "integer"): {"minimum": 1},
    ("role", "string"): {"minLength": 1, "maxLength": requests.ROLE_LENGTH_MAX},
    ("message_id", "string"): {"minLength": 1, "maxLength": requests.MESSAGE_ID_LENGTH_MAX},
    ("idle_after_s", "number"): _LIMIT,
    ("idle_timeout_s", "number"): _LIMIT,
    ("max_lifetime_s", "number"): _LIMIT,
    ("next", "integer"): {"minimum": 1},
    ("after", "integer"): _COUNT,
    ("position", "integer"): _COUNT,
    ("sessions", "integer"): _COUNT,
    ("code", "string"): {"examples": sorted(ERRORS)},
}
_FIELDS_OF: Final[dict[str, dict[str, dict[str, Any]]]] = {
    "ListRequest": {"limit": {"minimum": 1, "maximum": requests.LIST_LIMIT_MAX}},
    "HistoryRequest": {"limit": {"minimum": 1, "maximum": requests.HISTORY_LIMIT_MAX}},
    "RestartRequest": {"on": {"minItems": 1, "uniqueItems": True}},
    "TerminateRequest": {"detail": {"maxLength": requests.DETAIL_LENGTH_MAX}},
    "SessionCreated": {"version": {"const": 1}},
}
_DESCRIPTIONS: Final = {
    "Status": "A session's place in its lifecycle; `x-may-become` lists the allowed next ones, "
    "`x-may-become-with-restart` those that a session with a restart policy has as well.",
    "SessionRecord": f"Everything about a session, as stored in the bucket {subjects.SESSIONS_BUCKET}.",
}


def document() -> dict[str, Any]:
    """The whole contract as one JSON Schema, each message under `$defs`."""
    return {
        "$schema": DIALECT,
        "$id": f"urn:jido-nats:contract:{CONTRACT_VERSION}",
        "title": "jido_nats",
        "description": DESCRIPTION,
        "$defs": definitions("#/$defs/"),
    }


def definitions(prefix: str) -> dict[str, Any]:
    """Every message by its name; references to other messages begin with `prefix`."""
    _, found = msgspec.json.schema_components(KINDS, ref_template=prefix + "{name}")
    components: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(found))  # a default may be a tuple
    for name, component in components.items():
        _complete(name, component)
    mine = {"Event": _event(prefix), "Output": _output(prefix), "JournalEntry": _entry(prefix)} | components
    mine["HistoryReply"]["properties"]["events"]["items"] = {"$ref": f"{prefix}Event"}
    for name in ("Status", "Reason", "Cause"):  # open: a reader keeps the text of a value that it does not know
        mine[name]["anyOf"] = [{"enum": mine[name].pop("enum")}, {"type": "string"}]
    for name, table in (("x-may-become", TRANSITIONS), ("x-may-become-with-restart", WITH_RESTART)):
        mine["Status"][name] = {status: sorted(targets) for status, targets in table.items()}
    return {name: mine[name] for name in sorted(mine)}


def _event(prefix: str) -> dict[str, Any]:
    return {
        "title": "Event",
        "description": "One event; its kind is in `type`. Ignore events of an unknown `type`.",
        "oneOf": [{"$ref": f"{prefix}{kind.__name__}"} for kind in EVENTS],
    }


def _output(prefix: str) -> dict[str, Any]:
    return {
        "title": "Output",
        "description": "Output or a conversation message of a worker; its kind is in `type`. Ignore unknown types.",
        "oneOf": [{"$ref": f"{prefix}{kind.__name__}"} for kind in OUTPUTS],
    }


def _entry(prefix: str) -> dict[str, Any]:
    return {
        "title": "JournalEntry",
        "description": "One entry of the journal of a session with a restart policy, for managers only; its kind is in "
        f"`type`. Always JSON, in the stream {subjects.JOURNAL_STREAM}.",
        "oneOf": [{"$ref": f"{prefix}{kind.__name__}"} for kind in ENTRIES],
    }


def _complete(name: str, component: dict[str, Any]) -> None:
    """Add what msgspec's schema leaves out."""
    component["description"] = _DESCRIPTIONS.get(name) or inspect.cleandoc(component["description"])
    if "properties" not in component:
        return
    component.setdefault("additionalProperties", True)
    for field, schema in component["properties"].items():
        if field == "type":
            schema["const"] = schema.pop("enum")[0]
            continue
        typed = _typed(schema)
        typed.update(_FIELDS.get((field, typed.get("type", "")), {}))
        typed.update(_FIELDS_OF.get(name, {}).get(field, {}))


def _typed(schema: dict[str, Any]) -> dict[str, Any]:
    """The part of the schema that is not null, if it also allows null."""
    parts: list[dict[str, Any]] = schema.get("anyOf", [schema])
    return next(part for part in parts if part != {"type": "null"})
