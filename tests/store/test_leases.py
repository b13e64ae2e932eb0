"""Who is alive: a lease is renewed while its holder lives, goes with it, and is made anew after an outage."""

import asyncio
import logging
import math
import threading
import time
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from jido_nats import LocalServer
from jido_nats.broker.connection import Connection
from jido_nats.broker.consumer import StreamMessage
from jido_nats.broker.options import ConnectOptions
from jido_nats.core import codec
from jido_nats.core.manager_info import ManagerInfo
from jido_nats.errors import ServerUnusable
from jido_nats.store.lease import Lease
from jido_nats.store.leases import Leases, describe
from tests.tools.programs import serving
from tests.tools.support import DEADLINE_S, Stranger, eventually


def info() -> ManagerInfo:
    """What the lease says."""
    return describe("m1", "0")


@asynccontextmanager
async def lease_at(url: str, lease_s: int = 2) -> AsyncIterator[Lease]:
    lease = Lease(ConnectOptions(servers=(url,)), "JIDO_MANAGERS", "m1", lease_s)
    await lease.acquire(info)
    try:
        yield lease
    finally:
        await lease.release()


@pytest.fixture
async def leases(declared: Connection) -> Leases:
    """Everybody's leases."""
    return Leases(declared, "JIDO_MANAGERS")


def renewal(sequence: int, manager_id: str, **fields: bool) -> StreamMessage:
    """A renewal of that manager's lease, as the bucket has it."""
    data = codec.encode(msgspec.structs.replace(info(), manager_id=manager_id, **fields))
    return StreamMessage(f"$KV.JIDO_MANAGERS.{manager_id}", sequence, data, {"Nats-TTL": "10s"}, 0, 0)


async def test_another_manager_has_room_only_by_a_lease_that_is_new_enough(leases: Leases) -> None:
    for message in (renewal(1, "other"), renewal(2, "full", full=True), renewal(3, "silent", serves=False)):
        leases.apply(message)
    full_at = leases.full_at("full")

    assert (full_at, leases.full_at("other"), leases.full_at("nobody")) == (2, math.inf, math.inf)
    assert leases.others_have_room("full", after=0)
    assert not leases.others_have_room("full", after=full_at)
    leases.apply(renewal(4, "other"))
    assert leases.others_have_room("full", after=full_at)
    assert not leases.others_have_room("other", after=0)
    leases.apply(renewal(5, "other", full=True))
    assert not leases.others_have_room("full", after=full_at)


async def test_a_lease_stands(server: LocalServer, leases: Leases) -> None:
    async with lease_at(server.url) as lease:
        assert lease.valid
        assert await leases.is_alive("m1")


async def test_who_never_was_is_not_alive(leases: Leases) -> None:
    assert not await leases.is_alive("m1")


async def test_a_lease_tells_an_operator_who_holds_it(server: LocalServer, stranger: Stranger, leases: Leases) -> None:
    async with lease_at(server.url):
        entry = await (await stranger.js.key_value("JIDO_MANAGERS")).get("m1")

    for field in (b'"manager_id":"m1"', b'"host"', b'"pid"', b'"started_at"', b'"version"'):
        assert field in (entry.value or b"")


async def test_a_lease_that_is_released_is_gone_at_once(server: LocalServer, leases: Leases) -> None:
    async with lease_at(server.url, lease_s=60) as lease:
        pass

    assert not lease.valid
    assert not await leases.is_alive("m1")


async def test_a_lease_is_renewed(server: LocalServer, stranger: Stranger, leases: Leases) -> None:
    async with lease_at(server.url, lease_s=1) as lease:
        since = lease.held_since
        await eventually(lambda: renewed(stranger, 5))

        assert await leases.is_alive("m1")
        assert (lease.valid, lease.held_since) == (True, since)


async def test_a_lease_expires_when_its_holder_was_killed(server: LocalServer, stranger: Stranger) -> None:
    async with serving(server.url, "--lease-s", "2") as program:
        assert len(await managers(stranger)) == 1
        program.process.kill()
        await program.process.wait()

    await eventually(lambda: none_left(stranger))


async def test_a_blocked_event_loop_does_not_cost_the_lease(server: LocalServer, leases: Leases) -> None:
    async with lease_at(server.url, lease_s=3) as lease:
        since = lease.held_since

        time.sleep(4.0)  # what a worker that blocks does

        assert (lease.valid, lease.held_since) == (True, since)
        assert await leases.is_alive("m1")


async def test_a_lease_lapses_without_the_server(server: LocalServer, leases: Leases) -> None:
    async with lease_at(server.url, lease_s=1) as lease:
        await server.kill()

        await eventually(lambda: not lease.valid)
        await server.start()


async def test_a_lease_that_lapsed_is_made_anew(server: LocalServer, leases: Leases) -> None:
    async with lease_at(server.url, lease_s=1) as lease:
        since = lease.held_since
        await server.kill()
        await eventually(lambda: not lease.valid)
        await server.start()

        await asyncio.wait_for(lease.acquired_again.wait(), DEADLINE_S)
        assert lease.valid
        assert lease.held_since != since


async def test_the_end_of_a_lease_is_followed(server: LocalServer, leases: Leases) -> None:
    async with leases.follow() as consumer:
        async with lease_at(server.url):
            assert not leases.apply(await consumer.next())
            assert set(leases.managers) == {"m1"}

        while not leases.apply(await consumer.next()):
            assert leases.managers
        assert not leases.managers


