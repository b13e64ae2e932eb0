"""Subscribers in other languages, with no line of our code, hear what a nats-py subscriber hears, byte for byte.

They are clients with an account of their own, as `nats.conf` has it; once also on a server without roles.
README.md beside this file says what the programs do and print. A language whose toolchain is missing is skipped
by its name, unless `JIDO_REQUIRE_INTEROP=1`.
"""

import asyncio
import contextlib
import json
import re
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import pytest
from nats.aio.msg import Msg

from jido_nats import LocalServer, SessionManager
from tests.conftest import StartManager
from tests.interop import programs
from tests.tools.pages import page, section
from tests.tools.roles import SECRETS, Member, environment, member_at
from tests.tools.support import Listener, Stranger, eventually

EVENTS: Final = "jido.client.events"
RECORDS: Final = "$KV.JIDO_SESSIONS."
AWKWARD: Final = 'quote " backslash \\ newline \n tab \t größer 🎈 \u2028 \x00 \x7f </script> & % ${x}'
METADATA: Final = {"text": AWKWARD, "number": 2**53 + 1, "ö": None, "list": [1.5, True, {}]}
CALM_WAIT_S: Final = 0.05
BUSY_WAIT_S: Final = 0.001
KINDS: Final = ("snapshot", "followed")
IN_TABLE: Final = {"go": "Go", "node": "JavaScript", "rust": "Rust", "java": "Java", "c": "C"}
SOURCES: Final = (".go", ".js", ".rs", ".java", ".c")

Line = dict[str, Any]


@pytest.fixture
def folder(name: str) -> Path:
    """Where the program was built; before there is a server, since a first build takes minutes."""
    return programs.built(name)


@pytest.fixture
def websocket_port() -> int:
    """A free port for the server's WebSocket listener."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def listener(websocket_port: int) -> str:
    """The configuration of a nats-server that browsers can reach too."""
    return f'websocket {{ listen: "127.0.0.1:{websocket_port}", no_tls: true }}'


@pytest.fixture
async def server(listener: str) -> AsyncIterator[LocalServer]:
    """One for trials, without roles."""
    async with LocalServer(config=listener) as server:
        yield server


@pytest.fixture
async def roles_server(listener: str) -> AsyncIterator[LocalServer]:
    """One with the roles."""
    async with LocalServer(config=listener, secrets=SECRETS) as server:
        yield server


@pytest.fixture
async def operator(roles_server: LocalServer) -> AsyncIterator[Member]:
    """Who sees what the managers write, in their account."""
    async with member_at(roles_server, "operator") as operator:
        yield operator


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", programs.LANGUAGES)
async def test_a_program_with_no_code_of_ours_hears_what_python_hears(
    name: str,
    folder: Path,
    roles_server: LocalServer,
    roles_manager: SessionManager,
    websocket_port: int,
    operator: Member,
) -> None:
    python = await operator.hear("jido.client.>", f"{RECORDS}>")
    await prepare(roles_manager)
    async with churning(roles_manager, operator):
        url = address(name, roles_server, websocket_port)
        said = await programs.run(name, folder, url, environment("client"))
    await everything_heard(operator, python)

    lines = [json.loads(line) for line in said.removesuffix("\n").split("\n")]  # U+2028 is no end of a line here
    session_id = check_commands(lines, python)
    check_live(lines, python, session_id)
    check_records(lines, python, session_id)
    await check_replay(lines, operator, session_id)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", programs.LANGUAGES)
async def test_without_roles_a_record_that_expired_is_reported_as_such(
    name: str,
    folder: Path,
    server: LocalServer,
    websocket_port: int,
    stranger: Stranger,
    start_manager: StartManager,
) -> None:
    manager = await start_manager(terminated_ttl_s=1)
    await manager.create_session(session_id="gone")
    await manager.terminate_session("gone")

    async def expired() -> bool:
        last = await stranger.js.get_last_msg("KV_JIDO_SESSIONS", f"{RECORDS}gone")
        return "Nats-Marker-Reason" in (last.headers or {})

    await eventually(expired)
    said = await programs.run(name, folder, address(name, server, websocket_port), {})

    gone = [line for line in map(json.loads, said.splitlines()) if "gone" in line.values()]
    assert [(line.get("expired"), line["data"]) for line in gone] == [("gone", "")]


@pytest.mark.parametrize("name", ["go", "node", "rust", "java", "c"])
def test_the_page_says_of_a_role_what_the_program_does(name: str) -> None:
    """The names in the table of `deploy/docs/clients.md` are those in the program."""
    rows = [line.split(" | ") for line in section(page("clients"), "## In a role").splitlines()]
    (code,) = ["".join(cells) for first, *cells in rows if first == f"| {IN_TABLE[name]}"]
    source = programs.HERE / programs.LANGUAGES[name].folder
    text = "".join(file.read_text() for file in source.rglob("*") if is_source(file))

    named = [word for quoted in re.findall("`(.*?)`", code) for word in re.findall(r"\w+", re.sub('".*?"', "", quoted))]
    assert len(named) >= 4
    assert [word for word in named if word not in text] == []


def is_source(file: Path) -> bool:
    """Of a subscriber: `go/attack` is another program."""
    return file.suffix in SOURCES and not {"attack", *programs.LEFT_BEHIND} & set(file.parts)


def address(name: str, server: LocalServer, websocket_port: int) -> str:
    return f"ws://127.0.0.1:{websocket_port}" if name == "browser" else server.url


def check_commands(lines: list[Line], python: Listener) -> str:
    """The replies are the records, byte for byte; the error is what its headers tell. The session's id."""
    replies = {line["step"]: line for line in lines if "step" in line}
    assert list(replies) == ["create", "list", "get", "error", "terminate", "stopped"]
    session_id: str = json.loads(replies["create"]["data"])["session_id"]
    written = heard_on(python, RECORDS + session_id)
    assert replies["create"]["data"].encode() == replies["get"]["data"].encode() == written[0]
    assert replies["terminate"]["data"].encode() == written[2]
    assert json.loads(written[2])["status"] == "terminated"
    for live in (heard_on(python, f"{RECORDS}{live}")[-1] for live in ("waiting", "resting")):
        assert live in replies["list"]["data"].encode()
    assert written[0] in replies["list"]["data"].encode()
    error = json.loads(replies["error"]["data"])["error"]
    assert (replies["error"]["code"], error["code"], error["session_id"]) == ("404", "not_found", "nobody")
    assert replies["error"]["text"] == error["message"]
    return session_id


