"""The page of one session, and what is done from it, in a real Chromium."""

import re

import pytest
from playwright.async_api import Browser, Locator, Page, expect

from jido_nats import LocalServer, SessionManager, Settings
from tests.dashboard.stage import Stage, crashed, new_page, shown
from tests.tools.proxy import Proxy
from tests.tools.support import Stranger, eventually, stranger_at, wait_for_ever

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def look_at(page: Page, stage: Stage, session_id: str) -> None:
    await page.goto(f"{stage.url}/#/session/{session_id}")
    await expect(page.locator("#session-id")).to_have_text(session_id)


def field(page: Page, label: str) -> Locator:
    """The text field whose label begins like this."""
    return page.get_by_role("textbox", name=re.compile(f"^{label}"))


async def has_status(page: Page, status: str) -> None:
    await expect(page.locator("#session-status")).to_have_text(status)


async def test_the_timeline_has_a_bar_for_each_status(page: Page, stage: Stage, name: str) -> None:
    await stage.client.create_session(session_id=name)
    await stage.client.idle_session(name)
    await look_at(page, stage, name)
    bars = page.locator("#timeline li")
    await expect(bars).to_have_count(3)

    await stage.client.activate_session(name)

    await expect(bars).to_have_count(4)
    titles = [await bar.get_attribute("title") or "" for bar in await bars.all()]
    assert [title.split()[0] for title in titles] == ["initializing", "active", "idle", "active"]
    assert all(re.search(r" for [\d.]+ m?s, since \d\d:\d\d:\d\d\.\d{3}$", title) for title in titles)


async def test_a_bar_is_as_long_as_its_status_was(page: Page, stage: Stage, name: str) -> None:
    await stage.client.create_session(session_id=name)
    await look_at(page, stage, name)
    await expect(page.locator("#totals")).to_contain_text(re.compile(r"active\s*[1-9]\.\d s"))
    await stage.client.terminate_session(name)
    await has_status(page, "terminated")

    grows = await page.locator("#timeline li").evaluate_all("bars => bars.map((bar) => Number(bar.style.flexGrow))")

    starting, active, *_ = grows
    assert active > 1000 > starting


async def test_events_come_as_they_happen(page: Page, stage: Stage, name: str) -> None:
    await stage.client.create_session(session_id=name)
    await look_at(page, stage, name)
    events = page.locator("#events > li")
    await expect(events).to_have_count(2)

    await stage.client.terminate_session(name, detail="enough")

    await expect(events).to_have_count(5)
    await expect(events.nth(3)).to_contain_text("requested · enough")
    await events.nth(4).locator("summary").click()
    await expect(events.nth(4).locator("pre")).to_contain_text('"type": "session_terminated"')


async def test_a_crash_shows_its_error(page: Page, stage: Stage, name: str) -> None:
    await stage.client.create_session(session_id=name)
    await look_at(page, stage, name)
    await has_status(page, "active")

    await field(page, "Message").fill("crash")
    await field(page, "Message").press("Control+Enter")

    await expect(page.locator("#session-end")).to_contain_text("RuntimeError: boom")
    await expect(page.locator("#session-end")).to_have_class(re.compile("bad"))
    await expect(page.locator("#session-actions")).to_be_hidden()
    await expect(page.locator("#send-form")).to_be_hidden()


async def test_a_session_that_waits_for_another_attempt_says_why(page: Page, stage: Stage, name: str) -> None:
    await look_at(page, stage, name)
    await crashed(stage, name)

    await has_status(page, "initializing")
    await expect(page.locator("#session-attempt")).to_have_text("attempt 2, crashed")
    await expect(page.locator("#session-end")).to_contain_text("Starting again: attempt 2, crashed")
    await expect(page.locator("#session-end")).to_contain_text("RuntimeError: boom")
    await expect(page.locator("#events > li").nth(2)).to_contain_text("attempt 2, crashed")
    await page.reload()
    await expect(page.locator("#session-attempt")).to_have_text("attempt 2, crashed")
    await expect(page.locator("#session-end")).to_contain_text("RuntimeError: boom")
    await expect(page.locator("#record")).to_contain_text("Attemptattempt 2, crashed")
    await expect(page.locator("#record")).to_contain_text(
        "Restartscrashed; at most 5 failures in a row; after 60 s or more"
    )
    await stage.client.terminate_session(name)
    await has_status(page, "terminated")
    await page.reload()
    await expect(page.locator("#session-attempt")).to_have_text("attempt 2")


