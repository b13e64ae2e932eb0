"""What the README says of the code is so."""

import asyncio
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from jido_nats import Client, JidoError, LocalServer, Reason, SessionOutput, Settings, Status
from jido_nats.core import lifecycle
from jido_nats.core.settings import load
from tests.tools.programs import running
from tests.tools.support import eventually

README = (Path(__file__).parents[2] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """The README's code in one language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_diagram_is_the_lifecycle_s() -> None:
    assert blocks("mermaid") == [lifecycle.diagram() + "\n"]


def test_the_settings_shown_are_the_defaults() -> None:
    assert [load(block.encode()) for block in blocks("toml")] == [Settings()]


async def example(number: int, server: LocalServer, folder: Path) -> asyncio.subprocess.Process:
    """One of the Python examples, running against the test's server."""
    program = folder / f"example{number}.py"
    program.write_text(blocks("python")[number].replace("nats://127.0.0.1:4222", server.url))
    return await asyncio.create_subprocess_exec(sys.executable, str(program), stdout=asyncio.subprocess.PIPE)


@pytest.mark.usefixtures("manager")
async def test_the_client_s_example_hears_its_session(server: LocalServer, tmp_path: Path) -> None:
    said, _ = await (await example(1, server, tmp_path)).communicate()
    assert b"SessionCreated" in said


async def test_the_manager_s_example_completes_a_session(server: LocalServer, tmp_path: Path) -> None:
    process = await example(0, server, tmp_path)
    try:
        async with Client.connect(server.url) as client:
            await eventually(lambda: completed(client))
    finally:
        process.kill()
        await process.communicate()


def written(language: str, first: str, file: Path) -> Path:
    """The README's code that begins so, as a file."""
    file.write_text(next(block for block in blocks(language) if block.startswith(first)))
    return file


async def converse(server: LocalServer, *arguments: str, cwd: Path) -> list[Any]:
    """What a worker of the README says to `hello` and `bye`, and the record of its end."""
    async with running("serve", "--server", server.url, *arguments, cwd=cwd) as manager:
        await manager.said(" serves on ")
        async with Client.connect(server.url) as client:
            await client.create_session(session_id="s1")
            await client.send_message("s1", "user", "hello")
            await client.send_message("s1", "user", "bye")
            record = await client.wait("s1", Status.TERMINATED, timeout_s=10)
            assert record.reason is Reason.COMPLETED
            said: list[Any] = []
            async with client.output(session_id="s1", since="all") as output:
                while not output.caught_up:
                    heard = (await anext(output)).output
                    said.append(heard.data if isinstance(heard, SessionOutput) else (heard.role, heard.content))
            return said


@pytest.mark.parametrize("isolation", ["task", "process"])
async def test_the_coroutine_answers(server: LocalServer, tmp_path: Path, isolation: str) -> None:
    written("python", "from jido_nats import Session\n\n\nasync def agent", tmp_path / "echo.py")

    said = await converse(server, "--worker", "echo:agent", "--isolation", isolation, cwd=tmp_path)

    assert set(map(repr, said)) == {
        repr(one)
        for one in [
            ("user", "hello"),
            {"about": "hello"},
            ("assistant", "you said hello"),
            ("user", "bye"),
            {"about": "bye"},
            ("assistant", "you said bye"),
        ]
    }


async def test_the_shell_script_answers(server: LocalServer, tmp_path: Path) -> None:
    written("sh", "#!/bin/sh", tmp_path / "agent.sh")

    said = await converse(server, "--exec", "sh agent.sh", cwd=tmp_path)

    assert [one for one in said if isinstance(one, str)] == ["working on it", "working on it"]


async def test_the_node_program_answers(server: LocalServer, tmp_path: Path) -> None:
    written("js", "#!/usr/bin/env node", tmp_path / "agent.mjs")

    said = await converse(server, "--exec", "node agent.mjs", "--wait-ready", cwd=tmp_path)

    assert [one for one in said if isinstance(one, dict)] == [
        {"tool": "echo", "input": "hello"},
        {"tool": "echo", "input": "bye"},
    ]


async def completed(client: Client) -> bool:
    try:
        return [r.reason for r in await client.list_sessions(include_terminated=True)] == ["completed"]
    except JidoError:  # it is not serving yet
        return False
