"""The recipes of `deploy/docs/dashboard.md` for a TLS proxy, with the real proxy, a certificate and a browser."""

import asyncio
import contextlib
import shutil
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final, NamedTuple

import pytest
import trustme
from playwright.async_api import Page, expect

from jido_nats import Client, LocalServer, SessionManager
from tests.dashboard.stage import TOKEN, chromium, new_page, shown
from tests.tools.bound import bound
from tests.tools.http import ask, listening
from tests.tools.pages import block, page
from tests.tools.support import eventually

NAME: Final = "dash.example.org"


class Behind(NamedTuple):
    """A dashboard behind a proxy: what browsers open, and how a client verifies it."""

    url: str
    tls: ssl.SSLContext


def caddy(port: int, upstream: int, folder: Path) -> list[str]:
    """The recipe with ports and a certificate of this test."""
    recipe = block(page("dashboard"), "caddy", NAME)
    recipe = recipe.replace(f"{NAME} {{", f"{NAME}:{port} {{\n    tls {folder}/dash.pem {folder}/dash.key")
    recipe = recipe.replace("127.0.0.1:8080", f"127.0.0.1:{upstream}")
    (folder / "Caddyfile").write_text("{\n    admin off\n    auto_https disable_redirects\n}\n" + recipe)
    return ["caddy", "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]


def nginx(port: int, upstream: int, folder: Path) -> list[str]:
    """The recipe with ports and a certificate of this test, in the frame that a distribution ships."""
    recipe = block(page("dashboard"), "nginx", "server")
    recipe = recipe.replace("listen 443", f"listen {port}").replace(f"/etc/ssl/{NAME}.", f"{folder}/dash.")
    recipe = recipe.replace("127.0.0.1:8080", f"127.0.0.1:{upstream}")
    paths = "".join(
        f"{name}_temp_path {folder}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off;\nmaster_process off;\npid {folder}/nginx.pid;\nerror_log {folder}/error.log;\n"
        f"events {{}}\nhttp {{\naccess_log off;\n{paths}{recipe}}}\n"
    )
    return ["nginx", "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")]


PROXIES: Final[list[Callable[[int, int, Path], list[str]]]] = [caddy, nginx]


@contextlib.asynccontextmanager
async def behind(
    proxy: Callable[[int, int, Path], list[str]], server: LocalServer, folder: Path
) -> AsyncIterator[Behind]:
    """A dashboard as the page says to start it, behind that proxy."""
    port = free_port()
    url = f"https://{NAME}:{port}"
    tls = certificate(folder)
    async with shown(server.url, token=TOKEN, public_url=url) as own:
        command = proxy(port, int(own.rpartition(":")[2]), folder)
        path = shutil.which(command[0], path="/usr/sbin:/usr/bin:/usr/local/bin")
        assert path is not None, "tests/interop/install.sh installs Caddy and nginx"
        with (folder / "log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *bound(path, *command[1:]), stdout=log, stderr=log, env={"HOME": str(folder)}
            )
        try:
            await eventually(lambda: is_open(port))
            yield Behind(url, tls)
        finally:
            process.terminate()
            await process.wait()


def certificate(folder: Path) -> ssl.SSLContext:
    """A certificate for the proxy, in `folder`, and what a client verifies it with."""
    ca = trustme.CA()
    issued = ca.issue_cert(NAME)
    issued.private_key_pem.write_to_path(folder / "dash.key")
    for pem in issued.cert_chain_pems:
        pem.write_to_path(folder / "dash.pem", append=True)
    tls = ssl.create_default_context()
    ca.configure_trust(tls)
    return tls


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


async def is_open(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


@pytest.mark.parametrize("proxy", PROXIES)
async def test_behind_the_proxy_of_the_page_everything_works(
    server: LocalServer,
    client: Client,
    manager: SessionManager,
    tmp_path: Path,
    proxy: Callable[[int, int, Path], list[str]],
) -> None:
    async with behind(proxy, server, tmp_path) as (url, tls):
        entered = await ask(url, path=f"/?token={TOKEN}", tls=tls)
        browser = {"Cookie": entered.headers["set-cookie"].partition(";")[0], "Origin": url}
        snapshot = (await ask(url, path="/api/sessions", headers=browser, tls=tls)).json
        async with listening(url, f"/api/stream?after={snapshot['position_token']}", browser, tls) as source:
            created = await ask(url, "POST", "/api/sessions", {"session_id": "s1"}, browser, tls)
            change = await source.named("change")
        left = await ask(url, "POST", "/api/logout", {}, browser, tls)
        refused = await ask(url, path="/api/sessions", headers=browser, tls=tls)

    assert "Secure" in entered.headers["set-cookie"]
    assert (created.status, left.status, refused.status) == (201, 204, 401)
    assert change.data["event"]["session_id"] == "s1"


@contextlib.asynccontextmanager
async def logged_in(server: LocalServer, folder: Path) -> AsyncIterator[tuple[str, Page]]:
    """The URL of a dashboard with a proxy in front of it, and a browser's page that has shown the token there."""
    async with (
        behind(caddy, server, folder) as (url, _),
        chromium(f"--host-resolver-rules=MAP {NAME} 127.0.0.1") as browser,
        new_page(browser, ignore_https_errors=True) as page,
    ):
        await page.goto(f"{url}/?token={TOKEN}")
        yield url, page


async def test_a_browser_logs_in_commands_and_logs_out_behind_the_proxy(
    server: LocalServer, client: Client, manager: SessionManager, tmp_path: Path
) -> None:
    async with logged_in(server, tmp_path) as (_, page):
        await page.get_by_role("button", name="New session").click()
        await page.get_by_role("button", name="Create").click()
        await expect(page.locator("#session-status")).to_have_text("active")
        (cookie,) = await page.context.cookies()
        assert cookie["secure"]

        await page.get_by_role("button", name="Log out").click()

        await expect(page.get_by_role("heading", name="This dashboard requires a token")).to_be_visible()
        assert await page.context.cookies() == []
        assert TOKEN not in page.url
        assert len(await client.list_sessions()) == 1


async def test_behind_a_proxy_with_http_2_every_tab_keeps_its_stream(
    server: LocalServer, client: Client, manager: SessionManager, tmp_path: Path
) -> None:
    async with logged_in(server, tmp_path) as (url, first):
        pages = [first, *[await first.context.new_page() for _ in range(7)]]
        for page in pages:
            await page.goto(url)
            await expect(page.locator("#connection-text")).to_have_text("Live")

        assert all([await page.evaluate("dashboard.feed.slot.held") for page in pages])
