"""Every kind of credential that NATS has, against real servers: our connection, client, manager and command line."""

import asyncio
import base64
import hashlib
import json
import re
import secrets
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import nkeys
import pytest
import trustme

from jido_nats import Client, ConfigurationError, ConnectOptions, LocalServer, ServerUnusable, SessionManager, Settings
from jido_nats.broker.cli_context import read_context
from jido_nats.broker.local_server import project_config
from tests.tools.programs import run, running
from tests.tools.roles import PASSWORDS, SECRETS, as_user
from tests.tools.support import eventually, wait_for_ever

SECRET = "do-not-show-this"


class Key(NamedTuple):
    """An nkey: its public half, and its seed."""

    public: str
    seed: bytes

    def sign(self, data: bytes) -> bytes:
        return bytes(nkeys.from_seed(bytearray(self.seed)).sign(data))


def new_key(kind: int) -> Key:
    seed = bytes(nkeys.encode_seed(secrets.token_bytes(32), kind))
    return Key(nkeys.from_seed(bytearray(seed)).public_key.decode(), seed)


def jwt(issuer: Key, subject: str, name: str, nats: dict[str, Any]) -> str:
    """A JWT as `nsc` makes them."""
    claims = {
        "iat": int(time.time()),
        "iss": issuer.public,
        "sub": subject,
        "name": name,
        "nats": nats | {"version": 2},
    }
    claims["jti"] = base64.b32encode(hashlib.sha256(json.dumps(claims).encode()).digest()).decode().rstrip("=")
    parts = [_url64(json.dumps(part).encode()) for part in ({"typ": "JWT", "alg": "ed25519-nkey"}, claims)]
    signature = issuer.sign(".".join(parts).encode())
    return ".".join([*parts, _url64(signature)])


