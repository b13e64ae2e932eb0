"""The pictures of the dashboard in `deploy/screenshots/`, made again.

    python -m tests.dashboard.screenshots

An evening's work is written as managers write it, then looked at in Chromium. (They look best with the font Inter:
Debian's `fonts-inter`.)
"""

import asyncio
import math
import random
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, TypeAlias

import nats
from nats.aio.client import Client as NatsClient
from playwright.async_api import Page, expect

from jido_nats import Client, LocalServer, SessionManager, Settings
from jido_nats.core import codec, lifecycle, subjects
from jido_nats.core.manager_info import ManagerInfo
from jido_nats.core.output import ConversationAdded, Output, SessionOutput
from jido_nats.core.session import Reason, SessionRecord, Status
from jido_nats.core.subjects import Publication
from jido_nats.ids import new_manager_id, new_session_id
from tests.dashboard import scene
from tests.dashboard.stage import chromium, new_page, shown

FOLDER: Final = Path(__file__).parent.parent.parent / "deploy" / "screenshots"
SESSIONS: Final = 1400
LEASE_S: Final = 10
ERRORS: Final = (
    "TimeoutError: the model did not answer within 30 s (attempt 3 of 3)",
    "ValidationError: field 'amount' is missing",
    "ConnectionResetError: [Errno 104] Connection reset by peer",
)
TALK: Final = (
    (3, "plan", {"steps": ["find the orders", "check the carrier", "write to the customers"], "budget_tokens": 12_000}),
    (4, "assistant", "I am ready. What shall I do?"),
    (31, "user", "Which orders of this week are late, and why?"),
    (33, "tool", {"name": "orders.search", "arguments": {"week": 47, "late": True}, "rows": 3}),
    (
        41,
        "assistant",
        "Three: two wait for customs, one was never handed over. Shall I write to the customers?",
    ),
    (95, "user", "Only to the one whose parcel never left. Be brief."),
    (97, "tool", {"name": "mail.draft", "arguments": {"order": "A-10442"}, "words": 48}),
    (101, "assistant", "The draft is ready. I send it when you say so."),
)


# Seconds after the one before, the status, and why.
Step: TypeAlias = tuple[float, Status, dict[str, Any]]


class Evening:
    """What several managers have done until now."""

    def __init__(self, now: datetime) -> None:
        self.now = now
        self.dice = random.Random(11)
        self.managers = [new_manager_id() for _ in range(3)]
        self.records: list[SessionRecord] = []
        self.outputs: list[Output] = []
        self._publications: list[tuple[datetime, int, Publication]] = []

    def session(self, ago_s: float, steps: Iterable[Step], **fields: Any) -> str:
        """A session that began so long ago and took these steps, each some seconds after the one before."""
        at, session_id = self.now - timedelta(seconds=ago_s), new_session_id()
        metadata = fields.get("metadata") or scene.metadata(self.dice)
        record, _ = lifecycle.create(session_id, owner=self.dice.choice(self.managers), at=at, metadata=metadata)
        self._tell(record, at)
        for after_s, status, reason in steps:
            at += timedelta(seconds=after_s)
            record, _ = lifecycle.transition(record, status, at=at, **reason)
            self._tell(record, at)
        self.records.append(record)
        return session_id

    def publications(self) -> list[Publication]:
        """All of them, in the order in which they happened."""
        return [publication for _, _, publication in sorted(self._publications, key=lambda each: each[:2])]

    def _tell(self, record: SessionRecord, at: datetime) -> None:
        for publication in subjects.publications(record):
            self._publications.append((at, len(self._publications), publication))


def many(evening: Evening) -> None:
    """Sessions that come in waves, work, rest and end."""
    dice = evening.dice
    for number in range(SESSIONS):
        lately_s = max(2.0, 300 * (1 - (number + 24 * math.sin(number / 60)) / SESSIONS))
        left_s = ago_s = lately_s if number % 3 else dice.uniform(300, 9000)
        steps: list[Step] = []
        waits = [dice.uniform(0.01, 0.4), *(dice.expovariate(1 / 60) for _ in range(dice.randrange(5)))]
        for wait_s in waits:
            left_s -= wait_s
            if left_s < 1:
                break
            steps.append((wait_s, Status.IDLE if len(steps) % 2 else Status.ACTIVE, {}))
        if left_s > 10 and steps and dice.random() < 0.45:
            fails = dice.random() < 0.06
            why = {"reason": Reason.CRASHED, "error": dice.choice(ERRORS)} if fails else {"reason": Reason.COMPLETED}
            steps.append((dice.uniform(1, left_s - 1), Status.TERMINATED, why))
        evening.session(ago_s, steps)


