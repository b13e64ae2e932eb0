"""One client asks for too much: it waits or is refused, and the others are served. Speed: `tests.bench.fairness`."""

import asyncio
from collections import Counter
from typing import Any

import pytest

from jido_nats import Client, LocalServer, Overloaded, Session, SessionManager
from jido_nats.core.commands import COMMANDS, Admission
from tests.bench.fairness import flooding, user_for
from tests.conftest import StartManager
from tests.tools.burst import Burst
from tests.tools.programs import serving
from tests.tools.roles import Member, as_user
from tests.tools.support import Stranger, eventually

ROUNDS = 15
OUTSTANDING = 256


@pytest.mark.parametrize("verb", COMMANDS)
async def test_beside_a_flood_another_client_is_served_and_never_refused(
    roles_server: LocalServer, members: dict[str, Member], verb: str
) -> None:
    async with (
        Client.connect(as_user(roles_server, "client"), timeout_s=20) as client,
        flooding(roles_server, user_for(verb), verb, outstanding=OUTSTANDING) as flood,
    ):
        for _ in range(ROUNDS):
            created = await client.create_session()
            await client.send_message(created.session_id, "user", "hello")
            assert (await client.terminate_session(created.session_id)).status == "terminated"
            assert (await client.get_session_info(created.session_id)).session_id == created.session_id
            assert await client.list_sessions()
    assert flood["sent"] >= OUTSTANDING
    assert sum(flood["answers"].values()) > 0


async def test_a_flood_that_waits_for_nothing_is_refused_and_over_when_it_ends(
    roles_server: LocalServer, roles_manager: SessionManager, members: dict[str, Member]
) -> None:
    async with flooding(roles_server, "session-example", "history", rate=1500):
        await eventually(lambda: roles_manager.stats.command_errors["history", Overloaded.code] > 100)
        assert (await members["client"].create("during"))["status"] == "active"

    assert (await members["session-example"].ask("jido.session.get.example"))["status"] == "active"
    assert roles_manager.snapshot().reconnects == 0


# Of large ones, less than a server buffers for a client (64 MiB): however slow this machine is, it disconnects nobody.
UNANSWERED_MAX = 1500
LARGE_CREATES = [("jido.session.create", b'{"metadata":{"x":["' + b'y","' * 7_500 + b'"]}}')] * 4000


async def test_very_many_large_creates_are_all_answered_and_the_connection_holds(
    stranger: Stranger, start_manager: StartManager
) -> None:
    manager = await start_manager(commands_bytes_max=4 * 1024 * 1024)
    burst = Burst(stranger.nc)

    assert await burst.ask(LARGE_CREATES, unanswered_max=UNANSWERED_MAX)

    assert set(burst.codes) == {"200", "429"}
    assert manager.snapshot().reconnects == 0


async def test_the_same_holds_on_the_event_loop_of_serve(server: LocalServer, stranger: Stranger) -> None:
    async with serving(server.url) as program:
        burst = Burst(stranger.nc)

        assert await burst.ask(LARGE_CREATES, unanswered_max=UNANSWERED_MAX)

        assert set(burst.codes) == {"200", "429"}
        assert "connection lost" not in program.err


def stuck(started: Counter[str]) -> Any:
    """A worker that does not end when it is asked to, for a while."""

    async def worker(session: Session) -> None:
        started[session.session_id] += 1
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                await asyncio.sleep(2)
                raise

    return worker


async def test_one_session_s_changes_leave_room_for_those_of_another(
    stranger: Stranger, start_manager: StartManager
) -> None:
    manager = await start_manager(stuck(Counter()), commands_max=16, stop_timeout_s=20)
    await stranger.create("busy")
    await stranger.create("other")

    burst = Burst(stranger.nc)
    asking = asyncio.create_task(burst.ask([("jido.session.terminate.busy", b"")] * 10))
    await eventually(lambda: burst.codes["429"] == 8)  # an eighth of 16 is in flight

    assert (await stranger.ask("jido.session.idle.other"))["status"] == "idle"
    assert await asking
    assert burst.codes == {"200": 2, "429": 8}
    assert manager.stats.command_errors["terminate", "overloaded"] == 8


async def test_reads_do_not_take_the_room_of_changes(stranger: Stranger, start_manager: StartManager) -> None:
    await start_manager(commands_max=8)
    await stranger.create("s1")
    reads = [verb for verb, command in COMMANDS.items() if command.admission in (Admission.READ, Admission.SCAN)]
    assert set(reads) == {"get", "list", "history"}

    burst = Burst(stranger.nc)
    asked = [(COMMANDS[verb].subject_for("s1"), b"") for verb in reads] * 200
    asking = asyncio.create_task(burst.ask(asked))
    await eventually(lambda: burst.codes["429"] > 0)
    for _ in range(5):
        assert (await stranger.ask("jido.session.idle.s1"))["status"] == "idle"
        assert (await stranger.ask("jido.session.activate.s1"))["status"] == "active"
    assert await asking


async def test_the_metadata_of_all_sessions_has_a_limit_and_room_comes_back(
    stranger: Stranger, start_manager: StartManager
) -> None:
    await start_manager(sessions_bytes_max=20_000)
    metadata = {"x": "y" * 9_000}
    for name in ("a", "b", "c"):
        assert (await stranger.create(name, metadata=metadata))["status"] == "active"

    refused = await stranger.ask("jido.session.create", {"session_id": "d", "metadata": metadata})
    assert refused["error"]["code"] == "overloaded"
    assert (await stranger.ask("jido.session.send.a", {"role": "user", "content": "x"}))["error"][
        "code"
    ] == "overloaded"

    await stranger.ask("jido.session.terminate.a")
    await eventually(lambda: created(stranger, metadata=metadata))  # it is held until the ended one is sealed


async def test_messages_that_wait_count_until_their_worker_takes_them(
    stranger: Stranger, start_manager: StartManager
) -> None:
    reads = asyncio.Event()

    async def worker(session: Session) -> None:
        await reads.wait()
        async for _ in session.messages():
            pass

    await start_manager(worker, sessions_bytes_max=20_000)
    for name in ("reader", "ends"):
        await stranger.create(name)
    message = {"role": "user", "content": "y" * 10_000}
    assert "number" in await stranger.ask("jido.session.send.reader", message)
    assert "number" in await stranger.ask("jido.session.send.ends", message)

    assert (await stranger.ask("jido.session.send.ends", message))["error"]["code"] == "overloaded"
    assert (await stranger.ask("jido.session.create"))["error"]["code"] == "overloaded"

    await stranger.ask("jido.session.terminate.ends")  # what it had not taken no longer counts
    await eventually(lambda: sent(stranger, "reader", message))
    reads.set()
    await eventually(lambda: created(stranger))


async def created(stranger: Stranger, **fields: Any) -> bool:
    return "error" not in await stranger.ask("jido.session.create", fields)


async def sent(stranger: Stranger, session_id: str, message: dict[str, str]) -> bool:
    return "number" in await stranger.ask(f"jido.session.send.{session_id}", message)
