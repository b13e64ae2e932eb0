"""The dashboard as HTTP: snapshots, streams that miss nothing, commands, and who may ask."""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from jido_nats import Cause, Client, LocalServer, RestartPolicy, SessionManager, Settings, Status
from jido_nats.core.position import parse_position
from jido_nats.dashboard import serve
from jido_nats.dashboard.serve import dashboard
from tests.conftest import StartManager
from tests.dashboard.stage import TOKEN, shown
from tests.tools.backup import Backup
from tests.tools.http import EventSource, ask, listening
from tests.tools.programs import ROOT, running
from tests.tools.proxy import Proxy
from tests.tools.roles import SECRETS, as_user
from tests.tools.support import LEASE_S, Puppet, Stranger, eventually, wait_for_ever


async def snapshot(url: str) -> Any:
    return await eventually(lambda: asked_for_snapshot(url))


async def asked_for_snapshot(url: str) -> Any:
    answer = await ask(url, path="/api/sessions")
    return answer.json if answer.status == 200 else None


async def sequences(stranger: Stranger, behind: int) -> list[int]:
    """Those of all events in the stream, as a reader with none of our code finds them."""
    stored = await stranger.stored()
    state = (await stranger.js.stream_info("JIDO_CLIENT")).state
    assert len(stored) == state.messages == state.last_seq, "nothing has expired, so places are sequences"
    return [n for n, message in enumerate(stored, 1) if message.subject == "jido.client.events" and n > behind]


def sequence_of(position_token: str) -> int:
    """Where in the stream it is."""
    return parse_position(position_token).sequence


class Browser:
    """Follows the events as a browser's EventSource does: it comes back with the last id that it saw."""

    def __init__(self, url: str, position: str) -> None:
        self.url = url
        self.position = position
        self.seen: list[int] = []
        self.connections = 0
        self.resets = 0

    def has_seen(self, count: int) -> bool:
        return len(self.seen) >= count

    async def follow(self) -> None:
        while True:
            self.connections += 1
            try:
                async with listening(self.url, "/api/stream?after=0", {"Last-Event-ID": str(self.position)}) as source:
                    await self._read(source)
            except (OSError, asyncio.IncompleteReadError):
                await asyncio.sleep(0.01)

    async def _read(self, source: EventSource) -> None:
        async for event in source:
            self.resets += event.name == "reset"
            if event.name == "change":
                assert event.id is not None
                self.position = event.id
                self.seen.append(sequence_of(self.position))


@asynccontextmanager
async def following(url: str, position: str) -> AsyncIterator[Browser]:
    browser = Browser(url, position)
    task = asyncio.create_task(browser.follow())
    try:
        yield browser
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def storm(client: Client, number: int = 0) -> None:
    """Four sessions that come, change and go: 28 events."""

    async def live(session_id: str) -> None:
        await client.create_session(session_id=session_id)
        await client.idle_session(session_id)
        await client.activate_session(session_id)
        await client.terminate_session(session_id)

    await asyncio.gather(*(live(f"s{number}_{each}") for each in range(4)))


async def test_a_snapshot_has_every_session(url: str, client: Client, manager: SessionManager) -> None:
    await client.create_session(session_id="s1", metadata={"project": "demo", "nested": {"a": 1}})
    await client.create_session(session_id="s2")
    await client.terminate_session("s2")

    async def rows() -> dict[str, Any]:
        found = {row[0]: row for row in (await snapshot(url))["sessions"]}
        return found if [row[1] for row in found.values()] == ["active", "terminated"] else {}

    found = await eventually(rows)

    assert found["s1"][3] == manager.manager_id
    assert found["s1"][6] == {"project": "demo", "nested": '{"a":1}'}
    assert found["s2"][7] == "requested"


async def test_a_session_that_ended_before_the_dashboard_began_is_in_the_snapshot(
    server: LocalServer, client: Client, manager: SessionManager
) -> None:
    await client.create_session(session_id="s1")
    await client.terminate_session("s1")

    async with shown(server.url) as url:
        rows = (await snapshot(url))["sessions"]

    assert [row[:2] for row in rows] == [["s1", "terminated"]]


