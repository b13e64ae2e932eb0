"""Messages to workers: in order, each once, bounded, waking who is idle; told and kept as `conversation_added`."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from jido_nats import Client, ConversationAdded, LocalServer, Session
from jido_nats.core.requests import MESSAGE_ID_LENGTH_MAX, ROLE_LENGTH_MAX
from jido_nats.errors import CommandError, Unavailable
from jido_nats.worker.inbox import Message
from tests.conftest import StartManager
from tests.tools.support import Puppet, Stranger, Stubborn, eventually, wait_for_ever

OUTPUT = "jido.client.session.s1.output"
SEND = "jido.session.send.s1"
RUBBISH: list[Any] = [
    b"",
    b"nonsense",
    {"role": "user"},
    {"content": "x"},
    {"role": "", "content": "x"},
    {"role": "r" * (ROLE_LENGTH_MAX + 1), "content": "x"},
    {"role": 7, "content": "x"},
    {"role": "user", "content": None},
    {"role": "user", "content": "x", "message_id": ""},
    {"role": "user", "content": "x", "message_id": "i" * (MESSAGE_ID_LENGTH_MAX + 1)},
    {"role": "user", "content": "x", "message_id": 7},
    {"role": "user", "content": "x", "number": 7},
    b'{"role":"user","content":"\\ud800"}',
    b'{"role":"user","content":1e999}',
    b'{"role":"user","content":123456789012345678901}',
    b'{"role":"user","content":' + b"[" * 40 + b"]" * 40 + b"}",
]


class Taker:
    """A worker that takes every message, and keeps it."""

    def __init__(self) -> None:
        self.taken: list[Message] = []

    async def __call__(self, session: Session) -> None:
        async for message in session.messages():
            self.taken.append(message)

    @property
    def contents(self) -> list[Any]:
        """What was taken, in order."""
        return [message.content for message in self.taken]


@pytest.fixture
def taker() -> Taker:
    return Taker()


@pytest.fixture
async def client(server: LocalServer) -> AsyncIterator[Client]:
    async with Client.connect(server.url) as client:
        yield client


def message(content: Any, **fields: Any) -> dict[str, Any]:
    """A request to send."""
    return {"role": "user", "content": content, **fields}


async def code(stranger: Stranger, request: Any) -> str | None:
    """The answer's error code, or None."""
    error: str | None = (await stranger.ask(SEND, request)).get("error", {}).get("code")
    return error


async def test_messages_come_in_order(stranger: Stranger, start_manager: StartManager, taker: Taker) -> None:
    await start_manager(taker)
    await stranger.create("s1")

    replies = [await stranger.ask(SEND, message(number)) for number in range(20)]

    await eventually(lambda: len(taker.taken) == 20)
    assert taker.contents == list(range(20))
    assert [reply["number"] for reply in replies] == list(range(1, 21))


async def test_messages_sent_side_by_side_come_in_the_order_of_their_numbers(
    stranger: Stranger, start_manager: StartManager, taker: Taker
) -> None:
    await start_manager(taker)
    await stranger.create("s1")

    replies = await asyncio.gather(*(stranger.ask(SEND, message(number)) for number in range(50)))

    numbers = {reply["number"]: content for content, reply in enumerate(replies)}
    await eventually(lambda: len(taker.taken) == 50)
    assert taker.contents == [numbers[number] for number in range(1, 51)]


async def test_a_worker_may_take_all_that_wait(stranger: Stranger, start_manager: StartManager, puppet: Puppet) -> None:
    await start_manager(puppet)
    await stranger.create("s1")
    for number in range(3):
        await stranger.ask(SEND, message(number))

    assert [m.content for m in await puppet.sessions["s1"].messages()] == [0, 1, 2]


async def test_a_message_is_told_as_it_was_sent(stranger: Stranger, start_manager: StartManager, taker: Taker) -> None:
    await start_manager(taker)
    ear = await stranger.hear(OUTPUT)
    await stranger.create("s1")

    reply = await stranger.ask(SEND, message({"text": "Zoë 🦊"}, role="system", message_id="m1"))

    assert reply == {"session_id": "s1", "message_id": "m1", "number": 1}
    (told,) = await eventually(lambda: ear.on(OUTPUT))
    assert told.pop("created_at").endswith("Z")
    assert told == {
        "type": "conversation_added",
        "session_id": "s1",
        "number": 1,
        "role": "system",
        "content": {"text": "Zoë 🦊"},
        "message_id": "m1",
    }


async def test_what_was_answered_is_stored(stranger: Stranger, start_manager: StartManager, taker: Taker) -> None:
    await start_manager(taker)
    await stranger.create("s1")

    await stranger.ask(SEND, message("hello"))

    (stored,) = await stranger.stored("JIDO_OUTPUT")
    assert (stored.subject, (stored.headers or {})["Nats-Msg-Id"]) == (OUTPUT, "s1.1.output")
    assert b'"hello"' in stored.data