def check_live(lines: list[Line], python: Listener, session_id: str) -> None:
    """Live, on both subjects: the same bytes in the same order, with nothing left out."""
    own = f"jido.client.session.{session_id}"
    said = [(line["heard"], line["data"].encode()) for line in lines if "heard" in line]
    assert {subject for subject, _ in said} == {own, EVENTS}
    assert [data for subject, data in said if subject == own] == heard_on(python, own)
    events, all_events = [data for subject, data in said if subject == EVENTS], heard_on(python, EVENTS)
    start = all_events.index(events[0])
    assert events == all_events[start : start + len(events)]
    kinds = [event["type"] for event in map(json.loads, events) if event["session_id"] == session_id]
    assert kinds == ["session_created", *["session_status"] * 3, "session_terminated"]


def check_records(lines: list[Line], python: Listener, session_id: str) -> None:
    """The snapshot and what follows it: every record as it was written, and no session left behind."""
    said = [(line[kind], line["revision"], line["data"].encode()) for line in lines for kind in KINDS if kind in line]
    written = [(m.subject.removeprefix(RECORDS), m.data) for m in python.messages if m.subject.startswith(RECORDS)]
    revisions = [revision for _, revision, _ in said]
    assert revisions == sorted(set(revisions))
    for key, revision, data in said:  # one manager writes, so the n-th record that it wrote has revision n
        assert (key, data) == written[revision - 1]
    snapshot = {line["snapshot"] for line in lines if "snapshot" in line}
    followed = {line["followed"] for line in lines if "followed" in line}
    assert snapshot >= {"waiting", "resting", "gone"}
    assert session_id in followed - snapshot
    end = max(revision for key, revision, _ in said if key == session_id)
    assert json.loads(written[end - 1][1])["sealed"]
    final = {key: revision for revision, (key, _) in enumerate(written, 1)}
    assert {revision for revision in final.values() if revision <= end} <= set(revisions)  # without a gap


async def check_replay(lines: list[Line], stranger: Stranger, session_id: str) -> None:
    """Two runs of one durable read the stream in its order, and the server had to send each message once."""
    said = [(line["sequence"], line["replayed"], line["data"].encode()) for line in lines if "replayed" in line]
    stored = [(n, m.subject, m.data) for n, m in enumerate(await stranger.stored(), 1) if m.subject == EVENTS]
    assert said == stored[: len(said)]
    end = [data for _, _, data in said if b'"session_terminated"' in data and session_id.encode() in data]
    assert len(end) == 1
    stops = [number for number, line in enumerate(lines) if line.get("step") == "stopped"]
    first, second = (sum("replayed" in line for line in half) for half in (lines[: stops[0]], lines[stops[0] :]))
    assert (first > 0, second >= first, stops[1:]) == (True, True, [len(lines) - 1])
    consumer = await stranger.js.consumer_info("JIDO_CLIENT", session_id)
    assert consumer.delivered is not None and consumer.ack_floor is not None
    assert (consumer.delivered.consumer_seq, consumer.ack_floor.stream_seq) == (len(said), said[-1][0])


def heard_on(python: Listener, subject: str) -> list[bytes]:
    return [message.data for message in python.messages if message.subject == subject]


async def prepare(manager: SessionManager) -> None:
    """A session in each status that lasts, with metadata that are hard to quote."""
    for session_id in ("waiting", "resting", "gone"):
        await manager.create_session(session_id=session_id, metadata=METADATA)
    await manager.idle_session("resting")
    await manager.terminate_session("gone", detail=AWKWARD)


@contextlib.asynccontextmanager
async def churning(manager: SessionManager, stranger: Stranger) -> AsyncIterator[None]:
    """Other sessions come and go meanwhile, so that there is something to miss: most while the program's own lives."""
    wait_s = CALM_WAIT_S
    over = asyncio.Event()

    async def on_request(message: Msg) -> None:  # the program's: these sessions here are made without one
        nonlocal wait_s
        wait_s = BUSY_WAIT_S
        if message.subject.startswith("jido.session.terminate."):
            over.set()

    async def churn() -> None:
        while not over.is_set():
            session_id = (await manager.create_session(metadata=METADATA)).session_id
            await asyncio.sleep(wait_s)
            await manager.idle_session(session_id)
            await manager.terminate_session(session_id)

    await stranger.nc.subscribe("jido.session.>", cb=on_request)
    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(churn())
        try:
            yield
        finally:
            over.set()


async def everything_heard(stranger: Stranger, python: Listener) -> None:
    """Wait until the Python subscriber has heard as much as was stored."""

    async def all_there() -> bool:
        stored, revision = [
            (await stranger.js.stream_info(name)).state.last_seq for name in ("JIDO_CLIENT", "KV_JIDO_SESSIONS")
        ]
        events = sum(not message.subject.startswith(RECORDS) for message in python.messages)
        return (events, len(python.messages) - events) == (stored, revision)

    await eventually(all_there)
