"""The published contract against a real run: every message, stored value and reply conforms to it."""

import asyncio
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from jsonschema import Draft202012Validator

from jido_nats import SessionManager
from jido_nats.contract import asyncapi
from jido_nats.core.commands import COMMANDS
from tests.conftest import StartManager
from tests.tools.programs import run
from tests.tools.support import Puppet, Stranger, eventually

CONTRACT: Final = Path(__file__).parent.parent.parent / "deploy" / "contract"
ONE_ERROR_EACH: Final = [
    ("bad_request", "jido.session.create", {"unknown": 1}),
    ("not_found", "jido.session.get.nobody", b""),
    ("invalid_transition", "jido.session.activate.s1", b""),
    ("already_exists", "jido.session.create", {"session_id": "s1", "metadata": {"other": 1}}),
    ("too_large", "jido.session.create", b" " * 70_000),
]


def check(name: str, value: object) -> None:
    """Raise `jsonschema.ValidationError` unless the published JSON Schema allows the value under that name."""
    published = msgspec.json.decode((CONTRACT / "jido_nats.schema.json").read_bytes())
    Draft202012Validator({"$ref": f"#/$defs/{name}", "$defs": published["$defs"]}).validate(value)


def check_headers(message: str, headers: dict[str, str]) -> None:
    """The same for a message's headers, by its name in the AsyncAPI document."""
    published = msgspec.json.decode((CONTRACT / "asyncapi.json").read_bytes())
    Draft202012Validator(published["components"]["messages"][message]["headers"]).validate(headers)


async def live(stranger: Stranger, puppet: Puppet) -> None:
    """Sessions that end in every way that a test can cause at once."""
    await stranger.create("s1", metadata={"größer": [1, None]}, llm_config={"model": "m"})
    await stranger.ask("jido.session.idle.s1")
    await stranger.ask("jido.session.activate.s1")
    await stranger.ask("jido.session.terminate.s1", {"detail": "enough"})
    for session_id in ("crashes", "completes"):
        await stranger.create(session_id)
    puppet.crash("crashes", RuntimeError("boom"))
    puppet.complete("completes")
    await asyncio.gather(*map(stranger.ends, ("s1", "crashes", "completes")))


async def test_stored_events_keep_the_contract(stranger: Stranger, manager: SessionManager, puppet: Puppet) -> None:
    await live(stranger, puppet)

    events = await stranger.stored_events()
    assert len(events) == 7 + 2 * 4
    for event in events:
        check("Event", event)


async def live_again(stranger: Stranger, puppet: Puppet) -> None:
    """A session whose worker crashed and was started again."""
    await stranger.create("s1", restart={"on": ["crashed"], "backoff_s": 0.01})
    await stranger.ask("jido.session.send.s1", {"role": "user", "content": "hello"})
    puppet.crash("s1", RuntimeError("boom"))
    await eventually(lambda: is_in_attempt(stranger, 2))
    await stranger.ask("jido.session.send.s1", {"role": "user", "content": "hello again"})


async def is_in_attempt(stranger: Stranger, attempt: int) -> bool:
    record = await stranger.record("s1")
    assert record is not None
    return bool(record["status"] == "active" and record["run"]["attempt"] == attempt)


async def test_attempts_keep_the_contract(stranger: Stranger, manager: SessionManager, puppet: Puppet) -> None:
    await live_again(stranger, puppet)

    events = await stranger.stored_events()
    assert {event.get("attempt") for event in events} == {None, 1, 2}
    for event in events:
        check("Event", event)
    check("SessionRecord", await stranger.record("s1"))


async def test_output_of_attempts_keeps_the_contract(
    stranger: Stranger, manager: SessionManager, puppet: Puppet
) -> None:
    await live_again(stranger, puppet)

    stored = await eventually(lambda: stored_all(stranger, "JIDO_OUTPUT", 2))
    for message in stored:
        check("Output", msgspec.json.decode(message.data))
        check_headers("ConversationAdded", dict(message.headers or {}))
    assert [msgspec.json.decode(message.data)["attempt"] for message in stored] == [1, 2]