async def test_what_cannot_be_stored_is_not_answered(
    stranger: Stranger, start_manager: StartManager, taker: Taker
) -> None:
    await start_manager(taker, command_timeout_s=0.3)
    config = (await stranger.js.stream_info("JIDO_OUTPUT")).config
    await stranger.js.delete_stream("JIDO_OUTPUT")
    await stranger.create("s1")

    assert await code(stranger, message("hello", message_id="m1")) == "unavailable"

    await stranger.js.add_stream(config)
    assert await eventually(lambda: is_replayed(stranger, message("hello", message_id="m1")))
    assert len(await stranger.stored("JIDO_OUTPUT")) == len(taker.taken) == 1


async def is_replayed(stranger: Stranger, request: Any) -> bool:
    """Whether it is known to be stored."""
    return bool((await stranger.ask(SEND, request)).get("replayed"))


async def test_a_worker_s_own_words_are_part_of_the_conversation(
    stranger: Stranger, start_manager: StartManager, puppet: Puppet, client: Client
) -> None:
    await start_manager(puppet)
    await stranger.create("s1")
    await client.send_message("s1", "user", "hello")

    assert await puppet.sessions["s1"].say("hello yourself") == 2

    async with client.output(session_id="s1", since="all") as output:
        told = [(await anext(output)).output for _ in range(2)]
    assert [(t.number, t.role, t.content) for t in told if isinstance(t, ConversationAdded)] == [
        (1, "user", "hello"),
        (2, "assistant", "hello yourself"),
    ]


async def test_messagepack_is_answered_in_messagepack(
    stranger: Stranger, start_manager: StartManager, taker: Taker
) -> None:
    await start_manager(taker, encoding="msgpack")
    ear = await stranger.hear(OUTPUT)
    await stranger.create("s1")

    request = msgspec.msgpack.encode(message([1, "two"]))
    reply = await stranger.request(SEND, request, headers={"Content-Type": "application/msgpack"})

    assert msgspec.msgpack.decode(reply.data)["number"] == 1
    (told,) = await eventually(lambda: ear.messages)
    assert (told.headers or {})["Content-Type"] == "application/msgpack"
    assert msgspec.msgpack.decode(told.data)["content"] == [1, "two"]


# Idle


async def test_a_message_wakes_an_idle_session(stranger: Stranger, start_manager: StartManager, taker: Taker) -> None:
    await start_manager(taker)
    await stranger.create("s1")
    await stranger.ask("jido.session.idle.s1")
    ear = await stranger.hear("jido.client.session.s1", OUTPUT)

    await stranger.ask(SEND, message("wake up"))

    assert (await stranger.stored_brief())[-1] == "4 active"
    await eventually(lambda: len(ear.messages) == 2)
    assert [told.subject for told in ear.messages] == ["jido.client.session.s1", OUTPUT]


async def test_a_message_that_is_refused_wakes_nobody(stranger: Stranger, start_manager: StartManager) -> None:
    await start_manager(wait_for_ever, inbox_messages_max=1)
    await stranger.create("s1")
    await stranger.ask(SEND, message("one", message_id="m1"))
    await stranger.ask("jido.session.idle.s1")

    for request in (message("two"), message("two", message_id="m1"), message(None)):
        assert await code(stranger, request)

    assert (await stranger.ask("jido.session.get.s1"))["status"] == "idle"


# Refused


async def test_a_full_inbox_is_overloaded(stranger: Stranger, start_manager: StartManager) -> None:
    await start_manager(wait_for_ever, inbox_messages_max=3)
    await stranger.create("s1")

    assert [await code(stranger, message(n)) for n in range(5)] == [None, None, None, "overloaded", "overloaded"]
    assert len(await stranger.stored("JIDO_OUTPUT")) == 3


async def test_a_session_that_has_ended_takes_no_messages(
    stranger: Stranger, start_manager: StartManager, taker: Taker
) -> None:
    await start_manager(taker)
    await stranger.create("s1")
    await stranger.ask("jido.session.terminate.s1")

    assert await code(stranger, message("hello")) == "invalid_transition"
    assert not await stranger.stored("JIDO_OUTPUT")


async def test_a_session_that_is_ending_takes_no_messages(stranger: Stranger, start_manager: StartManager) -> None:
    stubborn = Stubborn()
    await start_manager(stubborn, stop_timeout_s=0.1)
    await stranger.create("s1")
    await stranger.ask("jido.session.terminate.s1")

    refused = await code(stranger, message("hello"))

    stubborn.let_go.set()
    assert refused == "invalid_transition"


async def test_a_session_that_never_was_takes_no_messages(
    stranger: Stranger, start_manager: StartManager, taker: Taker
) -> None:
    await start_manager(taker)

    assert await code(stranger, message("hello")) == "not_found"