async def test_an_expiry_is_followed(server: LocalServer, leases: Leases) -> None:
    async with leases.follow() as consumer:
        async with serving(server.url, "--lease-s", "2") as program:
            leases.apply(await consumer.next())
            program.process.kill()

        while not leases.apply(await consumer.next()):
            assert leases.managers


async def test_a_lease_without_a_server_is_told() -> None:
    lease = Lease(ConnectOptions(servers=("nats://127.0.0.1:1",)), "JIDO_MANAGERS", "m1", 2)

    with pytest.raises(ServerUnusable):
        await lease.acquire(info)


async def test_a_lapse_is_logged_when_it_happens(
    server: LocalServer, leases: Leases, caplog: pytest.LogCaptureFixture
) -> None:
    async with lease_at(server.url, lease_s=1) as lease:
        await server.kill()

        lapse = (await eventually(lambda: lapses(caplog)))[0]
        assert not lease.valid
        assert (vars(lapse)["manager_id"], "no connection to NATS" in vars(lapse)["why"]) == ("m1", True)
        await server.start()
        await asyncio.wait_for(lease.acquired_again.wait(), DEADLINE_S)
        assert len(lapses(caplog)) == 1


def lapses(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if "the lease has lapsed" in record.getMessage()]


@pytest.mark.parametrize("defect", [ZeroDivisionError("a defect"), asyncio.CancelledError()])
async def test_a_lease_whose_thread_fails_is_renewed_again(
    server: LocalServer, leases: Leases, caplog: pytest.LogCaptureFixture, defect: BaseException
) -> None:
    failing = threading.Event()

    def fails() -> ManagerInfo:
        if failing.is_set():
            raise defect
        return info()

    lease = Lease(ConnectOptions(servers=(server.url,)), "JIDO_MANAGERS", "m1", 2)
    await lease.acquire(fails)
    failing.set()
    not_ready = await eventually(lambda: lease.not_ready)
    failing.clear()

    await eventually(lambda: lease.not_ready == [])
    assert not_ready == [f"the lease's thread fails: {traceback.format_exception_only(defect)[0].strip()}"]
    assert "the lease's thread failed; restarting it" in caplog.messages
    assert lease.valid and await leases.is_alive("m1")
    await lease.release()
    assert not await leases.is_alive("m1")


async def test_what_has_changed_is_in_the_lease_at_once(
    server: LocalServer, stranger: Stranger, leases: Leases
) -> None:
    draining = threading.Event()
    lease = Lease(ConnectOptions(servers=(server.url,)), "JIDO_MANAGERS", "m1", 60)
    await lease.acquire(lambda: msgspec.structs.replace(info(), draining=draining.is_set()))

    draining.set()
    lease.renew_soon()

    await eventually(lambda: renewed(stranger, 2))
    assert b'"draining":true' in (await stranger.stored("KV_JIDO_MANAGERS"))[-1].data
    await lease.release()


async def renewed(stranger: Stranger, times: int) -> bool:
    return (await stranger.js.stream_info("KV_JIDO_MANAGERS")).state.last_seq >= times


async def managers(stranger: Stranger) -> list[str]:
    stored = await stranger.stored("KV_JIDO_MANAGERS")
    return [message.subject for message in stored if message.data]


async def none_left(stranger: Stranger) -> bool:
    return not await managers(stranger)


async def test_what_is_no_lease_is_passed_over(server: LocalServer, stranger: Stranger, leases: Leases) -> None:
    await stranger.js.publish("$KV.JIDO_MANAGERS.note", b"hello")
    async with lease_at(server.url), leases.follow() as consumer:
        for _ in range(2):
            leases.apply(await consumer.next())

    assert set(leases.managers) == {"m1"}


async def test_a_renewal_that_finds_another_revision_is_repeated_soon(
    server: LocalServer, stranger: Stranger, leases: Leases
) -> None:
    async with lease_at(server.url, lease_s=9):
        first = await revision(stranger)
        await eventually(lambda: moved_on(stranger, first))
        renewed = await revision(stranger)
        await stranger.js.publish("$KV.JIDO_MANAGERS.m1", b"{}", headers={"Nats-TTL": "9s"})

        # The next renewal, 3 s later, is refused, and the one after it has not to wait for as long again.
        await eventually(lambda: moved_on(stranger, renewed + 1), within_s=5)


async def revision(stranger: Stranger) -> int:
    return (await stranger.js.stream_info("KV_JIDO_MANAGERS")).state.last_seq


async def moved_on(stranger: Stranger, since: int) -> bool:
    return await revision(stranger) > since


async def test_a_lease_that_nobody_wants_any_more_while_it_is_acquired_is_not_kept(
    server: LocalServer, leases: Leases
) -> None:
    for moments in range(1, 40):  # before the thread has a loop, while it connects, and later
        lease = Lease(ConnectOptions(servers=(server.url,)), "JIDO_MANAGERS", "m1", 60)
        acquiring = asyncio.create_task(lease.acquire(info))
        for _ in range(moments):
            await asyncio.sleep(0)
        acquiring.cancel()
        await asyncio.wait({acquiring})

        await lease.release()

        await asyncio.to_thread(lease._thread.join, DEADLINE_S)
        assert not lease._thread.is_alive()
    assert not await leases.is_alive("m1")
