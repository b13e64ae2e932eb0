"""A server, a manager and a dashboard, and the system's Chromium to look at it."""

import shutil
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, NamedTuple

from playwright.async_api import Browser, ConsoleMessage, Page, async_playwright, expect

from jido_nats import Cause, Client, LocalServer, RestartPolicy, SessionManager, Settings
from jido_nats.broker.options import ConnectOptions
from jido_nats.dashboard.serve import dashboard
from tests.dashboard import scene

WAIT_MS = 15_000
LEASE_S = 2
TOKEN = "a-long-random-token"

expect.set_options(timeout=WAIT_MS)


class Stage(NamedTuple):
    """What a test has to play with."""

    server: LocalServer
    manager: SessionManager
    client: Client
    url: str


@asynccontextmanager
async def staged(worker: Any = scene.agent, **settings: Any) -> AsyncIterator[Stage]:
    """All of it, running; `worker`: one, or several by name."""
    chosen = Settings(lease_s=LEASE_S, **settings)
    async with (
        LocalServer() as server,
        SessionManager.connect(server.url, worker=worker, settings=chosen) as manager,
        Client.connect(server.url) as client,
    ):
        await manager.start_serving()
        async with shown(server.url) as url:
            yield Stage(server, manager, client, url)


def shown(nats_url: str, **options: Any) -> AbstractAsyncContextManager[str]:
    """Another dashboard, on a free port."""
    return dashboard(ConnectOptions(servers=(nats_url,)), port=0, **{"beat_s": 0.5, **options})


@asynccontextmanager
async def chromium(*arguments: str) -> AsyncIterator[Browser]:
    """The system's Chromium, without a window."""
    path = shutil.which("chromium")
    assert path is not None, "tests/interop/install.sh installs Chromium"
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=["--no-sandbox", *arguments])
        try:
            yield browser
        finally:
            await browser.close()


async def crashed(stage: Stage, session_id: str, backoff_s: float = 60) -> None:
    """A session whose worker crashes, and that goes on with another attempt after a while."""
    policy = RestartPolicy(on=(Cause.CRASHED,), backoff_s=backoff_s)
    await stage.client.create_session(session_id=session_id, restart=policy)
    await stage.client.send_message(session_id, "user", "crash")


class Troubles:
    """What a page complains of: errors of its scripts, and of its Content-Security-Policy."""

    def __init__(self, page: Page) -> None:
        self.found: list[str] = []
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.found.append(str(error)))
        page.on("dialog", lambda dialog: self.found.append(f"a dialog: {dialog.message}"))

    def _on_console(self, message: ConsoleMessage) -> None:
        # The browser reports answers that are errors, and lost connections, by itself.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            self.found.append(message.text)


@asynccontextmanager
async def new_page(browser: Browser, **options: Any) -> AsyncIterator[Page]:
    """A page of a new, empty profile; it must not complain of anything."""
    context = await browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
    page = await context.new_page()
    page.set_default_timeout(WAIT_MS)
    not_ready = Troubles(page)
    try:
        yield page
    finally:
        await context.close()
    assert not not_ready.found, not_ready.found


async def be_seen(page: Page, state: str) -> None:
    """What a browser does when its tab is left and entered; headless, a page is always visible."""
    await page.evaluate(
        """(state) => {
          Object.defineProperty(document, "visibilityState", { value: state, configurable: true });
          document.dispatchEvent(new Event("visibilitychange"));
        }""",
        state,
    )
