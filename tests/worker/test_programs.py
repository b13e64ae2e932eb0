"""Programs as workers, with real processes: what they say, how they end, and that nothing of them is left."""

import asyncio
import logging
import os
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from jido_nats import LocalServer, Settings
from jido_nats.errors import ConfigurationError
from jido_nats.worker.program import DRAIN_S, Program
from tests.conftest import StartManager
from tests.tools.children.kin import child, command, kill, kin_of, leaders, new_id, open_files, reapers
from tests.tools.programs import serving
from tests.tools.support import Stranger, eventually, nothing

READY: dict[str, Any] = {"wait_ready": True, "stop_timeout_s": 1.0}


async def said(stranger: Stranger, session_id: str) -> list[Any]:
    """The data of what is kept of a session's output."""
    subject = f"jido.client.session.{session_id}.output"
    stored = [msgspec.json.decode(m.data) for m in await stranger.stored("JIDO_OUTPUT") if m.subject == subject]
    return [output.get("data") for output in stored]


# How they end


async def test_a_child_that_is_killed_is_told_of_at_once(stranger: Stranger, start_manager: StartManager) -> None:
    await start_manager(child("waits.sh"), **READY)
    delays_s = []
    for session_id in [new_id() for _ in range(5)]:
        await stranger.create(session_id)
        killed_at = datetime.now(UTC)
        os.kill(leaders(session_id)[0], signal.SIGKILL)
        record = await stranger.ends(session_id)
        assert (record["reason"], record["error"]) == ("crashed", "killed by SIGKILL")
        delays_s.append((datetime.fromisoformat(record["updated_at"]) - killed_at).total_seconds())

    print(f"kill -9 to the crash's record: {sorted(round(1000 * d, 1) for d in delays_s)} ms")
    assert sorted(delays_s)[2] < 1  # 200 ms on a machine that has nothing else to do


async def test_exit_code_0_completes(stranger: Stranger, start_manager: StartManager) -> None:
    await start_manager(child("leaves_children.sh"))
    await stranger.create("s1", metadata={"code": "0"})

    record = await stranger.ends("s1")

    assert record["reason"] == "completed"
    assert "error" not in record


async def test_another_exit_code_is_a_crash_with_the_last_words(
    stranger: Stranger, start_manager: StartManager
) -> None:
    await start_manager(child("leaves_children.sh"))
    await stranger.create("s1")

    record = await stranger.ends("s1")

    assert (record["reason"], record["error"]) == ("crashed", "exit code 3: no such model")


async def test_of_long_last_words_the_last_are_kept(stranger: Stranger, start_manager: StartManager) -> None:
    await start_manager(
        Program(["sh", "-c", "yes long | head -c 30000 | tr -d '\\n' >&2; echo >&2; echo why >&2; exit 1"])
    )
    await stranger.create("s1")

    record = await stranger.ends("s1")

    assert record["error"].startswith("exit code 1: ")
    assert record["error"].endswith("\nwhy")


async def test_a_program_that_fails_while_it_stops_says_so(stranger: Stranger, start_manager: StartManager) -> None:
    fails = """trap 'echo "{\\"type\\":\\"failed\\",\\"error\\":\\"not saved\\"}"; exit 1' TERM
        echo '{"type":"ready"}'; while :; do sleep 0.05; done"""
    await start_manager(Program(["sh", "-c", fails]), **READY)
    await stranger.create("s1")

    record = await stranger.ask("jido.session.terminate.s1")

    assert (record["reason"], record["error"]) == ("requested", "not saved")


async def test_one_that_ends_before_it_is_ready_did_not_start(stranger: Stranger, start_manager: StartManager) -> None:
    await start_manager(child("dies.sh"), **READY)

    answer = await stranger.create("s1")

    assert answer["error"]["code"] == "start_failed"
    assert (await stranger.ends("s1"))["error"] == "exit code 3: no such model"


