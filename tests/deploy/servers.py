"""Servers of a cluster, with `deploy/cluster/server.conf` and `certificates.sh`, and one that is not one of them."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from jido_nats.broker.local_server import find_binary
from tests.tools.http import ask
from tests.tools.programs import ROOT
from tests.tools.proxy import HOST
from tests.tools.roles import SECRETS
from tests.tools.support import eventually

SERVER_SCRIPT: Final = ROOT / "deploy/nats-server.sh"
SERVER_CONF: Final = ROOT / "deploy/cluster/server.conf"
BOTH_USES: Final = "serverAuth,clientAuth"


class Ports(NamedTuple):
    """Where a server listens."""

    clients: int
    routes: int
    monitoring: int


class Server:
    """A nats-server process: what its monitoring port and its log say."""

    def __init__(self, ports: Ports, log: Path) -> None:
        self.ports = ports
        self._log = log

    @property
    def log(self) -> str:
        """What it has written."""
        return self._log.read_text()

    async def routes(self) -> set[str]:
        """The names of the servers that it has a route with; empty until it answers."""
        with contextlib.suppress(OSError):
            found = (await ask(f"http://{HOST}:{self.ports.monitoring}", path="/routez")).json["routes"]
            return {route["remote_name"] for route in found}
        return set()


class Pair(NamedTuple):
    """A certificate and its key."""

    certificate: Path
    key: Path


def signed_by_the_clients_ca(folder: Path, uses: str) -> Pair:
    """A certificate with these uses, made with openssl and `ca.key`."""
    pair = Pair(folder / "own.pem", folder / "own.key")
    request, extensions = folder / "own.request", folder / "own.extensions"
    extensions.write_text(f"subjectAltName=DNS:localhost,IP:{HOST}\nextendedKeyUsage={uses}\n")
    curve = ("ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    made = ("req", "-new", "-newkey", *curve, "-subj", "/CN=own", "-keyout", pair.key, "-out", request)
    signed = ("x509", "-req", "-in", request, "-CA", folder / "ca.pem", "-CAkey", folder / "ca.key", "-CAcreateserial")
    subprocess.run(["openssl", *made], check=True, capture_output=True)
    subprocess.run(
        ["openssl", *signed, "-extfile", extensions, "-out", pair.certificate], check=True, capture_output=True
    )
    return pair


def conf_of_version_0_1(folder: Path) -> Path:
    """`server.conf` as it was: the certificates of the clients' port for routes too."""
    shutil.copy(ROOT / "nats.conf", folder)
    text = SERVER_CONF.read_text().replace('include "../../nats.conf"', 'include "nats.conf"')
    for name, old in (("route.pem", "server.pem"), ("route.key", "server.key"), ("routes-ca.pem", "ca.pem")):
        text = re.sub(rf'"\./tls/{re.escape(name)}"', f'"./tls/{old}"', text)
    path = folder / "server.conf"
    path.write_text(text)
    return path


@contextlib.asynccontextmanager
async def member(
    folder: Path, name: str, cluster: Mapping[str, Ports], *, conf: Path = SERVER_CONF
) -> AsyncIterator[Server]:
    """One of the servers of a cluster, with its certificates of `folder`, started as the documentation says."""
    home = folder / f"home-{name}"
    home.mkdir()
    (home / "tls").symlink_to(folder / name)
    ports = cluster[name]
    environment = {
        "JIDO_SERVER_NAME": name,
        "JIDO_LISTEN": f'"{HOST}:{ports.clients}"',
        "JIDO_CLUSTER_LISTEN": f'"{HOST}:{ports.routes}"',
        "JIDO_MONITOR": f'"{HOST}:{ports.monitoring}"',
        "JIDO_ROUTES": json.dumps([f"tls://{HOST}:{other.routes}" for other in cluster.values()]),
        "PATH": f"{find_binary().parent}{os.pathsep}{os.environ['PATH']}",
    }
    async with _running([str(SERVER_SCRIPT), "-c", str(conf)], home, ports, SECRETS | environment) as server:
        yield server


@contextlib.asynccontextmanager
async def rogue(folder: Path, ports: Ports, pair: Pair, *, dials: Ports | None) -> AsyncIterator[Server]:
    """A server that trusts every other and lets the user `forger` into JIDO; it dials `dials`, or waits for a route.

    It appends the routes' CA, which is no secret, to its chain: otherwise Go would not present the certificate to a
    server that does not accept its CA.
    """
    home = folder / "home-rogue"
    home.mkdir()
    chain = home / "chain.pem"
    chain.write_text(pair.certificate.read_text() + (folder / "routes-ca.pem").read_text())
    trusted = home / "trusted.pem"
    trusted.write_text((folder / "ca.pem").read_text() + (folder / "routes-ca.pem").read_text())
    routes = json.dumps([f"tls://{HOST}:{dials.routes}"] if dials else [])
    (home / "rogue.conf").write_text(
        f"""
        server_name: rogue
        listen: "{HOST}:{ports.clients}"
        http: "{HOST}:{ports.monitoring}"
        system_account: SYS
        accounts {{ SYS {{}}, JIDO {{ users: [{{ user: forger, password: forger }}] }} }}
        cluster {{
          name: jido
          listen: "{HOST}:{ports.routes}"
          routes: {routes}
          tls {{ cert_file: "{chain}", key_file: "{pair.key}", ca_file: "{trusted}", insecure: true, timeout: 5 }}
        }}
        """
    )
    async with _running([str(find_binary()), "-c", str(home / "rogue.conf")], home, ports, {}) as server:
        yield server


@contextlib.asynccontextmanager
async def _running(
    command: list[str], folder: Path, ports: Ports, environment: Mapping[str, str]
) -> AsyncIterator[Server]:
    """A server that clients can connect to, killed in the end."""
    log = folder / "log"
    with log.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=folder,
            env=os.environ | environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )

    async def listens() -> bool:
        assert process.returncode is None, f"the server has ended: {log.read_text()[-500:]}"
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection(HOST, ports.clients)
            writer.close()
            return True
        return False

    try:
        await eventually(listens)
        yield Server(ports, log)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
