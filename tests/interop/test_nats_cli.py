"""The real `nats` command drives a running manager: what operators hear, ask, read and replay with no code of ours.

It is `JIDO_NATS_CLI`, the one on PATH, or built with Go; skipped without, unless `JIDO_REQUIRE_INTEROP=1`.
"""

import base64
import re
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from jido_nats import LocalServer, SessionManager
from tests.interop.nats_command import NatsCommand
from tests.interop.tools import nats_cli
from tests.tools.support import Stranger, brief, eventually

EVENTS: Final = "jido.client.events"
OWN: Final = "jido.client.session.s1"
ON_TERMINAL: Final = "nats stream view"


@pytest.fixture
def binary() -> Path:
    """The command; before there is a server, since building it takes minutes."""
    return nats_cli()


@pytest.fixture
def nats(binary: Path, server: LocalServer, manager: SessionManager, tmp_path: Path) -> NatsCommand:
    """The command, against a server with a manager."""
    return NatsCommand(binary, server.url, tmp_path / "nats")


def events_in(text: str) -> list[dict[str, Any]]:
    """The events among what was printed."""
    return [msgspec.json.decode(line) for line in text.splitlines() if line.startswith('{"type":"session_')]


def records_in(text: str) -> list[dict[str, Any]]:
    """The records among what was printed."""
    return [msgspec.json.decode(found) for found in re.findall(r'\{"session_id".*\}', text)]


async def ask(nats: NatsCommand, subject: str, body: str = "") -> dict[str, Any]:
    """The reply to a request."""
    answer: dict[str, Any] = msgspec.json.decode(await nats("req", subject, body, "--raw"))
    return answer


async def step(stranger: Stranger) -> None:
    """A change of the session, whatever it is now."""
    if "error" in await stranger.ask("jido.session.idle.s1"):
        await stranger.ask("jido.session.activate.s1")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("subject", [EVENTS, OWN])
async def test_sub_hears_what_is_stored(nats: NatsCommand, stranger: Stranger, subject: str) -> None:
    await stranger.create("s1")
    async with nats.running(f"nats sub {subject} --raw") as subscriber:

        async def hears() -> bool:
            await step(stranger)  # it says that it subscribes before it has
            return len(events_in(subscriber.out)) >= 3

        await eventually(hears)
        stored = await stranger.stored_events(subject)
        await eventually(lambda: events_in(subscriber.out)[-1] == stored[-1])
        heard = events_in(subscriber.out)

    assert heard == stored[-len(heard) :]


async def test_req_runs_a_session_from_beginning_to_end(nats: NatsCommand) -> None:
    created = await ask(nats, "jido.session.create", '{"session_id":"s1","metadata":{"project":"demo"}}')
    listed = await ask(nats, "jido.session.list")
    told = [await ask(nats, f"jido.session.{verb}.s1") for verb in ("get", "idle", "activate", "terminate")]

    assert (created["status"], created["metadata"]) == ("active", {"project": "demo"})
    assert [record["session_id"] for record in listed["sessions"]] == ["s1"]
    assert [record["status"] for record in told] == ["active", "idle", "active", "terminated"]


async def test_req_reads_the_history(nats: NatsCommand, stranger: Stranger) -> None:
    await stranger.create("s1")
    await stranger.ask("jido.session.terminate.s1", {"detail": "enough"})

    answer = await ask(nats, "jido.session.history.s1")

    assert [brief(event) for event in answer["events"]] == [
        "1 created",
        "2 active",
        "3 terminating",
        "4 terminated",
        "4 ended",
    ]


async def test_req_shows_an_error_by_its_headers(nats: NatsCommand) -> None:
    text = await nats("req", "jido.session.get.nobody", "")

    assert "Nats-Service-Error-Code: 404" in text
    assert "Nats-Service-Error: there is no session of that id" in text


async def test_micro_shows_the_manager(nats: NatsCommand, manager: SessionManager) -> None:
    listed = await nats("micro", "ls")
    info: Any = await nats.json("micro", "info", "jido-session-manager", "--json")

    assert manager.manager_id in listed
    assert info["info"]["id"] == manager.manager_id
    assert {endpoint["subject"] for endpoint in info["info"]["endpoints"]} >= {"jido.session.create"}


async def test_micro_counts_requests_and_errors(nats: NatsCommand, stranger: Stranger) -> None:
    await stranger.create("s1")
    await stranger.ask("jido.session.get.nobody")

    text = await nats("micro", "stats", "jido-session-manager")

    columns = [[cell.strip() for cell in line.split("│")] for line in text.splitlines()]
    counted = {row[2]: (row[3], row[5]) for row in columns if len(row) > 5}
    assert (counted["create"], counted["get"]) == (("1", "0"), ("1", "1"))


async def test_stream_info_counts_the_events(nats: NatsCommand, stranger: Stranger) -> None:
    await stranger.create("s1")

    info: Any = await nats.json("stream", "info", "JIDO_CLIENT", "--json")

    assert info["state"]["messages"] == 3
    assert info["config"]["subjects"] == [EVENTS, "jido.client.session.*", "jido.fence.*"]


