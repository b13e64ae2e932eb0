"""One manager in a process of its own, which fills itself: `python -m tests.bench.scale_manager URL SESSIONS LEASE_S`.

Prints a JSON line when it serves, and one when it has its sessions: its memory before and after. Ends when killed.
"""

import asyncio
import contextlib
import gc
import json
import logging
import os
import sys
from pathlib import Path

from jido_nats import Session, SessionManager, Settings, Unavailable
from jido_nats.bench.load import drive
from jido_nats.bench.samples import Samples
from jido_nats.cli import logs
from jido_nats.ids import new_session_id

AT_ONCE = 128
WARM_UP = 200  # what is imported and allocated once is no session's


async def idle(_: Session) -> None:
    """The least that a session can run."""
    await asyncio.Event().wait()


def memory_bytes() -> int:
    """The resident set of this process."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def run(url: str, sessions: int, lease_s: int) -> None:
    """Serve, fill, tell, wait."""
    settings = Settings(lease_s=lease_s, sessions_max=2 * sessions + WARM_UP)
    async with SessionManager.connect(url, worker=idle, settings=settings) as manager:
        await manager.start_serving()
        print(json.dumps({"manager_id": manager.manager_id}), flush=True)

        async def create(session_id: str) -> None:
            while True:
                with contextlib.suppress(Unavailable):  # not done in time: safe to ask again
                    await manager.create_session(session_id=session_id, metadata={"project": "demo"})
                    return

        async def fill(count: int, samples: Samples) -> None:
            ids = [new_session_id() for _ in range(count)]
            await drive(ids, create, at_once=AT_ONCE, into=samples, step=lambda: None)

        await fill(min(sessions, WARM_UP), Samples())
        before, samples = memory_bytes(), Samples()
        await fill(sessions, samples)
        filled = {"per_s": samples.rate, "slowest_s": samples.percentile_ms(100) / 1000} if sessions else {}
        del samples  # it is no session's memory
        filled |= {"before": before, "after": memory_bytes()}
        print(json.dumps(filled), flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    logs.configure(logging.ERROR)
    asyncio.run(run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