async def test_rates_begin_with_what_was_before_the_dashboard(
    server: LocalServer, client: Client, manager: SessionManager
) -> None:
    await client.create_session(session_id="s1")
    await client.terminate_session("s1")

    async with shown(server.url) as url:
        rates = (await snapshot(url))["rates"]

    assert sum(events for _, events, _ in rates) == 5


async def test_an_event_s_id_is_its_position_in_the_stream(
    url: str, client: Client, stranger: Stranger, manager: SessionManager
) -> None:
    position = (await snapshot(url))["position_token"]

    async with following(url, position) as browser:
        await storm(client)
        expected = await sequences(stranger, sequence_of(position))
        await eventually(lambda: len(browser.seen) >= len(expected))

    assert browser.seen == expected
    assert len(expected) == 28


@pytest.mark.parametrize("events_max", [10_000, 3], ids=["from memory", "from the stream"])
async def test_a_browser_whose_connection_is_cut_gets_every_event_once(
    server: LocalServer, client: Client, stranger: Stranger, manager: SessionManager, events_max: int
) -> None:
    async with shown(server.url, events_max=events_max) as url:
        position = (await snapshot(url))["position_token"]
        async with Proxy(int(url.rpartition(":")[2])) as proxy:
            async with following(proxy.url.replace("nats:", "http:"), position) as browser:
                for number in range(10):
                    storming = asyncio.create_task(storm(client, number))
                    await eventually(partial(browser.has_seen, 28 * number + 9))  # in the middle of what is being sent
                    proxy.cut()
                    await storming
                expected = await sequences(stranger, sequence_of(position))
                await eventually(lambda: len(browser.seen) >= len(expected))

    assert browser.seen == expected
    assert browser.connections >= 11
    assert browser.resets == 0


async def test_a_browser_misses_nothing_while_the_dashboard_is_made_anew(
    server: LocalServer, client: Client, stranger: Stranger, manager: SessionManager
) -> None:
    async with shown(server.url) as url:
        position = (await snapshot(url))["position_token"]
        async with following(url, position) as browser:
            await storm(client)
            await eventually(lambda: len(browser.seen) == 28)

            await client.create_session(session_id="later")
    async with shown(server.url) as url, following(url, browser.position) as again:
        await client.terminate_session("later")
        expected = await sequences(stranger, sequence_of(position))
        await eventually(lambda: len(browser.seen) + len(again.seen) >= len(expected))

    assert browser.seen + again.seen == expected


async def test_a_browser_misses_nothing_while_nats_is_away(
    server: LocalServer, client: Client, stranger: Stranger, manager: SessionManager, tmp_path: Any
) -> None:
    async with Proxy(server.port) as proxy, shown(proxy.url) as url:
        position = (await snapshot(url))["position_token"]
        async with listening(url, f"/api/stream?after={position}") as news, following(url, position) as browser:
            assert (await news.named("state")).data["connected"]
            proxy.refuse()
            proxy.cut()
            assert not (await news.named("state")).data["connected"]
            await storm(client)
            await proxy.accept()
            assert (await news.named("state")).data["connected"]
            expected = await sequences(stranger, sequence_of(position))
            await eventually(lambda: len(browser.seen) >= len(expected))

    assert browser.seen == expected
    assert browser.connections == 1


async def test_a_browser_that_reads_slowly_is_let_go(
    server: LocalServer, client: Client, stranger: Stranger, manager: SessionManager
) -> None:
    await client.create_session(session_id="s1")
    event = json.loads((await stranger.stored())[1].data) | {"error": "x" * 10_000}
    async with shown(server.url, events_max=400) as url:
        position = (await snapshot(url))["position_token"]
        async with listening(url, f"/api/stream?after={position}") as slow:
            await slow.named("state")
            slow.pause()
            for _ in range(8):
                await asyncio.gather(
                    *(stranger.js.publish("jido.client.events", json.dumps(event).encode()) for _ in range(200))
                )
            last = (await stranger.js.stream_info("JIDO_CLIENT")).state.last_seq
            await eventually(lambda: is_at(url, last))
            slow.resume()
            ids = [event.id async for event in slow if event.id]
            seen = list(map(sequence_of, ids))
        async with following(url, ids[-1]) as browser:
            await eventually(lambda: browser.seen[-1:] == [last])

    assert 0 < len(seen) < 1600
    assert seen + browser.seen == list(range(sequence_of(position) + 1, last + 1))


