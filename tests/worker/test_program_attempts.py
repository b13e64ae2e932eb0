"""The lines of a program whose session has a restart policy: what the next attempt gets, and what it does not."""

import json
import os
import signal
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from jido_nats.core.requests import STATE_BYTES_MAX
from jido_nats.worker.program import Program
from tests.conftest import StartManager
from tests.tools.children.kin import child, kin_of, leaders, new_id
from tests.tools.support import Stranger, eventually
from tests.worker.test_programs import READY, said

ON_CRASH: Final = {"on": ["crashed"], "backoff_s": 0.01, "attempts_max": 0}


async def send(stranger: Stranger, session_id: str, content: Any, message_id: str) -> None:
    """Send a message under an id; it has to be accepted."""
    request = {"role": "user", "content": content, "message_id": message_id}
    assert "error" not in await stranger.ask(f"jido.session.send.{session_id}", request)


async def lines(stranger: Stranger, session_id: str, of: str) -> list[dict[str, Any]]:
    """The lines of a type that the program has received, in all attempts, as `obeys.py` and `writes.py` report them."""
    got = [json.loads(data) if isinstance(data, str) else data for data in await said(stranger, session_id)]
    return [line for line in got if line and line["type"] == of]


async def some(stranger: Stranger, session_id: str, of: str, count: int) -> list[dict[str, Any]]:
    """The same, once there are so many."""

    async def enough() -> list[dict[str, Any]]:
        found = await lines(stranger, session_id, of)
        return found if len(found) >= count else []

    found: list[dict[str, Any]] = await eventually(enough)
    return found


async def crash(stranger: Stranger, session_id: str) -> None:
    """Kill the program; returns once the next attempt has its session line."""
    before = len(await some(stranger, session_id, "session", 1))
    os.kill(leaders(session_id)[0], signal.SIGKILL)
    await some(stranger, session_id, "session", before + 1)


@pytest.fixture
async def session_id(stranger: Stranger, start_manager: StartManager) -> str:
    """A session with a restart policy, whose program is `obeys.py`."""
    await start_manager(child("obeys.py"), **READY)
    session_id = new_id()
    assert (await stranger.create(session_id, restart=ON_CRASH))["status"] == "active"
    return session_id


async def test_the_first_session_line_says_that_it_is_the_first_attempt(stranger: Stranger, session_id: str) -> None:
    (line,) = await some(stranger, session_id, "session", 1)

    assert (line["attempt"], line.get("state", "none")) == (1, "none")


async def test_the_next_session_line_has_the_state_of_the_last_checkpoint(stranger: Stranger, session_id: str) -> None:
    for number in (1, 2):
        await send(stranger, session_id, {"type": "checkpoint", "state": {"n": number}, "id": number}, f"m{number}")
    await some(stranger, session_id, "done", 2)

    await crash(stranger, session_id)

    assert [(line["attempt"], line.get("state")) for line in await lines(stranger, session_id, "session")] == [
        (1, None),
        (2, {"n": 2}),
    ]


async def test_a_state_outlives_attempts_that_store_none(stranger: Stranger, session_id: str) -> None:
    await send(stranger, session_id, {"type": "checkpoint", "state": "kept", "handled": "m1", "id": 1}, "m1")
    await some(stranger, session_id, "done", 1)

    await crash(stranger, session_id)
    await crash(stranger, session_id)

    assert [line.get("state") for line in await lines(stranger, session_id, "session")] == [None, "kept", "kept"]


async def test_a_program_that_says_nothing_gets_every_message_again(stranger: Stranger, session_id: str) -> None:
    for number in (1, 2, 3):
        await send(stranger, session_id, number, f"m{number}")
    await some(stranger, session_id, "message", 3)

    await crash(stranger, session_id)

    got = await some(stranger, session_id, "message", 6)
    assert [(line["content"], line.get("redelivered", False)) for line in got] == [
        *((number, False) for number in (1, 2, 3)),
        *((number, True) for number in (1, 2, 3)),
    ]


