"""What the README says of the code is so."""

import asyncio
import re
import sys
from pathlib import Path

import pytest

from jido_nats import Client, JidoError, LocalServer, Settings
from jido_nats.core import lifecycle
from jido_nats.core.settings import load
from tests.support import eventually

README = (Path(__file__).parent.parent / "README.md").read_text()


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


async def completed(client: Client) -> bool:
    try:
        return [r.reason for r in await client.list_sessions(include_terminated=True)] == ["completed"]
    except JidoError:  # it is not serving yet
        return False