async def is_at(url: str, position: int) -> bool:
    return bool((await snapshot(url))["position"] >= position)


async def test_a_position_that_the_stream_has_forgotten_means_a_new_snapshot(
    server: LocalServer, client: Client, stranger: Stranger, start_manager: StartManager
) -> None:
    await start_manager(retention_s=1, duplicate_window_s=1)
    await client.create_session(session_id="s1")
    await eventually(lambda: has_forgotten(stranger, 3))

    async with shown(server.url) as url, listening(url, "/api/stream?after=0") as source:
        assert await source.named("reset")


async def has_forgotten(stranger: Stranger, sequence: int) -> bool:
    return bool((await stranger.js.stream_info("JIDO_CLIENT")).state.first_seq > sequence)


async def test_a_position_of_another_life_of_the_stream_means_a_new_snapshot(
    url: str, client: Client, manager: SessionManager
) -> None:
    await client.create_session(session_id="s1")
    position = parse_position((await snapshot(url))["position_token"])
    for other in (position._replace(created_ns=position.created_ns + 1), position._replace(sequence=1, stored_ns=7)):
        async with listening(url, "/api/stream?after=0", {"Last-Event-ID": other.token}) as source:
            assert await source.named("reset")
        if other.sequence == 1:
            continue
        async with listening(url, "/api/sessions/s1/output", {"Last-Event-ID": other.token}) as source:
            assert await source.named("output_reset")


async def test_a_browser_is_reset_when_the_server_comes_back_with_an_older_store(tmp_path: Path) -> None:
    async with LocalServer(store_dir=tmp_path / "store") as server:
        backup = Backup(server, tmp_path / "store", tmp_path / "copy")
        settings = Settings(lease_s=2)
        async with (
            SessionManager.connect(server.url, worker=wait_for_ever, settings=settings) as manager,
            Client.connect(server.url, timeout_s=20) as client,
            shown(server.url) as url,
        ):
            await manager.start_serving()
            await client.create_session(session_id="kept")
            await backup.take()
            for number in range(5):
                await client.create_session(session_id=f"lost{number}")
            await eventually(lambda: shows(url, {"kept", *(f"lost{number}" for number in range(5))}))
            position = (await snapshot(url))["position_token"]
            async with listening(url, f"/api/stream?after={position}") as source:
                await source.named("state")
                await backup.restore()
                for number in range(9):
                    await client.create_session(session_id=f"new{number}")
                assert await source.named("reset")
            await eventually(lambda: shows(url, {"kept", *(f"new{number}" for number in range(9))}))


async def shows(url: str, wanted: set[str]) -> bool:
    return {row[0] for row in (await snapshot(url))["sessions"]} == wanted


async def test_a_position_that_never_was_means_a_new_snapshot(url: str, manager: SessionManager) -> None:
    await snapshot(url)

    async with listening(url, "/api/stream?after=4711") as source:
        assert await source.named("reset")


@pytest.mark.parametrize("position", ["", "-1", "x", "9" * 30])
async def test_a_position_has_to_be_one(url: str, manager: SessionManager, position: str) -> None:
    assert (await ask(url, path=f"/api/stream?after={position}")).status == 400


async def test_a_silent_stream_gives_signs_of_life(url: str, manager: SessionManager) -> None:
    position = (await snapshot(url))["position_token"]

    async with listening(url, f"/api/stream?after={position}") as source:
        assert [(await source.named("beat")).id for _ in range(2)] == [None, None]


async def test_managers_are_told_with_their_leases(url: str, manager: SessionManager, server: LocalServer) -> None:
    position = (await snapshot(url))["position_token"]
    async with listening(url, f"/api/stream?after={position}") as source:
        async with another_manager(server) as another:
            both = await eventually(lambda: managers(source, 2))
        left = await eventually(lambda: managers(source, 1))

    assert [(told["manager_id"], told["lease_s"]) for told in both] == [
        (manager.manager_id, LEASE_S),
        (another.manager_id, LEASE_S),
    ]
    assert [told["manager_id"] for told in left] == [manager.manager_id]


