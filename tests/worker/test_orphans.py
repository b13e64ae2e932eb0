"""What programs leave: whatever they orphan is reaped, and ends with its session."""

import asyncio
import contextlib
import os
import secrets
import shlex
import signal
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

from jido_nats import LocalServer
from tests.conftest import StartManager
from tests.tools.children.kin import children_of, command, kill, kin_of, leaders, new_id, that_run, zombies
from tests.tools.programs import JIDO_NATS, Program, serving
from tests.tools.support import Stranger, eventually, nothing
from tests.worker.test_isolation import send, worker
from tests.worker.test_programs import READY, has_said

DAEMONIZE = f"""{sys.executable} -I -S -c 'import os, time
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
os.closerange(0, 100)
os.execlp("sleep", "sleep", "MARK")'"""
EMIGRATE = f"""{sys.executable} -I -S -c 'import os
os.setpgid(0, 0)
os.execvpe("sleep", ["sleep", "MARK"], {{}})' &"""
LEFT = {
    "another session": "setsid sleep MARK &",
    "a daemon": DAEMONIZE,
    "two levels": "setsid sh -c 'setsid sleep MARK & wait' &",
    "another group, without environment": EMIGRATE,
}
STRAY = "setsid env -i sleep MARK &"


@pytest.fixture
def mark() -> str:
    """How long something sleeps: by that number the test finds it again, whatever has become of it."""
    return f"300.{secrets.randbelow(10**9)}"


def tools(tool: str, mark: str) -> tuple[str, str, str]:
    """Options of a manager whose sessions run this tool for each message."""
    return "--exec", command("uses_tools.sh", tool.replace("MARK", mark)), "--wait-ready"


async def used(stranger: Stranger, session_id: str, times: int = 1) -> None:
    """Return when a session's program has run its tool this many times."""
    for _ in range(times):
        await send(stranger, session_id, "go")
    await eventually(lambda: has_said(stranger, session_id, times))


# Of the programs of `serve`


@pytest.mark.parametrize("tool", LEFT.values(), ids=LEFT)
async def test_what_a_program_has_left_ends_with_its_session(
    server: LocalServer, stranger: Stranger, mark: str, tool: str
) -> None:
    session_id = new_id()
    async with serving(server.url, *tools(tool, mark), "--stop-timeout-s", "20"):
        await stranger.create(session_id)
        await used(stranger, session_id)
        await eventually(lambda: that_run("sleep", mark))

        record = await stranger.ask(f"jido.session.terminate.{session_id}")

        try:
            assert (record["status"], record.get("forced")) == ("terminated", None)
            assert not that_run("sleep", mark)
        finally:
            kill(that_run("sleep", mark))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_it_also_ends_after_a_program_that_was_killed(
    server: LocalServer, stranger: Stranger, mark: str, number: signal.Signals
) -> None:
    session_id = new_id()
    async with serving(server.url, *tools(LEFT["another session"], mark)):
        await stranger.create(session_id)
        await used(stranger, session_id)

        os.kill(leaders(session_id)[0], number)

        try:
            assert (await stranger.ends(session_id))["error"] == f"killed by {number.name}"
            assert not that_run("sleep", mark)
        finally:
            kill(that_run("sleep", mark))


async def test_what_ignores_sigterm_is_killed_wherever_it_is(
    server: LocalServer, stranger: Stranger, mark: str
) -> None:
    session_id = new_id()
    tool = f"setsid sh -c 'trap \"\" TERM; while :; do sleep {mark}; done' &"
    async with serving(server.url, *tools(tool, mark), "--stop-timeout-s", "0.5"):
        await stranger.create(session_id)
        await used(stranger, session_id)
        await eventually(lambda: that_run("sleep", mark))  # now it ignores the signal

        await stranger.ask(f"jido.session.terminate.{session_id}")

        try:
            assert (await stranger.ends(session_id))["forced"]
            assert not that_run("sleep", mark)
        finally:
            kill(that_run("sleep", mark) + kin_of(session_id))


@pytest.mark.parametrize("tool", ["sleep 0.1 &", "setsid sleep 0.1 &"], ids=["in the group", "out of it"])
async def test_what_dies_while_the_session_lives_is_reaped(server: LocalServer, stranger: Stranger, tool: str) -> None:
    session_id = new_id()
    async with serving(server.url, *tools(tool, "")) as manager:
        await stranger.create(session_id)

        await used(stranger, session_id, times=20)

        await nothing(lambda: zombies(manager.process.pid))
        assert (await stranger.ask(f"jido.session.get.{session_id}"))["status"] == "active"


