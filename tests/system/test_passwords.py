"""The passwords of `nats.conf`: what the server and its start script take for one, and what they refuse."""

import asyncio
import os
from pathlib import Path

import pytest

from jido_nats import Client, ConnectOptions, LocalServer, ServerUnusable, Unavailable
from jido_nats.broker.local_server import find_binary, project_config, variables
from tests.tools.programs import ROOT
from tests.tools.roles import PASSWORDS, SECRETS


def test_every_role_has_its_variable() -> None:
    assert variables(project_config()) == set(SECRETS)


@pytest.mark.parametrize("variable", sorted(SECRETS))
async def test_the_server_does_not_start_without_a_password(variable: str) -> None:
    secrets = {name: secret for name, secret in SECRETS.items() if name != variable}
    with pytest.raises(ServerUnusable, match=f"variable reference for '{variable}'"):
        async with LocalServer(secrets=secrets):
            pass


@pytest.mark.parametrize("variable", sorted(SECRETS))
@pytest.mark.parametrize("empty", ["", '""'])
async def test_the_server_does_not_start_with_an_empty_password(variable: str, empty: str) -> None:
    code, said = await check_config(find_binary(), SECRETS | {variable: empty})

    assert code != 0
    assert "User entry requires a user" in said


async def test_the_server_does_not_start_with_a_password_used_twice() -> None:
    with pytest.raises(ServerUnusable, match="Duplicate user"):
        async with LocalServer(secrets=SECRETS | {"JIDO_CLIENT_PASSWORD": PASSWORDS["manager"]}):
            pass


@pytest.mark.parametrize("secret", ["12345", "5k", "1.5", "true", "-7", "2025-01-24T10:30:00Z"])
async def test_what_looks_like_a_number_wants_quotes(secret: str) -> None:
    """nats-server's own language: told at start, never taken for something else."""
    bare, quoted = ({**SECRETS, "JIDO_CLIENT_PASSWORD": text} for text in (secret, f'"{secret}"'))

    assert (await check_config(find_binary(), bare))[0] != 0
    assert (await check_config(find_binary(), quoted))[0] == 0


@pytest.mark.parametrize("secret", ["a,b", "a;b", "a b", "a}b", "a'b", "{a", "$a", "a\\b"])
async def test_no_password_is_cut_short(secret: str) -> None:
    assert (await check_config(find_binary(), SECRETS | {"JIDO_CLIENT_PASSWORD": secret}))[0] != 0


@pytest.mark.parametrize("secret", ["12345", "true", "a,b;c d#e", 'qu"ote', "back\\slash", "gr\u00fc\u00df", "$HOME"])
async def test_the_start_script_takes_any_password(secret: str) -> None:
    code, said = await check_config(ROOT / "deploy/nats-server.sh", SECRETS | {"JIDO_CLIENT_PASSWORD": secret})

    assert (code, "is valid" in said) == (0, True), said


@pytest.mark.parametrize("variable", sorted(SECRETS))
async def test_the_start_script_wants_every_password(variable: str) -> None:
    code, said = await check_config(ROOT / "deploy/nats-server.sh", SECRETS | {variable: ""})

    assert code != 0
    assert f"{variable} is unset or empty" in said


@pytest.mark.parametrize("secret", ["12345", "a,b;c d#e", 'qu"ote', "back\\slash", "gr\u00fc\u00df", "$HOME"])
async def test_a_quoted_password_is_that_password(secret: str) -> None:
    async with LocalServer(secrets=SECRETS | {"JIDO_CLIENT_PASSWORD": secret}) as server:
        options = ConnectOptions(servers=(server.url,), user="client", password=secret)
        async with Client.connect(options):
            pass


async def test_a_trial_server_lets_everybody_in() -> None:
    async with LocalServer() as server, Client.connect(server.url) as client:
        with pytest.raises(Unavailable, match="no session manager"):
            await client.list_sessions()


async def check_config(program: Path, secrets: dict[str, str]) -> tuple[int, str]:
    """How the program ends when it is asked only to check `nats.conf`, with exactly this in the environment."""
    inherited = {name: value for name, value in os.environ.items() if name not in SECRETS}
    path = f"{find_binary().parent}:{os.environ['PATH']}"
    process = await asyncio.create_subprocess_exec(
        *(str(program), "-t", *([] if program.suffix == ".sh" else ["-c", str(ROOT / "nats.conf")])),
        env=inherited | secrets | {"PATH": path},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode()
