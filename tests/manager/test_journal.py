"""Journals of sessions with a restart policy: what is accepted, handled, redelivered, purged and removed."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import pytest

from jido_nats import (
    AlreadyExists,
    BadRequest,
    Cause,
    Client,
    JidoError,
    LocalServer,
    Overloaded,
    RestartPolicy,
    Session,
    SessionManager,
    Settings,
    Status,
    TooLarge,
    Unavailable,
)
from jido_nats.core.journal import KnownMessage
from jido_nats.core.requests import STATE_BYTES_MAX, SendRequest
from jido_nats.manager import conversation, journal
from jido_nats.worker.inbox import Inbox, Message
from tests.conftest import StartManager
from tests.tools.proxy import Proxy
from tests.tools.roles import ONE_ACCOUNT, as_user
from tests.tools.support import LEASE_S, Stranger, eventually, wait_for_ever

SOON = RestartPolicy(on=(Cause.CRASHED,), attempts_max=0, backoff_s=0.05)
JOURNAL = "jido.journal.s1"
OUTPUT = "jido.client.session.s1.output"


class Worker:
    """A worker that does with each message what the test says, and crashes when it is told to."""

    def __init__(self, handle: Callable[[Session, Message], Awaitable[None]]) -> None:
        self._handle = handle
        self.states: list[Any] = []
        self.got: list[tuple[int, Any, bool]] = []
        self._crash = asyncio.Event()

    async def __call__(self, session: Session) -> None:
        self.states.append(session.state)
        self._crash.clear()
        working = asyncio.create_task(self._work(session))
        crashing = asyncio.create_task(self._crash.wait())
        try:
            await asyncio.wait({working, crashing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            working.cancel()
            crashing.cancel()
        if working.done() and not working.cancelled():
            working.result()
        raise RuntimeError("boom")

    async def _work(self, session: Session) -> None:
        async for message in session.messages():
            self.got.append((session.attempt, message.content, message.redelivered))
            await self._handle(session, message)

    def crash(self) -> None:
        """End the current attempt."""
        self._crash.set()

    def in_attempt(self, attempt: int) -> list[Any]:
        """What that attempt was sent."""
        return [content for number, content, _ in self.got if number == attempt]


async def only_take(session: Session, message: Message) -> None:
    """Handle a message by taking the next one."""


async def remember(session: Session, message: Message) -> None:
    """Keep all contents in the state, one checkpoint for each message."""
    state = [*(session.state or []), message.content]
    await session.checkpoint(state, handled=message)
    session.state = state


async def entries(stranger: Stranger, session_id: str = "s1") -> list[dict[str, Any]]:
    """What the journal of a session has."""
    subject = f"jido.journal.{session_id}"
    return [msgspec.json.decode(m.data) for m in await stranger.stored("JIDO_JOURNAL") if m.subject == subject]


async def types(stranger: Stranger) -> list[str]:
    """Which kinds of entries the journal has, in order."""
    return [entry["type"] for entry in await entries(stranger)]


async def send(manager: SessionManager, *contents: Any) -> None:
    """Send messages whose ids are their contents."""
    for content in contents:
        await manager.send_message("s1", "user", content, message_id=str(content))


async def attempt(manager: SessionManager, number: int) -> Any:
    """The record, once that attempt is active."""
    record = await manager.get_session_info("s1")
    return record if record.status is Status.ACTIVE and record.attempt == number else None


async def test_a_message_is_accepted_when_the_journal_has_it(start_manager: StartManager, stranger: Stranger) -> None:
    manager = await start_manager()
    record = await manager.create_session(session_id="s1", restart=SOON)
    reply = await manager.send_message("s1", "user", {"text": "hi"}, message_id="m1")

    claim, message = await entries(stranger)

    created_at = record.created_at.isoformat().replace("+00:00", "Z")
    assert claim == {"type": "claim", "attempt": 1, "created_at": created_at}
    assert message.pop("accepted_at")
    assert message == {
        "type": "message",
        "attempt": 1,
        "created_at": created_at,
        "role": "user",
        "content": {"text": "hi"},
        "message_id": "m1",
        "number": reply.number,
    }


async def test_a_session_without_a_policy_has_no_journal(start_manager: StartManager, stranger: Stranger) -> None:
    worker = Worker(remember)
    manager = await start_manager(worker)
    await manager.create_session(session_id="s1")
    await send(manager, "a")
    await eventually(lambda: worker.got)

    assert await entries(stranger) == []
    assert (await stranger.record("s1") or {}).get("needs") is None


async def test_taking_the_next_message_handles_the_one_before(start_manager: StartManager, stranger: Stranger) -> None:
    worker = Worker(only_take)
    manager = await start_manager(worker)
    await manager.create_session(session_id="s1", restart=SOON)
    await send(manager, "a", "b", "c")
    await eventually(lambda: len(worker.got) == 3)

    checkpoint = await eventually(lambda: last_of_type(stranger, "checkpoint"))

    sequences = [message.content for message in await manager_messages(stranger)]
    assert "state" not in checkpoint
    assert sequences == ["a", "b", "c"]
    worker.crash()
    await eventually(lambda: attempt(manager, 2))
    assert worker.in_attempt(2) == []  # it had asked for a fourth one


async def last_of_type(stranger: Stranger, kind: str) -> dict[str, Any] | None:
    """The last entry of a kind, None if there is none."""
    found = [entry for entry in await entries(stranger) if entry["type"] == kind]
    return found[-1] if found else None


async def manager_messages(stranger: Stranger) -> list[Any]:
    """The messages in the journal."""
    kind = msgspec.defstruct("Entry", [("content", Any)])
    return [msgspec.convert(entry, kind) for entry in await entries(stranger) if entry["type"] == "message"]


async def test_what_was_not_handled_comes_again_in_order(start_manager: StartManager) -> None:
    stuck = asyncio.Event()

    async def hang_at_b(session: Session, message: Message) -> None:
        if message.content == "b" and session.attempt == 1:
            stuck.set()
            await asyncio.Event().wait()

    worker = Worker(hang_at_b)
    manager = await start_manager(worker)
    await manager.create_session(session_id="s1", restart=SOON)
    await send(manager, "a", "b", "c")
    await stuck.wait()
    worker.crash()
    await eventually(lambda: attempt(manager, 2))
    await send(manager, "d")
    await eventually(lambda: worker.in_attempt(2) == ["b", "c", "d"])

    assert worker.got[-3:] == [(2, "b", True), (2, "c", True), (2, "d", False)]


async def test_a_checkpoint_is_what_the_next_attempt_begins_with(start_manager: StartManager) -> None:
    worker = Worker(remember)
    manager = await start_manager(worker)
    await manager.create_session(session_id="s1", restart=SOON)
    await send(manager, "a", "b")
    await eventually(lambda: worker.in_attempt(1) == ["a", "b"])
    await send(manager, "c")
    await eventually(lambda: worker.in_attempt(1) == ["a", "b", "c"])
    await eventually(lambda: handled_is(manager, 0))
    worker.crash()
    await eventually(lambda: len(worker.states) == 2)

    assert worker.states == [None, ["a", "b", "c"]]
    assert worker.in_attempt(2) == []


async def handled_is(manager: SessionManager, unhandled: int) -> bool:
    """Whether so many messages of the session are accepted and not handled."""
    live = manager._sessions.running.find("s1")
    assert live.conversation.journal is not None
    return live.conversation.journal.unhandled == unhandled


async def test_a_worker_that_makes_checkpoints_handles_nothing_by_taking(start_manager: StartManager) -> None:
    async def only_the_first(session: Session, message: Message) -> None:
        if message.content == "a" and session.attempt == 1:
            await session.checkpoint(["a"], handled=message)

    worker = Worker(only_the_first)
    manager = await start_manager(worker)
    await manager.create_session(session_id="s1", restart=SOON)
    await send(manager, "a", "b", "c")
    await eventually(lambda: worker.in_attempt(1) == ["a", "b", "c"])
    worker.crash()

    await eventually(lambda: worker.in_attempt(2) == ["b", "c"])


async def test_a_checkpoint_without_a_message_leaves_what_is_handled(start_manager: StartManager) -> None:
    async def state_alone(session: Session, message: Message) -> None:
        await session.checkpoint({"seen": message.content})

    worker = Worker(state_alone)
    manager = await start_manager(worker)
    await manager.create_session(session_id="s1", restart=SOON)
    await send(manager, "a", "b")
    await eventually(lambda: worker.in_attempt(1) == ["a", "b"])
    worker.crash()
    await eventually(lambda: worker.in_attempt(2) == ["a", "b"])

    assert worker.states[1] in ({"seen": "a"}, {"seen": "b"})


async def test_a_state_of_null_is_none(start_manager: StartManager) -> None:
    async def null(session: Session, message: Message) -> None:
        await session.checkpoint(None, handled=message)

    worker = Worker(null)
    manager = await start_manager(worker)
    await manager.create_session(session_id="s1", restart=SOON)
    await send(manager, "a")
    await eventually(lambda: handled_is(manager, 0))
    worker.crash()
    await eventually(lambda: len(worker.states) == 2)

    assert (worker.states, worker.in_attempt(2)) == ([None, None], [])


@pytest.mark.parametrize(
    ("state", "error"),
    [
        ("x" * STATE_BYTES_MAX, TooLarge),
        (float("nan"), BadRequest),
        ({1: 2}, BadRequest),
        (object(), BadRequest),
        ("\ud800", BadRequest),
    ],
    ids=["too large", "no number", "no key", "no JSON", "no Unicode"],
)
async def test_a_state_that_cannot_be_stored_is_refused(
    start_manager: StartManager, stranger: Stranger, state: Any, error: type[JidoError]
) -> None:
    raised: list[JidoError] = []

    async def refused(session: Session, message: Message) -> None:
        try:
            await session.checkpoint(state, handled=message)
        except JidoError as problem:
            raised.append(problem)

    manager = await start_manager(Worker(refused))
    await manager.create_session(session_id="s1", restart=SOON)
    await send(manager, "a")
    await eventually(lambda: raised)

    assert isinstance(raised[0], error)
    assert await types(stranger) == ["claim", "message"]


# Repeated sends


async def test_a_repeated_send_is_known_in_the_next_attempt(start_manager: StartManager, stranger: Stranger) -> None:
    worker = Worker(remember)
    manager = await start_manager(worker)
    await manager.create_session(session_id="s1", restart=SOON)
    first = await manager.send_message("s1", "user", "a", message_id="a")
    await eventually(lambda: handled_is(manager, 0))
    worker.crash()
    await eventually(lambda: attempt(manager, 2))

    again = await manager.send_message("s1", "user", "a", message_id="a")
    with pytest.raises(AlreadyExists):
        await manager.send_message("s1", "user", "other", message_id="a")

    assert (again.replayed, again.number) == (True, first.number)
    assert (await types(stranger)).count("message") == 1


async def test_the_same_message_sent_by_many_at_once_is_stored_once(
    start_manager: StartManager, stranger: Stranger
) -> None:
    manager = await start_manager(Worker(remember))
    await manager.create_session(session_id="s1", restart=SOON)
    replies = await asyncio.gather(*(manager.send_message("s1", "user", "a", message_id="a") for _ in range(20)))

    assert len({reply.number for reply in replies}) == 1
    assert (await types(stranger)).count("message") == 1


async def test_an_append_whose_answer_is_lost_is_stored_once(server: LocalServer, stranger: Stranger) -> None:
    worker = Worker(remember)
    async with Proxy(server.port) as proxy:
        settings = Settings(lease_s=60)
        async with SessionManager.connect(proxy.url, worker=worker, settings=settings) as manager:
            await manager.create_session(session_id="s1", restart=SOON)
            for number in range(5):
                sending = asyncio.create_task(retried(manager, f"m{number}"))
                await asyncio.sleep(random.Random(number).random() / 100)
                proxy.cut()
                await sending
            await eventually(lambda: len(worker.got) >= 5)

    stored = [entry["content"] for entry in await stored_messages(stranger)]
    assert worker.in_attempt(1) == [f"m{number}" for number in range(5)]
    assert stored == []  # it has ended, and its journal with it


async def stored_messages(stranger: Stranger) -> list[dict[str, Any]]:
    """The entries that are messages."""
    return [entry for entry in await entries(stranger) if entry["type"] == "message"]


async def retried(manager: SessionManager, content: str) -> None:
    """Send until there is an answer."""
    while True:
        try:
            await send(manager, content)
            return
        except Unavailable:
            await asyncio.sleep(0.01)


# A full stream, too many messages


async def test_a_full_stream_is_overloaded(start_manager: StartManager, stranger: Stranger) -> None:
    errors: list[JidoError] = []

    async def large(session: Session, message: Message) -> None:
        try:
            await session.checkpoint("x" * 60_000)
        except JidoError as error:
            errors.append(error)

    manager = await start_manager(Worker(large), journal_bytes_max=50_000)
    await manager.create_session(session_id="s1", restart=SOON)
    await send(manager, "a")
    for _ in range(8):
        await manager.send_message("s1", "user", "y" * 5000)
    with pytest.raises(Overloaded, match="JIDO_JOURNAL is full"):
        await manager.send_message("s1", "user", "y" * 20_000)

    assert await eventually(lambda: errors)
    assert isinstance(errors[0], Overloaded)
    config = (await stranger.js.stream_info("JIDO_JOURNAL")).config
    await stranger.js.update_stream(config, max_bytes=1_000_000)
    await manager.send_message("s1", "user", "now there is room")


async def test_messages_that_nobody_handles_are_bounded(start_manager: StartManager) -> None:
    async def hang(session: Session, message: Message) -> None:
        await asyncio.Event().wait()

    manager = await start_manager(Worker(hang), inbox_messages_max=3)
    await manager.create_session(session_id="s1", restart=SOON)
    await send(manager, "a", "b", "c")
    with pytest.raises(Overloaded, match="has not handled 3 messages"):
        await send(manager, "d")
    await send(manager, "a")  # it was accepted before


# Purging, and the end


async def test_what_is_handled_is_purged_but_for_the_ids_of_the_last_messages(
    start_manager: StartManager, stranger: Stranger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "PURGE_EVERY", 8)
    monkeypatch.setattr(conversation, "KNOWN_MAX", 3)
    worker = Worker(remember)
    manager = await start_manager(worker)
    await manager.create_session(session_id="s1", restart=SOON)
    for number in range(30):
        await send(manager, number)
    await eventually(lambda: handled_is(manager, 0))

    kept = await entries(stranger)
    assert len(kept) <= 2 * 8
    known = [entry["known"] for entry in kept if "known" in entry]
    assert [[message_id for message_id, *_ in ids] for ids in known][-1] == sorted(
        (message_id for message_id, *_ in known[-1]), key=int
    )
    assert len(known[-1]) == 3
    worker.crash()
    await eventually(lambda: attempt(manager, 2))
    assert worker.states[1] == list(range(30))
    inbox = Inbox()
    inbox.remember(msgspec.convert(known[-1], tuple[KnownMessage, ...]))
    last = int(known[-1][-1][0])
    assert inbox.number_of(SendRequest(role="user", content=last, message_id=str(last)))
    with pytest.raises(AlreadyExists):
        inbox.number_of(SendRequest(role="user", content="other", message_id=str(last)))


async def test_large_states_are_purged_soon(start_manager: StartManager, stranger: Stranger) -> None:
    done = asyncio.Event()

    async def worker(session: Session) -> None:  # one that gets no message at all
        for number in range(12):
            await session.checkpoint("x" * 400_000 + str(number))
        done.set()
        await wait_for_ever(session)

    manager = await start_manager(worker)
    await manager.create_session(session_id="s1", restart=SOON)
    await done.wait()

    assert (await stranger.js.stream_info("JIDO_JOURNAL")).state.bytes < 5 * 450_000


async def test_what_is_not_handled_is_never_purged(
    start_manager: StartManager, stranger: Stranger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "PURGE_EVERY", 4)
    monkeypatch.setattr(conversation, "KNOWN_MAX", 3)

    async def state_alone(session: Session, message: Message) -> None:
        await session.checkpoint({"seen": message.content})

    worker = Worker(state_alone)
    manager = await start_manager(worker)
    await manager.create_session(session_id="s1", restart=SOON)
    await send(manager, *range(10))
    await eventually(lambda: len(worker.got) == 10)

    assert [entry["content"] for entry in await stored_messages(stranger)] == list(range(10))


async def test_a_journal_is_removed_when_its_session_has_ended(start_manager: StartManager, stranger: Stranger) -> None:
    manager = await start_manager(Worker(remember))
    await manager.create_session(session_id="s1", restart=SOON)
    await send(manager, "a")
    await manager.terminate_session("s1")
    await stranger.ends("s1")

    assert await eventually(lambda: is_empty(stranger))


async def is_empty(stranger: Stranger) -> bool:
    """Whether there is no journal at all."""
    return (await stranger.js.stream_info("JIDO_JOURNAL")).state.messages == 0


async def test_a_journal_that_was_left_is_removed_later(start_manager: StartManager, stranger: Stranger) -> None:
    manager = await start_manager(Worker(remember))
    await manager.create_session(session_id="lives", restart=SOON)
    await manager.create_session(session_id="s1", restart=SOON)
    left = (await stranger.js.get_last_msg("JIDO_JOURNAL", JOURNAL)).data or b""
    await manager.terminate_session("s1")
    await stranger.ends("s1")
    await eventually(lambda: no_entries(stranger))
    await stranger.js.publish(JOURNAL, left)
    await stranger.js.publish("jido.journal.never-was", left)

    await start_manager()  # it looks when it starts

    await eventually(lambda: only_lives(stranger))


async def no_entries(stranger: Stranger) -> bool:
    """Whether the session has no journal."""
    return not await entries(stranger)


async def only_lives(stranger: Stranger) -> bool:
    """Whether only the session that lives has a journal."""
    return {message.subject for message in await stranger.stored("JIDO_JOURNAL")} == {"jido.journal.lives"}


# Journals that somebody else wrote


@pytest.mark.parametrize(
    "rubbish",
    [
        b"",
        b"rubbish",
        b"\xff\xfe",
        b"[]",
        b'{"type":"tomorrow","attempt":1,"created_at":"2026-01-01T00:00:00Z"}',
        b'{"type":"checkpoint","attempt":1}',
        b'{"type":"message","attempt":1,"created_at":"2026-01-01T00:00:00Z","role":7}',
    ],
)
async def test_no_attempt_begins_with_a_journal_that_cannot_be_read(
    start_manager: StartManager, stranger: Stranger, monkeypatch: pytest.MonkeyPatch, rubbish: bytes
) -> None:
    """It is there before the session's first entry, so that no append meets it."""
    worker = Worker(remember)
    manager = await start_manager(worker)
    await stranger.js.publish(JOURNAL, rubbish)
    with pytest.raises(JidoError, match="cannot be read"):
        await manager.create_session(session_id="s1", restart=SOON)

    assert worker.states == []
    assert (await stranger.ends("s1"))["reason"] == "start_failed"


