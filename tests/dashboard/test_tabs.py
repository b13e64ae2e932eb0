"""Many tabs: what they share, what a hidden one gives up, and how many fit into one browser."""

import asyncio
import re
from contextlib import AsyncExitStack

import pytest
from playwright.async_api import Browser, Page, expect

from tests.dashboard.stage import Stage, be_seen, new_page
from tests.tools.support import Stranger, eventually, stranger_at

pytestmark = pytest.mark.asyncio(loop_scope="module")

# More than the connections that a browser opens to a host.
TABS = 8


async def said(page: Page) -> list[str]:
    return await page.locator("#output .said-text:not(.mono)").all_text_contents()


async def consumers(stranger: Stranger) -> int:
    """How many readers the output has."""
    return (await stranger.js.stream_info("JIDO_OUTPUT")).state.consumer_count


async def test_every_visible_tab_of_a_browser_loads_and_commands(browser: Browser, stage: Stage, name: str) -> None:
    ids = [f"{name}_{number}" for number in range(TABS)]
    for session_id in ids:
        await stage.client.create_session(session_id=session_id)
    async with new_page(browser) as first:
        pages = [first, *[await first.context.new_page() for _ in ids[1:]]]
        for page, session_id in zip(pages, ids, strict=True):
            await page.goto(f"{stage.url}/#/session/{session_id}")
            await expect(page.locator("#session-status")).to_have_text("active")
            await expect(page.locator("#output > li")).to_have_count(2)
        for page in pages:
            await page.get_by_role("button", name="Make idle").click()
            await expect(page.locator("#session-status")).to_have_text("idle")


async def test_a_tab_that_takes_turns_misses_nothing(browser: Browser, stage: Stage, name: str) -> None:
    await stage.client.create_session(session_id=name)
    async with new_page(browser) as first:
        pages = [first, *[await first.context.new_page() for _ in range(TABS - 1)]]
        for page in pages:
            await page.goto(f"{stage.url}/#/session/{name}")
            await expect(page.locator("#output > li")).to_have_count(2)
        slots = [await page.evaluate("dashboard.feed.slot.held") for page in pages]
        assert slots == [True] * 4 + [False] * 4

        for number in range(20):
            await stage.client.send_message(name, "user", f"message {number}")
            await asyncio.sleep(0.1)  # over some turns

        expected = ["I am ready. What shall I do?"]
        for number in range(20):
            expected += [f"message {number}", f"You said: message {number}"]
        for page in pages:
            await expect(page.locator("#output > li").last).to_contain_text("You said: message 19")
            assert await said(page) == expected


async def test_a_closed_tab_leaves_its_place_to_another(browser: Browser, stage: Stage) -> None:
    async with new_page(browser) as first:
        pages = [first, *[await first.context.new_page() for _ in range(4)]]
        for page in pages:
            await page.goto(stage.url)
            await expect(page.locator("#connection-text")).to_have_text("Live")
        assert not await pages[4].evaluate("dashboard.feed.slot.held")

        await pages[1].close()

        await eventually(lambda: pages[4].evaluate("dashboard.feed.slot.held"))


async def test_tabs_of_a_session_share_one_consumer(browser: Browser, stage: Stage, name: str) -> None:
    await stage.client.create_session(session_id=name)
    async with AsyncExitStack() as tabs, stranger_at(stage.server.url) as stranger:
        pages = [await tabs.enter_async_context(new_page(browser)) for _ in range(3)]
        for page in pages:
            await page.goto(f"{stage.url}/#/session/{name}")
            await expect(page.locator("#output > li")).to_have_count(2)
        await eventually(lambda: has_consumers(stranger, 1))

        await tabs.aclose()

        await eventually(lambda: has_consumers(stranger, 0))


async def has_consumers(stranger: Stranger, count: int) -> bool:
    return await consumers(stranger) == count


async def test_a_hidden_tab_gives_up_its_stream_and_misses_nothing(browser: Browser, stage: Stage, name: str) -> None:
    await stage.client.create_session(session_id=name)
    async with new_page(browser) as page, stranger_at(stage.server.url) as stranger:
        await page.clock.install()
        await page.goto(f"{stage.url}/#/session/{name}")
        await expect(page.locator("#output > li")).to_have_count(2)
        await be_seen(page, "hidden")
        await page.clock.fast_forward("00:06")
        await expect(page.locator("#connection-text")).to_have_text("Paused while hidden")
        await eventually(lambda: has_consumers(stranger, 0))

        for number in range(30):
            await stage.client.send_message(name, "user", f"message {number}")
        await stage.client.idle_session(name)
        await page.clock.fast_forward("01:00:00")
        assert await page.evaluate("dashboard.feed.source") is None
        assert not await page.evaluate("dashboard.feed.slot.held")
        await be_seen(page, "visible")

        await expect(page.locator("#session-status")).to_have_text("idle")
        await expect(page.locator("#output > li").last).to_contain_text("You said: message 29")
        texts = [text for text in await said(page) if re.match("message", text)]
        assert texts == [f"message {number}" for number in range(30)]
        assert (await said(page)).count("I am ready. What shall I do?") == 1


async def test_a_tab_that_is_hidden_for_a_moment_keeps_its_stream(browser: Browser, stage: Stage, name: str) -> None:
    async with new_page(browser) as page:
        await page.clock.install()
        await page.goto(stage.url)
        await expect(page.locator("#connection-text")).to_have_text("Live")
        await page.evaluate("globalThis.before = dashboard.feed.source")

        await be_seen(page, "hidden")
        await page.clock.fast_forward("00:04")
        await be_seen(page, "visible")
        await page.clock.fast_forward("00:06")

        assert await page.evaluate("dashboard.feed.source === before")