async def test_a_session_that_waits_for_another_attempt_is_sent_messages(page: Page, stage: Stage, name: str) -> None:
    await crashed(stage, name)
    await look_at(page, stage, name)
    await has_status(page, "initializing")

    await field(page, "Message").fill("are you there?")
    await page.get_by_role("button", name="Send").click()

    await expect(page.locator("#output > li").last).to_contain_text("are you there?")
    await stage.client.terminate_session(name)


async def test_an_attempt_that_runs_has_no_cause(page: Page, stage: Stage, name: str) -> None:
    await look_at(page, stage, name)
    await crashed(stage, name, backoff_s=0.01)

    await expect(page.locator("#session-attempt")).to_have_text("attempt 2")
    await has_status(page, "active")
    await expect(page.locator("#session-end")).to_be_hidden()
    await stage.client.terminate_session(name)
    await has_status(page, "terminated")
    await page.reload()
    await expect(page.locator("#session-attempt")).to_have_text("attempt 2")


async def test_what_an_older_attempt_says_late_does_not_appear(page: Page, stage: Stage, name: str) -> None:
    await crashed(stage, name, backoff_s=0.01)
    await look_at(page, stage, name)
    said = page.locator("#output > li")
    await expect(said.filter(has_text="I am ready").last).to_contain_text("attempt 2")

    # As a dashboard of an older version would send it, or one that began to read after the newer attempt had spoken.
    await page.evaluate("(output) => dashboard.feed.output.on('output', output)", of_attempt(name, 1, "too late"))
    await page.evaluate("(output) => dashboard.feed.output.on('output', output)", of_attempt(name, 2, "in time"))

    await expect(said.filter(has_text="in time")).to_have_count(1)
    await expect(said.filter(has_text="too late")).to_have_count(0)
    await stage.client.terminate_session(name)


def of_attempt(session_id: str, attempt: int, text: str) -> dict[str, object]:
    """An output, as the page gets it."""
    return {
        "type": "session_output",
        "session_id": session_id,
        "number": 99,
        "name": "step",
        "data": text,
        "created_at": "2099-01-24T10:30:00Z",
        "attempt": attempt,
    }


async def test_what_is_said_appears(page: Page, stage: Stage, name: str) -> None:
    await stage.client.create_session(session_id=name)
    await look_at(page, stage, name)
    said = page.locator("#output > li")
    await expect(said).to_have_count(2)

    await field(page, "Message").fill("which orders are late?")
    await page.get_by_role("button", name="Send").click()

    await expect(said).to_have_count(6)
    roles = await page.locator("#output .said-head > :first-child").all_text_contents()
    assert roles == ["plan", "assistant", "user", "thinking", "tool", "assistant"]
    await expect(said.nth(3)).to_contain_text("live only")
    await expect(field(page, "Message")).to_have_value("")


async def test_commands_change_the_session(page: Page, stage: Stage, name: str) -> None:
    await stage.client.create_session(session_id=name)
    await look_at(page, stage, name)

    await page.get_by_role("button", name="Make idle").click()
    await has_status(page, "idle")
    await page.get_by_role("button", name="Activate").click()
    await has_status(page, "active")
    await page.get_by_role("button", name="Terminate…").click()
    await page.get_by_label("Why").fill("enough")
    await page.get_by_role("dialog").get_by_role("button", name="Terminate").click()
    await has_status(page, "terminated")

    await expect(page.locator("#session-end")).to_contain_text("enough")
    assert (await stage.client.get_session_info(name)).detail == "enough"


async def test_terminating_can_be_thought_better_of(page: Page, stage: Stage, name: str) -> None:
    await stage.client.create_session(session_id=name)
    await look_at(page, stage, name)
    await page.get_by_role("button", name="Terminate…").click()

    await page.keyboard.press("Escape")

    await expect(page.get_by_role("dialog")).to_be_hidden()
    await has_status(page, "active")