async def test_a_message_comes_again_as_it_was(stranger: Stranger, session_id: str) -> None:
    await send(stranger, session_id, "hello", "m1")
    await some(stranger, session_id, "message", 1)

    await crash(stranger, session_id)

    first, again = await some(stranger, session_id, "message", 2)
    assert again == {**first, "redelivered": True}


@pytest.mark.parametrize(
    "how", [{"type": "handled"}, {"type": "checkpoint", "state": 1}], ids=["handled", "checkpoint"]
)
async def test_what_is_handled_does_not_come_again(stranger: Stranger, session_id: str, how: dict[str, Any]) -> None:
    for content, message_id in (("a", "m1"), ("b", "m2"), ({**how, "handled": "m2", "id": 1}, "m3"), ("d", "m4")):
        await send(stranger, session_id, content, message_id)
    await some(stranger, session_id, "message", 3)
    await some(stranger, session_id, "done", 1)

    await crash(stranger, session_id)

    got = await some(stranger, session_id, "message", 4)  # `obeys.py` does not report the third, but carries it out
    assert [line["content"] for line in got] == ["a", "b", "d", "d"]


async def test_a_message_during_the_backoff_is_no_redelivery(stranger: Stranger, start_manager: StartManager) -> None:
    await start_manager(child("obeys.py"), **READY)
    session_id = new_id()
    await stranger.create(session_id, restart={**ON_CRASH, "backoff_s": 0.5})
    await some(stranger, session_id, "session", 1)

    os.kill(leaders(session_id)[0], signal.SIGKILL)
    await eventually(lambda: waits(stranger, session_id))
    await send(stranger, session_id, "hello", "m1")

    (line,) = await some(stranger, session_id, "message", 1)
    assert "redelivered" not in line
    assert (await some(stranger, session_id, "session", 2))[1]["attempt"] == 2


async def waits(stranger: Stranger, session_id: str) -> bool:
    """Whether it waits for its second attempt."""
    record = await stranger.ask(f"jido.session.get.{session_id}")
    return (record["status"], record["run"]["attempt"]) == ("initializing", 2)


async def test_a_handled_message_leaves_the_state_as_it_is(stranger: Stranger, session_id: str) -> None:
    await send(stranger, session_id, {"type": "checkpoint", "state": "kept", "handled": "m1", "id": 1}, "m1")
    await send(stranger, session_id, {"type": "handled", "handled": "m2", "id": 2}, "m2")
    await some(stranger, session_id, "done", 2)

    await crash(stranger, session_id)
    await send(stranger, session_id, "next", "m3")

    assert (await some(stranger, session_id, "session", 2))[1]["state"] == "kept"
    (line,) = await some(stranger, session_id, "message", 1)
    assert (line["message_id"], line.get("redelivered")) == ("m3", None)


async def test_an_earlier_message_as_handled_takes_nothing_back(stranger: Stranger, session_id: str) -> None:
    for content, message_id in (
        ("a", "m1"),
        ({"type": "handled", "handled": "m2", "id": 1}, "m2"),
        ({"type": "handled", "handled": "m1", "id": 2}, "m3"),
    ):
        await send(stranger, session_id, content, message_id)
    await some(stranger, session_id, "done", 2)

    await crash(stranger, session_id)  # the third message comes again, and says the same
    await some(stranger, session_id, "done", 3)

    assert [line["content"] for line in await lines(stranger, session_id, "message")] == ["a"]


async def test_the_last_lines_of_a_program_that_crashes_count(stranger: Stranger, start_manager: StartManager) -> None:
    crashes = """read -r session; read -r message
        case $session in *'"state":"kept"'*) echo '{"type":"output","data":{"type":"found"}}'; sleep 300 ;; esac
        echo '{"type":"checkpoint","state":"kept","handled":"m1"}'; exit 1"""
    await start_manager(Program(["sh", "-c", crashes], stop_timeout_s=1.0))
    await stranger.create("s1", restart=ON_CRASH)
    await send(stranger, "s1", "first", "m1")
    await send(stranger, "s1", "second", "m2")

    await some(stranger, "s1", "found", 1)
    assert (await stranger.ask("jido.session.get.s1"))["run"]["attempt"] == 2


