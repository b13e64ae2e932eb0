"""What the suite starts ends with it: however it was started, and however it ends."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from tests.tools.processes import states
from tests.tools.programs import ROOT
from tests.tools.support import nothing

CLUSTER = """
import asyncio
from tests.tools.cluster import Cluster

async def main():
    async with Cluster(2) as cluster:
        print(cluster.pid(0), cluster.pid(1), flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""
SCRIPT = """
import asyncio, sys
from pathlib import Path
from tests.deploy.local_cluster import local_cluster

async def main():
    async with local_cluster(Path(sys.argv[1])) as cluster:
        await cluster.starting()
        print(*cluster.pids, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@contextlib.asynccontextmanager
async def killed(program: str, *arguments: str) -> AsyncIterator[list[int]]:
    """The processes that a program had started and named before it was killed; they are killed in the end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, *arguments, stdout=asyncio.subprocess.PIPE, cwd=ROOT
    )
    assert process.stdout is not None
    pids = [int(pid) for pid in (await process.stdout.readline()).split()]
    process.kill()
    await process.wait()
    try:
        yield pids
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def living(pids: list[int]) -> list[int]:
    """Those of them that have not ended."""
    return [pid for pid in pids if not set(states(pid)) <= {"Z"}]


async def test_a_cluster_ends_with_a_test_process_that_is_killed() -> None:
    async with killed(CLUSTER) as servers:
        assert len(servers) == 2

        await nothing(lambda: living(servers))


async def test_the_cluster_script_ends_with_a_test_process_that_is_killed(tmp_path: Path) -> None:
    async with killed(SCRIPT, str(tmp_path)) as servers:
        assert len(servers) == 3

        await nothing(lambda: living(servers))


def test_sigint_is_not_ignored() -> None:
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_suite_that_was_started_with_sigint_ignored_does_not_ignore_it() -> None:
    test = f"{__file__}::{test_sigint_is_not_ignored.__name__}"

    subprocess.run(["sh", "-c", f"trap '' INT; exec {sys.executable} -m pytest -q -n 0 {test}"], cwd=ROOT, check=True)
