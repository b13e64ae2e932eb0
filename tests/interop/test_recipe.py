"""The recipe of `deploy/docs/clients.md` for a view that never goes stale, run as it stands there."""

import asyncio
import json
from pathlib import Path
from typing import Final

import pytest

from jido_nats import Cause, LocalServer, RestartPolicy, SessionManager, Status
from tests.interop.programs import built
from tests.tools.pages import block, page
from tests.tools.support import Puppet, Stranger, eventually

AROUND: Final = """
import {{ connect }} from "@nats-io/transport-node";
import {{ jetstream }} from "@nats-io/jetstream";
const nc = await connect({{ servers: process.argv[2] }});
setInterval(() => {{
  let seen = [];
  try {{
    seen = [...view.values()];
  }} catch (error) {{
    if (!(error instanceof ReferenceError)) throw error;  // the recipe has not come so far as to declare it
  }}
  console.log(JSON.stringify(seen.map((s) => [s.session_id, s.status, s.version, s.error ?? null])));
}}, 50);
{recipe}
"""


@pytest.mark.timeout(600)
async def test_the_recipe_s_view_becomes_what_the_list_says(
    server: LocalServer, stranger: Stranger, manager: SessionManager, puppet: Puppet, tmp_path: Path
) -> None:
    folder = await asyncio.to_thread(built, "node")
    await stranger.create("before")
    program = folder / f"recipe_{tmp_path.name}.mjs"
    program.write_text(AROUND.format(recipe=block(page("clients"), "js", "const list")))
    view = await asyncio.create_subprocess_exec(
        "node", str(program), server.url, stdout=asyncio.subprocess.PIPE, cwd=folder
    )
    try:
        await change(manager, puppet)
        expected = sorted([r.session_id, str(r.status), r.version, r.error] for r in await manager.list_sessions())
        assert view.stdout is not None
        seen: list[list[object]] = []

        async def agrees() -> bool:
            assert view.stdout is not None
            seen[:] = sorted(json.loads(await view.stdout.readline()))
            return seen == expected

        await eventually(agrees)
    finally:
        view.kill()
        await view.wait()
        program.unlink()


async def change(manager: SessionManager, puppet: Puppet) -> None:
    """Sessions that begin, change and end while the view is being made."""
    for number in range(20):
        await manager.create_session(session_id=f"s{number}")
        await manager.idle_session(f"s{number}")
        if number % 2:
            await manager.terminate_session(f"s{number}")
    await manager.activate_session("s0")
    policy = RestartPolicy(on=(Cause.CRASHED,), backoff_s=0.01)
    await manager.create_session(session_id="again", restart=policy)
    puppet.crash("again", RuntimeError("boom"))
    await eventually(lambda: is_in_attempt(manager, "again", 2))
    await manager.create_session(session_id="waits", restart=RestartPolicy(on=(Cause.CRASHED,), backoff_s=60))
    puppet.crash("waits", RuntimeError("boom"))
    await eventually(lambda: is_waiting(manager, "waits"))
    await manager.terminate_session("before")


async def is_in_attempt(manager: SessionManager, session_id: str, attempt: int) -> bool:
    record = await manager.get_session_info(session_id)
    return record.status is Status.ACTIVE and record.attempt == attempt


async def is_waiting(manager: SessionManager, session_id: str) -> bool:
    return (await manager.get_session_info(session_id)).cause is not None
