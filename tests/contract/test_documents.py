"""The published contract: it is up to date, valid under the official schemas, and agrees with the code."""

import json
from functools import cache
from pathlib import Path
from typing import Any, Final

import jsonschema
import msgspec
import pytest
from hypothesis import given, settings
from jsonschema import Draft7Validator, Draft202012Validator

from jido_nats.contract import asyncapi, schema
from jido_nats.core import subjects
from jido_nats.core.commands import COMMANDS, ERRORS_OF_EVERY_COMMAND
from jido_nats.core.events import Event
from jido_nats.core.lifecycle import TRANSITIONS, WITH_RESTART
from jido_nats.core.session import SessionRecord
from jido_nats.errors import COMMAND_ERRORS
from tests.core.samples import walks
from tests.core.test_golden import KINDS, LINES, Golden
from tests.interop.tools import asyncapi_schema

CONTRACT: Final = Path(__file__).parent.parent.parent / "deploy" / "contract"
EXTRA: Final = {"a_field_of_the_future": 1}
REQUESTS: Final = {command.request.__name__ for command in COMMANDS.values()}
EACH: Final = pytest.mark.parametrize("line", LINES, ids=[f"{n}-{line.kind}" for n, line in enumerate(LINES, start=1)])


@cache
def validator(name: str) -> Draft202012Validator:
    """The validator for the definition of that name."""
    return Draft202012Validator({"$ref": f"#/$defs/{name}", "$defs": schema.document()["$defs"]})


def check(name: str, value: object) -> None:
    """Raise `jsonschema.ValidationError` unless the value matches the definition of that name."""
    validator(name).validate(value)


def references(node: Any) -> list[str]:
    """Every `$ref` in a document."""
    if isinstance(node, dict):
        own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return own + [found for value in node.values() for found in references(value)]
    return [found for value in node for found in references(value)] if isinstance(node, list) else []


def resolve(document: Any, reference: str) -> Any:
    """The target of a local reference."""
    for part in reference.removeprefix("#/").split("/"):
        document = document[part]
    return document


@pytest.mark.parametrize(
    ("file", "document", "command"),
    [
        ("jido_nats.schema.json", schema.document, "jido-nats schema"),
        ("asyncapi.json", asyncapi.document, "jido-nats schema --format asyncapi"),
    ],
)
def test_the_published_contract_is_up_to_date(file: str, document: Any, command: str) -> None:
    assert json.loads((CONTRACT / file).read_text()) == document(), f"regenerate it: {command} > deploy/contract/{file}"


def test_the_json_schema_is_valid() -> None:
    Draft202012Validator.check_schema(schema.document())


def test_the_asyncapi_document_is_valid() -> None:
    official = asyncapi_schema(asyncapi.document()["asyncapi"])

    Draft7Validator(official).validate(asyncapi.document())


def test_the_official_schema_refuses_a_wrong_document() -> None:
    document = asyncapi.document()
    official = asyncapi_schema(document["asyncapi"])
    document["operations"]["create"]["action"] = "shout"

    assert not Draft7Validator(official).is_valid(document)


@pytest.mark.parametrize("document", [schema.document(), asyncapi.document()], ids=["jsonschema", "asyncapi"])
def test_every_reference_has_a_target(document: Any) -> None:
    found = references(document)

    assert found
    assert all(isinstance(resolve(document, reference), dict) for reference in found)


def test_every_command_is_an_operation() -> None:
    operations = asyncapi.document()["operations"]

    received = {
        verb: operation["summary"] for verb, operation in operations.items() if operation["action"] == "receive"
    }
    assert received == {verb: command.summary for verb, command in COMMANDS.items()}


def test_every_command_has_its_channel() -> None:
    channels = asyncapi.document()["channels"]

    addresses = {verb: channels[verb]["address"].replace("{session_id}", "*") for verb in COMMANDS}
    assert addresses == {verb: command.subject for verb, command in COMMANDS.items()}


@pytest.mark.parametrize("verb", COMMANDS)
def test_every_command_has_its_messages(verb: str) -> None:
    messages, command = asyncapi.document()["components"]["messages"], COMMANDS[verb]

    kinds = {
        name: messages[name]["payload"]["$ref"].rpartition("/")[2] for name in (f"{verb}_request", f"{verb}_reply")
    }
    assert kinds == {f"{verb}_request": command.request.__name__, f"{verb}_reply": command.reply.__name__}


