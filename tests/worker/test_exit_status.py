"""An exit status that nobody has seen is no success."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from jido_nats import LocalServer, Settings
from jido_nats.worker.program import Program, isolated
from tests.conftest import StartManager
from tests.tools.programs import JIDO_NATS, NEW, Version, running
from tests.tools.proxy import reserve_port
from tests.tools.support import Stranger, eventually, stranger_at

SUCCEEDS = Program(["sh", "-c", "exit 0"])
IGNORES = """#!{python}
import os, signal, sys

signal.signal(signal.SIGCHLD, signal.SIG_IGN)
os.execv("{program}", ["{program}", *sys.argv[1:]])
"""
EXITS = "sh -c 'exit 3'"


@pytest.fixture
def collects_children() -> Iterator[None]:
    """SIGCHLD is ignored: the kernel collects the children of this process, and nobody sees how they ended."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGCHLD, before)


async def test_an_unknown_exit_status_is_a_crash(
    stranger: Stranger, start_manager: StartManager, collects_children: None
) -> None:
    await start_manager(SUCCEEDS)
    await stranger.create("s1")

    record = await stranger.ends("s1")

    assert (record["reason"], record["error"]) == ("crashed", "exit status unknown")


async def test_an_unknown_exit_status_is_a_crash_where_a_thread_waits(
    stranger: Stranger, start_manager: StartManager, collects_children: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "pidfd_open")
    await start_manager(SUCCEEDS)
    await stranger.create("s1")

    record = await stranger.ends("s1")

    assert (record["reason"], record["error"]) == ("crashed", "exit status unknown")


async def test_an_unknown_exit_status_keeps_the_last_lines_of_stderr(
    stranger: Stranger, start_manager: StartManager, collects_children: None
) -> None:
    await start_manager(Program(["sh", "-c", "echo no such model >&2"]))
    await stranger.create("s1")

    assert (await stranger.ends("s1"))["error"] == "exit status unknown: no such model"


async def test_a_terminated_program_whose_status_is_unknown_was_terminated(
    stranger: Stranger, start_manager: StartManager, collects_children: None
) -> None:
    await start_manager(Program(["sleep", "300"]))
    await stranger.create("s1")

    record = await stranger.ask("jido.session.terminate.s1")

    assert (record["status"], record["reason"], record.get("error")) == ("terminated", "requested", None)


@pytest.fixture
def ignoring(tmp_path: Path) -> Version:
    """`jido-nats` as a parent starts it that ignores SIGCHLD, which is inherited."""
    script = tmp_path / "jido-nats"
    script.write_text(IGNORES.format(python=sys.executable, program=JIDO_NATS))
    script.chmod(0o755)
    return NEW._replace(jido_nats=script)


@pytest.mark.parametrize(
    "worker",
    [["--exec", EXITS], ["--worker", "tests.tools.workers:exits", "--isolation", "process"]],
    ids=["program", "isolated"],
)
async def test_serve_sees_exit_codes_although_its_parent_ignores_sigchld(
    server: LocalServer, stranger: Stranger, ignoring: Version, worker: list[str]
) -> None:
    async with running("serve", "--server", server.url, *worker, version=ignoring) as program:
        await program.said(" serves on ")
        await stranger.create("s1")

        assert (await stranger.ends("s1"))["error"] == "exit code 3"


async def test_up_sees_exit_codes_although_its_parent_ignores_sigchld(ignoring: Version) -> None:
    with reserve_port() as reserved:
        port = reserved.getsockname()[1]
    async with running("up", "--port", str(port), "--exec", EXITS, version=ignoring) as program:
        await program.said("Ctrl-C stops it")
        async with stranger_at(f"nats://127.0.0.1:{port}") as stranger:
            await stranger.create("s1")

            assert (await stranger.ends("s1"))["error"] == "exit code 3"
        await program.end(signal.SIGTERM)


async def test_an_isolated_worker_sees_the_exit_codes_of_its_own_children(
    stranger: Stranger, start_manager: StartManager, collects_children: None
) -> None:
    await start_manager(isolated("tests.tools.workers:runs_a_command", Settings()))
    await stranger.create("s1")

    (output,) = await eventually(lambda: stranger.stored("JIDO_OUTPUT"))

    assert msgspec.json.decode(output.data)["data"] == 3