async def test_a_program_reads_the_conversation(stranger: Stranger, session_id: str) -> None:
    await send(stranger, session_id, "hello", "m1")
    await send(stranger, session_id, {"type": "say", "content": "hi", "id": 1}, "m2")
    await send(stranger, session_id, {"type": "flush", "id": 2}, "m3")
    await some(stranger, session_id, "done", 2)

    await send(stranger, session_id, {"type": "conversation", "limit": 3, "id": 3}, "m4")

    answer = (await some(stranger, session_id, "done", 3))[2]
    assert answer["id"] == 3
    assert len(answer["conversation"]) == 3
    assert ("assistant", "hi") in [(said["role"], said["content"]) for said in answer["conversation"]]


async def test_the_next_attempt_reads_what_the_one_before_has_said(stranger: Stranger, session_id: str) -> None:
    await send(stranger, session_id, {"type": "say", "content": "hi", "id": 1}, "m1")
    await send(stranger, session_id, {"type": "handled", "handled": "m2", "id": 2}, "m2")
    await some(stranger, session_id, "done", 2)

    await crash(stranger, session_id)
    await send(stranger, session_id, {"type": "conversation", "id": 3}, "m3")

    answer = (await some(stranger, session_id, "done", 3))[2]
    assert ("assistant", "hi") in [(said["role"], said["content"]) for said in answer["conversation"]]


# What is refused

TOO_LARGE: Final = b'{"type":"checkpoint","state":"' + b"x" * STATE_BYTES_MAX + b'","id":1}'


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        (b'{"type":"handled","handled":"m9","id":1}', "bad_request", "no message with the id 'm9'"),
        (b'{"type":"checkpoint","state":1,"handled":"m9","id":1}', "bad_request", "no message with the id 'm9'"),
        (b'{"type":"handled","id":1}', "bad_request", "missing required field `handled`"),
        (b'{"type":"handled","handled":7,"id":1}', "bad_request", "`$.handled`"),
        (b'{"type":"checkpoint","handled":"m1","id":1}', "bad_request", "missing required field `state`"),
        (TOO_LARGE, "too_large", f"the state is {STATE_BYTES_MAX + 2} bytes, the limit is {STATE_BYTES_MAX}"),
        (b'{"type":"checkpoint","state":1e999,"id":1}', "bad_request", "out of range"),
        (b'{"type":"checkpoint","state":' + b"[" * 40 + b"]" * 40 + b',"id":1}', "bad_request", "the state"),
        (b'{"type":"conversation","limit":0,"id":1}', "bad_request", "limit must be 1 to 1000"),
        (b'{"type":"conversation","limit":-1,"id":1}', "bad_request", "limit must be 1 to 1000"),
        (b'{"type":"conversation","limit":"all","id":1}', "bad_request", "`$.limit`"),
    ],
    ids=lambda value: value[:40] if isinstance(value, bytes) else "",
)
async def test_a_refused_line_is_answered(
    stranger: Stranger, start_manager: StartManager, tmp_path: Path, line: bytes, code: str, message: str
) -> None:
    (tmp_path / "lines").write_bytes(line + b'\n{"type":"idle","id":2}\n')
    await start_manager(child("writes.py", str(tmp_path / "lines")))
    await stranger.create("s1", restart=ON_CRASH)

    (refused,) = await some(stranger, "s1", "refused", 1)

    assert (refused["id"], refused["code"]) == (1, code)
    assert message in refused["message"]
    assert [line["id"] for line in await some(stranger, "s1", "done", 1)] == [2]  # and it goes on


@pytest.mark.parametrize(
    "wrong",
    [{"handled": "m9", "state": 1}, {"handled": "m1", "field": "state", "times": STATE_BYTES_MAX}],
    ids=["id", "size"],
)
async def test_a_refused_checkpoint_changes_nothing(stranger: Stranger, session_id: str, wrong: dict[str, Any]) -> None:
    await send(stranger, session_id, {"type": "checkpoint", "state": "kept", "id": 1}, "m0")
    await send(stranger, session_id, "hello", "m1")
    await send(stranger, session_id, {"type": "checkpoint", "id": 2, **wrong}, "m2")
    await some(stranger, session_id, "refused", 1)

    await crash(stranger, session_id)

    assert (await lines(stranger, session_id, "session"))[1]["state"] == "kept"
    assert [line["message_id"] for line in await some(stranger, session_id, "message", 2)] == ["m1", "m1"]