def conversation(evening: Evening) -> str:
    """A session that was spoken with."""
    metadata = {"project": "support", "task": "late orders", "user": "u4711", "model": scene.MODELS[0]}
    waits = (0.8, 4.1, 26, 12, 51, 9, 30)
    steps: list[Step] = [(wait_s, Status.IDLE if n % 2 else Status.ACTIVE, {}) for n, wait_s in enumerate(waits)]
    session_id = evening.session(146, steps, metadata=metadata)
    for number, (after_s, who, content) in enumerate(TALK, 1):
        at = evening.now - timedelta(seconds=146 - after_s)
        if isinstance(content, str):
            message_id = f"m{number}"
            said: Output = ConversationAdded(
                session_id=session_id, number=number, role=who, content=content, created_at=at, message_id=message_id
            )
        else:
            said = SessionOutput(session_id=session_id, number=number, name=who, data=content, created_at=at)
        evening.outputs.append(said)
    return session_id


def crash(evening: Evening) -> str:
    """A session that failed."""
    failed = {"reason": Reason.CRASHED, "error": ERRORS[0]}
    steps: list[Step] = [
        (0.6, Status.ACTIVE, {}),
        (48, Status.IDLE, {}),
        (7, Status.ACTIVE, {}),
        (93, Status.TERMINATED, failed),
    ]
    return evening.session(171, steps)


async def write(nc: NatsClient, evening: Evening) -> None:
    """All of the evening into NATS."""
    for record in evening.records:
        await nc.publish(subjects.key(subjects.SESSIONS_BUCKET, record.session_id), codec.encode(record))
    for publication in evening.publications():
        headers = {"Nats-Msg-Id": publication.message_id}
        await nc.publish(publication.subject, codec.encode(publication.event), headers=headers)
    for said in evening.outputs:
        await nc.publish(subjects.output(said.session_id), codec.encode(said))
    await nc.flush()


async def keep_leases(nc: NatsClient, evening: Evening) -> None:
    """The leases of its managers, renewed."""
    live = [record.owner for record in evening.records if record.status is not Status.TERMINATED]
    while True:
        for number, manager_id in enumerate(evening.managers, 1):
            info = ManagerInfo(
                manager_id=manager_id,
                host=f"agents-{number}",
                pid=1000 + 7 * number,
                started_at=evening.now - timedelta(hours=3),
                version="0.1.0",
                sessions=live.count(manager_id),
            )
            key = subjects.key(subjects.MANAGERS_BUCKET, manager_id)
            await nc.publish(key, codec.encode(info), headers={"Nats-TTL": f"{LEASE_S}s"})
        await asyncio.sleep(LEASE_S / 3)


async def go_on(client: Client, dice: random.Random) -> None:
    """New sessions meanwhile."""
    while True:
        session = await client.create_session(metadata=scene.metadata(dice))
        if dice.random() < 0.4:
            await client.idle_session(session.session_id)
        await asyncio.sleep(dice.expovariate(9))


async def take(page: Page, url: str, name: str, where: str, *, narrow: bool = False) -> None:
    """One picture."""
    await page.set_viewport_size({"width": 390, "height": 844} if narrow else {"width": 1360, "height": 860})
    await page.goto("about:blank")
    await page.goto(f"{url}/#/{where}")
    await expect(page.locator("#connection-text")).to_have_text("Live")
    await expect(page.locator("#events > li" if where else "#managers > li").first).to_be_visible()
    await asyncio.sleep(4)  # bars, ages and fonts
    await page.screenshot(path=FOLDER / f"{name}.png")


async def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    settings = Settings(lease_s=LEASE_S)
    async with (
        LocalServer(sync_interval="2m") as server,
        SessionManager.connect(server.url, worker=scene.agent, settings=settings) as manager,
    ):
        await manager.start_serving()
        nc = await nats.connect(server.url)
        evening = Evening(datetime.now(UTC))
        leases = asyncio.create_task(keep_leases(nc, evening))
        many(evening)
        talking, crashed = conversation(evening), crash(evening)
        await write(nc, evening)
        async with Client.connect(server.url) as client, shown(server.url) as url, chromium() as browser:
            going = asyncio.create_task(go_on(client, evening.dice))
            for scheme in ("light", "dark"):
                async with new_page(browser, color_scheme=scheme, device_scale_factor=1.5) as page:
                    await take(page, url, f"overview-{scheme}", "")
                    await take(page, url, f"session-{scheme}", f"session/{talking}")
            async with new_page(browser, device_scale_factor=1.5) as page:
                await take(page, url, "session-crashed", f"session/{crashed}")
                await take(page, url, "narrow", "", narrow=True)
            going.cancel()
        leases.cancel()
        await nc.close()


if __name__ == "__main__":
    asyncio.run(main())
