"""Who may ask the dashboard, by which address, and how long a browser may."""

from contextlib import AbstractContextManager

import pytest

from jido_nats import Client, LocalServer, SessionManager
from jido_nats.dashboard.addresses import parse_public_url
from jido_nats.dashboard.logins import LOGINS_MAX, Login, Logins
from jido_nats.errors import ConfigurationError
from tests.dashboard.stage import TOKEN, shown
from tests.tools.http import ask, listening

PUBLIC = "https://dash.example.org"


async def test_another_site_may_not_command(url: str, client: Client, manager: SessionManager) -> None:
    forged = (
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "http://["},
    )
    plain = {"Content-Type": "text/plain"}, {"Content-Type": "application/x-www-form-urlencoded"}

    answers = [await ask(url, "POST", "/api/sessions", {}, headers=headers) for headers in (*forged, *plain)]
    own = await ask(url, "POST", "/api/sessions", {}, headers={"Origin": url})

    assert [answer.status for answer in answers] == [403, 403, 403, 403, 415, 415]
    assert own.status == 201
    assert len(await client.list_sessions()) == 1


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "127.0.0.1-x", "[::2]"])
async def test_a_name_that_was_made_to_point_here_is_refused(url: str, manager: SessionManager, host: str) -> None:
    answer = await ask(url, path="/api/sessions", headers={"Host": host})

    assert (answer.status, answer.code) == (421, "wrong_host")
    assert "open http://localhost" in answer.json["error"]["message"]


# With the first ones, Starlette before 1.0.1 takes the path of the URL from the Host header.
MALFORMED = [
    "x/static/style.css?",
    "localhost/static/style.css?",
    "127.0.0.1/static/style.css#",
    "localhost:1/static/icon.svg?a=",
    *(
        "",
        "[",
        "a@b:c",
        "localhost:",
        "localhost:x",
        "localhost:123456",
        "local host",
        "localhost,evil",
        "a..b",
        "[::1",
    ),
]


@pytest.mark.parametrize("listens", ["127.0.0.1", "0.0.0.0"])
async def test_a_host_that_is_none_is_refused(
    server: LocalServer, client: Client, manager: SessionManager, listens: str
) -> None:
    async with shown(server.url, host=listens, token=TOKEN) as url:
        headers = [
            {"Host": host, "Authorization": token} for host in MALFORMED for token in (f"Bearer {TOKEN}", "none")
        ]
        read = [await ask(url, path="/api/sessions", headers=each) for each in headers]
        created = [await ask(url, "POST", "/api/sessions", {"session_id": "evil"}, each) for each in headers]

    assert {(answer.status, answer.code) for answer in read + created} == {(400, "bad_request")}
    assert "localhost:8080" in read[0].json["error"]["message"]
    assert await client.list_sessions() == []


async def test_localhost_is_a_name_of_this_machine(url: str, manager: SessionManager) -> None:
    port = url.rpartition(":")[2]

    assert (await ask(url, headers={"Host": f"localhost:{port}"})).status == 200


async def test_without_the_token_nothing_is_given_out(server: LocalServer, manager: SessionManager) -> None:
    async with shown(server.url, token=TOKEN) as url:
        paths = ["/", "/api/sessions", "/api/sessions/s1", "/api/stream?after=0", "/static/app.js", "/nowhere"]
        tries: list[dict[str, str]] = [{}, {"Authorization": "Bearer wrong"}, {"Cookie": f"{cookie_name(url)}=wrong"}]
        answers = [await ask(url, path=path, headers=headers) for path in paths for headers in tries]
        answers += [await ask(url, path="/?token=wrong"), await ask(url, path=f"/api/sessions?token={TOKEN}")]
        answers += [await ask(url, "POST", "/api/sessions", {}), await ask(url, "POST", f"/?token={TOKEN}", {})]

    assert {answer.status for answer in answers} == {401}
    assert b"requires a token" in answers[0].body
    assert not any("set-cookie" in answer.headers for answer in answers)


async def test_a_link_with_the_token_opens_the_dashboard(server: LocalServer, manager: SessionManager) -> None:
    async with shown(server.url, token=TOKEN) as url:
        entered = await ask(url, path=f"/?token={TOKEN}")
        cookie = entered.headers["set-cookie"]
        later = await ask(url, path="/api/sessions", headers={"Cookie": cookie.partition(";")[0]})

    assert (entered.status, later.status) == (200, 200)
    assert set(cookie.split("; ")[1:]) == {"HttpOnly", "SameSite=Strict", "Path=/"}
    assert TOKEN not in cookie