async def test_rubbish_is_refused(stranger: Stranger, start_manager: StartManager, taker: Taker) -> None:
    await start_manager(taker)
    await stranger.create("s1")

    assert {repr(request): await code(stranger, request) for request in RUBBISH} == {
        repr(request): "bad_request" for request in RUBBISH
    }
    assert not await stranger.stored("JIDO_OUTPUT")


async def test_one_that_is_too_large_is_refused(stranger: Stranger, start_manager: StartManager, taker: Taker) -> None:
    await start_manager(taker)
    await stranger.create("s1")

    assert await code(stranger, message("x" * 70_000)) == "too_large"


async def test_one_that_is_too_large_to_be_told_wakes_nobody(
    stranger: Stranger, start_manager: StartManager, taker: Taker
) -> None:
    await start_manager(taker, output_message_bytes_max=1000)
    await stranger.create("s1")
    await stranger.ask("jido.session.idle.s1")

    assert await code(stranger, message("x" * 1000, message_id="m1")) == "too_large"
    assert (await stranger.ask("jido.session.get.s1"))["status"] == "idle"


# Once


async def test_a_repeated_message_is_delivered_once(
    stranger: Stranger, start_manager: StartManager, taker: Taker
) -> None:
    await start_manager(taker)
    await stranger.create("s1")
    first = await stranger.ask(SEND, message({"a": 1, "b": 2}, message_id="m1"))

    again = await stranger.ask(SEND, message({"b": 2, "a": 1}, message_id="m1"))

    assert again == {**first, "replayed": True}
    await stranger.ask(SEND, message("last"))
    await eventually(lambda: taker.contents == [{"a": 1, "b": 2}, "last"])
    assert len(await stranger.stored("JIDO_OUTPUT")) == 2


async def test_the_same_message_many_times_at_once_is_delivered_once(
    stranger: Stranger, start_manager: StartManager, taker: Taker
) -> None:
    await start_manager(taker)
    await stranger.create("s1")
    await stranger.ask("jido.session.idle.s1")

    replies = await asyncio.gather(*(stranger.ask(SEND, message("x", message_id="m1")) for _ in range(20)))

    assert {reply["number"] for reply in replies} == {1}
    assert len([reply for reply in replies if not reply.get("replayed")]) == 1
    assert taker.contents == ["x"]


@pytest.mark.parametrize("other", [message("other", message_id="m1"), message("x", role="system", message_id="m1")])
async def test_an_id_that_was_another_message_s_is_refused(
    stranger: Stranger, start_manager: StartManager, taker: Taker, other: dict[str, Any]
) -> None:
    await start_manager(taker)
    await stranger.create("s1")
    await stranger.ask(SEND, message("x", message_id="m1"))

    assert await code(stranger, other) == "already_exists"


async def test_a_repeat_is_known_when_the_inbox_is_full(stranger: Stranger, start_manager: StartManager) -> None:
    await start_manager(wait_for_ever, inbox_messages_max=1)
    await stranger.create("s1")
    await stranger.ask(SEND, message("x", message_id="m1"))

    assert (await stranger.ask(SEND, message("x", message_id="m1")))["replayed"]


# Several managers, and a server that goes away


async def test_another_manager_passes_it_on(stranger: Stranger, start_manager: StartManager, taker: Taker) -> None:
    owner = await start_manager(taker)
    await owner.create_session(session_id="s1")
    other = await start_manager(wait_for_ever)

    reply = await other.send_message("s1", "user", "hello", message_id="m1")
    again = await owner.send_message("s1", "user", "hello", message_id="m1")

    assert (reply.number, reply.replayed, again.number, again.replayed) == (1, False, 1, True)
    assert taker.contents == ["hello"]


async def test_through_a_restart_of_the_server_each_is_delivered_once(
    server: LocalServer, start_manager: StartManager, taker: Taker, client: Client
) -> None:
    manager = await start_manager(taker)
    await manager.create_session(session_id="s1")
    answered: list[int] = []

    async def send_all() -> None:
        for number in range(60):
            while number not in answered:
                try:
                    await client.send_message("s1", "user", number, message_id=f"m{number}")
                except Unavailable:
                    continue
                answered.append(number)

    sending = asyncio.create_task(send_all())
    await eventually(lambda: len(answered) > 10)
    await server.kill()
    await server.start()
    await sending

    assert taker.contents == list(range(60))
    async with client.output(session_id="s1", since="all") as output:
        told = [(await anext(output)).output for _ in range(60)]
        assert output.caught_up
    assert [t.content for t in told if isinstance(t, ConversationAdded)] == list(range(60))


async def test_without_a_server_it_is_unavailable(server: LocalServer, start_manager: StartManager) -> None:
    manager = await start_manager(wait_for_ever, command_timeout_s=0.3)
    await manager.create_session(session_id="s1")
    await server.kill()

    with pytest.raises(CommandError) as refused:
        await manager.send_message("s1", "user", "hello")

    await server.start()
    assert refused.value.code == "unavailable"
