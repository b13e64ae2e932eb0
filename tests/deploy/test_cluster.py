"""`deploy/cluster`: three servers with TLS and roles on one machine, one of them killed, and nothing left behind."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from jido_nats import Client, JidoError
from tests.deploy.local_cluster import LocalCluster, local_cluster
from tests.deploy.secrets import certificates, readable_by_others, turn_into_version_0_1
from tests.tools.programs import ROOT
from tests.tools.support import eventually

SESSIONS = 10


async def create(client: Client, name: str) -> None:
    """Create a session; asked again while the cluster chooses a leader, as any caller does."""

    async def created() -> bool:
        try:
            await client.create_session(session_id=name)
        except JidoError:
            return False
        return True

    await eventually(created, within_s=40)


async def audited(cluster: LocalCluster) -> str:
    """What the auditor says, who comes as the operator and trusts the cluster's CA; empty while he cannot read."""
    servers = ",".join(url.replace("://", f"://operator:{cluster.password('operator')}@") for url in cluster.urls)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.tools.audit", "--server", servers, "--quiet"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        cwd=ROOT,
        env=os.environ | {"SSL_CERT_FILE": str(cluster.ca)},
    )
    said, _ = await process.communicate()
    return said.decode()


@pytest.mark.timeout(240)
async def test_nothing_is_lost_when_the_streams_leader_is_killed(tmp_path: Path) -> None:
    async with local_cluster(tmp_path) as cluster:
        await cluster.ready()
        async with Client.connect(cluster.as_user("client")) as client:
            await asyncio.gather(*(create(client, f"before-{number}") for number in range(SESSIONS)))
            leader = await cluster.leader("JIDO_CLIENT")
            killed = cluster.pid(leader)
            os.kill(killed, signal.SIGKILL)
            await asyncio.gather(*(create(client, f"behind-{number}") for number in range(SESSIONS)))
            listed = {record.session_id for record in await client.list_sessions()}
        await eventually(lambda: cluster.pid(leader) != killed)  # it is started again
        said = await eventually(lambda: audited(cluster), within_s=60)

    assert listed == {f"{when}-{number}" for when in ("before", "behind") for number in range(SESSIONS)}
    assert f"{2 * SESSIONS} records, 2 leases" in said
    assert "0 violations" in said


async def test_ctrl_c_ends_all_of_it(tmp_path: Path) -> None:
    async with local_cluster(tmp_path) as cluster:
        await cluster.ready()
        pids = cluster.pids
        finished = await cluster.interrupt()

    assert len(pids) == 5
    assert finished.code == 130
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


async def test_ctrl_c_during_the_start_ends_what_runs(tmp_path: Path) -> None:
    async with local_cluster(tmp_path) as cluster:
        await cluster.starting()
        await cluster.interrupt()

        assert not [pid for pid in cluster.pids if Path(f"/proc/{pid}").exists()]


async def test_only_its_owner_can_read_what_it_keeps(tmp_path: Path) -> None:
    async with local_cluster(tmp_path / "kept") as cluster:
        await cluster.starting()
        files = {path.name for path in (tmp_path / "kept").rglob("*")}
        readable = readable_by_others(tmp_path / "kept")

    assert {"passwords", "env", "ca.key", "routes-ca.key", "route.key", "n1.log"} <= files
    assert readable == []


async def test_a_folder_of_version_0_1_is_used_again(tmp_path: Path) -> None:
    certificates(tmp_path / "certificates", "n1", "n2", "n3")
    turn_into_version_0_1(tmp_path / "certificates")

    async with local_cluster(tmp_path) as cluster:
        await cluster.ready()

    assert (tmp_path / "certificates/n1/route.pem").exists()
