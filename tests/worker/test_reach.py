"""What a program can reach of its manager and of its neighbours: the table in deploy/docs/security.md, line by line."""

import contextlib
import re
import secrets
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from jido_nats import LocalServer
from jido_nats import Program as JidoProgram
from tests.conftest import StartManager
from tests.tools.children.kin import command, leaders, new_id
from tests.tools.children.workers import __name__ as WORKERS
from tests.tools.privileges import OTHER, OTHER_UID, privileged, public_python, unprivileged
from tests.tools.programs import JIDO_NATS, NEW, ROOT, Program, running
from tests.tools.support import Stranger, eventually, nothing
from tests.worker.test_programs import has_said

LAUNCH = ROOT / "jido_nats/worker/launch.py"
ALWAYS = {"command line", "connect", "see a neighbour"}
SAME_USER = ALWAYS | {"signal", "limit", "read", "change"}


@contextlib.asynccontextmanager
async def manager_of(words: Sequence[str], **env: str) -> AsyncIterator[Program]:
    """`jido-nats` that has said that it serves; run by other words than its own name."""
    program, *arguments = words
    async with running(*arguments, env=env, version=NEW._replace(jido_nats=Path(program))) as manager:
        await manager.said(" serves on ")
        yield manager


class Looking:
    """A manager whose programs look at what they can reach; its credentials are in a file and in its environment."""

    def __init__(self, server: LocalServer, folder: Path) -> None:
        self.secret = secrets.token_hex(8)
        self._credentials = folder / "credentials"
        self._credentials.write_text("seed")
        self._credentials.chmod(0o600)
        self._serve = (str(JIDO_NATS), "serve", "--server", server.url, "--wait-ready")

    def words(self, port: int, *options: str) -> tuple[str, ...]:
        """Its command line."""
        looks = command("looks.sh", str(self._credentials), str(port), self.secret)
        return (*self._serve, "--metrics-port", str(port), "--exec", looks, *options)


@pytest.fixture
def looking(server: LocalServer, tmp_path: Path) -> Looking:
    return Looking(server, tmp_path)


async def what_it_finds(stranger: Stranger) -> tuple[set[str], str]:
    """What a program can, beside a neighbour; and its user and groups."""
    for session_id in ("neighbour", "looks"):
        await stranger.create(session_id)
    can, ids = await eventually(lambda: has_said(stranger, "looks", 2))
    return set(can), ids


async def test_a_program_of_the_managers_user_reads_neither_its_environment_nor_its_memory(
    stranger: Stranger, looking: Looking, unused_tcp_port: int
) -> None:
    words = unprivileged(*looking.words(unused_tcp_port))
    async with manager_of(words, NATS_API_PASSWORD=looking.secret, JIDO_OPERATOR_PASSWORD=looking.secret):
        can, _ = await what_it_finds(stranger)

    assert can == SAME_USER


async def test_a_program_of_another_user_can_do_nothing_to_its_manager(
    stranger: Stranger, looking: Looking, unused_tcp_port: int
) -> None:
    words = privileged("setpriv", "--groups", "12345", *looking.words(unused_tcp_port, "--worker-user", OTHER))
    async with manager_of(words, NATS_API_PASSWORD=looking.secret):
        can, ids = await what_it_finds(stranger)
        ended = await stranger.ask("jido.session.terminate.looks")

    assert can == ALWAYS
    assert ids == f"{OTHER_UID} {OTHER_UID}"
    assert (ended["status"], ended.get("forced")) == ("terminated", None)


LIMITS = "memory=2G,nofile=77,cpu=1m,nproc=5000,fsize=1M,core=0"


def limits_of(session_id: str) -> dict[str, tuple[str, str]]:
    """The limits of a session's program, as Linux says, each soft and hard; none until the last one is set."""
    for pid in leaders(session_id):
        rows = [re.split(r"\s{2,}", line) for line in Path(f"/proc/{pid}/limits").read_text().splitlines()]
        limits = {row[0]: (row[1], row[2]) for row in rows}
        if limits["Max core file size"] == ("0", "0"):
            return limits
    return {}


