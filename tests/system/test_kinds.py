"""A Python worker and one in Node, and two labels, in one deployment of three managers that die in different ways."""

import asyncio
import contextlib
import signal
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, Final

from jido_nats import LocalServer
from tests.tools import audit
from tests.tools.processes import ManagerProcess, manager_process
from tests.tools.support import Stranger, eventually

CODER: Final = "coder=tests.tools.children.workers:echoes"
REVIEWER: Final = "reviewer=node tests/tools/children/agent.js"
SETTINGS: Final = '[workers.coder]\nisolation = "process"\n[workers.reviewer]\nwait_ready = true\nsessions_max = 50\n'
MANAGERS: Final = {
    "left": (CODER, "--label", "side=left"),
    "right": (REVIEWER, "--label", "side=right"),
    "both": (CODER, "--worker", REVIEWER, "--label", "side=left", "--label", "gpu=true"),
}
EACH: Final = 6


async def create(stranger: Stranger, session_id: str, worker: str, **labels: str) -> dict[str, Any]:
    """The answer to a create; asked again while a manager has not read every lease, or one is just gone."""
    while True:
        answer = await stranger.create(session_id, worker=worker, labels=labels)
        if answer.get("error", {}).get("code") != "unavailable":
            return answer
        await asyncio.sleep(0.05)


async def refused(stranger: Stranger, worker: str, **labels: str) -> bool:
    """Whether no manager runs that."""
    answer = await create(stranger, "refused", worker, **labels)
    return bool(answer.get("error", {}).get("code") == "no_such_worker")


async def says(stranger: Stranger, session_id: str, content: str) -> None:
    """Send a message, and return when the worker has said something about it."""
    output = f"jido.client.session.{session_id}.output"
    ear = await stranger.hear(output)
    await stranger.ask(f"jido.session.send.{session_id}", {"role": "user", "content": content})
    await eventually(lambda: [m for m in ear.on(output) if m.get("name") == "heard" or m.get("role") == "echo"])


async def test_kinds_and_labels_in_a_deployment_whose_managers_die(
    server: LocalServer, stranger: Stranger, tmp_path: Path
) -> None:
    config = tmp_path / "jido.toml"
    config.write_text(SETTINGS)
    async with contextlib.AsyncExitStack() as stack:
        managers: dict[str, ManagerProcess] = {}
        for name, (worker, *extra) in MANAGERS.items():
            process = manager_process(server.url, worker=worker, extra=(*extra, "--config", str(config)))
            managers[name] = await stack.enter_async_context(process)
        for worker in ("coder", "reviewer"):  # until each manager has read the leases of the others
            for _ in range(EACH):
                await eventually(partial(is_active, stranger, worker))
        names = {process.manager_id: name for name, process in managers.items()}
        owners: dict[str, str] = {}

        async def owners_of(worker: str, **labels: str) -> Counter[str]:
            number = len(owners)
            records = [await create(stranger, f"s{number + n}", worker, **labels) for n in range(EACH)]
            owners.update({record["session_id"]: names[record["owner"]] for record in records})
            return Counter(names[record["owner"]] for record in records)

        assert (await owners_of("coder", side="left")).keys() <= {"left", "both"}
        assert await owners_of("coder", gpu="true") == {"both": EACH}
        assert await owners_of("reviewer", side="right") == {"right": EACH}
        assert await owners_of("reviewer", side="left") == {"both": EACH}
        assert await refused(stranger, "coder", side="right")
        await asyncio.gather(*(says(stranger, session_id, "hello") for session_id in owners))

        managers["both"].send(signal.SIGKILL)
        lost = [session_id for session_id, owner in owners.items() if owner == "both"]
        assert {(await stranger.ends(session_id))["reason"] for session_id in lost} == {"owner_lost"}
        await eventually(partial(refused, stranger, "reviewer", side="left"))
        assert await owners_of("coder", side="left") == {"left": EACH}

        managers["left"].send(signal.SIGTERM)
        assert await managers["left"].exit_code() == 0
        stopped = [session_id for session_id, owner in owners.items() if owner == "left"]
        assert {(await stranger.ends(session_id))["reason"] for session_id in stopped} == {"manager_stopped"}
        await eventually(partial(refused, stranger, "coder"))
        assert await owners_of("reviewer") == {"right": EACH}
        left = [session_id for session_id, owner in owners.items() if owner == "right"]
        await asyncio.gather(*(says(stranger, session_id, "still there") for session_id in left))

        seen = await audit.read(server.url)
        assert audit.audit(*seen, quiet=True) == []


async def is_active(stranger: Stranger, worker: str) -> bool:
    """Whether a session of that kind can be created."""
    return (await stranger.ask("jido.session.create", {"worker": worker})).get("status") == "active"