async def test_a_user_who_may_not_see_leases_is_told_so() -> None:
    settings = Settings(lease_s=2)
    async with (
        LocalServer(secrets=SECRETS) as server,
        SessionManager.connect(
            as_user(server, "manager"), worker=wait_for_ever, settings=settings, api=as_user(server, "manager-api")
        ) as manager,
        Client.connect(as_user(server, "client")) as client,
        dashboard(as_user(server, "observer"), port=0) as url,
    ):
        await manager.start_serving()
        await client.create_session(session_id="s1")
        position = (await snapshot(url))["position_token"]
        async with listening(url, f"/api/stream?after={position}") as source:
            state = await eventually(lambda: state_with_managers_problem(source))
        life = (await ask(url, path="/api/sessions/s1")).json
        refused = await ask(url, "POST", "/api/sessions/s1/terminate", {})

    assert (state["connected"], state["problem"]) == (True, None)
    assert "may not" in state["managers_problem"]
    assert [event["version"] for event in life["history"]] == [1, 2]
    assert (refused.status, refused.code) == (403, "not_allowed")


async def state_with_managers_problem(source: EventSource) -> Any:
    state = (await source.named("state")).data
    return state if state["managers_problem"] else None


def another_manager(server: LocalServer) -> SessionManager:
    return SessionManager.connect(server.url, worker=wait_for_ever, settings=Settings(lease_s=LEASE_S))


async def managers(source: EventSource, count: int) -> Any:
    """The next that are told, where they are so many."""
    told = (await source.named("managers")).data
    return told if len(told) == count else None


async def test_before_the_first_manager_the_reason_is_told(url: str) -> None:
    answer = await ask(url, path="/api/sessions")

    assert (answer.status, answer.code) == (503, "unavailable")
    assert "there is no stream JIDO_CLIENT" in answer.json["error"]["message"]


async def test_a_session_whose_record_has_expired_has_its_history(
    server: LocalServer, client: Client, stranger: Stranger, start_manager: StartManager
) -> None:
    await start_manager(terminated_ttl_s=1)
    await client.create_session(session_id="s1")
    await client.terminate_session("s1", detail="enough")
    await eventually(lambda: is_forgotten(stranger, "s1"))

    async with shown(server.url) as url:
        life = (await ask(url, path="/api/sessions/s1")).json

    assert life["record"] is None
    assert [event["type"] for event in life["history"]] == ["session_created", *STEPS, "session_terminated"]
    assert life["history"][-1]["detail"] == "enough"


async def is_forgotten(stranger: Stranger, session_id: str) -> bool:
    return await stranger.record(session_id) is None


async def test_a_session_has_its_history_without_a_manager(server: LocalServer, client: Client) -> None:
    async with another_manager(server) as manager:
        await manager.start_serving()
        await client.create_session(session_id="s1")

    async with shown(server.url) as url:
        life = (await ask(url, path="/api/sessions/s1")).json

    assert (life["record"]["reason"], life["record"]["version"]) == ("manager_stopped", 4)
    assert [event["type"] for event in life["history"]] == [*STEPS, "session_terminated"]


STEPS = ["session_status"] * 3


async def test_what_nobody_knows_is_not_found(url: str, manager: SessionManager) -> None:
    answer = await ask(url, path="/api/sessions/s1")

    assert (answer.status, answer.code) == (404, "not_found")


async def test_output_goes_on_behind_the_last_id(
    url: str, client: Client, manager: SessionManager, puppet: Puppet
) -> None:
    await client.create_session(session_id="s1")
    session = puppet.sessions["s1"]
    await session.emit("step", 1)
    async with listening(url, "/api/sessions/s1/output") as source:
        first = await source.named("output")
    await session.emit("step", 2)
    await session.say("done")
    await session.flush()

    async with listening(url, "/api/sessions/s1/output", {"Last-Event-ID": str(first.id)}) as source:
        later = [await source.named("output") for _ in range(2)]

    assert first.data["data"] == 1
    assert [said.data.get("data") or said.data["content"] for said in later] == [2, "done"]