async def test_an_entry_of_another_session_of_that_id_is_ignored(
    start_manager: StartManager, stranger: Stranger
) -> None:
    worker = Worker(remember)
    manager = await start_manager(worker)
    old = {"attempt": 7, "created_at": "2020-01-01T00:00:00Z"}
    await stranger.js.publish(JOURNAL, msgspec.json.encode({"type": "claim", **old}))
    await stranger.js.publish(
        JOURNAL, msgspec.json.encode({"type": "checkpoint", "handled": 9_999, "state": "another's", **old})
    )
    await manager.create_session(session_id="s1", restart=SOON)
    await send(manager, "a")
    await eventually(lambda: handled_is(manager, 0))
    worker.crash()
    await eventually(lambda: len(worker.states) == 2)

    assert worker.states == [None, ["a"]]


@pytest.mark.parametrize("removed", [False, True])
async def test_a_session_whose_journal_another_has_written_is_given_up(
    start_manager: StartManager, stranger: Stranger, removed: bool
) -> None:
    worker = Worker(remember)
    manager = await start_manager(worker, lease_s=2)
    await manager.create_session(session_id="s1", restart=SOON)
    await send(manager, "a")
    await eventually(lambda: handled_is(manager, 0))
    if removed:
        await stranger.js.purge_stream("JIDO_JOURNAL", subject=JOURNAL)
    else:
        await stranger.js.publish(JOURNAL, b"rubbish")

    with pytest.raises(Unavailable):
        await send(manager, "b")

    assert (await stranger.ends("s1"))["reason"] == "owner_lost"


