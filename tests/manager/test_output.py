"""What workers say: in order, numbered, kept or heard live only, and no burden to other sessions' transitions."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from jido_nats import Client, LocalServer, Session, SessionManager, SessionOutput
from jido_nats.client.streams import OutputStream
from jido_nats.errors import BadRequest, InvalidTransition, TooLarge
from jido_nats.manager.live_session import LiveSession
from jido_nats.worker.session import host_of
from tests.conftest import StartManager
from tests.tools.support import DEADLINE_S, Puppet, Stranger, eventually

OUTPUT = "jido.client.session.s1.output"


@pytest.fixture
async def client(server: LocalServer) -> AsyncIterator[Client]:
    async with Client.connect(server.url) as client:
        yield client


@pytest.fixture
async def session(stranger: Stranger, start_manager: StartManager, puppet: Puppet) -> Session:
    """A session whose worker is the test."""
    await start_manager(puppet)
    await stranger.create("s1")
    return puppet.sessions["s1"]


async def kept(client: Client, session_id: str | None = None) -> list[SessionOutput]:
    """All output that is kept, in the stream's order."""
    found = []
    async with client.output(session_id=session_id, since="all") as stream:
        while not stream.caught_up:
            output = (await next_output(stream)).output
            assert isinstance(output, SessionOutput)
            found.append(output)
    return found


async def next_output(stream: OutputStream) -> Any:
    async with asyncio.timeout(DEADLINE_S):
        return await anext(stream)


async def test_output_is_kept_in_order(session: Session, client: Client) -> None:
    numbers = [await session.emit("step", {"number": number}) for number in range(500)]
    await session.flush()

    outputs = await kept(client, "s1")

    assert numbers == [output.number for output in outputs] == list(range(1, 501))
    assert [output.data["number"] for output in outputs] == list(range(500))


async def test_output_is_told_with_its_name_and_number(session: Session, stranger: Stranger) -> None:
    ear = await stranger.hear(OUTPUT)

    await session.emit("tool_call", {"tool": "search", "for": "Zoë 🦊"})

    (told,) = await eventually(lambda: ear.on(OUTPUT))
    assert told.pop("created_at").endswith("Z")
    assert told == {
        "type": "session_output",
        "session_id": "s1",
        "number": 1,
        "name": "tool_call",
        "data": {"tool": "search", "for": "Zoë 🦊"},
    }


async def test_ephemeral_output_is_heard_and_not_stored(session: Session, stranger: Stranger) -> None:
    ear = await stranger.hear(OUTPUT)

    for word in ("to", "kens"):
        await session.emit("token", word, ephemeral=True)
    await session.emit("end")
    await session.flush()

    told = await eventually(lambda: ear.on(OUTPUT) if len(ear.messages) == 3 else [])
    assert sorted((o.get("ephemeral", False), o["number"], o["data"]) for o in told[:2]) == [
        (True, 1, "to"),
        (True, 2, "kens"),
    ]
    assert [m.data for m in await stranger.stored("JIDO_OUTPUT")] == [ear.messages[2].data]


async def test_a_client_hears_ephemeral_output_too(session: Session, client: Client) -> None:
    heard: list[Any] = []

    async with client.listen_output("s1", lambda message: heard.append(message.output)):
        await session.emit("token", "x", ephemeral=True)
        await eventually(lambda: heard)

    assert [(output.name, output.data, output.ephemeral) for output in heard] == [("token", "x", True)]


async def test_output_is_no_transition(session: Session, stranger: Stranger) -> None:
    before = await stranger.positions()

    await session.emit("step")
    await session.flush()

    assert await stranger.positions() == before
    assert host_of(session).record.version == 2


async def test_the_outputs_of_all_sessions_can_be_read_as_one(
    session: Session, stranger: Stranger, puppet: Puppet, client: Client
) -> None:
    await stranger.create("s2")
    for each in puppet.sessions.values():
        await each.emit("hello", each.session_id)
        await each.flush()

    assert [output.data for output in await kept(client)] == ["s1", "s2"]
    assert [output.data for output in await kept(client, "s2")] == ["s2"]


async def test_output_in_messagepack(
    stranger: Stranger, start_manager: StartManager, puppet: Puppet, client: Client
) -> None:
    await start_manager(puppet, encoding="msgpack")
    await stranger.create("s1")
    await puppet.sessions["s1"].emit("step", {"n": 1})
    await puppet.sessions["s1"].flush()

    (stored,) = await stranger.stored("JIDO_OUTPUT")

    assert (stored.headers or {})["Content-Type"] == "application/msgpack"
    assert msgspec.msgpack.decode(stored.data)["data"] == {"n": 1}
    assert (await kept(client))[0].data == {"n": 1}


@pytest.mark.parametrize("ephemeral", [True, False])
async def test_what_is_too_large_is_refused(
    stranger: Stranger, start_manager: StartManager, puppet: Puppet, ephemeral: bool
) -> None:
    await start_manager(puppet, output_message_bytes_max=1000)
    await stranger.create("s1")
    session = puppet.sessions["s1"]

    with pytest.raises(TooLarge, match="the limit is 1000"):
        await session.emit("step", "x" * 1000, ephemeral=ephemeral)

    assert await session.emit("step", "x", ephemeral=ephemeral) in (1, 2)


