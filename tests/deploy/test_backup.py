"""Backup and restore as deploy/README.md says it: by the `nats` command, and by a snapshot of the server's disk."""

import asyncio
import os
import re
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest

from jido_nats import Client, LocalServer, SessionManager, Settings
from tests.deploy.test_cluster import create
from tests.interop.nats_command import NatsCommand
from tests.interop.tools import nats_cli
from tests.tools.audit import audit, read
from tests.tools.processes import freeze, manager_process
from tests.tools.programs import ROOT, Program, running
from tests.tools.roles import PASSWORDS, SECRETS, as_user
from tests.tools.support import eventually, wait_for_ever

README: Final = (ROOT / "deploy/README.md").read_text()
SESSIONS: Final = 5
WRITERS: Final = 8
EACH: Final = 50

pytestmark = pytest.mark.timeout(600)  # the command may have to be built


def commands(section: str) -> list[str]:
    """The lines for a shell in a part of deploy/README.md."""
    text = README.partition(f"### {section}\n")[2].partition("\n### ")[0]
    return [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]


def url(server: LocalServer) -> str:
    """Where operators connect."""
    return server.url.replace("://", f"://operator:{PASSWORDS['operator']}@")


@asynccontextmanager
async def managed(server: LocalServer) -> AsyncIterator[Program]:
    """A manager as a program, in its roles, that serves."""
    who = {"NATS_PASSWORD": PASSWORDS["manager"], "NATS_API_PASSWORD": PASSWORDS["manager-api"]}
    options = ("--server", server.url, "--user", "manager", "--api-user", "manager-api", "--lease-s", "2")
    async with running("serve", *options, env=who) as program:
        await program.said(" serves on ")
        yield program


async def whole(address: str) -> bool:
    """Whether the auditor finds nothing wrong, and every session ended."""
    return not audit(*await read(address), quiet=True, all_ended=True)


async def reasons(client: Client) -> list[str | None]:
    """Why the sessions have ended; None for one that lives."""
    return [record.reason for record in await client.list_sessions(include_terminated=True)]


async def create_many(client: Client, name: str, created: list[str]) -> None:
    """Create sessions, one after the other."""
    for number in range(EACH):
        await create(client, f"{name}-{number}")
        created.append(name)


async def test_what_is_backed_up_and_restored_with_the_nats_command_goes_on(tmp_path: Path) -> None:
    binary = nats_cli()
    async with LocalServer(secrets=SECRETS) as old:
        async with managed(old) as program, Client.connect(as_user(old, "client")) as client:
            await asyncio.gather(*(client.create_session(session_id=f"s{n}") for n in range(SESSIONS)))
            await client.terminate_session("s0")
            await program.kill()
        nats = NatsCommand(binary, url(old), tmp_path / "old")
        for line in commands("Back up"):
            await nats.shell(f"env -C {tmp_path} {line}")

    async with LocalServer(secrets=SECRETS) as new:
        nats = NatsCommand(binary, url(new), tmp_path / "new")
        for line in commands("Restore"):
            await nats.shell(f"env -C {tmp_path} {line}")
        async with managed(new), Client.connect(as_user(new, "client")) as client:
            await eventually(lambda: ended(client))
            told = await reasons(client)
            await client.create_session(session_id="behind")
            await client.terminate_session("behind")
        await eventually(lambda: whole(url(new)))

    assert sorted(filter(None, told)) == ["owner_lost"] * (SESSIONS - 1) + ["requested"]


async def ended(client: Client) -> bool:
    """Whether no session lives."""
    return None not in await reasons(client)


async def test_a_snapshot_of_the_disk_under_load_is_a_backup(tmp_path: Path) -> None:
    async with LocalServer(store_dir=tmp_path / "store") as old, manager_process(old.url):
        async with Client.connect(old.url) as client:
            created: list[str] = []
            load = [asyncio.create_task(create_many(client, f"load-{n}", created)) for n in range(WRITERS)]
            await eventually(lambda: len(created) > EACH)
            await freeze(old.pid)  # the moment of a snapshot, as a file system makes it
            shutil.copytree(tmp_path / "store", tmp_path / "snapshot")
            os.kill(old.pid, signal.SIGCONT)
            await asyncio.gather(*load)

    settings = Settings(lease_s=1)
    async with (
        LocalServer(store_dir=tmp_path / "snapshot") as new,
        SessionManager.connect(new.url, worker=wait_for_ever, settings=settings) as manager,
        Client.connect(new.url) as client,
    ):
        await manager.start_serving()
        await eventually(lambda: ended(client))
        told = await reasons(client)
        await eventually(lambda: whole(new.url))

    assert EACH < len(told) < WRITERS * EACH
    assert set(told) == {"owner_lost"}
