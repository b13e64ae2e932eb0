"""The servers of a cluster accept routes of each other, and of nobody with a certificate of the clients' CA."""

import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import nats
import pytest
from nats.aio.client import Client as NatsClient

from tests.deploy.secrets import certificates
from tests.deploy.servers import (
    BOTH_USES,
    Pair,
    Ports,
    Server,
    conf_of_version_0_1,
    member,
    rogue,
    signed_by_the_clients_ca,
)
from tests.tools.proxy import HOST, reserve_port
from tests.tools.roles import PASSWORDS
from tests.tools.support import Listener, eventually

SERVERS: Final = ("n1", "n2", "n3")
FORGED: Final = b'{"type":"session_terminated"}'
REFUSED: Final = "TLS route handshake error: tls: failed to verify certificate: x509: certificate signed by unknown"


@pytest.fixture
def ports() -> Iterator[dict[str, Ports]]:
    """Where three servers listen, and a fourth that is not one of the cluster."""
    with ExitStack() as stack:
        reserved = [stack.enter_context(reserve_port()) for _ in range(12)]
        free = iter([one.getsockname()[1] for one in reserved])
        yield {name: Ports(next(free), next(free), next(free)) for name in (*SERVERS, "rogue")}


@pytest.fixture
def cluster(ports: dict[str, Ports]) -> dict[str, Ports]:
    """Where the servers of the cluster listen."""
    return {name: ports[name] for name in SERVERS}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What `certificates.sh` has made for the servers."""
    certificates(tmp_path, *SERVERS)
    return tmp_path


def pair(folder: Path, kind: str) -> Pair:
    """A certificate of the clients' CA: that of the port of a server, or another one with these uses."""
    if kind == "server.pem":
        return Pair(folder / "n2/server.pem", folder / "n2/server.key")
    return signed_by_the_clients_ca(folder, kind)


@asynccontextmanager
async def operator(server: Server, folder: Path) -> AsyncIterator[NatsClient]:
    """A stock client in the account of the streams."""
    trusted = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    url = f"tls://{HOST}:{server.ports.clients}"
    nc = await nats.connect(url, user="operator", password=PASSWORDS["operator"], tls=trusted)
    try:
        yield nc
    finally:
        await nc.close()


@asynccontextmanager
async def forger(server: Server) -> AsyncIterator[NatsClient]:
    """A client of the rogue, who may do everything there."""
    nc = await nats.connect(f"nats://{HOST}:{server.ports.clients}", user="forger", password="forger")
    try:
        yield nc
    finally:
        await nc.close()


async def joined_or_refused(server: Server) -> str:
    """What came of the attack; empty before it is decided."""
    if "rogue" in await server.routes():
        return "joined"
    return "refused" if REFUSED in server.log else ""


async def test_three_servers_with_certificates_for_routes_are_a_cluster(
    folder: Path, cluster: dict[str, Ports]
) -> None:
    async with AsyncExitStack() as stack:
        servers = {name: await stack.enter_async_context(member(folder, name, cluster)) for name in SERVERS}

        for name, server in servers.items():
            await eventually(partial(meets, server, set(SERVERS) - {name}))


async def meets(server: Server, others: set[str]) -> bool:
    """Whether a server has routes to all the others."""
    return await server.routes() == others


@pytest.mark.parametrize("kind", ["server.pem", "clientAuth", BOTH_USES])
async def test_a_server_with_a_certificate_of_the_clients_ca_cannot_join(
    folder: Path, ports: dict[str, Ports], cluster: dict[str, Ports], kind: str
) -> None:
    heard = Listener()
    async with (
        member(folder, "n1", cluster) as server,
        operator(server, folder) as reader,
        rogue(folder, ports["rogue"], pair(folder, kind), dials=ports["n1"]) as fake,
        forger(fake) as writer,
    ):
        await reader.subscribe("jido.client.events", cb=heard.on_message)
        came_of_it = await eventually(lambda: joined_or_refused(server))
        await writer.publish("jido.client.events", FORGED)
        await writer.flush()
        await reader.flush()

    assert came_of_it == "refused"
    assert heard.messages == []


@pytest.mark.parametrize("kind", ["server.pem", BOTH_USES])
async def test_a_server_dials_nobody_with_a_certificate_of_the_clients_ca(
    folder: Path, ports: dict[str, Ports], cluster: dict[str, Ports], kind: str
) -> None:
    """The rogue listens in the place of the second server."""
    async with (
        member(folder, "n1", cluster) as server,
        rogue(folder, ports["n2"], pair(folder, kind), dials=None),
    ):
        came_of_it = await eventually(lambda: joined_or_refused(server))

    assert came_of_it == "refused"


async def test_with_one_ca_for_both_a_client_s_certificate_is_enough_to_forge_an_event(
    folder: Path, ports: dict[str, Ports], cluster: dict[str, Ports]
) -> None:
    """What the tests above are about: the same attack on the configuration of version 0.1."""
    heard = Listener()
    async with (
        member(folder, "n1", cluster, conf=conf_of_version_0_1(folder)) as server,
        operator(server, folder) as reader,
        rogue(folder, ports["rogue"], pair(folder, "clientAuth"), dials=ports["n1"]) as fake,
        forger(fake) as writer,
    ):
        await reader.subscribe("jido.client.events", cb=heard.on_message)
        came_of_it = await eventually(lambda: joined_or_refused(server))

        async def forged() -> bool:
            await writer.publish("jido.client.events", FORGED)
            await writer.flush()
            return any(message.data == FORGED for message in heard.messages)

        await eventually(forged)

    assert came_of_it == "joined"
