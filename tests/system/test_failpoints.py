"""A manager that dies or freezes between any two steps: another one finishes what it had begun, exactly once."""

import asyncio
import signal
from collections.abc import AsyncIterator

import pytest

from jido_nats import Cause, Client, JidoError, LocalServer, RestartPolicy, SessionManager, Settings, Status
from jido_nats.manager.journal import JournalCleaner
from tests.tools import audit
from tests.tools.agents import waiting
from tests.tools.processes import SHORT_LEASE_S, ManagerProcess, manager_process
from tests.tools.support import Stranger, eventually

# Each place at the version where it differs most: opened as active, terminating, terminated, sealed.
OWNER_PLACES = [
    "committed:1",
    "before message 1:1",
    "before message 2:1",
    "before message 3:1",
    "published:1",
    "before commit:2",
    "committed:2",
    "before message 1:2",
    "before message 2:2",
    "committed:3",
    "before message 2:3",
    "before message 3:2",
    "published:3",
    "before seal:1",
    "sealed:1",
]
# The same where a session is `initializing` first, since its worker has to say that it is ready.
WAIT_READY_PLACES = [
    "committed:1",
    "before message 1:1",
    "published:1",
    "before commit:2",
    "committed:2",
    "published:2",
]
# Where something is about to be sent that has to be refused when the process wakes.
FREEZE_PLACES = [
    "before commit:2",
    "before message 1:1",
    "before message 2:1",
    "before message 3:1",
    "before message 2:2",
    "committed:3",
    "before message 3:2",
    "before seal:1",
]
SURVIVOR_PLACES = ["before claim", "claimed", "looked", "before commit", "committed", "before message 2", "before seal"]


@pytest.fixture
async def client(server: LocalServer) -> AsyncIterator[Client]:
    async with Client.connect(server.url, timeout_s=2) as client:
        yield client


def survivor(server: LocalServer) -> SessionManager:
    return SessionManager.connect(server.url, worker=waiting, settings=Settings(lease_s=SHORT_LEASE_S))


async def create_and_end(client: Client, restart: RestartPolicy | None = None) -> None:
    """As far as it gets."""
    try:
        await client.create_session(session_id="s1", restart=restart)
        await client.terminate_session("s1")
    except JidoError:
        pass


async def violations(server: LocalServer) -> list[audit.Violation]:
    seen = await audit.read(server.url)
    return audit.audit(*seen, quiet=True, all_ended=True)


async def settled(manager: SessionManager) -> bool:
    """Whether no record is left unsealed, as somebody reads who asks a living manager."""
    return all(record.sealed for record in await manager.list_sessions(include_terminated=True))


@pytest.mark.parametrize(
    ("place", "worker", "extra"),
    [(place, "tests.tools.agents:waiting", ()) for place in OWNER_PLACES]
    + [(place, "tests.tools.workers:gets_ready", ("--wait-ready",)) for place in WAIT_READY_PLACES],
)
async def test_what_a_dead_owner_had_begun_is_finished_once(
    server: LocalServer, client: Client, place: str, worker: str, extra: tuple[str, ...]
) -> None:
    name, _, time = place.partition(":")
    failpoints = f"{name}:die:{time}"
    async with manager_process(server.url, failpoints=failpoints, worker=worker, extra=extra) as victim:
        asking = asyncio.create_task(create_and_end(client))
        await eventually(lambda: victim.gone)
    async with survivor(server) as manager:
        await eventually(lambda: settled(manager))
        await asking
        assert await violations(server) == []


@pytest.mark.parametrize("place", ["before message 3", "before seal", "sealed"])
async def test_the_journal_of_a_session_that_a_dead_owner_had_ended_is_removed(
    server: LocalServer, client: Client, place: str
) -> None:
    async with manager_process(server.url, failpoints=f"{place}:die:1") as victim:
        asking = asyncio.create_task(create_and_end(client, RestartPolicy(on=(Cause.CRASHED,))))
        await eventually(lambda: victim.gone)
    async with survivor(server) as manager:
        await eventually(lambda: settled(manager))
        await asking
        assert await violations(server) == []


@pytest.mark.parametrize("place", FREEZE_PLACES)
async def test_a_frozen_owner_that_wakes_adds_nothing(server: LocalServer, client: Client, place: str) -> None:
    name, _, time = place.partition(":")
    async with manager_process(server.url, failpoints=f"{name}:freeze:{time}") as victim, survivor(server) as manager:
        asking = asyncio.create_task(create_and_end(client))
        await eventually(lambda: victim.frozen)
        await eventually(lambda: settled_after_takeover(manager, victim))
        victim.send(signal.SIGCONT)
        await asking
        await awake_again(client)
        await eventually(lambda: settled(manager))  # a terminate is answered before the seal
        assert await violations(server) == []