async def test_one_that_is_never_ready_is_gone_when_its_start_has_failed(
    stranger: Stranger, start_manager: StartManager
) -> None:
    await start_manager(Program(["sleep", "300"]), **READY, start_timeout_s=0.3)
    session_id = new_id()

    answer = await stranger.create(session_id)

    assert answer["error"]["code"] == "start_failed"
    assert not kin_of(session_id)


async def test_a_terminate_during_the_start_waits_for_it(stranger: Stranger, start_manager: StartManager) -> None:
    await start_manager(Program(["sh", "-c", 'sleep 0.3; echo \'{"type":"ready"}\'; exec sleep 300']), **READY)
    session_id = new_id()
    creating = asyncio.create_task(stranger.create(session_id))
    await eventually(lambda: kin_of(session_id))

    ended = await stranger.ask(f"jido.session.terminate.{session_id}")

    assert (await creating)["status"] == "active"
    assert (ended["status"], ended["version"]) == ("terminated", 4)
    assert not kin_of(session_id)


def test_a_program_that_does_not_exist_is_told_at_the_start() -> None:
    with pytest.raises(ConfigurationError, match="there is no executable program 'no-such-program'"):
        Program("no-such-program --verbose")


@pytest.mark.parametrize("command", ["", "sh 'unclosed", []])
def test_a_command_that_is_none_is_told_at_the_start(command: Any) -> None:
    with pytest.raises(ConfigurationError):
        Program(command)


async def test_a_program_that_has_gone_meanwhile_is_a_crash(
    stranger: Stranger, start_manager: StartManager, tmp_path: Path
) -> None:
    program = tmp_path / "agent"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    await start_manager(Program([str(program)]))
    program.unlink()
    await stranger.create("s1")

    record = await stranger.ends("s1")

    assert record["error"] == f"{program} cannot be started: No such file or directory"


# How they are ended


async def test_one_that_ignores_sigterm_is_killed_in_the_end(stranger: Stranger, start_manager: StartManager) -> None:
    await start_manager(child("ignores_term.sh"), **READY)
    session_id = new_id()
    await stranger.create(session_id)

    answer = await stranger.ask(f"jido.session.terminate.{session_id}")

    assert answer["error"]["code"] == "stop_timeout"
    record = await stranger.ends(session_id)
    assert (record["reason"], record["forced"]) == ("requested", True)
    assert not kin_of(session_id)


async def test_two_terminates_at_once_end_it_once(stranger: Stranger, start_manager: StartManager) -> None:
    await start_manager(child("ignores_term.sh"), **READY)
    await stranger.create("s1")

    await asyncio.gather(*(stranger.ask("jido.session.terminate.s1") for _ in range(2)))

    assert (await stranger.ends("s1"))["version"] == 4
    assert (await stranger.stored_brief())[2:] == ["3 terminating", "4 terminated", "4 ended"]


async def test_terminated_means_that_the_whole_family_is_gone(stranger: Stranger, start_manager: StartManager) -> None:
    await start_manager(child("family.sh"), **READY)
    session_id = new_id()
    await stranger.create(session_id)
    assert len(await eventually(lambda: kin_of(session_id) if len(kin_of(session_id)) >= 5 else [])) >= 5

    record = await stranger.ask(f"jido.session.terminate.{session_id}")

    assert record["status"] == "terminated"
    assert not kin_of(session_id)


@pytest.mark.parametrize("name", ["leaves_children.sh", "leaves_stubborn_child.sh"])
async def test_what_outlives_the_program_goes_with_it(
    stranger: Stranger, start_manager: StartManager, name: str
) -> None:
    await start_manager(child(name, stop_timeout_s=0.3))
    session_id = new_id()
    await stranger.create(session_id)

    await stranger.ends(session_id)

    assert not kin_of(session_id)