# Output


async def test_output_says_of_which_attempt_it_is(start_manager: StartManager, stranger: Stranger) -> None:
    async def echo(session: Session, message: Message) -> None:
        await session.say(message.content)
        await session.emit("token", message.content, ephemeral=True)

    worker = Worker(echo)
    manager = await start_manager(worker)
    ear = await stranger.hear(OUTPUT)
    await manager.create_session(session_id="s1", restart=SOON)
    await send(manager, "a")
    await eventually(lambda: worker.in_attempt(1))
    worker.crash()
    await eventually(lambda: attempt(manager, 2))
    await send(manager, "b")
    await eventually(lambda: len([o for o in ear.on(OUTPUT) if o["attempt"] == 2]) >= 3)

    stored = await stranger.stored("JIDO_OUTPUT")
    ids = [(message.headers or {})["Nats-Msg-Id"] for message in stored]
    numbers = [msgspec.json.decode(message.data)["number"] for message in stored]
    assert numbers == list(range(1, len(stored) + 1))
    attempts = [msgspec.json.decode(message.data)["attempt"] for message in stored]
    assert ids == [f"s1.{attempt}.{number}.output" for attempt, number in zip(attempts, numbers, strict=True)]
    assert attempts == sorted(attempts)
    assert {o["attempt"] for o in ear.on(OUTPUT) if o.get("ephemeral")} == {1, 2}


