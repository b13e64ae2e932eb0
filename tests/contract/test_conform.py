"""`jido-nats conform` as a user runs it: on recordings, on the stream itself, and on a misbehaving manager."""

from pathlib import Path

import msgspec

from jido_nats import LocalServer, SessionManager
from jido_nats.core.codec import Encoding
from tests.conftest import StartManager
from tests.contract.test_live_messages import live
from tests.tools.programs import run
from tests.tools.support import Puppet, Stranger

UNKNOWN = {"type": "session_renamed", "session_id": "s1", "version": 9}
AGAIN = {
    "type": "session_status",
    "session_id": "s1",
    "version": 6,
    "status": "active",
    "previous_status": "terminated",
    "updated_at": "2099-01-01T00:00:00Z",
}


async def publish(stranger: Stranger, event: object, subject: str = "jido.client.events") -> None:
    """Publish what a misbehaving manager might."""
    data = event if isinstance(event, bytes) else msgspec.json.encode(event)
    await stranger.js.publish(subject, data, headers={"Content-Type": "application/json"})


async def test_a_real_run_conforms(
    server: LocalServer, stranger: Stranger, manager: SessionManager, puppet: Puppet
) -> None:
    await live(stranger, puppet)

    finished = await run("conform", "--server", server.url)

    assert (finished.code, finished.err) == (0, "")
    assert finished.out == "24 messages of 3 sessions, 0 violations\n"


async def test_messagepack_conforms(
    server: LocalServer, stranger: Stranger, start_manager: StartManager, puppet: Puppet
) -> None:
    await start_manager(puppet, encoding=Encoding.MSGPACK)
    await live(stranger, puppet)

    finished = await run("conform", "--server", server.url)

    assert (finished.code, finished.out) == (0, "24 messages of 3 sessions, 0 violations\n")


async def test_a_session_that_lives_conforms(server: LocalServer, stranger: Stranger, manager: SessionManager) -> None:
    await stranger.create("s1")

    finished = await run("conform", "--server", server.url)

    assert (finished.code, finished.out) == (0, "3 messages of 1 sessions, 0 violations\n")


async def test_a_recording_conforms(
    server: LocalServer, stranger: Stranger, manager: SessionManager, puppet: Puppet, tmp_path: Path
) -> None:
    await live(stranger, puppet)
    recording = tmp_path / "events.jsonl"
    for session in ([], ["--session", "s1"]):
        stored = await run("events", "--server", server.url, "--since", "all", "--no-follow", "--json", *session)
        with recording.open("a") as file:
            file.write(stored.out)

    finished = await run("conform", "--file", str(recording))

    assert (finished.code, finished.out) == (0, "20 messages of 3 sessions, 0 violations\n")


async def test_what_a_misbehaving_manager_publishes_is_reported(
    server: LocalServer, stranger: Stranger, manager: SessionManager
) -> None:
    await stranger.create("s1")
    await stranger.ask("jido.session.terminate.s1")
    await publish(stranger, AGAIN)

    finished = await run("conform", "--server", server.url, "--json")

    assert finished.code == 1
    assert {line["rule"] for line in finished.lines} >= {"header", "after_end"}
    assert {line["sequence"] for line in finished.lines} == {9}


async def test_a_message_that_is_not_an_event_is_reported(
    server: LocalServer, stranger: Stranger, manager: SessionManager
) -> None:
    await publish(stranger, b"hello")

    finished = await run("conform", "--server", server.url)

    assert finished.code == 1
    assert finished.out.startswith("sequence 1: not_an_event: on jido.client.events: ")


async def test_an_unknown_type_is_only_noted(server: LocalServer, stranger: Stranger, manager: SessionManager) -> None:
    await publish(stranger, UNKNOWN)

    finished = await run("conform", "--server", server.url, "--json")

    assert (finished.code, finished.out) == (0, "")
    assert "an event of an unknown type, 'session_renamed'" in finished.err


async def test_a_partial_recording_needs_to_say_so(tmp_path: Path) -> None:
    recording = tmp_path / "events.jsonl"
    row = {"sequence": 7, "subject": "jido.client.events", "event": AGAIN | {"previous_status": "idle"}}
    recording.write_bytes(msgspec.json.encode(row) + b"\n")

    refused = await run("conform", "--file", str(recording))
    accepted = await run("conform", "--file", str(recording), "--partial")

    assert (refused.code, accepted.code) == (1, 0)
    assert refused.out.startswith("line 1, sequence 7: first: session s1: it begins with version 6 session_status")