async def test_a_zombie_holds_nothing_up(stranger: Stranger, start_manager: StartManager) -> None:
    await start_manager(child("zombie.py"), **READY)
    session_id = new_id()
    await stranger.create(session_id)

    record = await stranger.ask(f"jido.session.terminate.{session_id}")

    kill(kin_of(session_id))
    assert record.get("status") == "terminated", record
    assert not record.get("forced")


async def test_a_daemon_does_not_hold_its_session_up(stranger: Stranger, start_manager: StartManager) -> None:
    await start_manager(child("daemon.sh"), **READY)
    session_id = new_id()
    await stranger.create(session_id)

    record = await stranger.ask(f"jido.session.terminate.{session_id}")

    daemon = kin_of(session_id)
    kill(daemon)
    assert record.get("status") == "terminated", record
    assert daemon  # a program that leaves its group is not followed there


async def test_a_daemon_that_goes_on_to_write_does_not_hold_its_session_up(
    stranger: Stranger, start_manager: StartManager
) -> None:
    await start_manager(child("flooding_daemon.sh"), stop_timeout_s=3.0)
    session_id = new_id()
    ear = await stranger.hear(f"jido.client.session.{session_id}.output")
    await stranger.create(session_id)
    await eventually(lambda: ear.messages)

    await stranger.ask(f"jido.session.terminate.{session_id}")

    record = await stranger.ends(session_id)
    kill(kin_of(session_id))
    assert not record.get("forced")


async def test_a_daemon_that_does_not_read_leaves_no_descriptor_open(
    stranger: Stranger, start_manager: StartManager
) -> None:
    await start_manager(child("deaf_daemon.sh"), **READY)
    before = open_files()
    session_id = new_id()
    await stranger.create(session_id)
    for _ in range(5):
        await stranger.ask(f"jido.session.send.{session_id}", {"role": "user", "content": "x" * 60_000})

    await stranger.ask(f"jido.session.terminate.{session_id}")

    await nothing(lambda: open_files() - before)
    kill(kin_of(session_id))


async def test_200_at_once_leave_nothing(stranger: Stranger, start_manager: StartManager) -> None:
    await start_manager(child("waits.sh"), **READY)
    before = open_files()
    prefix = new_id()
    ids = [f"{prefix}_{number}" for number in range(200)]
    began_at = time.monotonic()

    records = await asyncio.gather(*(stranger.create(session_id) for session_id in ids))
    assert {record["status"] for record in records} == {"active"}
    assert len(leaders(prefix)) == 200
    started_at = time.monotonic()
    await asyncio.gather(*(stranger.ask(f"jido.session.terminate.{session_id}") for session_id in ids))
    for session_id in ids:  # also what took too long for an answer
        await stranger.ends(session_id)

    print(f"200 started in {started_at - began_at:.2f} s, ended in {time.monotonic() - started_at:.2f} s")
    assert not kin_of(prefix)
    await nothing(lambda: open_files() - before)
    await nothing(lambda: reapers(os.getpid()))


async def test_one_reaper_is_enough_for_all(stranger: Stranger, start_manager: StartManager) -> None:
    await start_manager(child("waits.sh"), **READY)
    await asyncio.gather(*(stranger.create(session_id) for session_id in ("s1", "s2", "s3")))

    await eventually(lambda: len(reapers(os.getpid())) == 1)  # that of an earlier test may be ending


async def test_a_reaper_that_was_killed_is_replaced_at_once(server: LocalServer, stranger: Stranger) -> None:
    async with serving(server.url, "--exec", command("ignores_term.sh"), "--wait-ready") as manager:
        session_id = new_id()
        await stranger.create(session_id)
        killed = reapers(manager.process.pid)
        kill(killed)
        await eventually(lambda: set(reapers(manager.process.pid)) - set(killed))
        await stranger.ask(f"jido.session.get.{session_id}")  # its loop goes on once the new one knows the programs

        manager.process.kill()

        await nothing(lambda: kin_of(session_id))


