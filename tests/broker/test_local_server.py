"""A local server ends with the process that started it, however that process ends."""

import asyncio
import contextlib
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from jido_nats import LocalServer
from jido_nats.broker import parent_death
from tests.tools.processes import states
from tests.tools.programs import ROOT, running
from tests.tools.support import eventually, stranger_at

HOST = """
import asyncio
from jido_nats import LocalServer

async def main():
    async with LocalServer() as server:
        print(server.pid, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""
NUMBERS = [signal.SIGKILL, signal.SIGTERM]


def is_gone(pid: int) -> bool:
    """Whether a process has ended; a zombie has."""
    return set(states(pid)) <= {"Z"}


@contextlib.asynccontextmanager
async def host() -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """A program that has started a server, and the server's process id."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", HOST, stdout=asyncio.subprocess.PIPE, cwd=ROOT)
    assert process.stdout is not None
    try:
        yield process, int(await process.stdout.readline())
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def ends_by_itself(server: int) -> None:
    """Wait until that process is gone; it is killed if it does not end."""
    try:
        await eventually(lambda: is_gone(server), within_s=5)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(server, signal.SIGKILL)


@pytest.mark.parametrize("number", NUMBERS)
async def test_a_server_ends_with_the_program_that_started_it(number: signal.Signals) -> None:
    async with host() as (process, server):
        process.send_signal(number)
        await process.wait()

        await ends_by_itself(server)


async def test_a_frozen_server_ends_with_it_as_well() -> None:
    async with host() as (process, server):
        os.kill(server, signal.SIGSTOP)
        process.kill()
        await process.wait()

        await ends_by_itself(server)


async def test_up_that_is_killed_leaves_no_server() -> None:
    async with running("up", "--port", "0") as program:
        await program.said("is running on")
        (server,) = await eventually(lambda: servers_of(program.process.pid))
        program.process.kill()
        await program.process.wait()

        await ends_by_itself(server)


def servers_of(parent: int) -> list[int]:
    """The servers that a process has started."""
    found = []
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            command = (process / "cmdline").read_bytes().split(b"\0")[0]
            stat = (process / "stat").read_text().rpartition(")")[2].split()
            if command.endswith(b"nats-server") and stat[1] == str(parent):
                found.append(int(process.name))
    return found


async def test_nothing_is_started_for_a_parent_that_is_dead_already(tmp_path: Path) -> None:
    started = tmp_path / "started"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", parent_death.__file__, "1", "9", "/bin/sh", "-c", f"touch {started}"
    )
    await process.wait()

    assert not started.exists()


async def test_a_server_outlives_the_thread_that_entered_it() -> None:
    server = LocalServer()
    thread = threading.Thread(target=lambda: asyncio.run(server.__aenter__()))
    thread.start()
    await asyncio.to_thread(thread.join)
    try:
        await asyncio.to_thread(threading.Event().wait, 0.2)  # the kernel's signal would have come

        async with stranger_at(server.url) as stranger:
            await stranger.flush()
    finally:
        await server.__aexit__(None, None, None)