def _url64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def operated_by_jwt(folder: Path) -> str:
    """The configuration of a server whose users have `.creds` files; writes that of one to `folder`."""
    operator, account, system = (
        new_key(kind) for kind in (nkeys.PREFIX_BYTE_OPERATOR, nkeys.PREFIX_BYTE_ACCOUNT, nkeys.PREFIX_BYTE_ACCOUNT)
    )
    user = new_key(nkeys.PREFIX_BYTE_USER)
    unlimited = dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn", "leaf"), -1)
    limits = unlimited | {"wildcards": True, "mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1}
    accounts = {
        key.public: jwt(
            operator, key.public, name, {"type": "account", "limits": limits if key is account else unlimited}
        )
        for name, key in (("A", account), ("SYS", system))
    }
    issued = jwt(account, user.public, "u", {"type": "user", "subs": -1, "data": -1, "payload": -1})
    (folder / "user.creds").write_text(
        f"-----BEGIN NATS USER JWT-----\n{issued}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{user.seed.decode()}\n------END USER NKEY SEED------\n"
    )
    preload = "\n".join(f"  {public}: {token}" for public, token in accounts.items())
    return "\n".join(
        [
            "accounts {}",
            f"operator: {jwt(operator, operator.public, 'O', {'type': 'operator'})}",
            f"system_account: {system.public}",
            "resolver: MEMORY",
            f"resolver_preload {{\n{preload}\n}}",
        ]
    )


@asynccontextmanager
async def opens(options: ConnectOptions) -> AsyncIterator[Client]:
    """A manager and a client, both with these credentials; a session was created."""
    manager = SessionManager.connect(options, worker=wait_for_ever, settings=Settings(lease_s=2))
    async with manager, Client.connect(options) as client:
        await manager.start_serving()
        assert (await client.create_session()).status == "active"
        yield client


async def refused(options: ConnectOptions, why: str = "refused the credentials") -> None:
    """Connecting fails at once, and tells neither password nor token."""
    async with asyncio.timeout(5):
        with pytest.raises((ServerUnusable, ConfigurationError), match=why) as error:
            async with Client.connect(options):
                pass
    assert SECRET not in str(error.value)


# Each kind


async def test_a_user_and_a_password() -> None:
    async with LocalServer(config=f'authorization {{ user: u, password: "{SECRET}" }}') as server:
        options = ConnectOptions(servers=(server.url,), user="u", password=SECRET)
        async with opens(options):
            pass
        await refused(replace(options, password="wrong"))
        await refused(replace(options, password=None))
        await refused(replace(options, user=None, password=None))


async def test_a_user_and_a_password_in_the_url() -> None:
    async with LocalServer(config=f'authorization {{ user: u, password: "{SECRET}" }}') as server:
        async with opens(ConnectOptions(servers=(server.url.replace("//", f"//u:{SECRET}@"),))):
            pass


async def test_a_token() -> None:
    async with LocalServer(config=f'authorization {{ token: "{SECRET}" }}') as server:
        async with opens(ConnectOptions(servers=(server.url,), token=SECRET)):
            pass
        async with opens(ConnectOptions(servers=(server.url.replace("//", f"//{SECRET}@"),))):
            pass
        await refused(ConnectOptions(servers=(server.url,), token="wrong"))


async def test_an_nkey(tmp_path: Path) -> None:
    key, other = new_key(nkeys.PREFIX_BYTE_USER), new_key(nkeys.PREFIX_BYTE_USER)
    (tmp_path / "key.nk").write_bytes(key.seed + b"\n")
    (tmp_path / "other.nk").write_bytes(other.seed)
    async with LocalServer(config=f"authorization {{ users: [{{ nkey: {key.public} }}] }}") as server:
        options = ConnectOptions(servers=(server.url,), nkey_seed_file=str(tmp_path / "key.nk"))
        async with opens(options):
            pass
        await refused(replace(options, nkey_seed_file=str(tmp_path / "other.nk")))


async def test_a_creds_file(tmp_path: Path) -> None:
    async with LocalServer(config=operated_by_jwt(tmp_path)) as server:
        options = ConnectOptions(servers=(server.url,), credentials_file=str(tmp_path / "user.creds"))
        async with opens(options):
            pass
        await refused(replace(options, credentials_file=None))


async def test_credentials_come_along_at_every_reconnect(tmp_path: Path) -> None:
    async with LocalServer(config=operated_by_jwt(tmp_path)) as server:
        options = ConnectOptions(servers=(server.url,), credentials_file=str(tmp_path / "user.creds"))
        async with Client.connect(options) as client, opens(options):
            await server.kill()
            await server.start()
            assert len(await client.list_sessions()) == 1


async def test_a_manager_whose_password_was_changed_says_so_once_and_is_not_ready(
    caplog: pytest.LogCaptureFixture,
) -> None:
    old, new = (f'authorization {{ user: "u", password: "{password}" }}' for password in ("old", "new"))
    async with LocalServer(config=old) as server:
        options = ConnectOptions(servers=(server.url,), user="u", password="old")
        async with SessionManager.connect(options, worker=wait_for_ever) as manager:
            await manager.start_serving()
            await server.stop()
            async with LocalServer(port=server.port, config=new):
                await eventually(lambda: str(manager.snapshot().not_ready).count("refused the credentials") == 4)

                lines = [record for record in caplog.records if "refused" in vars(record).get("error", "")]
                assert [line.getMessage() for line in lines] == ["cannot reconnect, still trying"]
            await server.start()
            await eventually(lambda: manager.snapshot().not_ready == [])


async def test_several_urls() -> None:
    async with LocalServer() as server:
        async with opens(ConnectOptions(servers=("nats://127.0.0.1:1", server.url))):
            pass


# TLS


class Certificates:
    """A CA of the test's own, in files, and what it signed."""

    def __init__(self, folder: Path) -> None:
        ca = trustme.CA()
        self.ca = str(folder / "ca.pem")
        ca.cert_pem.write_to_path(self.ca)
        self.server = self._issue(ca, folder, "server", "127.0.0.1")
        self.client = self._issue(ca, folder, "client", "client@example.org")
        trustme.CA().cert_pem.write_to_path(str(folder / "stranger.pem"))
        self.stranger = str(folder / "stranger.pem")

    def _issue(self, ca: trustme.CA, folder: Path, name: str, identity: str) -> tuple[str, str]:
        issued, files = ca.issue_cert(identity), (str(folder / f"{name}.pem"), str(folder / f"{name}.key"))
        issued.cert_chain_pems[0].write_to_path(files[0])
        issued.private_key_pem.write_to_path(files[1])
        return files

    def block(self) -> str:
        """The TLS block of `nats.conf`, switched on, with these files."""
        (commented,) = re.findall(r"(?m)^# tls \{\n(?:# .*\n)+?# \}$", project_config())
        text = re.sub(r"(?m)^# ", "", commented)
        for name, file in (("server.pem", self.server[0]), ("server.key", self.server[1]), ("ca.pem", self.ca)):
            text = text.replace(f"./tls/{name}", file)
        return text


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    """A server's and a client's certificate, and their CA."""
    return Certificates(tmp_path)


@pytest.mark.parametrize("scheme", ["nats", "tls"])
async def test_tls_with_both_certificates(certificates: Certificates, scheme: str) -> None:
    """The block that stands commented in `nats.conf`, under the roles."""
    async with LocalServer(config=certificates.block(), secrets=SECRETS) as server:
        url = server.url.replace("nats", scheme)
        cert, key = certificates.client
        manager, api, user = (
            replace(as_user(server, name), servers=(url,), tls_ca=certificates.ca, tls_cert=cert, tls_key=key)
            for name in ("manager", "manager-api", "client")
        )
        async with SessionManager.connect(manager, worker=wait_for_ever, api=api) as running:
            await running.start_serving()
            async with Client.connect(user) as client:
                assert (await client.create_session()).status == "active"


@pytest.mark.parametrize("scheme", ["nats", "tls"])
async def test_a_server_that_the_ca_does_not_know(certificates: Certificates, scheme: str) -> None:
    cert, key = certificates.client
    async with LocalServer(config=certificates.block()) as server:
        url = server.url.replace("nats", scheme)
        options = ConnectOptions(servers=(url,), tls_ca=certificates.stranger, tls_cert=cert, tls_key=key)
        await refused(options, "the TLS handshake with .* failed")


async def test_a_server_that_wants_a_certificate(certificates: Certificates) -> None:
    async with LocalServer(config=certificates.block()) as server:
        await refused(ConnectOptions(servers=(server.url,), tls_ca=certificates.ca), "TLS|connect|server")


@pytest.mark.parametrize("user", ["client", None])
async def test_a_server_that_wants_tls(certificates: Certificates, user: str | None) -> None:
    async with LocalServer(config=certificates.block()) as server:
        await refused(ConnectOptions(servers=(server.url,)), "TLS|certificate")


@pytest.mark.parametrize("asked_for", ["scheme", "CA"])
async def test_a_server_without_tls_hears_no_password_where_tls_was_asked_for(
    certificates: Certificates, asked_for: str
) -> None:
    heard = bytearray()

    async def impostor(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id":"x","version":"2.12.0","auth_required":true,"max_payload":1048576}\r\n')
        heard.extend(await reader.read())
        writer.close()

    async with await asyncio.start_server(impostor, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        named: dict[str, Any] = (
            {"servers": (f"tls://127.0.0.1:{port}",)}
            if asked_for == "scheme"
            else {"servers": (f"nats://127.0.0.1:{port}",), "tls_ca": certificates.ca}
        )

        await refused(ConnectOptions(user="u", password="s3cret", **named), "does not offer TLS")

    assert heard == b""


async def test_tls_is_spoken_where_the_server_leaves_the_choice(certificates: Certificates) -> None:
    config = certificates.block() + "\nallow_non_tls: true\n"
    cert, key = certificates.client
    async with LocalServer(config=config) as server, Client.connect(server.url) as plain:
        options = ConnectOptions(servers=(server.url,), tls_ca=certificates.ca, tls_cert=cert, tls_key=key)
        async with Client.connect(options) as client:
            assert [is_encrypted(each) for each in (plain, client)] == [False, True]


def is_encrypted(client: Client) -> bool:
    """Whether its connection is TLS."""
    connected: Any = client._connection._client
    writer = connected._transport._io_writer
    return writer.get_extra_info("ssl_object") is not None


# What is wrong with them, told


@pytest.mark.parametrize("field", ["nkey_seed_file", "credentials_file", "tls_ca", "tls_cert"])
async def test_a_file_that_is_not_there(tmp_path: Path, field: str) -> None:
    async with LocalServer() as server:
        options = replace(ConnectOptions(servers=(server.url,)), **{field: str(tmp_path / "missing")})  # type: ignore[arg-type]
        await refused(options, "missing cannot be read: No such file")


@pytest.mark.parametrize("field", ["tls_ca", "tls_cert"])
async def test_a_file_that_is_no_certificate(tmp_path: Path, field: str) -> None:
    (tmp_path / "file").write_text(SECRET)
    async with LocalServer() as server:
        options = replace(ConnectOptions(servers=(server.url,)), **{field: str(tmp_path / "file")})  # type: ignore[arg-type]
        await refused(options, "no usable certificate or key")


async def test_a_file_that_is_no_nkey(tmp_path: Path) -> None:
    (tmp_path / "file").write_text(SECRET)
    async with LocalServer() as server:
        await refused(ConnectOptions(servers=(server.url,), nkey_seed_file=str(tmp_path / "file")), "invalid seed")


async def test_a_file_that_is_no_creds_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text(SECRET)
    async with LocalServer(config=operated_by_jwt(tmp_path)) as server:
        options = ConnectOptions(servers=(server.url,), credentials_file=str(tmp_path / "file"))
        await refused(options, "file is not a .creds file")


async def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key.nk").write_bytes(new_key(nkeys.PREFIX_BYTE_USER).seed)
    monkeypatch.setitem(sys.modules, "nkeys", None)
    async with LocalServer() as server:
        options = ConnectOptions(servers=(server.url,), nkey_seed_file=str(tmp_path / "key.nk"))
        await refused(options, r"pip install 'jido_nats\[nkeys\]'")


def test_options_show_no_secret() -> None:
    url = f"nats://user:{SECRET}@127.0.0.1:1"
    for options in (
        ConnectOptions(user="u", password=SECRET),
        ConnectOptions(token=SECRET),
        ConnectOptions(servers=(url, url)),
        ConnectOptions(servers=(f"nats://{SECRET}@127.0.0.1:1",)),
    ):
        assert SECRET not in repr(options) + str(options) + options.safe_servers() + options.inbox()


@pytest.mark.parametrize(
    ("options", "prefix"),
    [
        (ConnectOptions(), "_INBOX"),
        (ConnectOptions(user="u"), "_INBOX.u"),
        (ConnectOptions(user="u", inbox_prefix="_INBOX.other"), "_INBOX.other"),
        (ConnectOptions(user="a b"), "_INBOX"),
        (ConnectOptions(user="*"), "_INBOX"),
        (ConnectOptions(user="a@example.org"), "_INBOX.a@example.org"),
        (ConnectOptions(servers=("nats://u:p@h:1",)), "_INBOX.u"),
        (ConnectOptions(servers=("u:p@h:1",)), "_INBOX.u"),
        (ConnectOptions(servers=("nats://token@h:1",)), "_INBOX"),
    ],
)
def test_each_user_has_an_inbox_of_its_own(options: ConnectOptions, prefix: str) -> None:
    assert options.inbox() == prefix


# The command line


async def test_options_say_who_it_is(roles_server: LocalServer, roles_manager: SessionManager) -> None:
    finished = await run(
        *("create", "--json", "--server", roles_server.url, "--user", "client", "--password", PASSWORDS["client"])
    )

    assert (finished.code, finished.err) == (0, "")
    assert finished.lines[0]["status"] == "active"


async def test_the_environment_says_who_it_is(roles_server: LocalServer, roles_manager: SessionManager) -> None:
    who = {"NATS_URL": roles_server.url, "NATS_USER": "observer", "NATS_PASSWORD": PASSWORDS["observer"]}

    assert (await run("list", env=who)).code == 0


async def test_what_is_not_allowed_is_one_sentence(roles_server: LocalServer, roles_manager: SessionManager) -> None:
    who = {"NATS_URL": roles_server.url, "NATS_USER": "observer", "NATS_PASSWORD": PASSWORDS["observer"]}

    finished = await run("create", env=who)

    assert finished.code == 1
    sentence = "jido-nats: the NATS user of this program may not publish to jido.session.create (session_id "
    assert finished.err.startswith(sentence)
    assert finished.err.count("\n") == 1


async def test_serve_takes_both_users(roles_server: LocalServer) -> None:
    who = {"NATS_PASSWORD": PASSWORDS["manager"], "NATS_API_PASSWORD": PASSWORDS["manager-api"]}
    async with running(
        *("serve", "--server", roles_server.url, "--user", "manager", "--api-user", "manager-api"), env=who
    ) as program:
        await program.said(" serves on ")
        async with Client.connect(as_user(roles_server, "client")) as client:
            assert (await client.create_session()).status == "active"
        assert PASSWORDS["manager"] not in program.out + program.err


async def test_a_wrong_password_is_not_shown(roles_server: LocalServer) -> None:
    finished = await run("-v", "list", "--server", roles_server.url, "--user", "client", "--password", SECRET)

    assert "refused the credentials" in finished.err
    assert SECRET not in finished.out + finished.err


async def test_help_shows_no_secret() -> None:
    finished = await run("list", "--help", env={"NATS_PASSWORD": SECRET, "NATS_TOKEN": SECRET})

    assert SECRET not in finished.out + finished.err


# Contexts of the nats CLI


def write_context(folder: Path, name: str, **fields: Any) -> dict[str, str]:
    """A context file; the environment in which it is found."""
    (folder / "nats/context").mkdir(parents=True, exist_ok=True)
    (folder / "nats/context" / f"{name}.json").write_text(json.dumps(fields))
    return {"XDG_CONFIG_HOME": str(folder)}


async def test_a_context_is_enough(tmp_path: Path, roles_server: LocalServer, roles_manager: SessionManager) -> None:
    home = write_context(
        tmp_path, "prod", url=roles_server.url, user="client", password=PASSWORDS["client"], description="x"
    )

    finished = await run("create", "--context", "prod", "--json", env=home)

    assert (finished.code, finished.err) == (0, "")


async def test_an_option_is_stronger_than_the_context(
    tmp_path: Path, roles_server: LocalServer, roles_manager: SessionManager
) -> None:
    home = write_context(tmp_path, "prod", url="nats://127.0.0.1:1", token=SECRET)
    options = ("--server", roles_server.url, "--user", "client", "--password", PASSWORDS["client"])

    assert (await run("list", "--context", "prod", *options, env=home)).code == 0


def test_a_context_says_all_that_this_client_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {"creds": "~/c", "nkey": "/n", "cert": "/cert", "key": "/key", "ca": "/ca", "inbox_prefix": "_INBOX.me"}
    home = write_context(tmp_path, "a.b", url="nats://h:1,nats://i:1", token="t", **fields, nsc="", color_scheme="x")
    monkeypatch.setenv("XDG_CONFIG_HOME", home["XDG_CONFIG_HOME"])

    assert read_context("a.b") == ConnectOptions(
        servers=("nats://h:1", "nats://i:1"),
        token="t",
        nkey_seed_file="/n",
        credentials_file=str(Path("~/c").expanduser()),
        tls_ca="/ca",
        tls_cert="/cert",
        tls_key="/key",
        inbox_prefix="_INBOX.me",
    )


@pytest.mark.parametrize("name", ["missing", "../prod", "", "a/b"])
async def test_a_context_that_is_not_there_is_told(tmp_path: Path, name: str) -> None:
    finished = await run("list", f"--context={name}", env=write_context(tmp_path, "prod"))

    assert finished.code == 1
    assert finished.err.startswith("jido-nats: ")
    assert finished.err.count("\n") == 1


async def test_a_context_that_asks_for_more_is_told(tmp_path: Path) -> None:
    home = write_context(tmp_path, "prod", nsc="nsc://O/A/U", socks_proxy="127.0.0.1:1")

    assert (
        "uses nsc, socks_proxy, which jido-nats does not support"
        in (await run("list", "--context", "prod", env=home)).err
    )


async def test_a_context_that_is_broken_is_told_without_its_secrets(tmp_path: Path) -> None:
    home = write_context(tmp_path, "prod")
    (tmp_path / "nats/context/prod.json").write_text(f'{{"password": "{SECRET}", "user": 7')

    finished = await run("list", "--context", "prod", env=home)

    assert "is not a valid nats CLI context" in finished.err
    assert SECRET not in finished.err