async def test_a_reaper_that_was_killed_is_replaced(server: LocalServer, stranger: Stranger) -> None:
    async with serving(server.url, "--exec", command("ignores_term.sh"), "--wait-ready") as manager:
        ids = [new_id(), new_id()]
        await stranger.create(ids[0])
        killed = reapers(manager.process.pid)
        kill(killed)
        await stranger.create(ids[1])
        await eventually(lambda: set(reapers(manager.process.pid)) - set(killed))

        manager.process.kill()

        await eventually(lambda: not kin_of(ids[0]) and not kin_of(ids[1]), within_s=5)


# When the manager goes


async def test_nothing_outlives_a_manager_that_is_killed(server: LocalServer, stranger: Stranger) -> None:
    options = ("--exec", command("as_told.sh"), "--wait-ready", "--lease-s", "1")
    prefix = new_id()
    async with serving(server.url, *options) as manager:
        for name in ("family", "ignores_term"):
            assert (await stranger.create(f"{prefix}_{name}", metadata={"program": f"{name}.sh"}))["status"] == "active"
        reaper = reapers(manager.process.pid)
        manager.process.kill()
        killed_at = time.monotonic()
        await eventually(lambda: not kin_of(prefix) and not any(map(is_there, reaper)), within_s=5)
        print(f"nothing left {time.monotonic() - killed_at:.2f} s after the manager's end")

    async with serving(server.url, *options):
        for name in ("family", "ignores_term"):
            assert (await stranger.ends(f"{prefix}_{name}"))["reason"] == "owner_lost"


async def test_a_manager_that_is_stopped_ends_stubborn_programs(server: LocalServer, stranger: Stranger) -> None:
    prefix = new_id()
    ids = [f"{prefix}_{number}" for number in range(3)]
    async with serving(server.url, "--exec", command("ignores_term.sh"), "--wait-ready") as manager:
        await asyncio.gather(*(stranger.create(session_id) for session_id in ids))
        stopped_at = time.monotonic()
        code = (await manager.end(signal.SIGTERM)).code

    assert code == 0
    assert time.monotonic() - stopped_at < Settings().stop_timeout_s + 5
    assert not kin_of(prefix)
    records = [await stranger.record(session_id) for session_id in ids]
    assert [(r["reason"], r["forced"], r["sealed"]) for r in records if r] == 3 * [("manager_stopped", True, True)]


def is_there(pid: int) -> bool:
    return b"reaper.py" in Path(f"/proc/{pid}/cmdline").read_bytes() if Path(f"/proc/{pid}").exists() else False


async def test_serve_ends_them_on_whichever_event_loop_it_runs(server: LocalServer, stranger: Stranger) -> None:
    prefix = new_id()
    async with serving(server.url, "--exec", command("as_told.sh")):
        for name in ("family", "daemon", "deaf_daemon", "flooding_daemon", "last_words", "leaves_children"):
            await stranger.create(f"{prefix}_{name}", metadata={"program": f"{name}.sh", "code": "0"})
        records = {n: await stranger.ends(f"{prefix}_{n}") for n in ("last_words", "leaves_children")}
        for name in ("family", "daemon", "deaf_daemon", "flooding_daemon"):
            await stranger.ask(f"jido.session.terminate.{prefix}_{name}")
            records[name] = await stranger.ends(f"{prefix}_{name}")
            kill(kin_of(f"{prefix}_{name}"))

        assert {name: (r["reason"], r.get("error"), r.get("forced")) for name, r in records.items()} == {
            **dict.fromkeys(("last_words", "leaves_children"), ("completed", None, None)),
            **dict.fromkeys(("family", "daemon", "deaf_daemon", "flooding_daemon"), ("requested", None, None)),
        }
        assert await eventually(lambda: has_said(stranger, f"{prefix}_last_words", 2)) == ["first", "last"]


# What they say