async def test_journals_keep_the_contract(stranger: Stranger, manager: SessionManager, puppet: Puppet) -> None:
    await live_again(stranger, puppet)

    entries = [msgspec.json.decode(message.data) for message in await stranger.stored("JIDO_JOURNAL")]
    assert {"claim", "message"} <= {entry["type"] for entry in entries}
    for entry in entries:
        check("JournalEntry", entry)


async def stored_all(stranger: Stranger, stream: str, number: int) -> list[Any]:
    """The messages of a stream once there are so many."""
    messages = await stranger.stored(stream)
    return messages if len(messages) == number else []


async def test_stored_headers_keep_the_contract(stranger: Stranger, manager: SessionManager, puppet: Puppet) -> None:
    await live(stranger, puppet)

    for message in await stranger.stored():
        name = "".join(word.title() for word in msgspec.json.decode(message.data)["type"].split("_"))
        copy = "" if message.subject == "jido.client.events" else "Copy"
        check_headers(name + copy, dict(message.headers or {}))


async def test_stored_records_keep_the_contract(stranger: Stranger, manager: SessionManager, puppet: Puppet) -> None:
    await live(stranger, puppet)

    for session_id in ("s1", "crashes", "completes"):
        check("SessionRecord", await stranger.record(session_id))


async def test_a_lease_keeps_the_contract(stranger: Stranger, manager: SessionManager) -> None:
    message = await stranger.js.get_last_msg("KV_JIDO_MANAGERS", f"$KV.JIDO_MANAGERS.{manager.manager_id}")

    check("ManagerInfo", msgspec.json.decode(message.data or b""))


@pytest.mark.parametrize("verb", COMMANDS)
async def test_replies_keep_the_contract(stranger: Stranger, manager: SessionManager, verb: str) -> None:
    command = COMMANDS[verb]
    await stranger.create("s1")
    if verb == "activate":
        await stranger.ask("jido.session.idle.s1")

    payload = {"role": "user", "content": "hello"} if verb == "send" else b""
    reply = await stranger.request(command.subject_for("s1"), payload)

    check(command.reply.__name__, msgspec.json.decode(reply.data))
    check_headers(f"{verb}_reply", dict(reply.headers or {}))
    assert "Nats-Service-Error-Code" not in (reply.headers or {})


@pytest.mark.parametrize(("code", "subject", "request_"), ONE_ERROR_EACH)
async def test_errors_keep_the_contract(
    stranger: Stranger, manager: SessionManager, code: str, subject: str, request_: Any
) -> None:
    await stranger.create("s1")

    reply = await stranger.request(subject, request_)

    body = msgspec.json.decode(reply.data)
    check("ErrorReply", body)
    check_headers(f"error_{code}", dict(reply.headers or {}))
    assert body["error"]["code"] == code


async def test_a_failed_start_keeps_the_contract(stranger: Stranger, start_manager: StartManager) -> None:
    async def fails(session: Any) -> None:
        raise RuntimeError("boom")

    await start_manager(fails, wait_ready=True)

    reply = await stranger.request("jido.session.create", {"session_id": "s1"})

    check_headers("error_start_failed", dict(reply.headers or {}))
    for event in await eventually(stranger.stored_events):
        check("Event", event)


async def test_the_streams_are_as_the_contract_says(stranger: Stranger, manager: SessionManager) -> None:
    described = asyncapi.document()["x-jetstream"]
    configs = [*described["streams"].values(), *(bucket["stream"] for bucket in described["buckets"].values())]

    for config in configs:
        answer = await stranger.request(f"$JS.API.STREAM.INFO.{config['name']}")
        real = msgspec.json.decode(answer.data)["config"]
        left_out = {name for name, value in config.items() if value in (0, -1)} | {"metadata"}
        assert {name: real[name] for name in config.keys() - left_out} == {
            name: value for name, value in config.items() if name not in left_out
        }
        assert config.get("metadata", {}).keys() <= real["metadata"].keys()  # this manager has another lease time


@pytest.mark.parametrize(("kind", "file"), [("jsonschema", "jido_nats.schema.json"), ("asyncapi", "asyncapi.json")])
async def test_the_schema_command_prints_the_published_file(kind: str, file: str) -> None:
    finished = await run("schema", "--format", kind)

    assert (finished.code, finished.err) == (0, "")
    assert finished.out == (CONTRACT / file).read_text()
