"""Python workers in processes of their own: one that goes wrong harms nobody, and it is told how it went wrong."""

import asyncio
import os
import re
import threading
from collections import Counter
from functools import partial
from typing import Any

import pytest

from jido_nats import Session, Settings
from jido_nats.worker.program import Program, isolated
from tests.conftest import StartManager
from tests.tools.children.kin import kin_of, new_id, reapers
from tests.tools.support import Stranger, eventually, nothing, wait_for_ever
from tests.worker.test_programs import READY, has_said, said

OUTPUT = "jido.client.session.s1.output"


def worker(name: str, **settings: Any) -> Program:
    """A worker of `tests.tools.children.workers`, each session in a process of its own."""
    return isolated(f"tests.tools.children.workers:{name}", Settings(**{"stop_timeout_s": 1.0, **settings}))


async def send(stranger: Stranger, session_id: str, content: Any) -> dict[str, Any]:
    """The answer to a message."""
    return await stranger.ask(f"jido.session.send.{session_id}", {"role": "user", "content": content})


@pytest.mark.parametrize(
    ("content", "reason", "error"),
    [
        ("exit", "crashed", "exit code 5"),
        ("segfault", "crashed", "killed by SIGSEGV"),
        ("allocate", "crashed", "MemoryError (workers.py:N in <listcomp>)"),
        ("raise", "crashed", "RuntimeError: boom (workers.py:N in does)"),
        ("raise no Exception", "crashed", "Stop: now (workers.py:N in does)"),
        ("sys.exit", "crashed", "SystemExit: 3 (workers.py:N in does)"),
        ("return", "completed", None),
        ("leave a thread", "completed", None),
    ],
)
async def test_how_it_ended_is_told(
    stranger: Stranger, start_manager: StartManager, content: str, reason: str, error: str | None
) -> None:
    await start_manager(worker("does"))
    await stranger.create("s1")

    await send(stranger, "s1", content)

    record = await stranger.ends("s1")
    told = record.get("error") and re.sub(r"\.py:\d+ ", ".py:N ", record["error"])
    assert (record["reason"], told) == (reason, error)


async def test_an_endless_loop_harms_nobody(stranger: Stranger, start_manager: StartManager) -> None:
    await start_manager(worker("does"), stop_timeout_s=1.0)
    looping, other = new_id(), new_id()
    await stranger.create(looping)
    await stranger.create(other)
    await send(stranger, looping, "loop")
    await eventually(partial(has_said, stranger, looping, 2))

    assert (await stranger.ask(f"jido.session.idle.{other}"))["status"] == "idle"
    assert (await stranger.ask(f"jido.session.terminate.{looping}"))["error"]["code"] == "stop_timeout"

    record = await stranger.ends(looping)
    assert (record["reason"], record["forced"]) == ("requested", True)
    assert not kin_of(looping)


async def test_each_session_has_a_process_of_its_own(stranger: Stranger, start_manager: StartManager) -> None:
    await start_manager(worker("does"))
    pids = set()
    for session_id in ("s1", "s2"):
        await stranger.create(session_id)
        pids.add((await eventually(partial(said, stranger, session_id)))[0])

    assert len(pids - {os.getpid()}) == 2


async def test_it_speaks_as_in_the_managers_own_process(stranger: Stranger, start_manager: StartManager) -> None:
    await start_manager(worker("echoes", wait_ready=True), **READY)
    assert (await stranger.create("s1"))["status"] == "active"
    ear = await stranger.hear(OUTPUT)

    for content in ("hello", "refused", "idle"):
        await send(stranger, "s1", content)

    await eventually(lambda: len(ear.messages) == 8)
    told = [m.get("content", m.get("data")) for m in ear.on(OUTPUT)]
    refusal = "a session that is active cannot become active, only idle or terminated or terminating"
    assert Counter(told) == {"hello": 2, "refused": 2, refusal: 1, "idle": 3}
    assert (await stranger.ask("jido.session.get.s1"))["status"] == "idle"


async def test_what_is_no_json_is_refused_before_it_becomes_something_else(
    stranger: Stranger, start_manager: StartManager
) -> None:
    await start_manager(worker("echoes", wait_ready=True), **READY)
    await stranger.create("s1")
    ear = await stranger.hear(OUTPUT)

    await send(stranger, "s1", "no JSON")

    await eventually(lambda: len(ear.messages) == 5)
    told = [output["data"] for output in ear.on(OUTPUT) if output["type"] == "session_output"]
    assert told == [str(float), str(bytes), str(dict)]


