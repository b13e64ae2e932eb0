"""The page of all sessions, in a real Chromium."""

import re

import msgspec
import pytest
from playwright.async_api import Browser, Locator, Page, expect

from jido_nats import Client
from jido_nats.core import codec
from tests.dashboard.stage import Stage, be_seen, crashed, new_page, shown
from tests.tools.proxy import Proxy
from tests.tools.support import eventually, stranger_at

pytestmark = pytest.mark.asyncio(loop_scope="module")

MARKUP = "<img src=x onerror=\"window.hacked='img'\"><script>window.hacked='script'</script>"

# The least contrast of any text that can be seen, with what it says (WCAG 2.1, 1.4.3).
CONTRAST = """() => {
  const parse = (text) => (text.match(/[\\d.]+/g) ?? []).map(Number);
  const light = (value) => (value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => 0.2126 * light(r) + 0.7152 * light(g) + 0.0722 * light(b);
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const colour = parse(getComputedStyle(node).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  let least = [21, ""];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !node.checkVisibility({ visibilityProperty: true })) continue;
    const fill = node.closest("svg") ? getComputedStyle(node).fill : getComputedStyle(node).color;
    const pair = [luminance(parse(fill)), luminance(ground(node))].sort((a, b) => b - a);
    const contrast = (pair[0] + 0.05) / (pair[1] + 0.05);
    if (contrast < least[0]) least = [contrast, walker.currentNode.textContent];
  }
  return least;
}"""


def row(page: Page, session_id: str) -> Locator:
    return page.locator(f'[id="row-{session_id}"]')


async def search(page: Page, text: str) -> None:
    await page.get_by_label("Search sessions").fill(text)


async def is_live(page: Page) -> None:
    await expect(page.locator("#connection-text")).to_have_text("Live")


async def shows(page: Page, number: str) -> None:
    """The table shows so many sessions, perhaps of more: those of other tests."""
    await expect(page.locator("#count")).to_have_text(re.compile(f"^{number} (of [0-9,]+ )?sessions$"))


async def applied(page: Page) -> int:
    return int(await page.evaluate("dashboard.store.applied"))


async def test_a_session_appears_by_itself(page: Page, stage: Stage, name: str) -> None:
    await is_live(page)

    await stage.client.create_session(session_id=name, metadata={"project": "atlas"})

    await expect(row(page, name)).to_contain_text("active")
    await expect(row(page, name)).to_contain_text("projectatlas")


async def test_a_row_changes_with_its_session(page: Page, stage: Stage, name: str) -> None:
    await stage.client.create_session(session_id=name)
    await search(page, name)
    await expect(row(page, name).locator(".chip")).to_have_text("active")

    await stage.client.idle_session(name)

    await expect(row(page, name).locator(".chip")).to_have_text("idle")


async def test_a_row_shows_that_its_session_waits_for_another_attempt(page: Page, stage: Stage, name: str) -> None:
    await crashed(stage, name)
    await search(page, name)

    await expect(row(page, name)).to_contain_text("initializing")
    await expect(row(page, name)).to_contain_text("attempt 2, crashed")
    await page.reload()
    await expect(row(page, name)).to_contain_text("attempt 2, crashed")
    await stage.client.terminate_session(name)


async def test_a_row_of_a_later_attempt_shows_its_number_alone(page: Page, stage: Stage, name: str) -> None:
    await crashed(stage, name, backoff_s=0.01)
    await search(page, name)

    await expect(row(page, name).locator(".chip")).to_have_text("active")
    await expect(row(page, name)).to_contain_text("attempt 2")
    await expect(row(page, name)).not_to_contain_text("crashed")
    await stage.client.terminate_session(name)


async def test_a_session_that_ends_leaves_the_live_ones(page: Page, stage: Stage, name: str) -> None:
    await stage.client.create_session(session_id=name)
    await expect(row(page, name)).to_be_visible()

    await stage.client.terminate_session(name)

    await expect(row(page, name)).to_be_hidden()
    await page.get_by_role("button", name=re.compile("ended")).click()
    await expect(row(page, name)).to_contain_text("requested")


async def test_counts_are_those_of_the_sessions(page: Page, stage: Stage, name: str) -> None:
    idle = page.locator(".tile.idle .tile-number")
    await expect(idle).to_have_text(re.compile(r"^\d+$"))  # the tiles are drawn a moment after the page is live
    before = int(await idle.inner_text())

    await stage.client.create_session(session_id=name)
    await stage.client.idle_session(name)

    await expect(idle).to_have_text(str(before + 1))