async def test_output_that_is_not_kept_is_heard_live(
    url: str, client: Client, manager: SessionManager, puppet: Puppet
) -> None:
    await client.create_session(session_id="s1")
    async with listening(url, "/api/sessions/s1/output") as source:
        await source.named("output_caught_up")
        await puppet.sessions["s1"].emit("token", "Hel", ephemeral=True)
        said = await source.named("output")

    assert (said.data["data"], said.id) == ("Hel", None)


async def outputs(source: EventSource, count: int) -> list[Any]:
    return [(await source.named("output")).data["data"] for _ in range(count)]


async def has_consumers(stranger: Stranger, count: int) -> bool:
    return (await stranger.js.stream_info("JIDO_OUTPUT")).state.consumer_count == count


async def test_readers_of_a_session_share_a_consumer_whenever_they_come(
    url: str, client: Client, manager: SessionManager, puppet: Puppet, stranger: Stranger
) -> None:
    await client.create_session(session_id="s1")
    session = puppet.sessions["s1"]
    async with AsyncExitStack() as stack:
        sources = []
        for number in range(4):
            source = await stack.enter_async_context(listening(url, "/api/sessions/s1/output"))
            await source.named("output_caught_up") if number == 0 else None
            sources.append(source)
            await session.emit("step", number)
        assert [await outputs(source, 4) for source in sources] == [[0, 1, 2, 3]] * 4
        await session.emit("token", "live", ephemeral=True)
        assert [await outputs(source, 1) for source in sources] == [["live"]] * 4
        await eventually(lambda: has_consumers(stranger, 1))

    await eventually(lambda: has_consumers(stranger, 0))


async def said(url: str, last_id: str | None = None, until: Any = 9) -> list[Any]:
    """The data of a session's output, as a browser gets it, up to that."""
    found: list[Any] = []
    async with listening(url, "/api/sessions/s1/output", {"Last-Event-ID": last_id} if last_id else {}) as source:
        while until not in found:
            found.append((await source.named("output")).data["data"])
    return found


async def test_what_an_older_attempt_said_late_is_not_sent(
    url: str, manager: SessionManager, stranger: Stranger
) -> None:
    for number, attempt in ((1, 1), (2, 2), (3, 1), (9, 2)):
        await stranger.say("s1", number, attempt=attempt)

    assert await said(url) == [1, 2, 9]


@pytest.mark.parametrize("fields", [{}, {"ephemeral": True}])
async def test_what_an_older_attempt_says_late_is_not_sent(
    url: str, manager: SessionManager, stranger: Stranger, fields: dict[str, Any]
) -> None:
    await stranger.say("s1", 1, attempt=2)
    async with listening(url, "/api/sessions/s1/output") as source:
        await source.named("output_caught_up")

        await stranger.say("s1", 3, attempt=1, **fields)
        await stranger.say("s1", 9, attempt=2, **fields)

        assert (await source.named("output")).data["data"] == 9


async def test_a_session_that_waits_for_its_next_attempt_is_in_the_snapshot(
    url: str, client: Client, manager: SessionManager, puppet: Puppet
) -> None:
    policy = RestartPolicy(on=(Cause.CRASHED,), backoff_s=60)
    await client.create_session(session_id="s1", restart=policy)
    puppet.crash("s1", RuntimeError("boom"))
    await client.wait("s1", Status.INITIALIZING)

    async def row() -> Any:
        (row,) = (await snapshot(url))["sessions"]
        return row if row[1] == "initializing" else None

    found = await eventually(row)

    assert found[8].startswith("RuntimeError: boom")
    assert found[10:] == [2, "crashed"]


async def test_one_stream_has_the_events_and_the_output_of_a_session(
    url: str, client: Client, manager: SessionManager, puppet: Puppet
) -> None:
    after = (await snapshot(url))["position_token"]
    async with listening(url, f"/api/stream?after={after}&session=s1&output_after=") as source:
        await client.create_session(session_id="s1")
        await puppet.sessions["s1"].emit("step", 1)
        step = await source.named("output")
        await client.idle_session("s1")
        event = await source.named("change")
    async with listening(url, f"/api/stream?after={event.id}&session=s1&output_after={step.id}") as source:
        await puppet.sessions["s1"].emit("step", 2)

        assert (await source.named("output")).data["data"] == 2