async def test_an_end_that_takes_long_is_told_in_the_dialog(page: Page, stage: Stage, name: str) -> None:
    await stage.client.create_session(session_id=name, metadata={"ends": "never"})
    await look_at(page, stage, name)
    await page.get_by_role("button", name="Terminate…").click()

    await page.get_by_role("dialog").get_by_role("button", name="Terminate").click()

    await expect(page.get_by_role("dialog").get_by_role("alert")).to_contain_text("stop")
    await has_status(page, "terminating")


async def test_a_message_that_is_refused_stays_in_the_field(page: Page, stage: Stage, name: str) -> None:
    await stage.client.create_session(session_id=name)
    await look_at(page, stage, name)
    text = "x" * 70_000

    await field(page, "Message").fill(text)
    await page.get_by_role("button", name="Send").click()

    await expect(page.locator("#send-error")).to_contain_text(re.compile("bytes|large"))
    await expect(field(page, "Message")).to_have_value(text)


async def test_a_command_that_fails_says_so_beside_the_buttons(browser: Browser, stage: Stage, name: str) -> None:
    await stage.client.create_session(session_id=name)
    async with Proxy(int(stage.url.rpartition(":")[2])) as proxy, new_page(browser) as page:
        await page.goto(f"{proxy.url.replace('nats:', 'http:')}/#/session/{name}")
        await expect(page.get_by_role("button", name="Make idle")).to_be_visible()
        proxy.refuse()
        proxy.cut()

        await page.get_by_role("button", name="Make idle").click()

        await expect(page.locator("#action-error")).to_contain_text("does not answer")


async def test_an_answer_that_is_cut_short_is_no_answer(page: Page, stage: Stage, name: str) -> None:
    await page.route(f"**/api/sessions/{name}", lambda route: route.fulfill(status=200, body='{"record":'))

    await look_at(page, stage, name)

    await expect(page.locator("#session-error")).to_contain_text("does not answer")


async def test_a_limit_has_to_be_one(page: Page) -> None:
    await page.get_by_role("button", name="New session").click()
    await page.get_by_text("Worker, id, LLM configuration, limits").click()
    await page.get_by_label("Maximum lifetime, s").fill("-1")

    await page.get_by_role("button", name="Create").click()

    await expect(page.get_by_role("dialog").get_by_role("alert")).to_contain_text("max_lifetime_s must be")


async def test_a_new_session_is_made_and_shown(page: Page, stage: Stage, name: str) -> None:
    await expect(page.get_by_role("button", name="New session")).to_be_visible()
    await page.keyboard.press("n")
    await field(page, "Metadata").fill("project = atlas\nquery=a=b")
    await page.get_by_text("Worker, id, LLM configuration, limits").click()
    await field(page, "Id ").fill(name)
    await field(page, "LLM").fill('{"model": "m"}')
    await page.get_by_label("Idle after, s").fill("60")

    await page.get_by_role("button", name="Create").click()

    await has_status(page, "active")
    record = await stage.client.get_session_info(name)
    assert (record.metadata, record.llm_config) == ({"project": "atlas", "query": "a=b"}, {"model": "m"})
    assert record.idle_after_s == 60
    await expect(page.locator("#record")).to_contain_text("60 s")


@pytest.mark.parametrize(
    ("label", "text", "error"),
    [
        ("Metadata", "no pair", "“no pair” is neither"),
        ("Metadata", "{oops", "The metadata cannot be read as JSON"),
        ("Id ", "a b", "1 to 64 letters"),
        ("LLM", "[1]", "must be a JSON object"),
    ],
)
async def test_what_cannot_be_made_says_why_in_the_dialog(page: Page, label: str, text: str, error: str) -> None:
    await page.get_by_role("button", name="New session").click()
    await page.get_by_text("Worker, id, LLM configuration, limits").click()
    await field(page, label).fill(text)

    await page.get_by_role("button", name="Create").click()

    await expect(page.get_by_role("dialog").get_by_role("alert")).to_contain_text(error)
    await expect(field(page, label)).to_have_value(text)