# Without a policy


async def test_without_a_policy_a_checkpoint_does_nothing(stranger: Stranger, start_manager: StartManager) -> None:
    await start_manager(child("obeys.py"), **READY)
    session_id = new_id()
    await stranger.create(session_id)
    await send(stranger, session_id, {"type": "checkpoint", "state": 1, "handled": "m1", "id": 1}, "m1")
    await send(stranger, session_id, {"type": "handled", "handled": "m2", "id": 2}, "m2")

    assert [line["id"] for line in await some(stranger, session_id, "done", 2)] == [1, 2]

    (line,) = await lines(stranger, session_id, "session")
    assert not {"attempt", "state"} & set(line)
    os.kill(leaders(session_id)[0], signal.SIGKILL)
    assert (await stranger.ends(session_id))["reason"] == "crashed"
    assert await stranger.stored("JIDO_JOURNAL") == []


async def test_without_a_policy_a_state_that_is_too_large_is_refused_too(
    stranger: Stranger, start_manager: StartManager, tmp_path: Path
) -> None:
    (tmp_path / "lines").write_bytes(TOO_LARGE + b"\n")
    await start_manager(child("writes.py", str(tmp_path / "lines")))
    await stranger.create("s1")

    assert [line["code"] for line in await some(stranger, "s1", "refused", 1)] == ["too_large"]


# The end


async def test_exit_code_0_ends_the_session_whatever_is_not_handled(
    stranger: Stranger, start_manager: StartManager
) -> None:
    await start_manager(Program(["sh", "-c", "read -r session; read -r message; exit 0"], stop_timeout_s=1.0))
    await stranger.create("s1", restart=ON_CRASH)
    await send(stranger, "s1", "hello", "m1")

    record = await stranger.ends("s1")

    assert (record["reason"], record["run"]["attempt"]) == ("completed", 1)


async def test_nothing_of_an_attempt_is_left_in_the_next(stranger: Stranger, start_manager: StartManager) -> None:
    await start_manager(
        Program(["sh", "-c", "read -r session; sleep 300 & read -r message; exit 1"], stop_timeout_s=1.0)
    )
    session_id = new_id()
    await stranger.create(session_id, restart={**ON_CRASH, "attempts_max": 2})
    first = await eventually(lambda: kin_of(session_id))

    await send(stranger, session_id, "hello", "m1")

    record = await stranger.ends(session_id)
    assert (record["reason"], record["error"], record["run"]["attempt"]) == ("crashed", "exit code 1", 2)
    assert first
    assert not kin_of(session_id)


async def test_the_journal_has_one_entry_for_a_checkpoint(stranger: Stranger, session_id: str) -> None:
    await send(stranger, session_id, {"type": "checkpoint", "state": [1], "handled": "m1", "id": 1}, "m1")
    await some(stranger, session_id, "done", 1)

    _, message, entry = [msgspec.json.decode(stored.data) for stored in await stranger.stored("JIDO_JOURNAL")]

    assert (message["type"], message["message_id"]) == ("message", "m1")
    assert (entry["type"], entry["state"], entry["handled"]) == ("checkpoint", [1], 2)


async def test_a_program_that_handles_nothing_is_overloaded_in_the_end(
    stranger: Stranger, start_manager: StartManager
) -> None:
    await start_manager(child("obeys.py"), **READY, inbox_messages_max=3)
    session_id = new_id()
    await stranger.create(session_id, restart=ON_CRASH)
    for number in (1, 2, 3):
        await send(stranger, session_id, number, f"m{number}")
    await some(stranger, session_id, "message", 3)  # it has taken them all

    answer = await stranger.ask(f"jido.session.send.{session_id}", {"role": "user", "content": 4})

    assert answer["error"]["code"] == "overloaded"
    assert "a program says with a line 'handled'" in answer["error"]["message"]