async def test_programs_bring_the_token_as_a_bearer(server: LocalServer, manager: SessionManager) -> None:
    async with shown(server.url, token=TOKEN) as url:
        answer = await ask(url, path="/api/sessions", headers={"Authorization": f"Bearer {TOKEN}"})

    assert answer.status == 200


def cookie_name(url: str) -> str:
    return f"jido_dashboard_{url.rpartition(':')[2]}"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
async def test_listening_beyond_loopback_wants_a_token(server: LocalServer, host: str) -> None:
    with pytest.raises(ConfigurationError, match=r"add --token .*, or listen on 127\.0\.0\.1"):
        async with shown(server.url, host=host):
            pass


async def test_a_public_url_wants_a_token(server: LocalServer) -> None:
    with pytest.raises(ConfigurationError, match=r"--public-url .*: add --token"):
        async with shown(server.url, public_url=PUBLIC):
            pass


async def test_with_a_token_it_listens_beyond_loopback(server: LocalServer, manager: SessionManager) -> None:
    async with shown(server.url, host="0.0.0.0", token=TOKEN) as url:
        answer = await ask(
            url, path="/api/sessions", headers={"Host": "dash.example", "Authorization": f"Bearer {TOKEN}"}
        )

    assert answer.status == 200


async def test_an_empty_token_is_none(server: LocalServer) -> None:
    with pytest.raises(ConfigurationError, match="--token is empty"):
        async with shown(server.url, token=""):
            pass


# Logins


async def logged_in(url: str) -> dict[str, str]:
    """The headers of a browser that has shown the token."""
    entered = await ask(url, path=f"/?token={TOKEN}")
    return {"Cookie": entered.headers["set-cookie"].partition(";")[0]}


async def is_let_in(url: str, browser: dict[str, str]) -> bool:
    return (await ask(url, path="/static/app.js", headers=browser)).status == 200


async def test_a_cookie_is_worthless_after_the_log_out(server: LocalServer, manager: SessionManager) -> None:
    async with shown(server.url, token=TOKEN) as url:
        browser, other = await logged_in(url), await logged_in(url)
        answer = await ask(url, "POST", "/api/logout", {}, browser)

        assert answer.status == 204
        assert "Max-Age=0" in answer.headers["set-cookie"]
        assert not await is_let_in(url, browser)
        assert await is_let_in(url, other)


async def test_a_log_out_ends_the_streams_of_that_browser(server: LocalServer, manager: SessionManager) -> None:
    async with shown(server.url, token=TOKEN) as url:
        browser, other = await logged_in(url), await logged_in(url)
        path = "/api/sessions/s1/output"
        async with listening(url, path, browser) as ending, listening(url, path, other) as staying:
            await ending.named("output_caught_up")
            await ask(url, "POST", "/api/logout", {}, browser)
            rest = [event.name async for event in ending]
            await staying.named("output_caught_up")
            await staying.named("beat")

    assert set(rest) <= {"beat"}


async def test_another_site_may_not_log_a_browser_out(server: LocalServer, manager: SessionManager) -> None:
    async with shown(server.url, token=TOKEN) as url:
        browser = await logged_in(url)
        forged = await ask(url, "POST", "/api/logout", {}, {**browser, "Origin": "https://evil.example"})
        form = await ask(url, "POST", "/api/logout", b"", {**browser, "Content-Type": "text/plain"})

        assert (forged.status, form.status) == (403, 415)
        assert await is_let_in(url, browser)


async def test_a_login_that_is_not_used_ends(server: LocalServer, manager: SessionManager) -> None:
    async with shown(server.url, token=TOKEN, login_idle_s=0) as url:
        browser = await logged_in(url)

        assert not await is_let_in(url, browser)


class Clock:
    """Logins with a clock that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0
        self.logins = Logins(TOKEN, port=80, secure=False, idle_s=60, clock=lambda: self.now)

    def begin(self) -> str:
        """A new login's cookie."""
        return self.logins.begin().partition(";")[0]

    def find(self, cookie: str) -> Login | None:
        """Its login, if it has not ended."""
        return self.logins.find(cookie)


def use(login: Login | None) -> AbstractContextManager[None]:
    """A request with that login."""
    assert login is not None
    return login.used()


