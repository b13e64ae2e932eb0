"""What a program finds around it: no terminal, no variables of its manager, and signals that reach it."""

import os
import signal
import sys
from pathlib import Path

import pytest

from jido_nats import LocalServer
from jido_nats.worker.program import Program
from tests.conftest import StartManager
from tests.tools.children.kin import kin_of, leaders, new_id
from tests.tools.processes import freeze
from tests.tools.programs import serving
from tests.tools.support import Stranger, eventually
from tests.tools.terminal import in_terminal
from tests.worker.test_programs import READY, has_said

# Without standard error, where sh reports the end of its `sleep`, and which nobody reads any more.
CLEANS_UP = """exec 2>/dev/null; trap ': >"$0"; exit 0' TERM; echo '{"type":"ready"}'; while :; do sleep 0.05; done"""
BUFFERED = """
import json, sys
for text in sys.stdin:
    print(json.dumps({"type": "output", "data": json.loads(text)["type"]}))
"""


async def test_a_program_that_asks_the_terminal_fails_at_once(server: LocalServer, stranger: Stranger) -> None:
    asks = "sh -c 'stty -echo </dev/tty || exit 7'"
    async with in_terminal("serve", "--server", server.url, "--exec", asks) as terminal:
        await terminal.showed("serves on")
        await stranger.create("s1")

        record = await stranger.ends("s1", within_s=5)

        assert record["error"].startswith("exit code 7")


async def test_a_program_leads_a_session_of_its_own(stranger: Stranger, start_manager: StartManager) -> None:
    await start_manager(Program(["sh", "-c", 'echo \'{"type":"ready"}\'; sleep 300']), **READY)
    session_id = new_id()
    await stranger.create(session_id)

    (leader,) = leaders(session_id)

    assert {os.getsid(pid) for pid in kin_of(session_id)} == {leader}


async def test_a_program_that_is_stopped_can_clean_up(
    stranger: Stranger, start_manager: StartManager, tmp_path: Path
) -> None:
    await start_manager(Program(["sh", "-c", CLEANS_UP, str(tmp_path / "clean")]), **READY)
    session_id = new_id()
    await stranger.create(session_id)
    await freeze(leaders(session_id)[0])

    record = await stranger.ask(f"jido.session.terminate.{session_id}")

    assert (record["status"], record.get("forced")) == ("terminated", None)
    assert (tmp_path / "clean").exists()


async def test_a_program_that_is_stopped_can_clean_up_after_its_manager_was_killed(
    server: LocalServer, stranger: Stranger, tmp_path: Path
) -> None:
    session_id = new_id()
    (tmp_path / "program.sh").write_text(CLEANS_UP.replace("$0", str(tmp_path / "clean")))
    async with serving(server.url, "--exec", f"sh {tmp_path / 'program.sh'}", "--wait-ready") as manager:
        await stranger.create(session_id)
        await freeze(leaders(session_id)[0])

        manager.send(signal.SIGKILL)

        await eventually((tmp_path / "clean").exists, within_s=5)


NOT_INHERITED = {
    "NOTIFY_SOCKET": "/run/systemd/notify",
    "WATCHDOG_USEC": "30000000",
    "WATCHDOG_PID": "1",
    "LISTEN_FDS": "1",
    "CREDENTIALS_DIRECTORY": "/run/credentials",
    "SERVE": "--worker agent:run",
    "NATS_PASSWORD": "a secret",
    "JIDO_OPERATOR_PASSWORD": "a secret",
}


async def test_what_is_the_managers_own_is_not_inherited(
    stranger: Stranger, start_manager: StartManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**NOT_INHERITED, "INHERITED": "yes"}.items():
        monkeypatch.setenv(name, value)
    names = "import json, os; print(json.dumps({'type': 'output', 'data': sorted(os.environ)}))"
    await start_manager(Program([sys.executable, "-I", "-S", "-c", names]))
    await stranger.create("s1")

    (inherited,) = await eventually(lambda: has_said(stranger, "s1", 1))

    assert set(inherited) & set(NOT_INHERITED) == set()
    assert "INHERITED" in inherited


async def test_a_python_program_need_not_flush(
    stranger: Stranger, start_manager: StartManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    await start_manager(Program([sys.executable, "-c", BUFFERED]))
    await stranger.create("s1")

    assert await eventually(lambda: has_said(stranger, "s1", 1)) == ["session"]