async def test_readers_drop_what_an_older_attempt_says_late(
    server: LocalServer, start_manager: StartManager, stranger: Stranger
) -> None:
    await start_manager()
    for attempt, number in ((1, 1), (2, 2), (1, 3), (2, 3), (None, 4)):
        said = {"type": "session_output", "session_id": "s1", "number": number, "name": "x", "data": None}
        said |= {"created_at": "2026-01-01T00:00:00Z"} | ({} if attempt is None else {"attempt": attempt})
        await stranger.js.publish(OUTPUT, msgspec.json.encode(said))

    async with Client.connect(server.url) as client, client.output(session_id="s1", since="all") as output:
        read = [(message.output.attempt, message.output.number) async for message in output.stored()]

    assert read == [(1, 1), (2, 2), (2, 3), (None, 4)]


async def test_a_duplicate_that_is_another_message_is_not_believed(
    start_manager: StartManager, stranger: Stranger, caplog: pytest.LogCaptureFixture
) -> None:
    errors: list[JidoError] = []

    async def say(session: Session, message: Message) -> None:
        await session.say("mine")
        try:
            await session.flush()
        except JidoError as error:
            errors.append(error)

    manager = await start_manager(Worker(say))
    await manager.create_session(session_id="s1", restart=SOON)
    await stranger.js.publish(OUTPUT, b"another's", headers={"Nats-Msg-Id": "s1.1.2.output"})
    await send(manager, "a")

    assert await eventually(lambda: errors)
    assert "another one under its number" in str(errors[0])
    await manager.terminate_session("s1")
    assert (await stranger.ends("s1"))["output_incomplete"] is True