async def test_a_reader_of_output_that_was_lost_is_reset_and_reads_the_new(tmp_path: Path, puppet: Puppet) -> None:
    async with LocalServer(store_dir=tmp_path / "store") as server:
        backup = Backup(server, tmp_path / "store", tmp_path / "copy")
        async with (
            SessionManager.connect(server.url, worker=puppet, settings=Settings(lease_s=2)) as manager,
            Client.connect(server.url, timeout_s=20) as client,
            shown(server.url) as url,
        ):
            await manager.start_serving()
            await client.create_session(session_id="s1")
            await puppet.sessions["s1"].emit("step", "kept")
            await puppet.sessions["s1"].flush()
            await backup.take()
            async with listening(url, "/api/sessions/s1/output") as source:
                await source.named("output_caught_up")
                await puppet.sessions["s1"].emit("step", "lost")
                assert (await source.named("output")).data["data"] == "lost"
                await backup.restore()
                await source.named("output_reset")

                assert (await source.named("output")).data["data"] == "kept"


async def test_commands_are_carried_out(url: str, client: Client, manager: SessionManager, puppet: Puppet) -> None:
    created = await ask(url, "POST", "/api/sessions", {"session_id": "s1", "metadata": {"a": 1}, "idle_after_s": 60})
    answers = [await ask(url, "POST", f"/api/sessions/s1/{verb}", {}) for verb in ("idle", "activate")]
    sent = await ask(url, "POST", "/api/sessions/s1/send", {"role": "user", "content": "hi", "message_id": "m1"})
    ended = await ask(url, "POST", "/api/sessions/s1/terminate", {"detail": "enough"})

    assert (created.status, created.json["idle_after_s"]) == (201, 60)
    assert [answer.json["status"] for answer in answers] == ["idle", "active"]
    assert sent.json["message_id"] == "m1"
    assert (ended.json["status"], ended.json["detail"]) == ("terminated", "enough")


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/api/sessions/nobody/idle", {}, 404, "not_found"),
        ("/api/sessions/s1/activate", {}, 409, "invalid_transition"),
        ("/api/sessions/s1/explode", {}, 404, "not_found"),
        ("/api/sessions/s1/send", {"role": "user"}, 400, "bad_request"),
        ("/api/sessions/a%20b/idle", {}, 400, "bad_request"),
        ("/api/sessions", {"session_id": "s1", "metadata": {"other": 1}}, 409, "already_exists"),
        ("/api/sessions", {"unknown": 1}, 400, "bad_request"),
        ("/api/sessions", b"{", 400, "bad_request"),
        ("/api/sessions", {"metadata": {"a": "x" * 40_000}}, 413, "too_large"),
        ("/api/sessions", {"metadata": {"a": "x" * 1_100_000}}, 413, "too_large"),
    ],
)
async def test_a_refused_command_says_why(
    url: str, client: Client, manager: SessionManager, path: str, body: Any, status: int, code: str
) -> None:
    await client.create_session(session_id="s1")

    answer = await ask(url, "POST", path, body)

    assert (answer.status, answer.code) == (status, code)
    assert answer.json["error"]["message"]


async def test_read_only_refuses_every_command(server: LocalServer, client: Client, manager: SessionManager) -> None:
    await client.create_session(session_id="s1")
    async with shown(server.url, read_only=True) as url:
        refused = [
            await ask(url, "POST", path, {})
            for path in ("/api/sessions", *(f"/api/sessions/s1/{verb}" for verb in ("idle", "terminate", "send")))
        ]
        told = (await snapshot(url))["read_only"]

    assert {(answer.status, answer.code) for answer in refused} == {(403, "read_only")}
    assert told
    assert [(record.session_id, record.version) for record in await client.list_sessions()] == [("s1", 2)]


async def test_every_answer_forbids_what_is_not_our_own(url: str, manager: SessionManager) -> None:
    for path in ("/", "/static/app.js", "/api/sessions", "/nowhere"):
        headers = (await ask(url, path=path)).headers
        assert headers["content-security-policy"].startswith("default-src 'self'; ")
        assert "unsafe" not in headers["content-security-policy"]
        assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")


