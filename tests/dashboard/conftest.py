"""For tests of the server a dashboard each; for those of the page one stage and one Chromium for a module."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page

from jido_nats import Client, LocalServer
from tests.dashboard.stage import Stage, chromium, new_page, shown, staged


@pytest.fixture
async def client(server: LocalServer) -> AsyncIterator[Client]:
    """A client of that server."""
    async with Client.connect(server.url) as client:
        yield client


@pytest.fixture
async def url(server: LocalServer) -> AsyncIterator[str]:
    """A dashboard of that server."""
    async with shown(server.url) as url:
        yield url


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage() -> AsyncIterator[Stage]:
    """A server, a manager, a dashboard."""
    async with staged(stop_timeout_s=0.5, terminated_ttl_s=1) as stage:
        yield stage


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    """Chromium."""
    async with chromium() as browser:
        yield browser


@pytest_asyncio.fixture(loop_scope="module")
async def page(stage: Stage, browser: Browser) -> AsyncIterator[Page]:
    """The dashboard's page, open."""
    async with new_page(browser) as page:
        await page.goto(stage.url)
        yield page


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A session id that no other test uses."""
    return "".join(c if c.isalnum() else "_" for c in request.node.name)[-60:]