async def test_an_id_that_is_taken_is_told_in_the_dialog(page: Page, stage: Stage, name: str) -> None:
    await stage.client.create_session(session_id=name, metadata={"a": "b"})
    await page.get_by_role("button", name="New session").click()
    await page.get_by_text("Worker, id, LLM configuration, limits").click()
    await field(page, "Id ").fill(name)

    await page.get_by_role("button", name="Create").click()

    await expect(page.get_by_role("dialog").get_by_role("alert")).to_contain_text(re.compile("already|taken|another"))


async def test_a_session_that_ended_long_ago_has_its_history(browser: Browser, stage: Stage, name: str) -> None:
    await stage.client.create_session(session_id=name, metadata={"project": "atlas"})
    await stage.client.terminate_session(name)
    async with stranger_at(stage.server.url) as stranger:
        await eventually(lambda: is_forgotten(stranger, name))
    async with shown(stage.server.url) as url, new_page(browser) as page:
        await page.goto(url)
        await page.get_by_label("Search sessions").fill(name)
        await expect(page.get_by_text("Nothing matches")).to_be_visible()
        await page.keyboard.press("Enter")

        await has_status(page, "terminated")
        await expect(page.locator("#events > li")).to_have_count(5)
        await expect(page.get_by_text("The record has expired")).to_be_visible()
        await expect(page.locator("#metadata")).to_contain_text("atlas")
        await expect(page.locator("#timeline li")).to_have_count(3)


async def is_forgotten(stranger: Stranger, session_id: str) -> bool:
    return await stranger.record(session_id) is None


async def test_a_session_that_is_created_while_it_is_looked_for_appears(page: Page, stage: Stage, name: str) -> None:
    await look_at(page, stage, name)
    await expect(page.locator("#session-error")).to_contain_text("No such session")

    await stage.client.create_session(session_id=name)

    await has_status(page, "active")
    await expect(page.locator("#session-error")).to_be_hidden()


async def test_before_the_first_manager_the_page_says_what_is_missing(browser: Browser) -> None:
    async with LocalServer() as server, shown(server.url) as url, new_page(browser) as page:
        await page.goto(url)
        await expect(page.get_by_role("alert").first).to_contain_text("jido-nats serve")
        settings = Settings(lease_s=2)

        async with SessionManager.connect(server.url, worker=wait_for_ever, settings=settings) as manager:
            await manager.start_serving()
            await expect(page.get_by_text("No sessions", exact=True)).to_be_visible()
            await expect(page.get_by_role("alert").first).to_be_hidden()
        await expect(page.get_by_text("No manager has a lease")).to_be_visible()


BIG = 1970670598291982291  # more than a JavaScript number can hold


async def test_an_integer_is_shown_with_every_digit(page: Page, stage: Stage, name: str) -> None:
    await stage.client.create_session(
        session_id=name, metadata={"row": BIG, "list": [-BIG], "text": f"{BIG}"}, llm_config={"seed": BIG}
    )
    await stage.client.send_message(name, "user", {"id": BIG})
    await look_at(page, stage, name)

    await expect(page.locator("#metadata")).to_contain_text(f'"row": {BIG}')
    await expect(page.locator("#metadata")).to_contain_text(f"-{BIG}")
    await expect(page.locator("#metadata")).to_contain_text(f'"text": "{BIG}"')
    await expect(page.locator("#llm-config")).to_contain_text(f'"seed": {BIG}')
    await expect(page.locator("#output")).to_contain_text(f'"id": {BIG}')


async def test_a_session_is_created_with_every_digit_of_an_integer(page: Page, stage: Stage, name: str) -> None:
    await page.get_by_role("button", name="New session").click()
    await page.locator("#create-dialog summary").click()
    await field(page, "Id ").fill(name)
    await page.locator("#create-config").fill(f'{{"seed": {BIG}, "near": 9007199254740993}}')
    await page.get_by_role("button", name="Create").click()
    await expect(page.locator("#session-id")).to_have_text(name)

    record = await stage.client.get_session_info(name)
    assert record.llm_config == {"seed": BIG, "near": 9007199254740993}


async def test_an_address_that_is_no_id_shows_the_overview(page: Page, stage: Stage) -> None:
    await page.goto(f"{stage.url}/#/session/%E0")
    await expect(page.locator("#overview")).to_be_visible()
