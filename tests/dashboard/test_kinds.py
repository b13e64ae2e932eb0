"""Kinds of worker on the page: what the managers run, what a session is, and a new session of a kind."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from playwright.async_api import Page, expect

from jido_nats.core.settings import WorkerSettings
from jido_nats.worker.session import wait_forever
from tests.dashboard import scene
from tests.dashboard.stage import Stage, staged
from tests.dashboard.test_session_page import field, look_at

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage() -> AsyncIterator[Stage]:
    """A manager with several kinds of worker, of which one takes a single session."""
    workers = {"coder": scene.agent, "reviewer": scene.agent, "default": wait_forever}
    limits = {"reviewer": WorkerSettings(sessions_max=1)}
    async with staged(workers, labels={"gpu": "true", "zone": "a"}, workers=limits) as stage:
        yield stage


async def test_a_manager_shows_its_kinds_and_labels(page: Page, stage: Stage, name: str) -> None:
    await stage.client.create_session(session_id=name, worker="reviewer")

    await expect(page.locator("#managers li .manager-offer")).to_have_text(
        "coder 0 · reviewer 1 (full) · no worker: sessions only wait · gpu=true · zone=a"
    )
    await stage.client.terminate_session(name)


async def test_a_row_shows_its_kind_and_is_found_by_it(page: Page, stage: Stage, name: str) -> None:
    await stage.client.create_session(session_id=f"{name}_other")
    await stage.client.create_session(session_id=name, worker="coder", metadata={"a": "b"})

    await page.get_by_role("searchbox").fill("worker=coder")

    row = page.locator(f"#row-{name}")
    await expect(row.locator(".pair:visible")).to_have_text(["workercoder", "ab"])
    await expect(page.locator(f"#row-{name}_other")).to_have_count(0)
    await page.reload()
    await expect(row.locator(".pair:visible")).to_have_text(["workercoder", "ab"])


async def test_a_session_shows_its_kind_and_labels(page: Page, stage: Stage, name: str) -> None:
    await stage.client.create_session(session_id=name, worker="coder", labels={"gpu": "true"})

    await look_at(page, stage, name)

    record = page.locator("#record")
    await expect(record).to_contain_text("Workercoder")
    await expect(record).to_contain_text("Labelsgpu=true")


async def test_a_new_session_of_a_kind_is_made(page: Page, stage: Stage, name: str) -> None:
    await expect(page.locator("#create-workers option")).to_have_count(3)
    await page.get_by_role("button", name="New session").click()
    await page.get_by_text("Worker, id, LLM configuration, limits").click()
    await page.locator("#create-worker").fill("coder")
    await field(page, "Labels").fill("gpu=true\nzone=a")
    await field(page, "Id ").fill(name)

    await page.get_by_role("button", name="Create").click()

    await expect(page.locator("#session-status")).to_have_text("active")
    record = await stage.client.get_session_info(name)
    assert (record.worker, record.labels) == ("coder", {"gpu": "true", "zone": "a"})


async def test_a_kind_that_nobody_runs_is_told_in_the_dialog(page: Page) -> None:
    await page.get_by_role("button", name="New session").click()
    await page.get_by_text("Worker, id, LLM configuration, limits").click()
    await page.locator("#create-worker").fill("painter")

    await page.get_by_role("button", name="Create").click()

    alert = page.get_by_role("dialog").get_by_role("alert")
    await expect(alert).to_contain_text("o manager runs the worker 'painter'; there is: coder (gpu=true, zone=a);")