def test_each_use_of_a_login_counts() -> None:
    clock = Clock()
    cookie = clock.begin()

    for clock.now in (50, 100, 150):
        with use(clock.find(cookie)):
            pass

    clock.now = 211
    assert clock.find(cookie) is None


def test_an_open_stream_is_use_of_a_login() -> None:
    clock = Clock()
    cookie = clock.begin()

    with use(clock.find(cookie)):
        clock.now = 1000
        assert clock.find(cookie) is not None
    clock.now = 1060
    assert clock.find(cookie) is not None
    clock.now = 1061
    assert clock.find(cookie) is None


def test_logins_take_no_more_than_so_much_memory() -> None:
    clock = Clock()
    first, second = clock.begin(), clock.begin()
    assert clock.find(first) is not None

    for _ in range(LOGINS_MAX - 1):
        clock.begin()

    assert clock.find(second) is None, "the longest unused"
    assert clock.find(first) is not None


@pytest.mark.parametrize(
    "cookies", ["", "jido_dashboard_80", "jido_dashboard_80=", "a=b; jido_dashboard_80=x", "=;\x00"]
)
def test_a_cookie_that_is_none_finds_no_login(cookies: str) -> None:
    assert Clock().find(cookies) is None


# Behind a proxy


@pytest.mark.parametrize("host", ["dash.example.org", "127.0.0.1:8080"], ids=["passed on", "the proxy's own"])
@pytest.mark.parametrize("listens", ["127.0.0.1", "0.0.0.0"])
async def test_a_page_behind_a_proxy_may_command(
    server: LocalServer, manager: SessionManager, listens: str, host: str
) -> None:
    async with shown(server.url, host=listens, token=TOKEN, public_url=PUBLIC) as url:
        headers = {"Authorization": f"Bearer {TOKEN}", "Host": host}
        created = await ask(url, "POST", "/api/sessions", {}, {**headers, "Origin": PUBLIC})
        others = ["https://dash.example.org:8443", "http://dash.example.org", "https://evil.example", "null"]
        forged = [await ask(url, "POST", "/api/sessions", {}, {**headers, "Origin": origin}) for origin in others]

    assert created.status == 201
    assert {(answer.status, answer.code) for answer in forged} == {(403, "wrong_origin")}
    assert "--public-url" in forged[0].json["error"]["message"]


@pytest.mark.parametrize("listens", ["127.0.0.1", "0.0.0.0"])
async def test_a_dashboard_with_a_public_url_has_no_other_names(
    server: LocalServer, manager: SessionManager, listens: str
) -> None:
    async with shown(server.url, host=listens, token=TOKEN, public_url=PUBLIC) as url:
        hosts = ["evil.example", "dash.example.org:8443", "dash.example.org.evil.example"]
        answers = [await ask(url, headers={"Host": host}) for host in hosts]

    assert {(answer.status, answer.code) for answer in answers} == {(421, "wrong_host")}
    assert PUBLIC in answers[0].json["error"]["message"]


async def test_under_https_the_cookie_is_secure(server: LocalServer, manager: SessionManager) -> None:
    async with shown(server.url, token=TOKEN, public_url=PUBLIC) as url:
        entered = await ask(url, path=f"/?token={TOKEN}")
        left = await ask(url, "POST", "/api/logout", {}, await logged_in(url))

    assert "Secure" in entered.headers["set-cookie"].split("; ")
    assert "Secure" in left.headers["set-cookie"].split("; ")


@pytest.mark.parametrize(
    ("given", "origin"),
    [
        ("https://dash.example.org/", "https://dash.example.org"),
        ("https://Dash.Example.org:443", "https://dash.example.org"),
        ("https://dash.example.org:8443", "https://dash.example.org:8443"),
        ("http://[::1]:80", "http://[::1]"),
        ("http://dash:443", "http://dash:443"),
    ],
)
def test_a_public_url_is_compared_as_browsers_write_it(given: str, origin: str) -> None:
    assert parse_public_url(given) == origin


@pytest.mark.parametrize(
    "given",
    [
        *("dash.example.org", "ftp://dash", "https://", "https://dash/sub", "https://dash?x", "https://dash#x"),
        *("https://user@dash", "https://dash:x", "https://dash:99999", "https://[::1", "https://a b", "*"),
    ],
)
async def test_a_public_url_that_is_none_is_refused(server: LocalServer, given: str) -> None:
    with pytest.raises(ConfigurationError, match="--public-url"):
        async with shown(server.url, token=TOKEN, public_url=given):
            pass
