"""Records in their bucket: compare-and-set, expiry, and creating over an expiry's marker."""

import asyncio

import msgspec
import pytest

from jido_nats.core.session import SessionRecord, Status
from jido_nats.errors import Conflict
from jido_nats.store.records import Entry, SessionRecords, entry_of
from tests.core.samples import record_in
from tests.tools.support import Stranger, eventually

ACTIVE = record_in(Status.ACTIVE)
SEALED = msgspec.structs.replace(record_in(Status.TERMINATED), sealed=True)


async def test_a_key_that_never_was_has_no_revision(records: SessionRecords) -> None:
    assert await records.get("s1") == Entry("s1", 0, None)


async def test_what_was_written_is_read(records: SessionRecords) -> None:
    revision = await records.write(ACTIVE, 0)

    assert await records.get("s1") == Entry("s1", revision, ACTIVE)


async def test_a_record_is_json_in_the_bucket(stranger: Stranger, records: SessionRecords) -> None:
    await records.write(ACTIVE, 0)

    kv = await stranger.js.key_value("JIDO_SESSIONS")
    assert msgspec.json.decode((await kv.get("s1")).value or b"", type=SessionRecord) == ACTIVE


async def test_the_slower_of_two_creators_is_told(records: SessionRecords) -> None:
    revision = await records.write(ACTIVE, 0)

    with pytest.raises(Conflict):
        await records.write(record_in(Status.IDLE), 0)

    assert await records.get("s1") == Entry("s1", revision, ACTIVE)


async def test_the_slower_of_two_writers_is_told(records: SessionRecords) -> None:
    revision = await records.write(ACTIVE, 0)
    faster = await records.write(record_in(Status.IDLE), revision)

    with pytest.raises(Conflict):
        await records.write(record_in(Status.TERMINATING), revision)

    assert (await records.get("s1")).revision == faster


async def test_of_many_writers_one_wins(records: SessionRecords) -> None:
    revision = await records.write(ACTIVE, 0)

    results = await asyncio.gather(*(records.write(ACTIVE, revision) for _ in range(20)), return_exceptions=True)

    assert sum(isinstance(result, Conflict) for result in results) == 19


async def test_a_sealed_record_expires(records: SessionRecords) -> None:
    revision = await records.write(SEALED, 0)
    assert (await records.get("s1")).record == SEALED

    entry = await eventually(lambda: marker(records))

    assert entry.revision > revision


async def test_a_record_that_is_not_sealed_has_no_ttl(stranger: Stranger, records: SessionRecords) -> None:
    await records.write(ACTIVE, 0)

    (message,) = await stranger.stored("KV_JIDO_SESSIONS")
    assert "Nats-TTL" not in (message.headers or {})


async def test_an_id_is_taken_again_over_its_marker(records: SessionRecords) -> None:
    await records.write(SEALED, 0)
    entry = await eventually(lambda: marker(records))

    revision = await records.write(ACTIVE, entry.revision)

    assert await records.get("s1") == Entry("s1", revision, ACTIVE)


async def test_a_marker_refuses_who_did_not_read_it(records: SessionRecords) -> None:
    await records.write(SEALED, 0)
    await eventually(lambda: marker(records))

    with pytest.raises(Conflict):
        await records.write(ACTIVE, 0)


async def test_following_gives_what_is_there_and_every_change(records: SessionRecords) -> None:
    first = await records.write(ACTIVE, 0)

    async with records.follow() as consumer:
        assert entry_of(await consumer.next()) == Entry("s1", first, ACTIVE)
        second = await records.write(record_in(Status.IDLE), first)
        assert entry_of(await consumer.next()) == Entry("s1", second, record_in(Status.IDLE))


async def test_following_tells_of_an_expiry(records: SessionRecords) -> None:
    async with records.follow() as consumer:
        await records.write(SEALED, 0)
        assert entry_of(await consumer.next()).record == SEALED

        assert entry_of(await consumer.next()).record is None


async def test_who_follows_gets_to_the_last_position(records: SessionRecords) -> None:
    await records.write(SEALED, 0)
    await eventually(lambda: marker(records))

    async with records.follow() as consumer:
        assert (await consumer.next()).sequence == await records.last_position()


async def test_an_empty_bucket_has_no_last_position(records: SessionRecords) -> None:
    assert await records.last_position() == 0


async def test_what_is_no_record_is_passed_over(stranger: Stranger, records: SessionRecords) -> None:
    await (await stranger.js.key_value("JIDO_SESSIONS")).put("s1", b"hello")

    assert (await records.get("s1")).record is None


async def marker(records: SessionRecords) -> Entry | None:
    """The entry, once it has expired."""
    entry = await records.get("s1")
    return entry if entry.record is None else None
