"""Whether every manager lists what the bucket has and nothing else, and runs as many sessions as the bucket says."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import msgspec
import nats
from nats.aio.client import Client as NatsClient
from nats.errors import Error as NatsError
from nats.js.errors import NotFoundError

from tests.tools.audit import MANAGERS_BUCKET, SESSIONS_BUCKET, Violation, read_bucket

# The server chooses the manager that answers: of three, one is passed over so many times once in a thousand runs.
LISTS: Final = 20
PAGE: Final = 1000
REQUEST_TIMEOUT_S: Final = 5.0
POLL_S: Final = 0.5


class _Listed(msgspec.Struct):
    session_id: str
    status: str
    version: int
    owner: str


class _Page(msgspec.Struct):
    sessions: list[_Listed] = []
    next_cursor: str | None = None
    error: dict[str, Any] | None = None


class _Lease(msgspec.Struct):
    manager_id: str
    sessions: int = 0


class _Stored(NamedTuple):
    """What the buckets have."""

    records: dict[str, _Listed]
    leases: dict[str, _Lease]

    def ended(self) -> set[str]:
        """The sessions that have ended."""
        return {session_id for session_id, record in self.records.items() if record.status == "terminated"}

    def owned(self) -> Counter[str]:
        """The number of live sessions by owner."""
        return Counter(record.owner for record in self.records.values() if record.status != "terminated")


async def disagreements(url: str, within_s: float, *, include_terminated: bool = False) -> list[Violation]:
    """None as soon as all managers agree with the buckets; what still differs after `within_s`."""
    found: list[Violation] = []
    for server in url.split(","):  # a server prefers the managers that are connected to it
        nc = await nats.connect(server, error_cb=_ignore)
        try:
            found += await _settled(nc, within_s, include_terminated)
        finally:
            await nc.close()
    return found


async def unlisted(url: str, session_id: str, managers: int, within_s: float) -> list[Violation]:
    """None as soon as so many managers serve and each lists a session.

    It reads no stream: readers may have taken every consumer.
    """
    nc = await nats.connect(url.split(","), error_cb=_ignore)
    deadline = asyncio.get_running_loop().time() + within_s
    try:
        while why := await _why_unlisted(nc, session_id, managers):
            if asyncio.get_running_loop().time() > deadline:
                return [Violation("not_listed", session_id, why)]
            await asyncio.sleep(POLL_S)
    finally:
        await nc.close()
    return []


async def _why_unlisted(nc: NatsClient, session_id: str, managers: int) -> str:
    serving = await _serving(nc)
    if serving < managers:
        return f"{serving} managers serve, not {managers}"
    for _ in range(LISTS):
        listed = await _list(nc, include_terminated=False)
        if isinstance(listed, str):
            return listed
        if session_id not in listed:
            record = await _stored_record(nc, session_id)
            if record is not None and record.status == "terminated":
                return ""  # and no live one is to be listed
            return f"a manager lists {len(listed)} others; the bucket has {record}"
    return ""


async def _stored_record(nc: NatsClient, session_id: str) -> _Listed | None:
    """The record, as the bucket's leader has it; None if there is none."""
    with contextlib.suppress(NotFoundError):
        entry = await nc.jetstream().get_last_msg(f"KV_{SESSIONS_BUCKET}", f"$KV.{SESSIONS_BUCKET}.{session_id}")
        return msgspec.json.decode(entry.data, type=_Listed) if entry.data else None
    return None


async def _serving(nc: NatsClient) -> int:
    """How many managers answer a ping within a second."""
    inbox = nc.new_inbox()
    answers = await nc.subscribe(inbox)
    await nc.publish("$SRV.PING.jido-session-manager", b"", reply=inbox)
    ids: set[str] = set()
    with contextlib.suppress(NatsError, TimeoutError):
        async with asyncio.timeout(1):
            async for message in answers.messages:
                ids.add(msgspec.json.decode(message.data)["id"])
    await answers.unsubscribe()
    return len(ids)


async def _settled(nc: NatsClient, within_s: float, include_terminated: bool) -> list[Violation]:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s
    while found := await _compare(nc, include_terminated):
        if loop.time() > deadline:
            return found
        await asyncio.sleep(POLL_S)
    return []


async def _compare(nc: NatsClient, include_terminated: bool) -> list[Violation]:
    """What differs: from what the buckets had before and after, since sessions begin and end meanwhile."""
    before = await _stored(nc)
    lists = [await _list(nc, include_terminated) for _ in range(LISTS)]
    after = await _stored(nc)
    possible = before.records.keys() | after.records.keys()
    surely = before.records.keys() & after.records.keys()
    if not include_terminated:
        possible, surely = possible - before.ended(), surely - after.ended()
    found = {violation for listed in lists for violation in _differences(listed, possible, surely)}
    return sorted({*found, *_running(before, after)})


def _differences(listed: dict[str, _Listed] | str, possible: set[str], surely: set[str]) -> Iterator[Violation]:
    if isinstance(listed, str):
        yield Violation("list_refused", "", listed)
        return
    for session_id in listed.keys() - possible:
        one = listed[session_id]
        detail = f"a manager lists it, {one.status}, v{one.version}, of {one.owner}; the bucket does not have it so"
        yield Violation("listed_without_record", session_id, detail)
    for session_id in surely - listed.keys():
        yield Violation("not_listed", session_id, "the bucket has it, and a manager does not list it")


def _running(before: _Stored, after: _Stored) -> Iterator[Violation]:
    counts = [before.owned(), after.owned()]
    for manager_id, lease in after.leases.items():
        least, most = sorted(count[manager_id] for count in counts)
        if not least <= lease.sessions <= most:
            detail = f"{manager_id} runs {lease.sessions} sessions, the bucket has {least} to {most} of it"
            yield Violation("runs_others", "", detail)


async def _stored(nc: NatsClient) -> _Stored:
    records = await read_bucket(nc, SESSIONS_BUCKET)
    leases = await read_bucket(nc, MANAGERS_BUCKET)
    return _Stored(
        {session_id: msgspec.json.decode(data, type=_Listed) for session_id, data in records.items()},
        {manager_id: msgspec.json.decode(data, type=_Lease) for manager_id, data in leases.items()},
    )


async def _list(nc: NatsClient, include_terminated: bool) -> dict[str, _Listed] | str:
    """All pages of a list, each from the manager that the server chooses; or why there is none."""
    listed: dict[str, _Listed] = {}
    request: dict[str, Any] = {"limit": PAGE, "include_terminated": include_terminated}
    while True:
        try:
            reply = await nc.request("jido.session.list", msgspec.json.encode(request), timeout=REQUEST_TIMEOUT_S)
        except (NatsError, TimeoutError) as error:
            return f"list was not answered: {type(error).__name__}"
        page = msgspec.json.decode(reply.data, type=_Page)
        if page.error is not None:
            return f"list was answered with {page.error['code']}: {page.error['message']}"
        listed |= {one.session_id: one for one in page.sessions}
        if page.next_cursor is None:
            return listed
        request["cursor"] = page.next_cursor


async def _ignore(_: Exception) -> None:
    """nats-py prints every error if it has no callback."""