async def test_search_takes_pairs_of_metadata(page: Page, stage: Stage, name: str) -> None:
    await stage.client.create_session(session_id=f"{name}_1", metadata={"user": "ada", "team": name})
    await stage.client.create_session(session_id=f"{name}_2", metadata={"user": "bob", "team": name})
    await expect(row(page, f"{name}_2")).to_be_visible()

    await search(page, f"USER=ada team={name}")

    await expect(row(page, f"{name}_2")).to_be_hidden()
    await expect(row(page, f"{name}_1")).to_be_visible()
    await shows(page, "1")


async def test_a_status_chooses_what_is_in_the_table(page: Page, stage: Stage, name: str) -> None:
    await stage.client.create_session(session_id=f"{name}_1")
    await stage.client.create_session(session_id=f"{name}_2")
    await stage.client.idle_session(f"{name}_2")
    await search(page, name)

    await page.locator(".tile.idle").click()

    await expect(row(page, f"{name}_2")).to_be_visible()
    await expect(row(page, f"{name}_1")).to_be_hidden()
    await expect(page.locator(".tile.idle")).to_have_attribute("aria-pressed", "true")


async def test_what_matches_nothing_can_be_looked_up_in_the_stream(page: Page, stage: Stage, name: str) -> None:
    await search(page, name)

    await expect(page.get_by_text("Nothing matches")).to_be_visible()
    await page.get_by_role("button", name="Look up").click()

    await expect(page.locator("#session-error")).to_contain_text("No such session")


async def test_the_keyboard_is_enough(page: Page, stage: Stage, name: str) -> None:
    for number in range(3):
        await stage.client.create_session(session_id=f"{name}_{number}")
    await expect(row(page, f"{name}_2")).to_be_visible()

    await page.keyboard.press("/")
    await page.keyboard.type(name)
    await shows(page, "3")
    for key in ("ArrowDown", "ArrowDown", "Enter"):
        await page.keyboard.press(key)

    await expect(page.locator("#session-id")).to_have_text(f"{name}_1")
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("grid")).to_be_focused()
    await expect(page.get_by_role("grid")).to_have_attribute("aria-activedescendant", f"row-{name}_1")


async def test_a_column_s_head_sorts(page: Page, stage: Stage, name: str) -> None:
    for number in (2, 1, 3):
        await stage.client.create_session(session_id=f"{name}_{number}")
    await search(page, name)
    await shows(page, "3")

    await page.get_by_role("button", name="Session", exact=True).click()

    await expect(page.get_by_role("columnheader", name="Session")).to_have_attribute("aria-sort", "ascending")
    assert await ids_from_the_top(page) == [f"{name}_{number}" for number in (1, 2, 3)]


async def ids_from_the_top(page: Page) -> list[str]:
    cells = page.locator("#sizer .row:visible")
    rows = [(await cell.bounding_box(), await cell.locator(".id").text_content()) for cell in await cells.all()]
    return [text or "" for _, text in sorted((box["y"], text) for box, text in rows if box is not None)]


async def test_metadata_cannot_become_markup(page: Page, stage: Stage, name: str) -> None:
    await stage.client.create_session(session_id=name, metadata={MARKUP: MARKUP}, llm_config={"model": MARKUP})
    await search(page, name)
    await expect(row(page, name)).to_contain_text("<img src=x")
    await row(page, name).locator("a").click()
    await expect(page.locator("#metadata")).to_contain_text("<script>")
    await page.locator("#send-content").fill(MARKUP)
    await page.get_by_role("button", name="Send").click()
    await expect(page.locator("#output")).to_contain_text("You said: <img")

    assert await page.locator("main img, main script").count() == 0
    assert await page.evaluate("window.hacked") is None


async def test_an_error_cannot_become_markup(page: Page, stage: Stage, name: str) -> None:
    await stage.client.create_session(session_id=name)
    await stage.client.terminate_session(name, detail=MARKUP)
    await page.goto(f"{stage.url}/#/session/{name}")

    await expect(page.locator("#session-end")).to_contain_text("<script>")
    assert await page.locator("main img, main script").count() == 0


async def test_managers_show_their_leases(page: Page, stage: Stage) -> None:
    manager = page.locator("#managers li")

    await expect(manager).to_have_count(1)
    await expect(manager).to_contain_text(stage.manager.manager_id[-12:])
    await expect(manager).to_contain_text(re.compile(r"lease \d s"))


