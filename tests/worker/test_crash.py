"""What a crash leaves: its traceback in the log, once, and the place in the worker's own code in `error`."""

import asyncio
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jido_nats import ConfigurationError, LocalServer, Session, Settings
from jido_nats.worker.crash import ERROR_LENGTH_MAX, TRACEBACK_LENGTH_MAX, error_text, place_of, traceback_text
from jido_nats.worker.loader import load_worker
from jido_nats.worker.program import Program, isolated
from tests.conftest import StartManager
from tests.tools.programs import running, serving
from tests.tools.support import Stranger, eventually

WORKER = "tests.tools.workers"


def plan(steps: str) -> Any:
    return json.loads(steps)  # the standard library raises, called from here


def raised_by(work: Callable[[], Any]) -> BaseException:
    try:
        work()
    except Exception as error:
        return error
    raise AssertionError("it raises nothing")


def of_module(code: str, file: str, function: str) -> Callable[[], Any]:
    """A function of a module that would be in that file."""
    scope: dict[str, Any] = {"__name__": Path(file).parent.name}
    exec(compile(code, file, "exec"), scope)
    work: Callable[[], Any] = scope[function]
    return work


# The place


def test_the_place_is_in_the_worker_s_own_code() -> None:
    line = plan.__code__.co_firstlineno + 1

    assert place_of(raised_by(lambda: plan("no JSON"))) == f"test_crash.py:{line} in plan"


def test_the_place_is_not_in_an_installed_package() -> None:
    fails = of_module("def fails(): 1 / 0", "/env/site-packages/http/client.py", "fails")

    assert " in " in (place := place_of(raised_by(fails)) or "")
    assert not place.startswith("client.py")


def test_the_place_of_a_worker_that_is_installed_is_in_its_package() -> None:
    error = ZeroDivisionError()
    work = of_module("def work(error): raise error", "/env/site-packages/agent/main.py", "work")
    caught = raised_by(lambda: work(error))  # type: ignore[call-arg]
    assert caught.__traceback__ is not None

    installed = caught.with_traceback(caught.__traceback__.tb_next.tb_next)  # type: ignore[union-attr]

    assert place_of(installed) == "main.py:1 in work"


def test_an_exception_that_was_raised_nowhere_has_no_place() -> None:
    assert error_text(RuntimeError("boom")) == "RuntimeError: boom"


def test_a_syntax_error_says_itself_where_it_is(tmp_path: Path) -> None:
    error = raised_by(lambda: compile("def", str(tmp_path / "agent.py"), "exec"))

    assert error_text(error) == "SyntaxError: invalid syntax (agent.py, line 1)"


async def test_the_place_of_a_failed_group_is_that_of_its_first_failure() -> None:
    async def fails() -> None:
        raise RuntimeError("boom")

    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as group:
            group.create_task(fails())

    text = error_text(caught.value)
    assert text.startswith("ExceptionGroup: unhandled errors in a TaskGroup (1 sub-exception): RuntimeError: boom (")
    assert text.endswith(" in fails)")


def test_the_place_stays_where_the_text_is_too_long() -> None:
    def fails() -> None:
        raise RuntimeError("x" * 10_000)

    text = error_text(raised_by(fails))

    assert len(text) == ERROR_LENGTH_MAX
    assert text.endswith(f"x (test_crash.py:{fails.__code__.co_firstlineno + 1} in fails)")


def test_what_cannot_be_printed_still_has_a_text() -> None:
    class Silent(Exception):
        def __str__(self) -> str:
            raise ValueError

    assert error_text(Silent()) == "Silent"
    assert error_text(RuntimeError("\ud800")) == "RuntimeError: ?"
    traceback_text(RuntimeError("\ud800")).encode()


def test_a_traceback_has_an_end() -> None:
    assert len(traceback_text(RuntimeError("x" * 100_000))) == TRACEBACK_LENGTH_MAX


# The log