async def test_8000_emits_at_once_do_not_stop_up_the_pipes(stranger: Stranger, start_manager: StartManager) -> None:
    await start_manager(worker("echoes", wait_ready=True), **READY)
    await stranger.create("s1")
    ear = await stranger.hear(OUTPUT)

    await send(stranger, "s1", "many")

    await eventually(lambda: len(ear.messages) == 8003, within_s=100)  # 3 ms each on a machine that is busy
    outputs = ear.on(OUTPUT)
    assert [output["number"] for output in outputs if output.get("ephemeral")] == list(range(1, 8001))
    assert outputs[-1]["data"] == [1, 8000]


async def test_a_large_message_and_much_output_do_not_wait_for_each_other(
    stranger: Stranger, start_manager: StartManager
) -> None:
    await start_manager(worker("says_much_beside_a_listener", wait_ready=True), request_bytes_max=262_144, **READY)
    await stranger.create("s1")
    ear = await stranger.hear(OUTPUT)

    for _ in range(10):
        await send(stranger, "s1", "x" * 250_000)

    await eventually(lambda: [o["data"] for o in ear.on(OUTPUT) if o.get("name") == "round"] == [0, 1, 2, 3, 4])


async def test_it_does_not_inherit_credentials(
    stranger: Stranger, start_manager: StartManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NATS_PASSWORD", "a secret")
    monkeypatch.setenv("JIDO_FAILPOINTS", "sealed:die:1")
    await start_manager(worker("echoes", wait_ready=True), **READY)
    await stranger.create("s1")

    await send(stranger, "s1", "inherited")

    assert (await eventually(lambda: has_said(stranger, "s1", 3)))[-1] == [
        "JIDO_SESSION_ID",
        "JIDO_METADATA",
        "JIDO_RUN_ID",
    ]


async def test_what_nobody_takes_waits_at_the_manager(stranger: Stranger, start_manager: StartManager) -> None:
    await start_manager(worker("never_takes", wait_ready=True), **READY, inbox_messages_max=3)
    await stranger.create("s1")

    codes = [(await send(stranger, "s1", "x")).get("error", {}).get("code") for _ in range(6)]

    assert codes[-1] == "overloaded"
    assert codes.count(None) in (3, 4)  # one may be on its way to be asked for


async def test_each_of_several_takers_gets_its_message(stranger: Stranger, start_manager: StartManager) -> None:
    await start_manager(worker("takes_side_by_side", wait_ready=True), **READY)
    await stranger.create("s1")
    for number in range(4):
        await send(stranger, "s1", number)

    outputs = await eventually(lambda: has_said(stranger, "s1", 8))

    assert sorted(output for output in outputs if output is not None) == [0, 1, 2, 3]


async def test_one_that_does_not_stop_is_killed(stranger: Stranger, start_manager: StartManager) -> None:
    await start_manager(worker("swallows", wait_ready=True), **READY)
    session_id = new_id()
    await stranger.create(session_id)

    await stranger.ask(f"jido.session.terminate.{session_id}")

    assert (await stranger.ends(session_id))["forced"]
    assert not kin_of(session_id)


async def test_one_that_fails_while_it_stops_keeps_the_reason(stranger: Stranger, start_manager: StartManager) -> None:
    await start_manager(worker("fails_to_tidy_up", wait_ready=True), **READY)
    await stranger.create("s1")

    record = await stranger.ask("jido.session.terminate.s1")

    assert record["reason"] == "requested"
    assert record["error"].startswith("RuntimeError: not saved (workers.py:")


async def test_a_worker_that_cannot_be_imported_did_not_start(stranger: Stranger, start_manager: StartManager) -> None:
    await start_manager(worker("no_such_worker", wait_ready=True), **READY)

    answer = await stranger.create("s1")

    assert "has no 'no_such_worker'" in answer["error"]["message"]
    await nothing(lambda: reapers(os.getpid()))


# In the manager's own process


async def blocks(session: Session) -> None:
    """What `--isolation process` is for."""
    await asyncio.sleep(0.1)  # the create is answered first
    threading.Event().wait(4.5)
    await wait_for_ever(session)


async def test_a_worker_that_blocks_the_manager_is_named_in_the_log(
    stranger: Stranger, start_manager: StartManager, caplog: pytest.LogCaptureFixture
) -> None:
    await start_manager(blocks, lease_s=3)
    await stranger.create("s1")

    await eventually(lambda: [record for record in caplog.records if "blocks the manager" in record.getMessage()])

    told = [vars(r) for r in caplog.records if "blocks the manager" in r.getMessage()]
    assert [each["session_id"] for each in told] == ["s1"]
    assert " in wait" in told[0]["at"]
    assert (await stranger.ask("jido.session.idle.s1"))["status"] == "idle"
    assert not [record for record in caplog.records if "lapsed" in record.getMessage()]