@pytest.mark.parametrize(
    ("state", "tag"), [({"full": True}, "full"), ({"full": True, "draining": True}, "draining"), ({}, "")]
)
async def test_a_manager_shows_that_it_drains(page: Page, stage: Stage, state: dict[str, bool], tag: str) -> None:
    lease = msgspec.structs.replace(stage.manager._info(), manager_id="manager_other", **state)
    async with stranger_at(stage.server.url) as stranger:
        await stranger.js.publish("$KV.JIDO_MANAGERS.manager_other", codec.encode(lease), headers={"Nats-TTL": "2s"})

        shown_tag = page.locator("#managers li", has_text="other").locator(".tag")

        if tag:
            await expect(shown_tag).to_have_text(tag)
        await expect(shown_tag).to_be_visible(visible=bool(tag))
    await expect(page.locator("#managers li")).to_have_count(1)


async def test_the_chart_draws_what_happens(page: Page, stage: Stage, name: str) -> None:
    await stage.client.create_session(session_id=name)

    await expect(page.locator("#chart .bars")).to_have_attribute("d", re.compile(r"^M.*Z$"))
    await expect(page.locator("#rate-peak")).not_to_have_text("0")


async def test_only_rows_that_can_be_seen_exist(page: Page) -> None:
    await is_live(page)
    await page.evaluate(
        """() => {
          const at = new Date().toISOString();
          for (let number = 0; number < 10000; number += 1) {
            const event = { type: "session_created", session_id: `many_${number}`, version: 1, created_at: at };
            dashboard.store.apply({ event: { ...event, metadata: {} }, owner: "m" });
          }
        }"""
    )
    await search(page, "many_")
    await shows(page, "10,000")

    assert await page.locator("#sizer .row").count() < 60
    await page.keyboard.press("ArrowDown")
    await page.keyboard.press("End")
    await expect(row(page, "many_0")).to_be_visible()


async def test_a_cut_connection_is_shown_and_nothing_is_missed(browser: Browser, stage: Stage, name: str) -> None:
    async with Proxy(int(stage.url.rpartition(":")[2])) as proxy, new_page(browser) as page:
        await page.goto(proxy.url.replace("nats:", "http:"))
        await is_live(page)
        before = await applied(page)
        proxy.refuse()
        proxy.cut()
        await expect(page.locator("#connection-text")).to_have_text("Reconnecting to the dashboard")
        await live_and_die(stage.client, name)
        await proxy.accept()
        await is_live(page)
        await expect(row(page, f"{name}_stays")).to_be_visible()

        assert await applied(page) - before == 7


async def live_and_die(client: Client, name: str) -> None:
    """Seven events, and one session that stays."""
    await client.create_session(session_id=name)
    await client.terminate_session(name)
    await client.create_session(session_id=f"{name}_stays")


async def test_a_silent_connection_is_made_anew(browser: Browser, stage: Stage, name: str) -> None:
    async with Proxy(int(stage.url.rpartition(":")[2])) as proxy, new_page(browser) as page:
        await page.clock.install()
        await page.goto(proxy.url.replace("nats:", "http:"))
        await is_live(page)
        await live_and_die(stage.client, f"{name}_before")
        await eventually(lambda: has_applied(page, 7))
        before = await applied(page)
        proxy.black_hole()
        await page.clock.fast_forward("00:20")
        await expect(page.locator("#connection-text")).to_have_text("Reconnecting to the dashboard")
        await live_and_die(stage.client, name)
        proxy.heal()
        await is_live(page)
        await eventually(lambda: has_applied(page, before + 7))

        assert await applied(page) - before == 7


async def has_applied(page: Page, count: int) -> bool:
    return await applied(page) >= count


async def test_a_hidden_page_lets_go_of_its_connection(browser: Browser, stage: Stage, name: str) -> None:
    async with Proxy(int(stage.url.rpartition(":")[2])) as proxy, new_page(browser) as page:
        await page.clock.install()
        await page.goto(proxy.url.replace("nats:", "http:"))
        await is_live(page)
        await live_and_die(stage.client, f"{name}_before")
        await eventually(lambda: has_applied(page, 7))
        before = await applied(page)

        await be_seen(page, "hidden")
        await page.clock.fast_forward("00:06")
        await expect(page.locator("#connection-text")).to_have_text("Paused while hidden")
        await live_and_die(stage.client, name)
        await be_seen(page, "visible")

        await is_live(page)
        await eventually(lambda: has_applied(page, before + 7))
        assert await applied(page) - before == 7