@pytest.mark.parametrize("what", ["outputs", "tokens", "nonsense", "line", "errors", "error_line"])
async def test_one_that_floods_disturbs_nobody(stranger: Stranger, start_manager: StartManager, what: str) -> None:
    await start_manager(child("floods.sh", what), stop_timeout_s=3.0)
    await stranger.create("other")
    await stranger.create("flood")
    delays_s = []
    for _ in range(5):
        for verb in ("idle", "activate"):
            asked_at = time.monotonic()
            assert "error" not in await stranger.ask(f"jido.session.{verb}.other")
            delays_s.append(time.monotonic() - asked_at)

    print(f"a step beside a flood of {what}: {1000 * sorted(delays_s)[5]:.0f} ms")
    assert sorted(delays_s)[5] < 1
    await stranger.ask("jido.session.terminate.flood")
    await stranger.ends("flood")


async def test_nonsense_is_passed_over(stranger: Stranger, start_manager: StartManager) -> None:
    await start_manager(child("nonsense.sh"))
    await stranger.create("s1")

    assert await eventually(lambda: said(stranger, "s1")) == ["still here"]
    assert (await stranger.ask("jido.session.get.s1"))["status"] == "active"


async def test_nonsense_is_named_in_the_log(
    stranger: Stranger, start_manager: StartManager, caplog: pytest.LogCaptureFixture
) -> None:
    await start_manager(child("nonsense.sh"))
    await stranger.create("s1")
    await eventually(lambda: said(stranger, "s1"))

    lines = [vars(record).get("line") for record in caplog.records]
    assert repr(b"Loading model...") in lines


async def test_standard_error_is_logged_with_the_session(
    stranger: Stranger, start_manager: StartManager, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "jido_nats.stderr")
    await start_manager(child("dies.sh"))
    await stranger.create("s1")
    await stranger.ends("s1")

    logged = [(r.name, r.getMessage(), vars(r)["session_id"]) for r in caplog.records if r.name == "jido_nats.stderr"]
    assert logged == [("jido_nats.stderr", "no such model", "s1")]


async def test_a_last_line_needs_no_newline(stranger: Stranger, start_manager: StartManager) -> None:
    await start_manager(child("last_words.sh"))
    await stranger.create("s1")
    await stranger.ends("s1")

    assert await eventually(lambda: has_said(stranger, "s1", 2)) == ["first", "last"]


async def test_last_words_wait_for_no_stream_and_are_not_lost(stranger: Stranger, start_manager: StartManager) -> None:
    line = f'{{"type":"output","data":"{80 * "x"}"}}'  # 1000 of them fill the pipe, and all that reads it
    await start_manager(Program(["sh", "-c", f"yes '{line}' | head -1000"]))
    config = (await stranger.js.stream_info("JIDO_OUTPUT")).config
    await stranger.js.delete_stream("JIDO_OUTPUT")
    await stranger.create("s1")

    await eventually(lambda: is_terminated(stranger, "s1"), within_s=DRAIN_S - 0.5)

    await stranger.js.add_stream(config)
    assert len(await eventually(lambda: has_said(stranger, "s1", 1000))) == 1000


async def is_terminated(stranger: Stranger, session_id: str) -> bool:
    return (await stranger.ask(f"jido.session.get.{session_id}")).get("status") == "terminated"


async def has_said(stranger: Stranger, session_id: str, count: int) -> list[Any]:
    """What it has said, when it is as much."""
    outputs = await said(stranger, session_id)
    return outputs if len(outputs) >= count else []


