"""Who may ask the dashboard, by which address, and how long a browser may."""

import pytest

from jido_nats import Client, LocalServer, SessionManager
from jido_nats.errors import ConfigurationError
from tests.dashboard.stage import TOKEN, shown
from tests.tools.http import ask


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


async def test_a_link_with_the_token_opens_the_dashboard_for_good(server: LocalServer, manager: SessionManager) -> None:
    async with shown(server.url, token=TOKEN) as url:
        entered = await ask(url, path=f"/?token={TOKEN}")
        cookie = entered.headers["set-cookie"]
        later = await ask(url, path="/api/sessions", headers={"Cookie": cookie.partition(";")[0]})

    assert (entered.status, later.status) == (200, 200)
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} < set(cookie.split("; "))
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