@pytest.mark.parametrize("verb", COMMANDS)
def test_every_command_has_its_errors(verb: str) -> None:
    described = asyncapi.document()["channels"][f"{verb}_reply"]["messages"]

    errors = {f"error_{kind.code}" for kind in COMMANDS[verb].errors + ERRORS_OF_EVERY_COMMAND}
    assert described.keys() == {f"{verb}_reply"} | errors


def test_every_error_is_described() -> None:
    messages = asyncapi.document()["components"]["messages"]

    for kind in COMMAND_ERRORS:
        headers = messages[f"error_{kind.code}"]["headers"]["properties"]
        assert headers["Nats-Service-Error-Code"]["const"] == str(kind.status)


def test_the_table_of_the_lifecycle_is_in_the_contract() -> None:
    described = schema.document()["$defs"]["Status"]

    for name, table in (("x-may-become", TRANSITIONS), ("x-may-become-with-restart", WITH_RESTART)):
        assert {source: set(targets) for source, targets in described[name].items()} == dict(table)


def test_the_subjects_of_events_are_described() -> None:
    channels = asyncapi.document()["channels"]

    assert channels["events"]["address"] == subjects.EVENTS
    assert channels["session"]["address"].replace("{session_id}", "s1") == subjects.session("s1")


@EACH
def test_golden_messages_keep_the_contract(line: Golden) -> None:
    check(KINDS[line.kind].__name__, json.loads(line.json))


@EACH
def test_readers_allow_new_fields_where_requests_do_not(line: Golden) -> None:
    name, message = KINDS[line.kind].__name__, json.loads(line.json) | EXTRA
    if name not in REQUESTS:
        check(name, message)
        return
    with pytest.raises(jsonschema.ValidationError, match="a_field_of_the_future"):
        check(name, message)


@pytest.mark.parametrize("line", [line for line in LINES if line.kind.startswith("journal_")])
def test_an_entry_of_a_journal_keeps_the_contract(line: Golden) -> None:
    check("JournalEntry", json.loads(line.json))


def test_a_policy_of_a_newer_version_is_allowed_only_in_a_record() -> None:
    policy = {"on": ["crashed"], "a_field_of_the_future": 1}

    check("RestartPolicy", policy)
    with pytest.raises(jsonschema.ValidationError, match="a_field_of_the_future"):
        check("CreateRequest", {"restart": policy})


@pytest.mark.parametrize("wrong", [{"on": []}, {"on": ["crashed", "crashed"]}, {"on": ["crashed"], "attempts_max": -1}])
def test_a_policy_that_a_manager_refuses_is_refused(wrong: dict[str, object]) -> None:
    check("CreateRequest", {"restart": {"on": ["crashed"]}})

    with pytest.raises(jsonschema.ValidationError):
        check("CreateRequest", {"restart": wrong})


@EACH
def test_a_missing_required_field_is_refused(line: Golden) -> None:
    kind = KINDS[line.kind]
    for field in msgspec.structs.fields(kind):
        if field.required:
            message = {name: value for name, value in json.loads(line.json).items() if name != field.encode_name}
            with pytest.raises(jsonschema.ValidationError, match=field.encode_name):
                check(kind.__name__, message)


@settings(deadline=None)  # the schema's validator is slow, and other tests run at the same time
@given(walks())
def test_every_life_keeps_the_contract(walk: list[tuple[SessionRecord, tuple[Event, ...]]]) -> None:
    for record, events in walk:
        check("SessionRecord", json.loads(msgspec.json.encode(record)))
        for event in events:
            check("Event", json.loads(msgspec.json.encode(event)))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("version", 0),
        ("attempt", 0),
        ("cause", 7),
        ("version", "2"),
        ("session_id", "a.b"),
        ("status", 7),
        ("updated_at", "2025-01-24"),
    ],
)
def test_a_wrong_value_is_refused(field: str, value: object) -> None:
    good = next(json.loads(line.json) for line in LINES if line.kind == "session_status")
    check("Event", good)

    with pytest.raises(jsonschema.ValidationError):
        check("Event", good | {field: value})