async def test_a_worker_reads_the_conversation(start_manager: StartManager) -> None:
    read: list[list[tuple[str, Any]]] = []

    async def answer(session: Session, message: Message) -> None:
        if message.content == "read":
            for limit in (1000, 2):
                read.append([(said.role, said.content) for said in await session.conversation(limit)])
            return
        await session.say(f"re: {message.content}")
        await session.emit("note", 1)
        await session.flush()

    manager = await start_manager(Worker(answer))
    await manager.create_session(session_id="s1", restart=SOON)
    await send(manager, "a", "b", "read")
    await eventually(lambda: len(read) == 2)

    said = [("user", "a"), ("assistant", "re: a"), ("user", "b"), ("assistant", "re: b")]
    assert [one for one in read[0] if one[1] != "read"] == sorted(said, key=read[0].index)
    assert read[1] == read[0][-2:]


# A manager that may not use journals


@pytest.fixture
async def without_journals() -> AsyncIterator[LocalServer]:
    """A server whose managers may not write journals."""
    config = ONE_ACCOUNT.replace(
        "{ user: manager,", '{ user: manager, permissions: { publish: { deny: "jido.journal.>" } },'
    )
    async with LocalServer(config=config) as server:
        yield server


async def test_a_manager_that_may_not_use_journals_works_without(
    without_journals: LocalServer, caplog: pytest.LogCaptureFixture
) -> None:
    options, settings = as_user(without_journals, "manager"), Settings(lease_s=LEASE_S)
    async with SessionManager.connect(options, worker=wait_for_ever, settings=settings) as manager:
        with pytest.raises(Unavailable, match="may not use the stream of journals"):
            await manager.create_session(restart=SOON)
        record = await manager.create_session()

    assert record.status is Status.ACTIVE
    assert [line for line in caplog.messages if "journals cannot be used" in line] == [
        "the journals cannot be used: this manager creates no sessions with a restart policy"
    ]