def crashes_in(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """(session id, traceback) of each crash that was logged."""
    found = []
    for record in caplog.records:
        if record.levelno == logging.ERROR and record.exc_info and record.exc_info[1] is not None:
            text = logging.Formatter().formatException(record.exc_info)
            found.append((vars(record)["session_id"], text))
    return found


def is_traceback_of(text: str, error: str) -> bool:
    """Whether it has the worker's frames and error, once."""
    return text.count("in crashes") == 1 and text.count(error) == 1 and "Traceback (most recent call last)" in text


async def crashes(session: Session) -> None:
    await session.ready()
    raise RuntimeError("boom")


def in_process(name: str) -> Program:
    return isolated(f"{WORKER}:{name}", Settings())


@pytest.mark.parametrize("worker", [crashes, in_process("crashes")], ids=["task", "process"])
@pytest.mark.parametrize("wait_ready", [False, True])
async def test_a_crash_is_logged_once_with_its_traceback(
    stranger: Stranger, start_manager: StartManager, caplog: pytest.LogCaptureFixture, worker: Any, wait_ready: bool
) -> None:
    await start_manager(worker, wait_ready=wait_ready)

    await stranger.create("s1")
    await stranger.ends("s1")

    ((session_id, text),) = crashes_in(caplog)
    assert session_id == "s1"
    assert is_traceback_of(text, "RuntimeError: boom")


async def test_a_worker_that_cannot_be_called_is_logged(
    stranger: Stranger, start_manager: StartManager, caplog: pytest.LogCaptureFixture
) -> None:
    def crashes(session: Session) -> Any:
        raise RuntimeError("boom")

    await start_manager(crashes, wait_ready=True)

    await stranger.create("s1")

    ((session_id, text),) = crashes_in(caplog)
    assert (session_id, is_traceback_of(text, "RuntimeError: boom")) == ("s1", True)


async def test_a_worker_that_fails_while_it_stops_is_logged(
    stranger: Stranger, start_manager: StartManager, caplog: pytest.LogCaptureFixture
) -> None:
    async def crashes(session: Session) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise RuntimeError("not saved")

    await start_manager(crashes)
    await stranger.create("s1")

    await stranger.ask("jido.session.terminate.s1")

    assert [session_id for session_id, _ in crashes_in(caplog)] == ["s1"]


async def test_an_end_that_is_no_crash_leaves_no_traceback(
    stranger: Stranger, start_manager: StartManager, caplog: pytest.LogCaptureFixture
) -> None:
    async def returns(session: Session) -> None:
        if session.session_id == "s2":
            await asyncio.Event().wait()

    await start_manager(returns)
    await stranger.create("s1")
    await stranger.create("s2")
    await stranger.ends("s1")
    await stranger.ask("jido.session.terminate.s2")

    assert not crashes_in(caplog)


@pytest.mark.parametrize("isolation", ["task", "process"])
async def test_serve_logs_the_traceback_of_a_crash(server: LocalServer, stranger: Stranger, isolation: str) -> None:
    async with serving(server.url, "--worker", f"{WORKER}:crashes", "--isolation", isolation) as program:
        await stranger.create("s1")
        record = await stranger.ends("s1")
        await program.said("RuntimeError: boom")

    assert "ERROR a worker crashed session_id=s1" in program.err
    assert program.err.count("RuntimeError: boom") == program.err.count("in crashes") == 1
    assert record["error"].startswith("RuntimeError: boom (workers.py:")


async def test_the_traceback_of_a_program_s_failed_line_is_logged(
    stranger: Stranger, start_manager: StartManager, caplog: pytest.LogCaptureFixture
) -> None:
    line = json.dumps(
        {"type": "failed", "error": "Error: boom", "traceback": "Error: boom\n    at plan (agent.mjs:42)"}
    )
    await start_manager(Program(["sh", "-c", f"echo '{line.replace(chr(92), chr(92) * 2)}'; exit 1"]))

    await stranger.create("s1")

    assert (await stranger.ends("s1"))["error"] == "Error: boom"
    ((_, text),) = crashes_in(caplog)
    assert "at plan (agent.mjs:42)" in text


# A mistake in a worker's module


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Writes `agent.py` in the current folder, which nobody has imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(code: str) -> None:
        monkeypatch.delitem(sys.modules, "agent", raising=False)
        (tmp_path / "agent.py").write_text(code)

    return write


MISTAKES = [
    ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module' (agent.py:1 in <module>)"),
    ("from json import no_such_name", "cannot import name 'no_such_name'"),
    ("\nasync def agent(session)\n  pass", "SyntaxError: expected ':' (agent.py, line 2)"),
    ("import json\njson.no_such_name", "AttributeError: module 'json' has no attribute 'no_such_name' (agent.py:2 in"),
    ("import os\n\nos.environ['NO_SUCH_KEY']", "KeyError: 'NO_SUCH_KEY' (agent.py:3 in <module>)"),
    ("import sys\nsys.exit('usage')", "SystemExit: usage (agent.py:2 in <module>)"),
]


@pytest.mark.parametrize(("code", "error"), MISTAKES)
def test_a_mistake_in_the_module_is_told_as_what_it_is(agent: Callable[[str], None], code: str, error: str) -> None:
    agent(code)

    with pytest.raises(ConfigurationError) as caught:
        load_worker("agent:agent")

    assert str(caught.value).startswith("--worker agent:agent: the module cannot be imported: ")
    assert error in str(caught.value)
    assert "has no 'agent'" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("agent:missing", "--worker agent:missing: agent has no 'missing'"),
        ("agent:__doc__", "'__doc__' is not callable"),
        ("no_such_agent:agent", "the module cannot be imported: No module named 'no_such_agent'"),
        ("json.no_such:agent", "the module cannot be imported: No module named 'json.no_such'"),
    ],
)
def test_a_wrong_name_is_told_as_one(agent: Callable[[str], None], name: str, error: str) -> None:
    agent('"""An agent."""')

    with pytest.raises(ConfigurationError) as caught:
        load_worker(name)

    assert str(caught.value).endswith(error)
    assert caught.value.__cause__ is None


async def test_serve_tells_of_a_mistake_in_one_line(server: LocalServer, agent: Callable[[str], None]) -> None:
    agent("def")

    async with running("serve", "--server", server.url, "--worker", "agent:agent", cwd=Path.cwd()) as program:
        finished = await program.finished()

    assert finished.code == 1
    assert finished.err.splitlines()[-1].endswith("SyntaxError: invalid syntax (agent.py, line 1)")
    assert "Traceback" not in finished.err


async def test_a_module_that_fails_in_its_own_process_is_logged_with_its_traceback(
    stranger: Stranger,
    start_manager: StartManager,
    caplog: pytest.LogCaptureFixture,
    agent: Callable[[str], None],
) -> None:
    agent("import os\nos.environ['NO_SUCH_KEY']")
    await start_manager(isolated("agent:agent", Settings(wait_ready=True)), wait_ready=True)

    error = (await stranger.create("s1"))["error"]

    assert "KeyError: 'NO_SUCH_KEY' (agent.py:2 in <module>)" in error["message"]
    await eventually(lambda: crashes_in(caplog))
    ((session_id, text),) = crashes_in(caplog)
    assert (session_id, 'agent.py", line 2, in <module>' in text) == ("s1", True)
