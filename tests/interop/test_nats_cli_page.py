"""Every command of `deploy/docs/nats-cli.md`, as it stands there: without roles, as `client` and as `observer`.

What a role may not do is seen to be refused, and is then done by one that may, since the commands build on each other.
"""

import contextlib
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest

from jido_nats import LocalServer, SessionManager
from tests.interop.nats_command import NatsCommand
from tests.interop.tools import nats_cli
from tests.tools.pages import Documented, documented, page, section
from tests.tools.roles import SECRETS, Member, member_at
from tests.tools.support import Stranger, eventually

PAGE: Final = page("nats-cli")
CONTEXTS: Final = [command.line for command in documented(section(PAGE, "## Connect"))]
COMMANDS: Final = [command for command in documented(PAGE) if command.line not in CONTEXTS]
OPERATOR_S: Final = [command.line for command in documented(section(PAGE, "## As the operator"))]
CHANGE: Final = re.compile(r"nats req jido\.session\.(create|idle|activate|send|terminate)")
ON_TERMINAL: Final = "nats stream view"
REFUSALS: Final = ("permissions violation", "no responders available for request", "no response from stream")
REFUSED: Final = re.compile("|".join(REFUSALS))
# A subscriber that hears it is listening; no stream stores it.
PROBE: Final = "jido.client.session.probe"
UNSTORED: Final = {"Nats-Expected-Stream": "none"}


@pytest.fixture
def nats(tmp_path: Path) -> NatsCommand:
    """The command, before there is a server: building it takes minutes."""
    return NatsCommand(nats_cli(), "", tmp_path / "nats").having(**SECRETS)


@pytest.fixture
async def operator(roles_server: LocalServer, roles_manager: SessionManager) -> AsyncIterator[Member]:
    """Somebody in the managers' account, beside a manager at work."""
    async with member_at(roles_server, "operator") as operator:
        yield operator


def test_the_page_shows_commands_with_their_output() -> None:
    assert len(COMMANDS) >= 30
    assert all(command.line.startswith("nats ") for command in COMMANDS)
    assert all(command.shown for command in COMMANDS)


def test_the_page_says_what_an_observer_may_not() -> None:
    changes = {match[1] for command in COMMANDS if (match := CHANGE.match(command.line))}

    assert changes == {"create", "idle", "activate", "terminate"}
    assert all(f"`{said}`" in section(PAGE, "## Connect") for said in (*changes, *REFUSALS, "observer", "audit"))


async def test_every_command_works_without_roles(
    nats: NatsCommand, server: LocalServer, stranger: Stranger, manager: SessionManager
) -> None:
    anybody = nats.having(NATS_URL=server.url)

    await follow([(anybody, command) for command in COMMANDS], stranger)


async def test_every_command_works_as_client_or_operator(
    nats: NatsCommand, roles_server: LocalServer, operator: Member
) -> None:
    users = await connected(nats, roles_server)

    await follow([(users["operator" if c.line in OPERATOR_S else "client"], c) for c in COMMANDS], operator)


async def test_every_command_that_changes_nothing_works_as_observer(
    nats: NatsCommand, roles_server: LocalServer, operator: Member
) -> None:
    users = await connected(nats, roles_server)

    def runner(line: str) -> NatsCommand:
        return users["operator" if line in OPERATOR_S else "client" if CHANGE.match(line) else "observer"]

    await follow([(runner(command.line), with_durable(command, "observer")) for command in COMMANDS], operator)


@pytest.mark.parametrize("user", ["client", "observer"])
async def test_what_a_role_may_not_is_refused(
    nats: NatsCommand, roles_server: LocalServer, operator: Member, user: str
) -> None:
    command = (await connected(nats, roles_server))[user].having(NATS_TIMEOUT="1s")
    await operator.create("demo")
    before = await operator.positions()

    lines = [*OPERATOR_S, *refused_lines(user)]
    assert [line for line in lines if not await is_refused(command, line)] == []
    assert await operator.positions() == before


async def is_refused(command: NatsCommand, line: str) -> bool:
    """Whether it prints a refusal."""
    async with command.running(line) as program:
        with contextlib.suppress(AssertionError):
            return bool(await eventually(lambda: REFUSED.search(program.out + program.err), within_s=10))
    return False


def refused_lines(user: str) -> list[str]:
    """What is on the page for another role, and some more."""
    others = "observer" if user == "client" else "audit"
    lines = [with_durable(command, others).line for command in COMMANDS if " audit " in command.line]
    lines += [f"nats consumer {verb} JIDO_CLIENT {others}" for verb in ("info", "rm --force")]
    lines += [f"nats stream {verb} JIDO_CLIENT --force" for verb in ("purge", "rm")]
    lines += ["nats kv put JIDO_SESSIONS demo x", "nats kv del JIDO_SESSIONS demo --force"]
    if user == "observer":
        lines += [command.line for command in COMMANDS if CHANGE.match(command.line)]
        lines += ["nats consumer rm JIDO_CLIENT mine --force"]
    return lines


def with_durable(command: Documented, name: str) -> Documented:
    """The command with another durable than the page's."""
    return Documented(command.line.replace(" audit ", f" {name} "), [s.replace("audit", name) for s in command.shown])


async def connected(nats: NatsCommand, server: LocalServer) -> dict[str, NatsCommand]:
    """The command as each user, by the contexts that the page has users save."""
    there = nats.having(NATS_URL=server.url)
    for command in documented(section(PAGE, "## Connect")):
        output = await there.shell(command.line)
        assert command.unseen(output) == [], f"$ {command.line}\n{output}"
    users = ("observer", "operator")
    return {"client": there} | {user: there.having(NATS_CONTEXT=user) for user in users}


async def follow(runs: list[tuple[NatsCommand, Documented]], prober: Stranger) -> None:
    """Run them in order, those without an end beside the others; each prints what stands below it."""
    async with contextlib.AsyncExitStack() as stack:
        endless = [(c, await stack.enter_async_context(nats.running(c.line))) for nats, c in runs if c.endless]

        async def all_hear() -> bool:
            await prober.nc.publish(PROBE, b"probe", headers=UNSTORED)
            return all("probe" in program.out for command, program in endless if "jido.client.>" in command.line)

        await eventually(all_hear)
        for nats, command in runs:
            if not command.endless:
                run = nats.on_terminal if command.line.startswith(ON_TERMINAL) else nats.shell
                output = await run(command.line)
                assert command.unseen(output) == [], f"$ {command.line}\n{output}"
        await eventually(lambda: not [line for c, program in endless for line in c.unseen(program.out + program.err)])