@pytest.mark.parametrize("tool", ["sleep 0.1 &", "setsid sleep 0.1 &"], ids=["in the group", "out of it"])
async def test_a_manager_that_is_process_1_collects_no_zombies(
    server: LocalServer, stranger: Stranger, tool: str
) -> None:
    session_id = new_id()
    async with process_1("serve", "--server", server.url, *tools(tool, "")) as pid:
        await stranger.create(session_id)
        await used(stranger, session_id, times=20)

        await nothing(lambda: zombies(pid))
        record = await stranger.ask(f"jido.session.terminate.{session_id}")

        assert record["status"] == "terminated"
        await nothing(lambda: zombies(pid))  # the manager's reaper ends with the last program, and is one for a moment


@contextlib.asynccontextmanager
async def process_1(*arguments: str) -> AsyncIterator[int]:
    """`jido-nats` as process 1 of a namespace; its id, as it is seen outside."""
    options = ["--pid", "--fork", "--mount-proc", "--kill-child"]
    options += [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    process = await asyncio.create_subprocess_exec(
        *("unshare", *options, str(JIDO_NATS), *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    program = Program(process)
    try:
        await program.said(" serves on ")
        yield children_of(process.pid)[0]
    finally:
        await program.kill()


async def test_exit_codes_are_not_lost_among_orphans(server: LocalServer, stranger: Stranger) -> None:
    program = "for i in 1 2 3 4 5; do (setsid sleep 0.01 &); done; sleep 0.05; exit 7"
    async with serving(server.url, "--exec", shlex.join(["sh", "-c", program])):
        ids = [new_id() for _ in range(20)]
        await asyncio.gather(*(stranger.create(session_id) for session_id in ids))

        records = [await stranger.ends(session_id) for session_id in ids]

    assert {record["error"] for record in records} == {"exit code 7"}


async def test_what_belongs_to_no_known_session_is_logged_and_left(
    server: LocalServer, stranger: Stranger, mark: str
) -> None:
    session_id = new_id()
    async with serving(server.url, *tools(STRAY, mark)) as manager:
        await stranger.create(session_id)
        await used(stranger, session_id)
        (stray,) = await eventually(lambda: that_run("sleep", mark))

        record = await stranger.ask(f"jido.session.terminate.{session_id}")

        try:
            assert record["status"] == "terminated"
            await manager.said("belongs to no known session")
            assert f"pid={stray} command=sleep" in manager.err
            assert that_run("sleep", mark) == [stray]
        finally:
            kill([stray])
        await nothing(lambda: zombies(manager.process.pid))


async def test_what_a_program_has_left_ends_after_its_manager_was_killed(
    server: LocalServer, stranger: Stranger, mark: str
) -> None:
    session_id = new_id()
    async with serving(server.url, *tools(DAEMONIZE, mark)) as manager:
        await stranger.create(session_id)
        await used(stranger, session_id)
        await eventually(lambda: that_run("sleep", mark))

        manager.process.kill()

        try:
            await nothing(lambda: that_run("sleep", mark))
        finally:
            kill(that_run("sleep", mark))


# Of isolated workers, in an embedding process


@pytest.mark.parametrize("tool", [*LEFT.values(), STRAY], ids=[*LEFT, "another session, without environment"])
async def test_what_an_isolated_worker_has_left_ends_with_its_session(
    stranger: Stranger, start_manager: StartManager, mark: str, tool: str
) -> None:
    await start_manager(worker("uses_tools", wait_ready=True), **READY)
    await stranger.create("s1")
    await send(stranger, "s1", tool.replace("MARK", mark))
    await eventually(lambda: that_run("sleep", mark))

    record = await stranger.ask("jido.session.terminate.s1")

    try:
        assert (record["status"], record.get("forced")) == ("terminated", None)
        assert not that_run("sleep", mark)
    finally:
        kill(that_run("sleep", mark))


async def test_what_a_worker_that_is_killed_has_left_ends_as_well(
    stranger: Stranger, start_manager: StartManager, mark: str
) -> None:
    await start_manager(worker("uses_tools_stubbornly", wait_ready=True), **READY)
    await stranger.create("s1")
    await send(stranger, "s1", STRAY.replace("MARK", mark))
    await eventually(lambda: that_run("sleep", mark))

    await stranger.ask("jido.session.terminate.s1")

    try:
        assert (await stranger.ends("s1"))["forced"]
        assert not that_run("sleep", mark)
    finally:
        kill(that_run("sleep", mark))


async def test_an_isolated_worker_gets_the_exit_codes_of_its_own_children(
    stranger: Stranger, start_manager: StartManager
) -> None:
    await start_manager(worker("uses_tools", wait_ready=True), **READY)
    session_id = new_id()
    await stranger.create(session_id)
    for code in range(10):
        await send(stranger, session_id, f"setsid sleep 0.01 & exit {code}")

    codes = await eventually(lambda: exit_codes(stranger, session_id, 10))

    assert codes == list(range(10))
    await nothing(lambda: [zombie for pid in kin_of(session_id) for zombie in zombies(pid)])


async def exit_codes(stranger: Stranger, session_id: str, count: int) -> list[Any]:
    """What a session's tools have ended with, when it is as much."""
    return [code for code in await has_said(stranger, session_id, 2 * count) if code is not None]
