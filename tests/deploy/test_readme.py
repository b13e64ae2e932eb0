"""What deploy/README.md tells to type can be typed, and what it names is there."""

import re
import shlex
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import pytest

from jido_nats import Client, ConnectOptions, LocalServer, SessionManager
from tests.interop.nats_command import NatsCommand
from tests.interop.tools import nats_cli
from tests.tools.programs import JIDO_NATS, ROOT
from tests.tools.roles import PASSWORDS, SECRETS, as_user
from tests.tools.support import wait_for_ever

FOLDER: Final = ROOT / "deploy"
README: Final = (FOLDER / "README.md").read_text()
RUN_BOOK: Final = README.partition("## Run book")[2].partition("\n## ")[0]
# What asks NATS, up to what only looks for something in the answer.
TYPED: Final = sorted({line.partition(" |")[0] for line in re.findall(r"`((?:jido-)?nats [^`…]*)`", RUN_BOOK)})


@pytest.fixture
async def server() -> AsyncIterator[LocalServer]:
    """A server with roles, and a manager on it."""
    async with LocalServer(secrets=SECRETS) as server:
        who, api = as_user(server, "manager"), as_user(server, "manager-api")
        async with SessionManager.connect(who, api=api, worker=wait_for_ever) as manager:
            await manager.start_serving()
            yield server


def user(line: str) -> str:
    """Who types a line of the run book."""
    if line.startswith("nats server report"):
        return "system"
    return "operator" if line.startswith("nats ") else "client"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("line", [line for line in TYPED if "doctor" not in line])
async def test_a_line_of_the_run_book_can_be_typed(line: str, server: LocalServer, tmp_path: Path) -> None:
    name = user(line)
    nats = NatsCommand(nats_cli(), server.url, tmp_path / "nats")
    command = line.replace("jido-nats", shlex.quote(str(JIDO_NATS)), 1) if name == "client" else line

    assert await nats.shell(f"env NATS_USER={name} NATS_PASSWORD={PASSWORDS[name]} {command}") is not None


def test_the_run_book_has_lines() -> None:
    assert {"nats micro ls", "nats rtt", "jido-nats doctor", "nats server report jetstream"} <= set(TYPED)


async def test_accounts_are_deployments_of_their_own() -> None:
    (block,) = re.findall(r"```\naccounts \{\n(.*?)\}\n```", README, re.DOTALL)
    config = "accounts { SYS {}\n" + re.sub(r"\$TENANT_(.)_PASSWORD", r"p-\1", block) + "}"

    async with LocalServer(config=config) as server, AsyncExitStack() as stack:
        for tenant in ("a", "b"):
            options = ConnectOptions(servers=(server.url,), user=tenant, password=f"p-{tenant.upper()}")
            manager = SessionManager.connect(options, worker=wait_for_ever)
            await (await stack.enter_async_context(manager)).start_serving()
            client = await stack.enter_async_context(Client.connect(options))
            await client.create_session(session_id="same", metadata={"tenant": tenant})
            seen = [record.metadata for record in await client.list_sessions()]

            assert seen == [{"tenant": tenant}]


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)\)", README))
def test_every_link_leads_somewhere(link: str) -> None:
    assert (FOLDER / link).exists() or link.startswith("http")


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\bdeploy/[\w./-]+\w", README))))
def test_every_path_is_there(path: str) -> None:
    assert (ROOT / path).exists()
