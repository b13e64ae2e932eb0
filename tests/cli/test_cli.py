"""The command line as a user meets it: programs, real servers, what they print and how they end."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from nats.errors import NoRespondersError

from jido_nats import LocalServer, SessionManager
from tests.conftest import StartManager
from tests.tools.privileges import privileged
from tests.tools.programs import JIDO_NATS, Finished, Program, run, running, serving
from tests.tools.support import Puppet, Stranger, eventually, stranger_at
from tests.tools.workers import remembers

ABOUT_S1 = [["get", "s1"], ["list"], ["idle", "s1"], ["terminate", "s1"], ["wait", "s1", "--for", "active"]]
STORED = ["1 created", "2 active"]
ENDED = [*STORED, "3 terminating", "4 terminated", "4 ended"]


def one_sentence(finished: Finished) -> str:
    """The error that a program ended with: a line on stderr, nothing else, a code that is not 0."""
    assert finished.code not in (0, None)
    assert finished.out == ""
    assert finished.err.count("\n") == 1, finished.err
    assert finished.err.startswith("jido-nats: ")
    assert "\x1b" not in finished.err
    return finished.err


async def test_create_shows_the_record(server: LocalServer, stranger: Stranger, manager: SessionManager) -> None:
    finished = await run(
        *("create", "--server", server.url, "--json", "--session-id", "s1"),
        *("--metadata", "project=demo", "--metadata", "a=b=c", "--llm-config", '{"model":"m"}'),
    )

    (record,) = finished.lines
    assert (finished.code, record["session_id"], record["status"]) == (0, "s1", "active")
    assert (record["metadata"], record["llm_config"]) == ({"project": "demo", "a": "b=c"}, {"model": "m"})


@pytest.mark.parametrize("command", [*ABOUT_S1, ["create"], ["events", "--since", "all", "--no-follow"]])
async def test_json_is_one_object_a_line(
    server: LocalServer, stranger: Stranger, manager: SessionManager, command: list[str]
) -> None:
    await stranger.create("s1")

    finished = await run(*command, "--server", server.url, "--json")

    assert (finished.code, finished.err) == (0, "")
    assert finished.lines
    assert all(isinstance(line, dict) for line in finished.lines)


@pytest.mark.parametrize("command", [*ABOUT_S1, ["create"], ["events", "--since", "all", "--no-follow"]])
async def test_a_pipe_gets_no_colour(
    server: LocalServer, stranger: Stranger, manager: SessionManager, command: list[str]
) -> None:
    await stranger.create("s1")

    finished = await run(*command, "--server", server.url)

    assert (finished.code, finished.err) == (0, "")
    assert "active" in finished.out or "idle" in finished.out or "terminated" in finished.out
    assert "\x1b" not in finished.out


async def test_each_command_does_what_it_says(server: LocalServer, stranger: Stranger, manager: SessionManager) -> None:
    await stranger.create("s1")
    for command, status in (("idle", "idle"), ("activate", "active"), ("get", "active"), ("terminate", "terminated")):
        (record,) = (await run(command, "s1", "--server", server.url, "--json")).lines
        assert record["status"] == status


async def test_the_package_runs_as_the_command() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "jido_nats", "--help"), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()

    assert process.returncode == 0
    assert out.decode() == (await run("--help")).out.replace("Usage: jido-nats", "Usage: python -m jido_nats")


async def test_create_takes_a_restart_policy(server: LocalServer, manager: SessionManager) -> None:
    finished = await run(
        *("create", "--server", server.url, "--json", "--restart", "crashed, owner_lost"),
        *("--attempts-max", "3", "--backoff-s", "2.5"),
    )

    (record,) = finished.lines
    assert record["restart"] == {"on": ["crashed", "owner_lost"], "attempts_max": 3, "backoff_s": 2.5}
    assert record["run"]["attempt"] == 1


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--restart", "completed"], "restart.on must name one or more of crashed, start_failed, owner_lost"),
        (["--restart", ""], "restart.on must name one or more"),
        (["--restart", "crashed", "--backoff-s", "0"], "restart.backoff_s must be 0.01 to 60"),
        (["--restart", "crashed", "--attempts-max", "-1"], "restart.attempts_max must be 0"),
        (["--attempts-max", "3"], "--attempts-max goes with --restart"),
        (["--backoff-s", "3"], "--backoff-s goes with --restart"),
    ],
)
async def test_a_wrong_restart_policy_is_one_sentence(server: LocalServer, options: list[str], problem: str) -> None:
    assert problem in one_sentence(await run("create", "--server", server.url, *options))


async def test_the_journal_of_a_session_is_shown(
    server: LocalServer, stranger: Stranger, start_manager: StartManager
) -> None:
    await start_manager(remembers)
    await stranger.create("s1", restart={"on": ["crashed"]})
    message = {"role": "user", "content": "two\nlines", "message_id": "m1"}
    await stranger.ask("jido.session.send.s1", message)
    await eventually(lambda: has_entries(stranger, 3))
    await stranger.js.publish("jido.journal.s1", b"rubbish")

    shown = await run("journal", "s1", "--server", server.url)
    lines = (await run("journal", "s1", "--server", server.url, "--json")).lines

    assert shown.code == 0
    claim, message_line, second, checkpoint, unreadable = shown.out.splitlines()
    assert claim.split()[1:] == ["attempt", "1", "claim"]
    assert message_line.split()[1:] == ["attempt", "1", "message", "m1", "user:", "two"]
    assert second.strip() == "| lines"
    assert checkpoint.split()[1:5] == ["attempt", "1", "checkpoint", "handled"]
    assert "unreadable: " in unreadable
    assert [line.get("entry", {}).get("type") for line in lines] == ["claim", "message", "checkpoint", None]
    assert lines[2]["entry"]["state"] == ["two\nlines"]


async def has_entries(stranger: Stranger, number: int) -> bool:
    """Whether there are so many entries in all journals."""
    return (await stranger.js.stream_info("JIDO_JOURNAL")).state.messages == number


async def test_that_there_is_no_journal_is_told(
    server: LocalServer, stranger: Stranger, manager: SessionManager
) -> None:
    await stranger.create("s1")

    finished = await run("journal", "s1", "--server", server.url)

    assert (finished.code, finished.err) == (1, "")
    assert "no journal of s1: it has no restart policy, or has ended" in " ".join(finished.out.split())


async def test_terminate_takes_a_detail(server: LocalServer, stranger: Stranger, manager: SessionManager) -> None:
    await stranger.create("s1")

    (record,) = (await run("terminate", "s1", "--detail", "enough", "--server", server.url, "--json")).lines

    assert record["detail"] == "enough"


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ([], ["s1", "s2"]),
        (["--all"], ["s1", "s2", "s3"]),
        (["--status", "idle"], ["s2"]),
        (["--metadata", "n=2"], ["s2"]),
    ],
)
async def test_list_finds(
    server: LocalServer, stranger: Stranger, manager: SessionManager, options: list[str], found: list[str]
) -> None:
    for number in (1, 2, 3):
        await stranger.create(f"s{number}", metadata={"n": str(number)})
    await stranger.ask("jido.session.idle.s2")
    await stranger.ask("jido.session.terminate.s3")

    finished = await run("list", *options, "--server", server.url, "--json")

    assert [record["session_id"] for record in finished.lines] == found


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (["list"], " attempt 2, crashed RuntimeError: boom"),
        (["events", "--since", "all", "--no-follow"], "active → initializing attempt 2, crashed RuntimeError: boom"),
        (["get", "s1"], '"cause":"crashed"'),
        (["get", "s1"], '"attempt":2'),
    ],
)
async def test_a_session_that_waits_for_its_next_attempt_is_shown_as_such(
    server: LocalServer, stranger: Stranger, manager: SessionManager, puppet: Puppet, command: list[str], shown: str
) -> None:
    await stranger.create("s1", restart={"on": ["crashed"], "backoff_s": 60})
    puppet.crash("s1", RuntimeError("boom"))
    await eventually(lambda: is_initializing(stranger))

    finished = await run(*command, "--server", server.url)

    assert shown in finished.out


async def is_initializing(stranger: Stranger) -> bool:
    record = await stranger.record("s1")
    return record is not None and record["status"] == "initializing"


async def test_wait_ends_with_the_session(
    server: LocalServer, stranger: Stranger, manager: SessionManager, puppet: Puppet
) -> None:
    await stranger.create("s1")
    async with running("wait", "s1", "--server", server.url, "--json") as program:
        await eventually(lambda: has_a_reader(stranger))
        puppet.complete("s1")
        finished = await program.finished()

    assert [(line["status"], line["reason"]) for line in finished.lines] == [("terminated", "completed")]


async def test_wait_gives_up(server: LocalServer, stranger: Stranger, manager: SessionManager) -> None:
    await stranger.create("s1")

    finished = await run("wait", "s1", "--timeout", "0.3", "--server", server.url)

    assert "timed out" in one_sentence(finished)


async def test_events_are_replayed(server: LocalServer, stranger: Stranger, manager: SessionManager) -> None:
    await stranger.create("s1")

    finished = await run("events", "--since", "all", "--no-follow", "--json", "--server", server.url)

    assert [(line["sequence"], line["subject"]) for line in finished.lines] == [
        (1, "jido.client.events"),
        (2, "jido.client.events"),
    ]
    assert [line["event"] for line in finished.lines] == await stranger.stored_events()


async def test_events_of_one_session_are_shown(
    server: LocalServer, stranger: Stranger, manager: SessionManager
) -> None:
    await stranger.create("s1")
    await stranger.create("s2")

    finished = await run("events", "--session", "s2", "--since", "all", "--no-follow", "--json", "--server", server.url)

    assert [line["subject"] for line in finished.lines] == ["jido.client.session.s2"]


async def test_nothing_is_replayed_from_now_on(
    server: LocalServer, stranger: Stranger, manager: SessionManager
) -> None:
    await stranger.create("s1")

    finished = await run("events", "--no-follow", "--server", server.url)

    assert finished == Finished(0, "", "")


@pytest.mark.parametrize("since", ["1h", "2", "2020-01-01T00:00:00Z"])
async def test_events_since_are_shown(
    server: LocalServer, stranger: Stranger, manager: SessionManager, since: str
) -> None:
    await stranger.create("s1")

    finished = await run("events", "--since", since, "--no-follow", "--json", "--server", server.url)

    assert [line["sequence"] for line in finished.lines] == ([2] if since == "2" else [1, 2])


async def test_a_durable_carries_on(server: LocalServer, stranger: Stranger, manager: SessionManager) -> None:
    command = ["events", "--durable", "d", "--since", "all", "--no-follow", "--json", "--server", server.url]
    await stranger.create("s1")
    before = await run(*command)

    await stranger.ask("jido.session.terminate.s1")
    after = await run(*command)

    assert [line["event"] for line in before.lines + after.lines] == await stranger.stored_events()
    assert (len(before.lines), await run(*command)) == (2, Finished(0, "", ""))


async def test_live_events_are_shown(server: LocalServer, stranger: Stranger, manager: SessionManager) -> None:
    async with running("events", "--json", "--server", server.url) as program:
        await eventually(lambda: has_a_reader(stranger))
        await stranger.create("s1")
        await eventually(lambda: program.out.count("\n") == 2)
        finished = await program.end(signal.SIGINT)

    assert finished.code == 130
    assert finished.err == ""


async def test_nats_url_says_where(server: LocalServer, stranger: Stranger, manager: SessionManager) -> None:
    await stranger.create("s1")

    finished = await run("get", "s1", "--json", env={"NATS_URL": server.url})

    assert finished.lines[0]["session_id"] == "s1"


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["get", "nobody"], "no session of that id"),
        (["get", "a.b"], "session id"),
        (["terminate", "nobody"], "no session of that id"),
        (["activate", "s1"], "cannot become active"),
        (["create", "--session-id", "a b"], "session id"),
        (["create", "--session-id", "s1", "--metadata", "a=1"], "taken"),
        (["create", "--metadata", "project"], "--metadata takes KEY=VALUE"),
        (["create", "--llm-config", "{"], "--llm-config takes a JSON object"),
        (["create", "--llm-config", "[]"], "--llm-config takes a JSON object"),
        (["events", "--since", "yesterday"], "'yesterday' is not a position"),
        (["events", "--since", "99999"], "beyond the end of the stream (3)"),
        (["events", "--durable", "a.b"], "durable"),
        (["wait", "nobody"], "no session of that id"),
        (["serve", "--worker", "nothing"], "package.module:callable"),
        (["serve", "--worker", "no_such_module:worker"], "no_such_module"),
        (["serve", "--worker", "tests.tools.workers:nothing"], "nothing"),
        (["serve", "--worker", "tests.tools.workers:NO_WORKER"], "is not callable"),
        (["serve", "--worker", ":"], "--worker"),
        (["serve", "--worker", ".a:b"], "--worker"),
        (["serve", "--config", "/no/such/file.toml"], "/no/such/file.toml"),
        (["serve", "--replicas", "9"], "replicas"),
        (["serve", "--lease-s", "0"], "lease_s"),
    ],
)
async def test_an_error_is_one_sentence(
    server: LocalServer, stranger: Stranger, manager: SessionManager, command: list[str], told: str
) -> None:
    await stranger.create("s1")

    assert told in one_sentence(await run(*command, "--server", server.url))


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [("a.toml", "laese_s = 1", "laese_s"), ("a.toml", "lease_s =", "settings"), ("a.toml", "\x00", "settings")],
)
async def test_a_bad_file_of_settings_is_told(
    server: LocalServer, tmp_path: Path, name: str, text: str, told: str
) -> None:
    (tmp_path / name).write_text(text)

    assert told in one_sentence(await run("serve", "--config", str(tmp_path / name), "--server", server.url))


@pytest.mark.parametrize("command", [["create"], ["serve"]])
async def test_no_server_is_told(command: list[str]) -> None:
    finished = await run(*command, "--server", "nats://127.0.0.1:1")

    assert "no NATS server answers at nats://127.0.0.1:1" in one_sentence(finished)


@pytest.mark.parametrize(
    "url", ["", "nonsense", "http://127.0.0.1:1", "nats://127.0.0.1:port", "nats://no-such-host.invalid:1"]
)
async def test_a_url_that_is_none_is_told(url: str) -> None:
    one_sentence(await run("list", "--server", url))


async def test_no_manager_is_told(server: LocalServer) -> None:
    assert "no session manager is running" in one_sentence(await run("list", "--server", server.url))


@pytest.mark.parametrize("command", [["serve"], ["events"]])
async def test_a_server_without_jetstream_is_told(command: list[str]) -> None:
    async with LocalServer(config="jetstream: disabled") as server:
        assert "JetStream" in one_sentence(await run(*command, "--server", server.url))


async def test_events_without_a_stream_are_told(server: LocalServer) -> None:
    one_sentence(await run("events", "--since", "all", "--no-follow", "--server", server.url))


async def test_an_old_server_is_told() -> None:
    async with old_server() as url:
        finished = await run("serve", "--server", url)

    assert "2.9.10" in one_sentence(finished)
    assert "2.12 or newer" in finished.err


async def test_a_port_in_use_is_told(server: LocalServer) -> None:
    finished = await run("up", "--port", str(server.port))

    assert f"port {server.port}" in one_sentence(finished)


async def test_a_nats_server_that_is_not_there_is_told() -> None:
    one_sentence(await run("up", "--port", "0", "--nats-server", "/no/such/nats-server"))


@pytest.mark.parametrize("options", [[], ["--json"]])
async def test_the_demo_is_right(tmp_path: Path, options: list[str]) -> None:
    finished = await run("demo", *options, env={"TMPDIR": str(tmp_path)})

    assert (finished.code, finished.err) == (0, "")
    for word in ("completed", "requested", "crashed", "ZeroDivisionError", "jido.client.session.crashes"):
        assert word in finished.out
    assert "\x1b" not in finished.out
    assert await nothing_is_left(tmp_path)


async def test_the_demo_s_json_is_one_object_a_line(tmp_path: Path) -> None:
    finished = await run("demo", "--json", env={"TMPDIR": str(tmp_path)})

    assert {line["subject"] for line in finished.lines} > {"jido.client.events"}


@pytest.mark.parametrize(
    ("number", "moment"),
    [
        (signal.SIGINT, "listens on"),
        (signal.SIGINT, "created"),
        (signal.SIGINT, "crashed"),
        (signal.SIGTERM, "created"),
    ],
)
async def test_a_demo_that_is_interrupted_leaves_nothing(tmp_path: Path, number: signal.Signals, moment: str) -> None:
    async with running("demo", env={"TMPDIR": str(tmp_path)}) as program:
        await program.said(moment)
        finished = await program.end(number)

    assert (finished.code, finished.err) == (130, "")
    assert await nothing_is_left(tmp_path)


async def test_up_tells_where_it_is(tmp_path: Path) -> None:
    async with up(tmp_path) as (program, url):
        assert (await run("create", "--server", url, "--session-id", "s1", "--json")).lines[0]["status"] == "active"
        finished = await program.end(signal.SIGINT)

    assert (finished.code, finished.err) == (0, "")
    assert f"nats sub 'jido.client.>' -s {url}" in finished.out
    assert await nothing_is_left(tmp_path)


async def test_up_has_again_what_it_stored(tmp_path: Path) -> None:
    store = tmp_path / "store"
    async with up(tmp_path, "--store-dir", str(store)) as (program, url):
        await run("create", "--server", url, "--session-id", "s1")
        await program.end(signal.SIGTERM)

    async with up(tmp_path, "--store-dir", str(store)) as (_, url):
        (record,) = (await run("get", "s1", "--server", url, "--json")).lines
        async with stranger_at(url) as stranger:
            assert await stranger.stored_brief() == ENDED

    assert (record["status"], record["reason"]) == ("terminated", "manager_stopped")


async def test_up_ends_what_a_killed_one_left(tmp_path: Path) -> None:
    options = ["--store-dir", str(tmp_path / "store"), "--config", str(tmp_path / "settings.toml")]
    (tmp_path / "settings.toml").write_text("lease_s = 2")
    async with up(tmp_path, *options) as (program, url):
        await run("create", "--server", url, "--session-id", "s1")
        program.process.kill()
        await program.process.wait()
        await eventually(lambda: nobody_is_left(tmp_path))

    async with up(tmp_path, *options) as (_, url):
        (record,) = (await run("wait", "s1", "--timeout", "10", "--server", url, "--json")).lines

    assert record["reason"] == "owner_lost"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_serve_ends_its_sessions(server: LocalServer, stranger: Stranger, number: signal.Signals) -> None:
    async with serving(server.url) as program:
        await stranger.create("s1")
        finished = await program.end(number)

    assert finished.code == 0
    assert await stranger.stored_brief() == ENDED
    assert {event.get("reason") for event in (await stranger.stored_events())[2:]} == {"manager_stopped"}


async def test_the_same_signal_twice_at_once_is_one(server: LocalServer, stranger: Stranger) -> None:
    async with serving(server.url) as program:
        await stranger.create("s1")
        program.send(signal.SIGTERM)  # as `timeout` does: to the process, then to its group
        finished = await program.end(signal.SIGTERM)

    assert finished.code == 0
    assert await stranger.stored_brief() == ENDED


@pytest.mark.parametrize(("worker", "reason"), [("completes", "completed"), ("crashes", "crashed")])
async def test_serve_runs_the_worker(server: LocalServer, stranger: Stranger, worker: str, reason: str) -> None:
    async with serving(server.url, "--worker", f"tests.tools.workers:{worker}"):
        await stranger.create("s1")

        assert (await stranger.ends("s1"))["reason"] == reason


async def test_serve_waits_for_the_worker_to_be_ready(server: LocalServer, stranger: Stranger) -> None:
    async with serving(server.url, "--worker", "tests.tools.workers:completes", "--wait-ready"):
        assert (await stranger.create("s1"))["error"]["code"] == "start_failed"


async def test_serve_writes_messagepack(server: LocalServer, stranger: Stranger) -> None:
    async with serving(server.url, "--encoding", "msgpack"):
        await stranger.create("s1")

        message, *_ = await stranger.stored()

    assert (message.headers or {})["Content-Type"] == "application/msgpack"
    assert msgspec.msgpack.decode(message.data)["session_id"] == "s1"


async def test_messagepack_events_are_shown_as_json(server: LocalServer, stranger: Stranger) -> None:
    async with serving(server.url, "--encoding", "msgpack"):
        await stranger.create("s1")

        finished = await run("events", "--since", "all", "--no-follow", "--json", "--server", server.url)

    assert [line["event"]["type"] for line in finished.lines] == ["session_created", "session_status"]


async def test_flags_win_over_the_file(server: LocalServer, stranger: Stranger, tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text('encoding = "msgpack"\nretention_s = 7200')
    async with serving(server.url, "--config", str(tmp_path / "settings.toml"), "--encoding", "json"):
        await stranger.create("s1")

    assert await stranger.stored_brief() == STORED
    assert (await stranger.ask("$JS.API.STREAM.INFO.JIDO_CLIENT"))["config"]["max_age"] == 7200 * 10**9


@pytest.mark.parametrize(("option", "warned"), [("--position", False), ("--cursor", True)])
async def test_a_watch_resumes_after_a_position(
    server: LocalServer, stranger: Stranger, manager: SessionManager, option: str, warned: bool
) -> None:
    await stranger.create("s1")
    async with running("watch", option, "1", "--json", "--server", server.url) as program:
        await program.said('"position":2')
    assert "snapshot_complete" not in program.out
    assert ("--cursor is deprecated; use --position" in program.err) is warned


async def test_the_old_name_of_the_position_is_not_in_the_help() -> None:
    shown = (await run("watch", "--help")).out
    assert "--position" in shown
    assert "--cursor" not in shown


async def test_a_reader_that_goes_away_is_no_error(
    server: LocalServer, stranger: Stranger, manager: SessionManager
) -> None:
    for number in range(20):
        await stranger.create(f"s{number}")
    program = await asyncio.create_subprocess_shell(
        f"{JIDO_NATS} events --since all --no-follow --json --server {server.url} | head -1",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await program.communicate()

    assert (out.count(b"\n"), err) == (1, b"")


async def has_a_reader(stranger: Stranger) -> bool:
    """Somebody reads the event stream besides the manager, which follows the claims."""
    consumers = (await stranger.ask("$JS.API.CONSUMER.LIST.JIDO_CLIENT"))["consumers"] or []
    return any("fence" not in consumer["config"].get("filter_subject", "") for consumer in consumers)


@asynccontextmanager
async def up(folder: Path, *options: str) -> AsyncIterator[tuple[Program, str]]:
    """`jido-nats up` on a free port, with its temporary files in `folder`; and its URL."""
    async with running("up", "--port", "0", *options, env={"TMPDIR": str(folder)}) as program:
        await program.said("Ctrl-C stops it.")
        found = re.search(r"nats://127\.0\.0\.1:\d+", program.out)
        assert found is not None
        try:
            yield program, found[0]
        finally:
            if program.process.returncode is None:
                await program.end(signal.SIGTERM)


@asynccontextmanager
async def old_server() -> AsyncIterator[str]:
    """What says on its port that it is nats-server 2.9.10; a real one can not be had from PyPI."""
    info = {"server_id": "x", "version": "2.9.10", "proto": 1, "headers": True, "max_payload": 1_000_000}

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"INFO {json.dumps(info)}\r\n".encode())
        while line := await reader.readline():
            if line.startswith(b"PING"):
                writer.write(b"PONG\r\n")
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as listener:
        yield f"nats://127.0.0.1:{listener.sockets[0].getsockname()[1]}"


async def nothing_is_left(folder: Path) -> bool:
    """No file in the folder, no process that has it in its command line."""
    return not list(folder.iterdir()) and not await processes_about(folder)


async def nobody_is_left(folder: Path) -> bool:
    """No process that has the folder in its command line."""
    return not await processes_about(folder)


async def processes_about(folder: Path) -> list[int]:
    ps = await asyncio.create_subprocess_exec("ps", "axww", "-o", "pid=,command=", stdout=asyncio.subprocess.PIPE)
    out, _ = await ps.communicate()
    return [int(line.split()[0]) for line in out.decode().splitlines() if str(folder) in line]


UNKNOWN_EVENT = b'{"type":"session_paused","session_id":"s1","version":3}'


@pytest.mark.parametrize("last", [UNKNOWN_EVENT, b"rubbish", b""])
@pytest.mark.parametrize(
    ("command", "subject"), [("events", "jido.client.events"), ("output", "jido.client.session.s1.output")]
)
async def test_no_follow_ends_behind_what_it_does_not_know(
    server: LocalServer, stranger: Stranger, manager: SessionManager, command: str, subject: str, last: bytes
) -> None:
    await stranger.create("s1")
    await stranger.js.publish(subject, last)

    finished = await run(command, "--since", "all", "--no-follow", "--server", server.url)

    assert finished.code == 0
    events = 3 if last == UNKNOWN_EVENT else 2
    assert len(finished.out.splitlines()) == (events if command == "events" else 0)


async def test_what_others_say_cannot_speak_to_the_terminal(
    server: LocalServer, stranger: Stranger, manager: SessionManager, puppet: Puppet
) -> None:
    await stranger.create("s1")
    await stranger.ask("jido.session.send.s1", {"role": "\x1b[2Jrole", "content": "\x1b[2Jcontent"})
    await puppet.sessions["s1"].emit("\x1b[2Jname", "\x1b[2Jdata")
    await puppet.sessions["s1"].flush()
    await stranger.js.publish("jido.client.events", b'{"type":"session_created","session_id":"\\u001b[2J","version":1}')

    output = await run("output", "--since", "all", "--no-follow", "--server", server.url)
    conform = await run("conform", "--server", server.url)

    assert output.out.count("\\x1b[2J") == 4
    assert "\x1b" not in output.out + conform.out + conform.err


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["create", "--session-id", ""], "session id"),
        (["create", "--metadata", b"a=\xff"], "metadata contains a string that is not valid Unicode"),
        (["terminate", "s1", "--detail", b"\xff"], "detail contains a string that is not valid Unicode"),
        (["send", "s1", b"\xff"], "content contains a string that is not valid Unicode"),
    ],
)
async def test_what_is_no_text_is_refused(server: LocalServer, command: list[Any], told: str) -> None:
    finished = await run(*map(os.fsdecode, command), "--server", server.url)

    assert (finished.code, finished.out) == (1, "")
    assert told in one_sentence(finished)


async def test_a_full_disk_is_told(server: LocalServer, stranger: Stranger, manager: SessionManager) -> None:
    await stranger.create("s1")

    for arguments in (["get", "s1"], ["list", "--json"]):
        with open("/dev/full", "w") as full:
            process = await asyncio.create_subprocess_exec(
                JIDO_NATS, *arguments, "--server", server.url, stdout=full, stderr=asyncio.subprocess.PIPE
            )
            _, said = await process.communicate()

        assert process.returncode == 1
        assert said.decode() == "jido-nats: the output cannot be written: No space left on device\n"


async def test_standard_input_that_is_no_text_is_refused(server: LocalServer) -> None:
    process = await asyncio.create_subprocess_exec(
        JIDO_NATS,
        "send",
        "s1",
        "-",
        "--server",
        server.url,
        stdin=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await process.communicate(b"abc\xff")

    assert said.decode() == "jido-nats: standard input is not valid UTF-8: invalid start byte at byte 3\n"


@pytest.mark.parametrize("command", ["events", "events --json", "output", "watch --json"])
async def test_following_ends_when_nobody_reads_any_more(
    server: LocalServer, manager: SessionManager, command: str
) -> None:
    reading, writing = os.pipe()
    program = await asyncio.create_subprocess_exec(
        JIDO_NATS, *command.split(), "--server", server.url, stdout=writing, stderr=asyncio.subprocess.PIPE
    )
    os.close(writing)
    await asyncio.sleep(1)  # also when it follows already, and nothing happens

    os.close(reading)

    _, err = await program.communicate()
    assert (program.returncode, err) == (0, b"")


@pytest.mark.parametrize("arguments", [("up", "--port", "99999"), ("dashboard", "--port", "-1")])
async def test_what_is_no_port_is_told(arguments: tuple[str, ...]) -> None:
    finished = await run(*arguments)

    assert finished.code == 2
    assert "is not in the range 0<=x<=65535" in finished.err


async def test_a_folder_that_cannot_be_made_is_told() -> None:
    assert "/proc/nothing cannot be used" in one_sentence(
        await run("up", "--port", "0", "--store-dir", "/proc/nothing")
    )


async def test_a_closed_stdout_is_no_defect(server: LocalServer, manager: SessionManager) -> None:
    program = await asyncio.create_subprocess_shell(
        f"timeout 2 {JIDO_NATS} events --server {server.url} >&-", stderr=asyncio.subprocess.PIPE
    )

    _, err = await program.communicate()

    assert b"Traceback" not in err
    assert program.returncode == 124


# What a parent leaves to a program


@asynccontextmanager
async def started_by_shell(setup: str, *arguments: str, env: dict[str, str] | None = None) -> AsyncIterator[Program]:
    """`jido-nats` as the command that a shell becomes, after some setup."""
    process = await asyncio.create_subprocess_exec(
        *("bash", "-c", f'{setup}; exec "$0" "$@"', str(JIDO_NATS), *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | (env or {}),
    )
    program = Program(process)
    try:
        yield program
    finally:
        await program.kill()


async def test_a_terminal_that_is_closed_ends_a_manager_in_order(server: LocalServer, stranger: Stranger) -> None:
    async with serving(server.url) as program:
        await stranger.create("s1")
        finished = await program.end(signal.SIGHUP)

    assert finished.code == 0
    assert (await stranger.ends("s1"))["reason"] == "manager_stopped"


async def test_a_manager_under_nohup_outlives_its_terminal(server: LocalServer, stranger: Stranger) -> None:
    async with started_by_shell("trap '' HUP", "serve", "--server", server.url) as program:
        await program.said(" serves on ")
        program.send(signal.SIGHUP)
        assert (await stranger.create("s1"))["status"] == "active"
        assert (await program.end(signal.SIGTERM)).code == 0


@pytest.mark.parametrize("closed", ["exec 2>&-", "exec 0<&- 1>&- 2>&-"])
async def test_a_manager_without_standard_streams_serves(server: LocalServer, stranger: Stranger, closed: str) -> None:
    async with started_by_shell(closed, "serve", "--server", server.url) as program:
        await eventually(lambda: is_served(stranger))
        # Nothing of ours has the number of a stream, where anything would be written into it.
        files = [f"/proc/{program.process.pid}/fd/{number}" for number in (0, 1, 2)]  # only root may look at them
        links = subprocess.check_output(privileged("readlink", *files), text=True).splitlines()
        assert (await program.end(signal.SIGTERM)).code == 0

    assert links[2] == "/dev/null"
    assert not [link for link in links if link.startswith(("socket:", "anon_inode:"))]


async def is_served(stranger: Stranger) -> bool:
    try:
        return bool((await stranger.create("s1"))["status"] == "active")
    except NoRespondersError:
        return False


async def test_a_manager_that_was_started_with_signals_blocked_can_be_stopped(server: LocalServer) -> None:
    blocked = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    try:
        starting = serving(server.url)
        program = await starting.__aenter__()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, blocked)

    assert (await program.end(signal.SIGTERM)).code == 0
    await starting.__aexit__(None, None, None)


ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
NAME = "größe 😀"


async def test_a_locale_that_is_not_utf_8_changes_nothing(
    server: LocalServer, stranger: Stranger, tmp_path: Path
) -> None:
    command = f"sh -c 'read -r session; printf %s \"$JIDO_METADATA\" > {tmp_path}/seen; read -r message'"
    async with serving(server.url, "--exec", command, env=ASCII):
        await stranger.create("s1", metadata={"name": NAME})
        await eventually(lambda: (tmp_path / "seen").exists() and (tmp_path / "seen").read_bytes())
        listed = [await run(*words, "--server", server.url, env=ASCII) for words in (["list"], ["list", "--json"])]
        assert (await stranger.ask("jido.session.get.s1"))["status"] == "active"

    assert msgspec.json.decode((tmp_path / "seen").read_bytes()) == {"name": NAME}
    assert [finished.code for finished in listed] == [0, 0]
    assert NAME in listed[0].out
    assert listed[1].lines[0]["metadata"] == {"name": NAME}