async def test_stream_get_reads_an_event(nats: NatsCommand, stranger: Stranger) -> None:
    await stranger.create("s1")

    message: Any = await nats.json("stream", "get", "JIDO_CLIENT", "1", "--json")

    assert brief(msgspec.json.decode(base64.b64decode(message["data"]))) == "1 created"


async def test_stream_view_shows_every_event(nats: NatsCommand, stranger: Stranger) -> None:
    await stranger.create("s1")

    text = await nats.on_terminal("nats stream view JIDO_CLIENT")

    assert [brief(event) for event in events_in(text)] == ["1 created", "2 active", "2 active"]
    assert "Nats-Msg-Id: s1.2.session_status.session" in text


async def test_a_durable_carries_on(nats: NatsCommand, stranger: Stranger) -> None:
    how = ("--pull", "--deliver", "all", "--ack", "explicit", "--defaults")
    await stranger.create("s1")
    await nats("consumer", "add", "JIDO_CLIENT", "audit", "--filter", EVENTS, *how)
    before = await nats("consumer", "next", "JIDO_CLIENT", "audit", "--count", "2", "--raw")
    await stranger.ask("jido.session.terminate.s1")

    after = await nats("consumer", "next", "JIDO_CLIENT", "audit", "--count", "3", "--raw")

    assert [brief(event) for event in events_in(before)] == ["1 created", "2 active"]
    assert [brief(event) for event in events_in(after)] == ["3 terminating", "4 terminated", "4 ended"]


async def test_the_last_event_of_each_session_is_a_snapshot(nats: NatsCommand, stranger: Stranger) -> None:
    await stranger.create("s1")
    await stranger.create("s2")
    await stranger.ask("jido.session.idle.s1")

    how = ("--stream", "JIDO_CLIENT", "--last-per-subject", "--terminate-at-end", "--raw")
    text = await nats("sub", *how, "jido.client.session.*")

    assert {event["session_id"]: event["status"] for event in events_in(text)} == {"s1": "idle", "s2": "active"}


async def test_sub_replays_the_stream(nats: NatsCommand, stranger: Stranger) -> None:
    await stranger.create("s1")

    text = await nats("sub", "--stream", "JIDO_CLIENT", "--all", "--terminate-at-end", "--raw", EVENTS)

    assert events_in(text) == await stranger.stored_events()


@pytest.mark.parametrize("bucket", ["JIDO_SESSIONS", "JIDO_MANAGERS"])
async def test_kv_shows_a_bucket(nats: NatsCommand, stranger: Stranger, manager: SessionManager, bucket: str) -> None:
    await stranger.create("s1")
    key = "s1" if bucket == "JIDO_SESSIONS" else manager.manager_id

    keys = await nats("kv", "ls", bucket)
    value: Any = await nats.json("kv", "get", bucket, key, "--raw")
    history = await nats("kv", "history", bucket, key)

    assert keys.split() == [key]
    assert value["session_id" if bucket == "JIDO_SESSIONS" else "manager_id"] == key
    assert history.count("PUT") == 1


async def test_kv_watch_follows_the_records(nats: NatsCommand, stranger: Stranger) -> None:
    await stranger.create("s1")
    async with nats.running("nats kv watch JIDO_SESSIONS") as watcher:
        await eventually(lambda: records_in(watcher.out))

        await stranger.ask("jido.session.idle.s1")

        await eventually(lambda: [record["status"] for record in records_in(watcher.out)] == ["active", "idle"])


async def test_kv_watch_follows_the_leases(nats: NatsCommand, manager: SessionManager) -> None:
    async with nats.running("nats kv watch JIDO_MANAGERS") as watcher:
        await eventually(lambda: watcher.out.count("PUT JIDO_MANAGERS") >= 3)

    assert watcher.out.count(f"PUT JIDO_MANAGERS > {manager.manager_id}: ") >= 3


async def test_events_shows_who_reads_the_stream(nats: NatsCommand) -> None:
    add = ("consumer", "add", "JIDO_CLIENT", "--pull", "--deliver", "all", "--ack", "explicit", "--defaults")
    names = (f"reader{number}" for number in range(1000))
    async with nats.running("nats events --js-advisory --short") as watcher:

        async def tells() -> bool:
            await nats(*add, next(names))  # it says that it listens before it does
            return "[Consumer Create] JIDO_CLIENT > reader" in watcher.out

        await eventually(tells)


async def test_server_check_finds_the_stream_healthy(nats: NatsCommand, stranger: Stranger) -> None:
    await stranger.create("s1")

    assert (await nats("server", "check", "stream", "--stream", "JIDO_CLIENT", "--msgs-critical", "1")).startswith("OK")


async def test_server_check_misses_events(nats: NatsCommand) -> None:
    with pytest.raises(AssertionError, match="CRITICAL"):
        await nats("server", "check", "stream", "--stream", "JIDO_CLIENT", "--msgs-critical", "1")