async def test_what_is_refused_leaves_no_gap(session: Session) -> None:
    with pytest.raises(TooLarge):
        await session.emit("step", "x" * 300_000)
    with pytest.raises(TooLarge):
        await session.emit("step", "x" * 300_000, ephemeral=True)

    assert await session.emit("step") == 1
    assert await session.emit("step", ephemeral=True) == 1


async def test_rubbish_is_refused(session: Session) -> None:
    for name in ("", "n" * 65, 7, None, "\ud800"):
        with pytest.raises(BadRequest):
            await session.emit(name, 1)  # type: ignore[arg-type]
    for data in ({1: 2}, float("nan"), {"a", "b"}, 1 << 64, "\ud800", object()):
        with pytest.raises(BadRequest):
            await session.emit("n", data)
    for content, role in ((None, "user"), ("x", ""), ("x", "r" * 65), (float("inf"), "user")):
        with pytest.raises(BadRequest):
            await session.say(content, role=role)


async def test_a_worker_that_has_ended_says_nothing_more(session: Session, stranger: Stranger, puppet: Puppet) -> None:
    puppet.complete("s1")
    await stranger.ends("s1")

    for speaking in (session.emit("step"), session.emit("token", ephemeral=True), session.say("hello"), session.idle()):
        with pytest.raises(InvalidTransition):
            await speaking

    assert not await stranger.stored("JIDO_OUTPUT")


async def test_last_words_are_stored_when_the_manager_goes(
    server: LocalServer, stranger: Stranger, start_manager: StartManager, puppet: Puppet, client: Client
) -> None:
    manager = await start_manager(puppet)
    await stranger.create("s1")
    for number in range(200):
        await puppet.sessions["s1"].emit("step", number)

    await manager.close()

    assert [output.data for output in await kept(client)] == list(range(200))


async def test_through_a_restart_of_the_server_nothing_is_lost(
    server: LocalServer, session: Session, client: Client
) -> None:
    async def speak() -> None:
        for number in range(400):
            await session.emit("step", number)
        await session.flush()

    live = host_of(session)
    assert isinstance(live, LiveSession)
    speaking = asyncio.create_task(speak())
    await eventually(lambda: live.conversation.kept > 100)
    await server.kill()
    await server.start()
    await speaking

    outputs = await kept(client)
    assert sorted(output.data for output in outputs) == list(range(400))
    assert {output.number for output in outputs} == set(range(1, 401))


async def test_a_worker_waits_while_too_much_is_on_its_way(server: LocalServer, session: Session) -> None:
    await server.kill()
    count = 0

    async def speak() -> None:
        nonlocal count
        while True:
            await session.emit("step")
            count += 1

    live = host_of(session)
    assert isinstance(live, LiveSession)
    speaking = asyncio.create_task(speak())
    await eventually(lambda: count >= 256)
    await asyncio.wait({speaking}, timeout=0.3)

    assert count <= 256 + 16
    speaking.cancel()
    await server.start()


@pytest.mark.parametrize("ephemeral", [False, True])
async def test_a_flood_from_one_session_does_not_delay_another_s_steps(
    stranger: Stranger, session: Session, ephemeral: bool
) -> None:
    await stranger.create("other")
    alone_s = await steps(stranger, "other")
    count = 0

    async def flood() -> None:
        nonlocal count
        while True:
            await session.emit("step", count, ephemeral=ephemeral)
            count += 1

    began_at = time.monotonic()
    flooding = asyncio.create_task(flood())
    try:
        await eventually(lambda: count > 300)
        beside_s = await steps(stranger, "other")
        rate = count / (time.monotonic() - began_at)
    finally:
        flooding.cancel()

    kind = "ephemeral" if ephemeral else "kept"
    print(f"p50 of a step: alone {1000 * alone_s:.1f} ms, beside {rate:.0f} {kind} a second {1000 * beside_s:.1f} ms")
    assert beside_s < 1


async def steps(stranger: Stranger, session_id: str, count: int = 20) -> float:
    """The median of the seconds that a step takes, of so many."""
    taken_s = []
    for number in range(count):
        asked_at = time.monotonic()
        answer = await stranger.ask(f"jido.session.{('idle', 'activate')[number % 2]}.{session_id}")
        assert "error" not in answer
        taken_s.append(time.monotonic() - asked_at)
    return sorted(taken_s)[count // 2]


async def test_a_reader_drops_what_an_older_attempt_said_late(
    server: LocalServer, stranger: Stranger, manager: SessionManager
) -> None:
    for number, attempt in ((1, 1), (2, 2), (3, 1), (4, 2)):
        await stranger.say("s1", number, attempt=attempt)

    async with Client.connect(server.url) as client, client.output(since="all") as outputs:
        numbers = [message.output.number async for message in outputs.stored()]

    assert numbers == [1, 2, 4]


async def test_a_listener_drops_what_an_older_attempt_says_late(
    server: LocalServer, stranger: Stranger, manager: SessionManager
) -> None:
    heard: list[tuple[str, int]] = []
    async with (
        Client.connect(server.url) as client,
        client.listen_output(None, lambda message: heard.append((message.output.session_id, message.output.number))),
    ):
        for number, attempt in ((1, 1), (2, 2), (3, 1)):
            await stranger.say("s1", number, attempt=attempt, ephemeral=True)
        await stranger.say("s2", 1, attempt=1, ephemeral=True)
        await stranger.say("s1", 4, attempt=2, ephemeral=True)

        assert await eventually(lambda: heard if heard[-1:] == [("s1", 4)] else [])
    assert heard == [("s1", 1), ("s1", 2), ("s2", 1), ("s1", 4)]
