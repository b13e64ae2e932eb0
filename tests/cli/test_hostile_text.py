"""What workers, clients and other managers say reaches no terminal as it is, and is never taken for a line of ours."""

import json
import re
import signal
import sys
from pathlib import Path

import pytest

from jido_nats import LocalServer, SessionManager
from jido_nats.cli.escape import MARGIN, json_printable, printable, printable_lines
from tests.tools.children.workers import __name__ as WORKERS
from tests.tools.programs import Finished, run, running, serving
from tests.tools.support import Puppet, Stranger

# Sequences of C0 and C1, an OSC that sets a title, DEL, bidi overrides, and everything that may end a line; then what
# would look like a line of a log, a record or a list.
HOSTILE = "a\x1b[2J\x1b]0;title\x07\x9b31m\x7f\u202e\u2066\u200f\ufeff\r\v\f\x1c\x1d\x1e\x85\u2028\u2029\0"
FORGED = ("13:00:00 ERROR forged", "status           forged", "forged  active", "jido-nats: forged", "Traceback forged")
TEXT = HOSTILE + "".join(f"\n{line}" for line in FORGED)


def is_harmless(text: str) -> bool:
    """Whether it is printable lines, none of which somebody else has made."""
    return text.replace("\n", "").isprintable() and not any(line.startswith(FORGED) for line in text.split("\n"))


def test_a_line_stays_one() -> None:
    assert printable(TEXT).isprintable()


def test_lines_after_the_first_have_a_margin() -> None:
    first, *more = printable_lines(TEXT).split("\n")

    assert first.isprintable()
    assert [line.removeprefix(MARGIN) for line in more] == list(FORGED)


def test_json_is_one_line_of_the_same_value() -> None:
    text = json.dumps({TEXT: [TEXT, 10**30, 1.5]}, ensure_ascii=False, indent=2)

    line = json_printable(text)

    assert line.isprintable()
    assert json.loads(line) == json.loads(text)


async def hostile_sessions(stranger: Stranger, puppet: Puppet) -> None:
    """One that lives, one that has crashed, and what nobody but a manager can write."""
    for session_id in ("lives", "crashes"):
        await stranger.create(session_id, metadata={TEXT: TEXT, "x": "y"}, llm_config={TEXT: [TEXT]})
        session = puppet.sessions[session_id]
        await stranger.ask(f"jido.session.send.{session_id}", {"role": HOSTILE, "content": TEXT})
        await session.emit(HOSTILE.replace("\0", ""), {TEXT: TEXT})
        await session.say(TEXT)
        await session.flush()
    puppet.crash("crashes", RuntimeError(TEXT))
    await stranger.ends("crashes")
    records = await stranger.js.key_value("JIDO_SESSIONS")
    future = json.loads((await records.get("lives")).value or b"") | {"session_id": "future", "status": TEXT}
    await records.put("future", json.dumps(future | {"reason": TEXT, "error": TEXT}).encode())
    odd = {"type": "session_status", "session_id": HOSTILE, "version": 2, "status": TEXT, "previous_status": TEXT}
    event = odd | {"updated_at": "2026-01-01T00:00:00Z", "reason": TEXT, "error": TEXT}
    for data in (event, event | {"type": TEXT}):
        await stranger.js.publish("jido.client.events", json.dumps(data, indent=2, ensure_ascii=False).encode())


COMMANDS = [
    ["list", "--all"],
    ["get", "lives"],
    ["get", "crashes"],
    ["get", "future"],
    ["get", TEXT],
    ["get", "lives", TEXT],
    ["create", "--session-id", HOSTILE],
    ["list", "--metadata", HOSTILE],
    ["list", "--status", TEXT],
    ["list", "--metadata", f"{TEXT}={TEXT}"],
    ["history", "crashes"],
    ["events", "--since", "all", "--no-follow"],
    ["output", "--since", "all", "--no-follow"],
    ["output", "--since", TEXT],
    ["doctor"],
    ["conform"],
    ["send", "lives", TEXT, "--message-id", "m1"],
    ["wait", "crashes"],
    ["terminate", "lives", "--detail", HOSTILE],
]