async def test_a_program_knows_its_session(
    stranger: Stranger, start_manager: StartManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NATS_PASSWORD", "a secret")
    monkeypatch.setenv("JIDO_X", "a secret")
    await start_manager(child("environment.sh"))
    metadata = {"name": "Zoë 🦊\n\t\x00\"'$(false)`false`", "=": ""}
    await stranger.create("s1", metadata=metadata, llm_config={"model": "x"})

    in_env, *texts, line = await eventually(lambda: has_said(stranger, "s1", 6))

    assert in_env == line["metadata"] == metadata
    assert texts == ["s1", "none", "none", "none"]
    assert (line["type"], line["session_id"], line["llm_config"]) == ("session", "s1", {"model": "x"})


async def test_metadata_that_is_too_long_for_an_environment_is_in_the_first_line(
    stranger: Stranger, start_manager: StartManager
) -> None:
    await start_manager(child("obeys.py"), metadata_bytes_max=200_000, request_bytes_max=250_000)
    await stranger.create("s1", metadata={"x": 45_000 * "🦊"})

    (got,) = await eventually(lambda: said(stranger, "s1"))

    assert got["metadata"] == {"x": 45_000 * "🦊"}


async def test_what_is_refused_is_answered(stranger: Stranger, start_manager: StartManager) -> None:
    await start_manager(child("obeys.py"), **READY)
    await stranger.create("s1")
    for content in (
        {"type": "activate", "id": 1},
        {"type": "say", "content": None, "id": "two"},
        {"type": "output", "times": 300_000, "id": 3},
        {"type": "idle", "id": 4},
    ):
        assert await is_accepted(stranger, "s1", content)

    got = [line for line in await eventually(lambda: has_said(stranger, "s1", 9)) if line and "id" in line]

    assert [(line["type"], line["id"], line.get("code")) for line in got] == [
        ("refused", 1, "invalid_transition"),
        ("refused", "two", "bad_request"),
        ("refused", 3, "too_large"),
        ("done", 4, None),
    ]


async def is_accepted(stranger: Stranger, session_id: str, content: Any) -> bool:
    answer = await stranger.ask(f"jido.session.send.{session_id}", {"role": "user", "content": content})
    return "error" not in answer


async def test_a_node_program_is_a_worker_too(stranger: Stranger, start_manager: StartManager) -> None:
    await start_manager(child("agent.js"), **READY)
    await stranger.create("s1")
    for content in ("ä", {"deep": [1]}):
        await stranger.ask("jido.session.send.s1", {"role": "user", "content": content})

    outputs = await eventually(lambda: has_said(stranger, "s1", 4))

    assert [o for o in outputs if o] == [{"count": 1, "content": "ä"}, {"count": 2, "content": {"deep": [1]}}]


async def test_one_that_says_nothing_more_lives_on(stranger: Stranger, start_manager: StartManager) -> None:
    await start_manager(child("closes_stdout.sh"))
    await stranger.create("s1")

    await stranger.ask("jido.session.send.s1", {"role": "user", "content": "end"})

    assert (await stranger.ends("s1"))["error"] == "exit code 7"


async def test_one_that_takes_nothing_more_can_be_ended(stranger: Stranger, start_manager: StartManager) -> None:
    await start_manager(child("closes_stdin.sh"), **READY, inbox_messages_max=3)
    await stranger.create("s1")

    codes = await send_until_overloaded(stranger, "s1", content="x")

    assert codes == {None, "overloaded"}
    assert (await stranger.ask("jido.session.terminate.s1"))["status"] == "terminated"


async def test_one_that_never_reads_is_overloaded_in_the_end(stranger: Stranger, start_manager: StartManager) -> None:
    await start_manager(child("sleeps.sh"), **READY, inbox_messages_max=3)
    await stranger.create("s1")

    codes = await send_until_overloaded(stranger, "s1", content="x" * 60_000)

    assert codes == {None, "overloaded"}
    assert (await stranger.ask("jido.session.terminate.s1"))["status"] == "terminated"


async def send_until_overloaded(stranger: Stranger, session_id: str, *, content: str) -> set[str | None]:
    """The error codes of the answers, None for those that were accepted."""
    codes: set[str | None] = set()
    for _ in range(30):
        answer = await stranger.ask(f"jido.session.send.{session_id}", {"role": "user", "content": content})
        codes.add(answer.get("error", {}).get("code"))
        if "overloaded" in codes:
            break
    return codes


async def test_a_program_that_is_asked_for_is_this_interpreter() -> None:
    assert child("obeys.py")._argv[0] == sys.executable