async def test_nats_being_away_is_shown(browser: Browser, stage: Stage) -> None:
    async with Proxy(stage.server.port) as proxy, shown(proxy.url) as url, new_page(browser) as page:
        await page.goto(url)
        await is_live(page)
        proxy.refuse()
        proxy.cut()
        await expect(page.locator("#connection-text")).to_have_text("NATS is unreachable, reconnecting")
        await expect(page.locator("#managers")).to_contain_text("lease unknown")
        await proxy.accept()
        await is_live(page)


async def test_read_only_leaves_the_commands_out(browser: Browser, stage: Stage, name: str) -> None:
    await stage.client.create_session(session_id=name)
    async with shown(stage.server.url, read_only=True) as url, new_page(browser) as page:
        await page.goto(f"{url}/#/session/{name}")
        await expect(page.locator("#session-status")).to_have_text("active")
        await expect(page.get_by_text("read-only")).to_be_visible()

        await page.keyboard.press("n")

        assert await page.get_by_role("button", name=re.compile("session|idle|Terminate|Send")).count() == 0
        await expect(page.get_by_role("dialog")).to_be_hidden()


async def test_the_token_opens_the_page_and_leaves_the_address(browser: Browser, stage: Stage) -> None:
    async with shown(stage.server.url, token="open sesame!") as url, new_page(browser) as page:
        await page.goto(url)
        await page.get_by_label("Token").fill("open sesame!")
        await page.get_by_role("button", name="Open the dashboard").click()

        await is_live(page)
        assert page.url == f"{url}/"
        await page.reload()
        await is_live(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("where", ["/", "/#/session/"])
async def test_every_text_can_be_read(browser: Browser, stage: Stage, name: str, scheme: str, where: str) -> None:
    await stage.client.create_session(session_id=name, metadata={"project": "atlas"})
    await stage.client.create_session(session_id=f"{name}_crashed", metadata={"ends": "crashed"})
    async with new_page(browser, color_scheme=scheme) as page:
        await page.goto(f"{stage.url}{where}{name if where != '/' else ''}")
        await expect(page.get_by_text("atlas").locator("visible=true").first).to_be_visible()

        contrast, text = await page.evaluate(CONTRAST)

    assert contrast >= 4.5, text


async def test_the_theme_can_be_chosen_and_stays(page: Page) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    light = await page.evaluate(ground)

    for _ in range(2):
        await page.get_by_role("button", name=re.compile("^Theme")).click()
    dark = await page.evaluate(ground)
    await page.reload()

    assert dark != light
    assert await page.evaluate(ground) == dark


@pytest.mark.parametrize("width", [320, 480, 768, 1024])
async def test_nothing_sticks_out_of_a_narrow_window(browser: Browser, stage: Stage, name: str, width: int) -> None:
    await stage.client.create_session(session_id=name, metadata={"project": "x" * 200})
    async with new_page(browser, viewport={"width": width, "height": 800}) as page:
        for where in ("/", f"/#/session/{name}"):
            await page.goto(f"{stage.url}{where}")
            await expect(page.get_by_text("xxxx").locator("visible=true").first).to_be_visible()

            assert await page.evaluate("document.documentElement.scrollWidth") <= width


async def test_what_can_be_used_has_a_name(page: Page, stage: Stage, name: str) -> None:
    await stage.client.create_session(session_id=name)
    for where in ("#/", f"#/session/{name}"):
        await page.goto(f"{stage.url}/{where}")
        await is_live(page)
        nodes = await page.locator("button:visible, a:visible, input:visible, textarea:visible").all()

        assert len(nodes) > 5
        assert not [await node.evaluate("n => n.outerHTML") for node in nodes if not await accessible_name(node)]


async def accessible_name(node: Locator) -> str:
    return str(
        await node.evaluate(
            """(node) => node.getAttribute("aria-label") || node.textContent.trim() || node.title
              || [...(node.labels ?? [])].map((label) => label.textContent.trim()).join(" ")"""
        )
    )


async def test_a_change_of_the_connection_is_said(browser: Browser, stage: Stage) -> None:
    async with Proxy(int(stage.url.rpartition(":")[2])) as proxy, new_page(browser) as page:
        await page.goto(proxy.url.replace("nats:", "http:"))
        await is_live(page)

        proxy.refuse()
        proxy.cut()

        await expect(page.get_by_role("status")).to_have_text("Reconnecting to the dashboard")


async def test_nothing_moves_for_who_wants_no_motion(browser: Browser, stage: Stage) -> None:
    async with new_page(browser, reduced_motion="reduce") as page:
        await page.goto(stage.url)
        await is_live(page)

        assert await page.evaluate("document.getAnimations().length") == 0
