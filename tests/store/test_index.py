"""The index of all records: pages as a plain sort would give them, and others run while a long one is made."""

import asyncio
from datetime import UTC, datetime

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from jido_nats import Status
from jido_nats.core import lifecycle
from jido_nats.core.requests import ListRequest
from jido_nats.core.session import SessionRecord
from jido_nats.store.index import RECORDS_PER_TURN, SessionIndex, matches
from jido_nats.store.records import Entry

AT = datetime(2026, 1, 1, tzinfo=UTC)
NO_LIMIT = 10**9

ids = st.sampled_from("abcdefgh")
statuses = st.sampled_from(Status) | st.none()
requests = st.builds(
    ListRequest,
    status=statuses,
    include_terminated=st.booleans(),
    limit=st.integers(1, 4),
    cursor=ids | st.none(),
)


def record(session_id: str, status: Status = Status.ACTIVE) -> SessionRecord:
    created, _ = lifecycle.create(session_id, owner="m", at=AT)
    return msgspec.structs.replace(created, status=status)


def filled(count: int) -> SessionIndex:
    index = SessionIndex()
    for number in range(count):
        index.apply(Entry(f"{number:06}", number + 1, record(f"{number:06}")))
    return index


@given(st.lists(st.tuples(ids, statuses)), requests)
async def test_a_page_is_what_a_sort_gives(changes: list[tuple[str, Status | None]], request: ListRequest) -> None:
    index = SessionIndex()
    model: dict[str, SessionRecord] = {}
    for revision, (session_id, status) in enumerate(changes, 1):
        changed = None if status is None else record(session_id, status)
        index.apply(Entry(session_id, revision, changed))
        if changed is None:
            model.pop(session_id, None)
        else:
            model[session_id] = changed

    page = await index.page(request, NO_LIMIT)

    wanted = [model[key] for key in sorted(model) if key > (request.cursor or "") and matches(model[key], request)]
    assert page.sessions == wanted[: request.limit]
    assert (page.next_cursor is not None) == (len(wanted) > request.limit)


async def test_others_run_while_all_are_looked_at() -> None:
    index = filled(3 * RECORDS_PER_TURN)
    making = asyncio.create_task(index.page(ListRequest(status=Status.IDLE), NO_LIMIT))

    await asyncio.sleep(0)

    assert not making.done()
    assert (await making).sessions == []


async def test_a_page_is_whole_though_the_index_begins_anew() -> None:
    index = filled(3 * RECORDS_PER_TURN)
    making = asyncio.create_task(index.page(ListRequest(limit=3 * RECORDS_PER_TURN), NO_LIMIT))
    await asyncio.sleep(0)

    index.clear()

    assert len((await making).sessions) == 3 * RECORDS_PER_TURN
    assert (await index.page(ListRequest(), NO_LIMIT)).sessions == []


async def test_a_session_that_ends_meanwhile_is_not_in_the_rest_of_the_page() -> None:
    index = filled(3 * RECORDS_PER_TURN)
    making = asyncio.create_task(index.page(ListRequest(limit=3 * RECORDS_PER_TURN), NO_LIMIT))
    await asyncio.sleep(0)

    last = f"{3 * RECORDS_PER_TURN - 1:06}"
    index.apply(Entry(last, 3 * RECORDS_PER_TURN + 1, record(last, Status.TERMINATED)))

    assert len((await making).sessions) == 3 * RECORDS_PER_TURN - 1