@pytest.mark.parametrize(
    "path", ["/static/../app.py", "/static/%2e%2e%2fapp.py", "/static/..%2f..%2fshow.py", "/static/"]
)
async def test_nothing_but_the_page_s_own_files_is_given_out(url: str, manager: SessionManager, path: str) -> None:
    assert (await ask(url, path=path)).status == 404


async def test_a_file_that_has_not_changed_is_not_sent_again(url: str, manager: SessionManager) -> None:
    etag = (await ask(url, path="/static/app.js")).headers["etag"]

    again = await ask(url, path="/static/app.js", headers={"If-None-Match": etag})

    assert (again.status, again.body) == (304, b"")


async def test_the_page_names_no_other_place(url: str, manager: SessionManager) -> None:
    page = (await ask(url)).body.decode()
    names = [part.partition('"')[0] for part in page.split("/static/")[1:]]
    files = [(await ask(url, path=f"/static/{name}")).body.decode() for name in names]

    assert len(names) >= 4
    assert not [text for text in (page, *files) if "https://" in text]


async def test_the_command_says_where_the_dashboard_is(server: LocalServer, manager: SessionManager) -> None:
    async with running("dashboard", "--server", server.url, "--port", "0", "--token", TOKEN) as program:
        await program.said("once; the browser keeps a cookie")
        url = program.out.partition("is on ")[2].partition(";")[0]
        answer = await ask(url, path=f"/?token={TOKEN}")

    assert answer.status == 200
    assert TOKEN not in program.out + program.err


async def test_the_command_takes_what_browsers_open(server: LocalServer, manager: SessionManager) -> None:
    env = {"JIDO_DASHBOARD_TOKEN": TOKEN, "JIDO_DASHBOARD_PUBLIC_URL": "https://dash.example.org"}
    async with running("dashboard", "--server", server.url, "--port", "0", env=env) as program:
        await program.said("Open https://dash.example.org/?token=… once")
    async with running("dashboard", "--server", server.url, "--public-url", "dash", env=env) as program:
        finished = await program.finished()

    assert (finished.code, finished.err.count("\n")) == (1, 1)
    assert "--public-url dash: give the address that browsers open, as https://host" in finished.err


async def test_it_ends_its_streams_and_does_not_wait_for_them(
    server: LocalServer, manager: SessionManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "STOP_TIMEOUT_S", 10)
    async with AsyncExitStack() as stack, shown(server.url) as url:
        position = (await snapshot(url))["position_token"]
        for path in (f"/api/stream?after={position}", "/api/sessions/s1/output"):
            await anext(aiter(await stack.enter_async_context(listening(url, path))))
        started = time.monotonic()

    assert time.monotonic() - started < 10, "uvicorn would have waited so long, and cancelled them"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_while_browsers_listen(
    server: LocalServer, manager: SessionManager, number: signal.Signals
) -> None:
    async with running("dashboard", "--server", server.url, "--port", "0") as program:
        await program.said("Ctrl-C stops it")
        url = program.out.partition("is on ")[2].partition(";")[0]
        position = (await snapshot(url))["position_token"]
        paths = [f"/api/stream?after={position}", "/api/sessions/s1/output"]
        async with listening(url, paths[0]) as first, listening(url, paths[1]) as second:
            await first.named("state")
            await second.named("output_caught_up")
            finished = await program.end(number)

    assert (finished.code, finished.err) == (130, "")


async def test_a_taken_port_is_told_in_a_sentence(server: LocalServer, url: str, manager: SessionManager) -> None:
    port = url.rpartition(":")[2]

    async with running("dashboard", "--server", server.url, "--port", port) as program:
        finished = await program.finished()

    assert (finished.code, finished.err.count("\n")) == (1, 1)
    assert "choose another with --port" in finished.err


async def test_without_its_packages_the_command_names_them(server: LocalServer) -> None:
    script = "import sys; sys.modules['uvicorn'] = None; from jido_nats.cli.main import main; main(['dashboard'])"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", script), cwd=ROOT, env=os.environ, stderr=asyncio.subprocess.PIPE
    )
    _, err = await process.communicate()

    assert process.returncode == 1
    assert b"pip install 'jido_nats[dashboard]'" in err