@pytest.mark.parametrize(
    "worker",
    [
        ("--exec", "sleep 300"),
        ("--worker", f"{WORKERS}:never_takes", "--isolation", "process"),
    ],
    ids=["program", "isolated"],
)
async def test_a_worker_has_its_limits(stranger: Stranger, server: LocalServer, worker: tuple[str, ...]) -> None:
    serve = (str(JIDO_NATS), "serve", "--server", server.url, *worker)
    async with manager_of([*serve, "--worker-limit", LIMITS]):
        session_id = new_id()
        await stranger.create(session_id)
        limits = await eventually(lambda: limits_of(session_id))

    assert limits["Max address space"] == (str(2**31), str(2**31))
    assert limits["Max open files"] == ("77", "77")
    assert limits["Max cpu time"] == ("60", "61")
    assert limits["Max processes"] == ("5000", "5000")
    assert limits["Max file size"] == (str(2**20), str(2**20))


async def end_of(stranger: Stranger, server: LocalServer, *options: str) -> dict[str, Any]:
    """How a session of such a manager ends."""
    async with manager_of([str(JIDO_NATS), "serve", "--server", server.url, *options]):
        await stranger.create("s1")
        return await stranger.ends("s1")


async def test_a_program_that_uses_up_its_time_is_told_so(stranger: Stranger, server: LocalServer) -> None:
    record = await end_of(stranger, server, "--exec", "sh -c 'while :; do :; done'", "--worker-limit", "cpu=1")

    assert record["error"].startswith("killed by SIGXCPU")


async def test_a_program_that_does_not_fit_its_limits_is_a_crash(stranger: Stranger, server: LocalServer) -> None:
    record = await end_of(
        stranger, server, "--exec", f"{sys.executable} -c 'bytearray(10**9)'", "--worker-limit", "memory=500M"
    )

    assert "MemoryError" in record["error"]


async def test_a_file_that_is_too_large_ends_a_program(stranger: Stranger, server: LocalServer, tmp_path: Path) -> None:
    write = f"sh -c 'exec head -c 100000 /dev/zero >{tmp_path}/file'"

    record = await end_of(stranger, server, "--exec", write, "--worker-limit", "fsize=1K")

    assert record["error"].startswith("killed by SIGXFSZ")
    assert (tmp_path / "file").stat().st_size == 1024


async def test_a_limited_program_that_has_gone_meanwhile_is_a_crash(
    stranger: Stranger, server: LocalServer, tmp_path: Path
) -> None:
    program = tmp_path / "agent"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    serve = (str(JIDO_NATS), "serve", "--server", server.url, "--exec", str(program), "--worker-limit", "nofile=50")
    async with manager_of(serve):
        program.unlink()
        await stranger.create("s1")
        record = await stranger.ends("s1")

    assert record["error"] == f"exit code 126: {program} cannot be started: No such file or directory"


ENVIRONMENT = "import json, os; print(json.dumps({'type': 'output', 'data': dict(os.environ)}))"


async def environment_of_a_program(stranger: Stranger, server: LocalServer, *options: str) -> dict[str, str]:
    exec_ = f'{sys.executable} -I -S -c "{ENVIRONMENT}"'
    words = [str(JIDO_NATS), "serve", "--server", server.url, "--exec", exec_, *options]
    async with manager_of(words, A="1", B="2", C="3", TZ="Europe/Vienna", NATS_URL="nats://somewhere"):
        await stranger.create("s1")
        (found,) = await eventually(lambda: has_said(stranger, "s1", 1))
    assert isinstance(found, dict)
    return found


