"""The durable consumers of `deploy/docs/clients.md`, as they stand there: versions, gaps, retention, resets."""

import asyncio
import contextlib
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from jido_nats import LocalServer, SessionManager
from tests.interop.programs import built
from tests.tools.pages import block, page
from tests.tools.programs import Program
from tests.tools.support import Stranger, eventually, stranger_at, wait_for_ever

LANGUAGES: Final = ("python", "go", "javascript")
PAGE: Final = page("clients")


class Reader(NamedTuple):
    """One of the page's programs: how it is started, and where."""

    command: list[str]
    cwd: Path

    @contextlib.asynccontextmanager
    async def running(self, server: LocalServer, state: Path) -> AsyncIterator[Program]:
        """It runs; killed in the end, as by a machine that fails."""
        process = await asyncio.create_subprocess_exec(
            *self.command, server.url, str(state), cwd=self.cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        program = Program(process)
        try:
            yield program
        finally:
            await program.kill()


@pytest.fixture
def reader(language: str, tmp_path: Path) -> Reader:
    """The program; before there is a server, since a first build takes minutes."""
    match language:
        case "python":
            file = tmp_path / "billing.py"
            file.write_text(block(PAGE, "python", "import asyncio\nimport json"))
            return Reader([sys.executable, str(file)], tmp_path)
        case "go":
            folder, file = built("go"), tmp_path / "main.go"
            file.write_text(block(PAGE, "go", "package main"))
            go = ["go", "build", "-o", str(tmp_path / "billing"), str(file)]
            done = subprocess.run(go, cwd=folder, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            return Reader([str(tmp_path / "billing")], tmp_path)
        case _:
            file = tmp_path / "billing.mjs"
            file.write_text(block(PAGE, "js", "#!/usr/bin/env node"))
            (tmp_path / "node_modules").symlink_to(built("node") / "node_modules")
            return Reader([shutil.which("node") or "node", str(file)], tmp_path)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Where the program keeps what it knows."""
    return tmp_path / "state.json"


async def steps(stranger: Stranger, session_id: str, count: int) -> None:
    """So many changes of a session, which is `active` before an even number of them."""
    for number in range(count):
        await stranger.ask(f"jido.session.{'activate' if number % 2 else 'idle'}.{session_id}")


async def says(program: Program, state: Path, *lines: str) -> None:
    """It prints these lines, and nothing else, and has stored the last of them: from then on it may be killed."""
    await eventually(lambda: program.out.splitlines()[: len(lines)] == list(lines) or program.err)
    assert (program.out.splitlines(), program.err) == (list(lines), "")
    _, session_id, version = lines[-1].split()
    await eventually(lambda: state.exists() and f'"{session_id}":{version}' in state.read_text().replace(" ", ""))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("language", LANGUAGES)
async def test_a_reader_that_was_killed_handles_each_event_once(
    reader: Reader, server: LocalServer, stranger: Stranger, manager: SessionManager, state: Path
) -> None:
    await stranger.create("s1")
    async with reader.running(server, state) as program:
        await says(program, state, "event s1 1", "event s1 2")
    await steps(stranger, "s1", 2)

    async with reader.running(server, state) as program:
        await says(program, state, "event s1 3", "event s1 4")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("language", LANGUAGES)
async def test_a_consumer_that_was_deleted_repeats_nothing(
    reader: Reader, server: LocalServer, stranger: Stranger, manager: SessionManager, state: Path
) -> None:
    await stranger.create("s1")
    async with reader.running(server, state) as program:
        await says(program, state, "event s1 1", "event s1 2")
    await stranger.js.delete_consumer("JIDO_CLIENT", "billing")
    await steps(stranger, "s1", 1)

    async with reader.running(server, state) as program:
        await says(program, state, "event s1 3")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("language", LANGUAGES)
async def test_what_the_stream_has_removed_is_reported_as_lost(
    reader: Reader, server: LocalServer, stranger: Stranger, manager: SessionManager, state: Path
) -> None:
    await stranger.create("s1")
    async with reader.running(server, state) as program:
        await says(program, state, "event s1 1", "event s1 2")
    await steps(stranger, "s1", 4)
    await keep_messages(stranger, 2)  # the last event and its copy

    async with reader.running(server, state) as program:
        await says(program, state, "lost s1 3 5", "event s1 6")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("language", LANGUAGES)
async def test_a_gap_that_the_stream_still_has_is_filled(
    reader: Reader, server: LocalServer, stranger: Stranger, manager: SessionManager, state: Path
) -> None:
    await stranger.create("s1")
    async with reader.running(server, state) as program:
        await says(program, state, "event s1 1", "event s1 2")
        await eventually(lambda: everything_is_acknowledged(stranger))
    await steps(stranger, "s1", 1)
    state.unlink()  # the server's position stays: the next event is that of version 3

    async with reader.running(server, state) as program:
        await says(program, state, "event s1 1", "event s1 2", "event s1 3")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("language", LANGUAGES)
async def test_another_history_is_noticed(
    reader: Reader, server: LocalServer, stranger: Stranger, manager: SessionManager, state: Path
) -> None:
    await stranger.create("s1")
    await steps(stranger, "s1", 1)
    async with reader.running(server, state) as program:
        await says(program, state, "event s1 1", "event s1 2", "event s1 3")

    async with LocalServer() as other, SessionManager.connect(other.url, worker=wait_for_ever) as its_manager:
        await its_manager.start_serving()
        async with stranger_at(other.url) as its_stranger:
            await its_stranger.create("s1")
        async with reader.running(other, state) as program:
            await says(program, state, "reset", "event s1 1", "event s1 2")


async def everything_is_acknowledged(stranger: Stranger) -> bool:
    """Whether no message would be delivered again, which takes as long as the server waits for acknowledgements."""
    return all(info.num_ack_pending == 0 for info in await stranger.js.consumers_info("JIDO_CLIENT"))


async def keep_messages(stranger: Stranger, count: int) -> None:
    """Let the stream remove all but its last messages, as retention does."""
    config = (await stranger.js.stream_info("JIDO_CLIENT")).config
    await stranger.js.update_stream(config.evolve(max_msgs=count))
    await stranger.js.update_stream(config.evolve(max_msgs=-1))