async def settled_after_takeover(manager: SessionManager, victim: ManagerProcess) -> bool:
    """Settled, at a moment when the victim's lease has gone."""
    return len(manager._leases.managers) == 1 and await settled(manager)


async def awake_again(client: Client) -> None:
    """The woken manager has its lease again and answers: whatever it had in flight has met its fate."""

    async def served() -> bool:
        try:
            await client.create_session(session_id="awake")  # chosen: a try that was not answered leaves none behind
            return (await client.terminate_session("awake")).status is Status.TERMINATED
        except JidoError:
            return False

    await eventually(served)


@pytest.mark.parametrize("place", SURVIVOR_PLACES)
async def test_what_a_dead_survivor_had_begun_is_finished_once(server: LocalServer, client: Client, place: str) -> None:
    async with manager_process(server.url, failpoints="before message 2:die:2"):
        await create_and_end(client)
    async with manager_process(server.url, failpoints=f"{place}:die:1") as second:
        await eventually(lambda: second.gone)
    async with survivor(server) as manager:
        await eventually(lambda: settled(manager))
        assert await violations(server) == []


# Of a session with a restart policy: its journal is claimed and read, a message is accepted, worked in, the worker
# crashes and goes on. Until managers adopt such sessions, it ends with its owner.

REMEMBERS = "tests.tools.workers:remembers"
POLICY = RestartPolicy(on=(Cause.CRASHED,), backoff_s=0.01)
JOURNAL_PLACES = [
    "before append:1",
    "appended:1",
    "journal read:1",
    "journal read:2",
    "committed:2",
    "before append:2",
    "appended:2",
    "appended:3",
    "before commit:3",
    "committed:3",
    "before message 1:3",
    "before message 2:3",
    "published:3",
    "journal read:3",
    "before commit:4",
    "committed:4",
    "before append:6",
    "sealed:1",
]


async def remember_and_end(client: Client) -> None:
    """As far as it gets."""
    try:
        await client.create_session(session_id="s1", restart=POLICY)
        for content in ("a", "crash", "b"):
            await client.send_message("s1", "user", content, message_id=content)
        await client.wait("s1", "active", timeout_s=5)
        await client.terminate_session("s1")
    except (JidoError, TimeoutError):
        pass


async def journal_of(stranger: Stranger) -> int:
    """How many entries all journals have."""
    return (await stranger.js.stream_info("JIDO_JOURNAL")).state.messages


@pytest.mark.parametrize("place", JOURNAL_PLACES)
async def test_what_a_dead_owner_had_begun_with_a_journal_is_finished_once(
    server: LocalServer, stranger: Stranger, client: Client, place: str
) -> None:
    name, _, time = place.partition(":")
    async with manager_process(server.url, failpoints=f"{name}:die:{time}", worker=REMEMBERS) as victim:
        asking = asyncio.create_task(remember_and_end(client))
        await eventually(lambda: victim.gone)
    async with survivor(server) as manager:
        await eventually(lambda: settled(manager))
        await asking
        assert await violations(server) == []
        await eventually(lambda: no_journal(stranger))


async def no_journal(stranger: Stranger) -> bool:
    """Whether all journals are removed."""
    return await journal_of(stranger) == 0


@pytest.mark.parametrize("place", ["before append:1", "before append:2", "before append:3", "journal read:3"])
async def test_a_frozen_owner_that_wakes_adds_nothing_to_a_journal(
    server: LocalServer, stranger: Stranger, client: Client, place: str
) -> None:
    name, _, time = place.partition(":")
    failpoints = f"{name}:freeze:{time}"
    async with (
        manager_process(server.url, failpoints=failpoints, worker=REMEMBERS) as victim,
        survivor(server) as manager,
    ):
        asking = asyncio.create_task(remember_and_end(client))
        await eventually(lambda: victim.frozen)
        await eventually(lambda: settled_after_takeover(manager, victim))
        await eventually(lambda: no_journal(stranger))
        victim.send(signal.SIGCONT)
        await asking
        await awake_again(client)
        await eventually(lambda: settled(manager))
        if place == "before append:1":  # the first entry of all asserts that there is none, which is true again
            await cleaned(manager)
        assert await violations(server) == []
        assert await journal_of(stranger) == 0


async def cleaned(manager: SessionManager) -> None:
    """What a manager does now and then."""
    assert manager._context.journals is not None
    await JournalCleaner(manager._context.journals, manager._context.records, manager._index).clean()