async def test_a_program_inherits_only_what_is_listed(stranger: Stranger, server: LocalServer) -> None:
    env = await environment_of_a_program(
        stranger, server, "--worker-env", "A,B,ABSENT", "--worker-env", "NATS_URL=nats://x,y=z"
    )

    mine = {"PYTHONUNBUFFERED", "JIDO_SESSION_ID", "JIDO_METADATA", "JIDO_RUN_ID"}
    always = {"PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "LC_CTYPE", "TZ"}
    assert {name: env[name] for name in ("A", "B", "TZ", "NATS_URL")} == {
        "A": "1",
        "B": "2",
        "TZ": "Europe/Vienna",
        "NATS_URL": "nats://x,y=z",
    }
    assert set(env) - mine - always == {"A", "B", "NATS_URL"}


async def test_without_a_list_all_but_what_is_the_managers_own_is_inherited(
    stranger: Stranger, server: LocalServer
) -> None:
    env = await environment_of_a_program(stranger, server)

    assert (env["A"], env["C"]) == ("1", "3")
    assert not [name for name in env if name.startswith("NATS_")]


async def test_what_a_manager_has_read_is_in_its_environment_no_more(stranger: Stranger, server: LocalServer) -> None:
    secret = {"NATS_API_PASSWORD": "x", "JIDO_DASHBOARD_TOKEN": "x", "JIDO_OPERATOR_PASSWORD": "x", "SERVE": "--x"}
    words = [str(JIDO_NATS), "serve", "--server", server.url, "--worker", f"{WORKERS}:shows_its_environment"]
    async with manager_of(words, **secret, NATS_URL="nats://user:secret@host"):
        await stranger.create("s1")
        (names,) = await eventually(lambda: has_said(stranger, "s1", 1))

    assert not set(names) & {*secret, "NATS_URL"}


def test_inherited_capabilities_do_not_outlive_the_change_of_user() -> None:
    """A manager that is not root has what it needs as ambient capabilities, which an exec keeps."""
    caps = "+setuid,+setgid,+kill"
    ordinary = ("--reuid", "65532", "--regid", "65532", "--clear-groups")
    keeping = ("--inh-caps", caps, "--ambient-caps", caps)
    launch = (public_python(), "-I", "-S", str(LAUNCH), f"{OTHER}:{OTHER_UID}", "", "grep", "Cap", "/proc/self/status")
    words = privileged("setpriv", *ordinary, *keeping, *launch)

    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout

    assert {line.split()[1] for line in said.splitlines() if line[:6] in ("CapPrm", "CapEff", "CapAmb")} == {"0" * 16}


def may_gain_privileges() -> bool:
    """Whether this thread, and what it starts, may."""
    return "NoNewPrivs:\t0" in Path("/proc/thread-self/status").read_text()


async def test_only_the_programs_of_an_embedded_manager_lose_privileges(
    stranger: Stranger, start_manager: StartManager
) -> None:
    before = may_gain_privileges()
    says = 'grep -q "NoNewPrivs:.*1" /proc/self/status && echo \'{"type":"output","data":"none"}\'; read -r message'
    await start_manager(JidoProgram(["sh", "-c", says]))
    await stranger.create("s1")

    assert await eventually(lambda: has_said(stranger, "s1", 1)) == ["none"]
    assert may_gain_privileges() == before


async def test_a_killed_manager_leaves_no_program_of_another_user(stranger: Stranger, server: LocalServer) -> None:
    session_id = new_id()
    serve = (str(JIDO_NATS), "serve", "--server", server.url, "--exec", "sleep 300", "--worker-user", OTHER)
    async with manager_of(privileged(*serve)):
        await stranger.create(session_id)
        (program,) = await eventually(lambda: leaders(session_id))
        manager = Path(f"/proc/{program}/stat").read_text().rpartition(")")[2].split()[1]

        subprocess.run(privileged("kill", "-KILL", manager), check=True)

        await nothing(lambda: leaders(session_id))
