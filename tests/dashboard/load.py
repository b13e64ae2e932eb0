"""How smooth the page is: many sessions and many events a second, in a real Chromium.

    python -m tests.dashboard.load --sessions 10000 --rate 1000 --seconds 20

Records and events are written as a manager writes them (a record, then the event, then its copy), by a stock client.
"""

import argparse
import asyncio
import itertools
import json
import random
from datetime import UTC, datetime
from typing import Any, Final

import nats
from playwright.async_api import CDPSession, Page

from jido_nats import LocalServer, Settings
from jido_nats.broker.connection import Connection
from jido_nats.broker.options import ConnectOptions
from jido_nats.core import codec, lifecycle, subjects
from jido_nats.core.session import SessionRecord, Status
from jido_nats.store import topology
from tests.dashboard import scene
from tests.dashboard.stage import chromium, new_page
from tests.tools.programs import running
from tests.tools.support import eventually

BURSTS_A_S: Final = 50
SETTLE_S: Final = 3
CPU: Final = ("TaskDuration", "ScriptDuration", "LayoutDuration", "RecalcStyleDuration")

# Frame times and long tasks of so many seconds, while the table is scrolled up and down or left alone.
MEASURE: Final = """async ({ seconds, scrolling }) => {
  const tasks = [];
  const observer = new PerformanceObserver((list) => tasks.push(...list.getEntries().map((entry) => entry.duration)));
  observer.observe({ type: "longtask" });
  const frames = [];
  const applied = dashboard.store.applied;
  const rows = document.getElementById("rows");
  const started = performance.now();
  let last = started;
  while (last - started < 1000 * seconds) {
    const now = await new Promise(requestAnimationFrame);
    if (frames.length > 0 || now > last) frames.push(now - last);
    last = now;
    if (scrolling) rows.scrollTop = 150_000 * (1 + Math.sin((now - started) / 700));
  }
  observer.disconnect();
  frames.sort((a, b) => a - b);
  const at = (share) => Math.round(10 * frames[Math.min(frames.length - 1, Math.floor(share * frames.length))]) / 10;
  return {
    events_a_second: Math.round((dashboard.store.applied - applied) / seconds),
    frames_a_second: Math.round(frames.length / seconds),
    frame_ms: { p50: at(0.5), p95: at(0.95), p99: at(0.99), max: at(1) },
    long_tasks: tasks.length,
    longest_task_ms: Math.round(Math.max(0, ...tasks)),
    rows: dashboard.store.rows.size,
    row_elements: document.querySelectorAll("#sizer .row").length,
  };
}"""


class Writer:
    """Sessions that go back and forth between active and idle."""

    def __init__(self, nc: Any, sessions: int) -> None:
        self._nc = nc
        self._dice = random.Random(7)
        self._records = [self._created(number) for number in range(sessions)]

    async def create(self) -> None:
        """All of them, active."""
        for index in range(len(self._records)):
            await self._tell(self._records[index])
            await self.step(index)
        await self._nc.flush()

    async def run(self, rate: int) -> None:
        """So many events a second, until cancelled."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        for burst in itertools.count(1):
            for _ in range(rate // BURSTS_A_S):
                await self.step(self._dice.randrange(len(self._records)))
            await asyncio.sleep(max(0, started + burst / BURSTS_A_S - loop.time()))

    async def step(self, index: int) -> None:
        """One transition."""
        record = self._records[index]
        status = Status.IDLE if record.status is Status.ACTIVE else Status.ACTIVE
        self._records[index], _ = lifecycle.transition(record, status, at=datetime.now(UTC))
        await self._tell(self._records[index])

    async def _tell(self, record: SessionRecord) -> None:
        await self._nc.publish(subjects.key(subjects.SESSIONS_BUCKET, record.session_id), codec.encode(record))
        for publication in subjects.publications(record):
            await self._nc.publish(publication.subject, codec.encode(publication.event))

    def _created(self, number: int) -> SessionRecord:
        record, _ = lifecycle.create(
            f"session_{number:06}", owner="manager_load", at=datetime.now(UTC), metadata=scene.metadata(self._dice)
        )
        return record


async def has_rows(page: Page, count: int) -> bool:
    return int(await page.evaluate("dashboard.store.rows.size")) >= count


async def measure(page: Page, url: str, sessions: int, seconds: float) -> None:
    """Print what was measured, in lines of JSON."""
    await page.goto(url)
    await eventually(lambda: has_rows(page, sessions), within_s=60)
    await asyncio.sleep(SETTLE_S)
    clock = await page.context.new_cdp_session(page)
    await clock.send("Performance.enable", {"timeDomain": "threadTicks"})  # CPU time: holds on a busy machine too
    for doing in ("looked at", "scrolled", "filtered"):
        if doing == "filtered":
            await page.get_by_label("Search sessions").fill("project=atlas")
        before = await cpu_s(clock)
        found = await page.evaluate(MEASURE, {"seconds": seconds, "scrolling": doing == "scrolled"})
        busy = {name: round((value - before[name]) / seconds, 3) for name, value in (await cpu_s(clock)).items()}
        print(json.dumps({"doing": doing, **found, "main_thread": busy}))


async def cpu_s(clock: CDPSession) -> dict[str, float]:
    """Seconds that the page's main thread has worked, in all and at what."""
    metrics = (await clock.send("Performance.getMetrics"))["metrics"]
    return {metric["name"]: metric["value"] for metric in metrics if metric["name"] in CPU}


async def main(sessions: int, rate: int, seconds: float) -> None:
    async with LocalServer(sync_interval="2m") as server:
        connection = await Connection.open(ConnectOptions(servers=(server.url,)), "load")
        await topology.declare(connection, Settings())
        nc = await nats.connect(server.url)
        writer = Writer(nc, sessions)
        await writer.create()
        async with running("dashboard", "--server", server.url, "--port", "0") as program:
            await program.said("Ctrl-C stops it")
            url = program.out.partition("is on ")[2].partition(";")[0]
            writing = asyncio.create_task(writer.run(rate))
            async with chromium() as browser, new_page(browser, viewport={"width": 1440, "height": 900}) as page:
                await measure(page, url, sessions, seconds)
            writing.cancel()
        await nc.close()
        await connection.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=10_000)
    parser.add_argument("--rate", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=20)
    asked = parser.parse_args()
    asyncio.run(main(asked.sessions, asked.rate, asked.seconds))
