"""Publishing under a fence, claiming, and looking at what is stored."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from jido_nats import Settings
from jido_nats.broker.connection import Connection
from jido_nats.core import lifecycle, subjects
from jido_nats.core.codec import Encoding
from jido_nats.core.session import SessionRecord, Status
from jido_nats.errors import Conflict, PositionUnavailable
from jido_nats.store import topology
from jido_nats.store.event_log import EventLog, Fence
from tests.core.samples import record_in
from tests.tools.support import Stranger, eventually

ENDED = record_in(Status.TERMINATED)
OWED = list(subjects.publications(ENDED))
IDS = [publication.message_id for publication in OWED]


async def test_an_event_is_stored_with_its_headers(stranger: Stranger, event_log: EventLog) -> None:
    sequence = await event_log.publish(OWED[0], 0)

    message = await stranger.js.get_msg("JIDO_CLIENT", sequence)
    headers = message.headers or {}
    assert message.subject == "jido.client.events"
    assert (headers["Nats-Msg-Id"], headers["Content-Type"]) == (IDS[0], "application/json")
    assert event_log.acknowledged == sequence


async def test_an_old_fence_refuses_an_event(stranger: Stranger, event_log: EventLog) -> None:
    await event_log.claim("s1", "m2", 0)

    with pytest.raises(Conflict):
        await event_log.publish(OWED[0], 0)

    assert await stranger.stored_events() == []


async def test_the_new_fence_takes_an_event(stranger: Stranger, event_log: EventLog) -> None:
    claim = await event_log.claim("s1", "m2", 0)

    await event_log.publish(OWED[0], claim)

    assert await stranger.stored_brief() == ["3 terminated"]


async def test_the_fence_of_another_session_refuses_nothing(stranger: Stranger, event_log: EventLog) -> None:
    await event_log.claim("s2", "m2", 0)

    await event_log.publish(OWED[0], 0)

    assert await stranger.stored_brief() == ["3 terminated"]


async def test_nobody_has_claimed_at_first(event_log: EventLog) -> None:
    assert await event_log.fence("s1") == Fence(0, None)


async def test_a_fence_tells_who_claimed(event_log: EventLog) -> None:
    claim = await event_log.claim("s1", "m2", 0)

    assert await event_log.fence("s1") == Fence(claim, "m2")


async def test_of_many_claimants_one_wins(event_log: EventLog) -> None:
    results = await asyncio.gather(*(event_log.claim("s1", f"m{n}", 0) for n in range(10)), return_exceptions=True)

    assert sum(isinstance(result, Conflict) for result in results) == 9


@pytest.mark.parametrize("number", range(len(OWED) + 1))
async def test_the_look_finds_what_is_there(event_log: EventLog, number: int) -> None:
    for publication in OWED[:number]:
        await event_log.publish(publication, 0)
    claim = await event_log.claim("s1", "m2", 0)

    assert set(await event_log.stored(ENDED, claim)) == set(IDS[:number])


async def test_the_look_finds_version_1(event_log: EventLog) -> None:
    first = record_in(Status.INITIALIZING)
    (publication,) = subjects.publications(first)
    await event_log.publish(publication, 0)
    claim = await event_log.claim("s1", "m2", 0)

    assert set(await event_log.stored(first, claim)) == {"s1.1.session_created"}


async def test_the_look_takes_nothing_of_another_version(event_log: EventLog) -> None:
    for publication in subjects.publications(record_in(Status.ACTIVE)):
        await event_log.publish(publication, 0)
    claim = await event_log.claim("s1", "m2", 0)

    assert set(await event_log.stored(ENDED, claim)) == set()


async def test_a_session_is_remembered_by_its_own_subject(event_log: EventLog) -> None:
    assert not await event_log.has_events("s1")

    await event_log.publish(OWED[-1], 0)

    assert await event_log.has_events("s1")
    assert not await event_log.has_events("s2")


async def test_claims_are_followed(event_log: EventLog) -> None:
    before = await event_log.claim("s1", "m1", 0)

    async with event_log.follow_claims() as consumer:
        assert (await consumer.next()).sequence == before
        after = await event_log.claim("s2", "m1", 0)
        assert (await consumer.next()).sequence == after


async def test_only_what_is_older_than_the_stream_s_memory_is_taken_for_forgotten(
    stranger: Stranger, connection: Connection
) -> None:
    await topology.declare(connection, Settings(retention_s=1))
    event_log = EventLog(connection, "JIDO_CLIENT", Encoding.JSON)
    await stranger.js.publish("jido.client.events", b"{}")
    await eventually(lambda: is_empty(stranger))
    now = datetime.now(UTC)
    await event_log.claim("s1", "m1", 0)  # now the first message that there is
    old, young = (opened_at(at) for at in (now - timedelta(seconds=60), now))

    assert await event_log.expired_message_ids([young], set()) == set()
    assert await event_log.expired_message_ids([old], set()) == {
        "s1.1.session_created",
        "s1.2.session_status",
        "s1.2.session_status.session",
    }
    assert await event_log.expired_message_ids([old], {"s1.2.session_status"}) == {"s1.1.session_created"}


async def is_empty(stranger: Stranger) -> bool:
    """Whether retention has removed all events."""
    return (await stranger.js.stream_info("JIDO_CLIENT")).state.messages == 0


def opened_at(at: datetime) -> SessionRecord:
    """The record of a session that was begun then."""
    created, _ = lifecycle.create("s1", owner="m0", at=at)
    return lifecycle.opened(created)[0]


async def test_a_look_up_to_a_claim_of_another_life_of_the_stream_does_not_wait(event_log: EventLog) -> None:
    claim = await event_log.claim(ENDED.session_id, "m1", 0)
    with pytest.raises(PositionUnavailable, match="another life"):
        await event_log.message_ids_between([subjects.EVENTS], 0, claim + 5)
    with pytest.raises(PositionUnavailable, match="another life"):
        await event_log.events_of(ENDED.session_id, claim + 5)