async def test_no_command_prints_what_others_say_as_it_is(
    server: LocalServer, stranger: Stranger, manager: SessionManager, puppet: Puppet
) -> None:
    await hostile_sessions(stranger, puppet)
    printed: dict[str, Finished] = {}
    for command in COMMANDS:
        words = [word.replace("\0", "") for word in command]
        for json_ in ([], ["--json"]):
            printed[repr([*words[:2], *json_])] = await run(*words, "--server", server.url, *json_)

    assert [name for name, finished in printed.items() if not is_harmless(finished.out + finished.err)] == []
    assert [name for name, finished in printed.items() if "Traceback (most" in finished.err] == []
    assert all(type(line) is dict for name, said in printed.items() if "--json" in name for line in said.lines)


async def test_watch_prints_nothing_of_others_as_it_is(
    server: LocalServer, stranger: Stranger, manager: SessionManager, puppet: Puppet
) -> None:
    await hostile_sessions(stranger, puppet)
    serving_it = ("--server", server.url)
    async with running("watch", "--plain", *serving_it) as plain, running("watch", "--json", *serving_it) as as_json:
        for watch in (plain, as_json):
            await watch.said("future")
        await stranger.ask("jido.session.terminate.lives", {"detail": HOSTILE})
        for watch in (plain, as_json):
            await watch.said("terminated")

            assert is_harmless(watch.out + watch.err)


FORGES = f"""
import json, sys
print(json.dumps({{"type": "say", "content": {TEXT!r}}}))
print(json.dumps({{"type": {HOSTILE!r}}}))
print({HOSTILE!r}.replace("\\n", ""))
print(json.dumps({{"type": "failed", "error": {TEXT!r}, "traceback": {TEXT!r}}}), flush=True)
sys.stderr.buffer.write({TEXT!r}.encode() + bytes(range(128, 256)))
sys.exit(1)
"""


@pytest.mark.parametrize("log_format", ["line", "json"])
async def test_a_program_forges_no_line_of_the_log(
    server: LocalServer, stranger: Stranger, tmp_path: Path, log_format: str
) -> None:
    (tmp_path / "forges.py").write_text(FORGES)
    program = f"{sys.executable} {tmp_path / 'forges.py'}"
    async with serving(server.url, "--log-format", log_format, "--exec", program) as manager:
        await stranger.create("s1", metadata={TEXT: TEXT})
        await stranger.ends("s1")
        await stranger.nc.publish(f"jido.session.get.{chr(0x9B)}2J", b"", reply="_INBOX.x")
        await stranger.nc.publish("jido.session.create", TEXT.encode(), reply="_INBOX.x")
        finished = await manager.end(signal.SIGTERM)

    assert "forged" in finished.err
    assert lines_of_others(finished.err, log_format) == []


async def test_a_python_worker_forges_no_line_of_the_log(server: LocalServer, stranger: Stranger) -> None:
    worker = ("--worker", f"{WORKERS}:forges")
    for isolation in ("task", "process"):
        async with serving(server.url, *worker, "--isolation", isolation) as manager:
            await stranger.create(isolation, metadata={"text": TEXT})
            await stranger.ends(isolation)
            finished = await manager.end(signal.SIGTERM)

        assert finished.err.count("13:00:00 ERROR forged") >= 2
        assert lines_of_others(finished.err, "line") == []


def lines_of_others(log: str, log_format: str) -> list[str]:
    """The lines of a log that are not ours, not printable, or not marked as a part of the line before."""
    announced = re.compile(r"manager_[\w-]+ serves on |metrics and health on ")
    ours = re.compile(r"(?!13:00:00 ERROR forged)\d\d:\d\d:\d\d [A-Z]+ |  \| " if log_format == "line" else r"\{.*\}$")
    lines = [line for line in log.split("\n")[:-1] if not announced.match(line)]
    return [line for line in lines if not line.isprintable() or not ours.match(line)]
