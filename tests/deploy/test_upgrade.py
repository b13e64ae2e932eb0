"""A rolling upgrade as deploy/README.md says it: the new manager starts, the old one drains, nothing is lost."""

import asyncio
import signal

from jido_nats import Client, LocalServer
from tests.deploy.test_cluster import create
from tests.tools.audit import audit, read
from tests.tools.processes import manager_process

WRITERS = 4
DRAIN = ("--drain-timeout", "1")


async def write(client: Client, name: str, stop: asyncio.Event) -> int:
    """Create sessions, one after the other; how many."""
    number = 0
    while not stop.is_set():
        await create(client, f"{name}-{number}")
        number += 1
    return number


async def test_an_upgrade_under_load_loses_no_event(server: LocalServer) -> None:
    stop = asyncio.Event()
    async with Client.connect(server.url) as client:
        async with manager_process(server.url, extra=DRAIN) as old:
            writers = [asyncio.create_task(write(client, f"s{number}", stop)) for number in range(WRITERS)]
            async with manager_process(server.url, extra=DRAIN) as new:
                old.send(signal.SIGTERM)
                assert await old.exit_code() == 0
                stop.set()
                created = sum(await asyncio.gather(*writers))
                ended = [r.reason for r in await client.list_sessions(include_terminated=True) if r.reason]
                new.send(signal.SIGTERM)
                assert await new.exit_code() == 0

    evidence = await read(server.url)
    assert len(evidence.records) == created
    assert set(ended) == {"manager_stopped"}
    assert audit(*evidence, quiet=True, all_ended=True) == []
