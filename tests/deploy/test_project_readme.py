"""What the README shows can be done as it stands there, in less than two hundred lines."""

import asyncio
import re
import shlex
import sys
from pathlib import Path
from typing import Final

import msgspec
import pytest

from jido_nats import Client, JidoError, LocalServer
from jido_nats.core import subjects
from jido_nats.core.events import KnownEvent
from tests.tools.pages import README, block, blocks, documented
from tests.tools.programs import JIDO_NATS, ROOT, run, running
from tests.tools.support import eventually

TEXT: Final = README.read_text()
LINES_MAX: Final = 200


def test_it_is_short() -> None:
    assert len(TEXT.splitlines()) <= LINES_MAX


def test_the_line_that_runs_the_tests_is_the_one_that_ci_looks_for() -> None:
    (line,) = [line for line in TEXT.splitlines() if re.match(r"python3 -m venv .venv && .*pytest", line)]
    assert line.endswith(" && .venv/bin/pytest")
    assert r"s/^\(python3 -m venv .venv && .*pytest.*\)$/\1/p" in (ROOT / ".ci/run").read_text()


def test_the_picture_names_what_there_is() -> None:
    (picture,) = blocks(TEXT, "mermaid")

    named = set(re.findall(r"JIDO_\w+", picture))
    assert named == {
        subjects.EVENTS_STREAM,
        subjects.OUTPUT_STREAM,
        subjects.SESSIONS_BUCKET,
        subjects.MANAGERS_BUCKET,
    }


def test_the_events_are_events() -> None:
    for line in "".join(blocks(TEXT, "json")).splitlines():
        msgspec.json.decode(line, type=KnownEvent, strict=True)


async def example(first: str, server: LocalServer, folder: Path) -> asyncio.subprocess.Process:
    """The Python example that imports this first, running against the test's server."""
    program = folder / "example.py"
    code = next(code for code in blocks(TEXT, "python") if f"import {first}" in code)
    program.write_text(code.replace("nats://127.0.0.1:4222", server.url))
    return await asyncio.create_subprocess_exec(sys.executable, str(program), stdout=asyncio.subprocess.PIPE)


@pytest.mark.usefixtures("manager")
async def test_the_client_s_example_hears_its_session(server: LocalServer, tmp_path: Path) -> None:
    said, _ = await (await example("Client", server, tmp_path)).communicate()
    assert b"SessionCreated" in said


async def test_the_manager_s_example_completes_a_session(server: LocalServer, tmp_path: Path) -> None:
    process = await example("Session,", server, tmp_path)
    try:
        async with Client.connect(server.url) as client:
            await eventually(lambda: completed(client))
    finally:
        process.kill()
        await process.communicate()


async def completed(client: Client) -> bool:
    try:
        return [r.reason for r in await client.list_sessions(include_terminated=True)] == ["completed"]
    except JidoError:  # it is not serving yet
        return False


async def test_the_first_session_is_answered_by_the_reader_s_worker(tmp_path: Path) -> None:
    (tmp_path / "agent.sh").write_text(block(TEXT, "sh", "#!/bin/sh"))
    up = shlex.split(block(TEXT, "sh", "jido-nats up"))

    async with running(*up[1:], "--port", "0", cwd=tmp_path) as program:
        await program.said("Ctrl-C stops it.")
        url = re.findall(r"nats://[\d.:]+", program.out)[0]
        for command in documented(TEXT):
            done = await run(*shlex.split(command.line)[1:], env={"NATS_URL": url})
            assert (done.code, command.unseen(done.out)) == (0, []), f"$ {command.line}\n{done.out}{done.err}"


def test_the_demo_is_a_command() -> None:
    (line,) = [line for line in TEXT.splitlines() if line.endswith("/jido-nats demo")]
    assert line == "python3 -m venv .venv && .venv/bin/pip install -q '.[server]' && .venv/bin/jido-nats demo"
    assert JIDO_NATS.exists()
