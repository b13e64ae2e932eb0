"""History by pages: a page has what the stream has, and costs what it holds."""

import json
import urllib.request

import pytest

from jido_nats import LocalServer, SessionManager
from tests.tools.support import Stranger, eventually

OWN = "jido.client.session.long"
LAST = 5_000


@pytest.fixture
async def long_history(manager: SessionManager, stranger: Stranger) -> None:
    """A session with 5,000 versions, other sessions' events in between; published as its manager would over days."""
    await stranger.create("long")
    for version in range(3, LAST + 1):
        await stranger.nc.publish(OWN, step(version))
        if version % 7 == 0:
            await stranger.nc.publish("jido.client.session.other", step(version))
        if version % 1000 == 0:
            await stranger.flush()
    await eventually(lambda: is_stored(stranger, step(LAST)))


async def is_stored(stranger: Stranger, data: bytes) -> bool:
    """Whether it is the last on the session's own subject."""
    return (await stranger.js.get_last_msg("JIDO_CLIENT", OWN)).data == data


def step(version: int) -> bytes:
    """The event of a version that a session has while it goes from idle to active and back."""
    status, previous = ("idle", "active") if version % 2 else ("active", "idle")
    event = {"type": "session_status", "session_id": "long", "version": version, "status": status}
    return json.dumps(event | {"previous_status": previous, "updated_at": "2025-01-24T10:30:00Z"}).encode()


async def page(stranger: Stranger, after: int, limit: int) -> tuple[list[int], int | None]:
    """The versions of a page, and its `next`."""
    answer = await stranger.ask("jido.session.history.long", {"after": after, "limit": limit})
    return [event["version"] for event in answer["events"]], answer.get("next")


@pytest.mark.usefixtures("long_history")
async def test_a_page_begins_after_any_version(stranger: Stranger) -> None:
    for after in (0, 1, 2, 3, 499, 2500, LAST - 11, LAST - 1, LAST, LAST + 1, 10**9):
        for limit in (1, 2, 10, 999, 1000):
            versions, following = await page(stranger, after, limit)

            assert versions == list(range(after + 1, min(after + limit, LAST) + 1)), (after, limit)
            assert following == (after + limit if after + limit < LAST else None), (after, limit)


@pytest.mark.usefixtures("long_history")
async def test_a_page_costs_what_it_holds(server: LocalServer, manager: SessionManager, stranger: Stranger) -> None:
    """In messages that the server sends to the manager, by the server's own count."""
    before = sent_to_managers(server)
    for after in (100, 2500, 4900):
        assert len((await page(stranger, after, 10))[0]) == 10

    assert sent_to_managers(server) - before < 300  # 3 times 10 events read twice at most, and a bisection


@pytest.mark.usefixtures("long_history")
async def test_pages_go_on_where_the_beginning_was_removed(stranger: Stranger) -> None:
    await stranger.js.purge_stream("JIDO_CLIENT", seq=3000, subject=OWN)
    left = await stranger.js.get_msg("JIDO_CLIENT", 1, next=True, subject=OWN)
    first = json.loads(left.data or b"")["version"]

    assert await page(stranger, 1, 3) == ([first, first + 1, first + 2], first + 2)
    assert await page(stranger, first - 1, 3) == ([first, first + 1, first + 2], first + 2)
    assert await page(stranger, first, 2) == ([first + 1, first + 2], first + 2)


@pytest.mark.usefixtures("long_history")
async def test_pages_go_on_when_the_record_has_expired(stranger: Stranger, manager: SessionManager) -> None:
    await stranger.nc.publish(OWN, b"not an event")
    await manager.terminate_session("long")
    await stranger.js.purge_stream("KV_JIDO_SESSIONS", subject="$KV.JIDO_SESSIONS.long")

    assert await page(stranger, 2500, 2) == ([2501, 2502], 2502)
    assert await page(stranger, LAST + 5, 2) == ([], None)


def sent_to_managers(server: LocalServer) -> int:
    """How many messages the server has sent to managers' connections."""
    with urllib.request.urlopen(f"{server.monitoring_url}/connz", timeout=5) as reply:
        connections = json.load(reply)["connections"]
    return sum(c["out_msgs"] for c in connections if "manager" in c.get("name", ""))
