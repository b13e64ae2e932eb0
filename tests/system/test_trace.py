"""A `traceparent` goes from a command to all that it causes, and no further."""

from typing import Any

import msgspec
import pytest

from jido_nats import Client, LocalServer, Session, SessionManager
from jido_nats.trace import CURRENT, traceparent_in
from tests.conftest import StartManager
from tests.tools.children.kin import child
from tests.tools.support import Puppet, Stranger, eventually, wait_for_ever
from tests.worker.test_programs import has_said

ONE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OTHER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"
EVENTS = "jido.client.events"


async def ask(stranger: Stranger, subject: str, payload: Any = b"", trace: str | None = None) -> dict[str, Any]:
    """The answer to a request with that header."""
    headers = {"traceparent": trace} if trace else None
    answer: dict[str, Any] = msgspec.json.decode((await stranger.request(subject, payload, headers=headers)).data)
    return answer


async def traces(stranger: Stranger, subject: str = EVENTS, stream: str = "JIDO_CLIENT") -> list[str | None]:
    """The headers of what is stored on a subject, in order."""
    return [(m.headers or {}).get("traceparent") for m in await stranger.stored(stream) if m.subject == subject]


async def test_a_create_s_trace_is_its_events_and_its_record_s(stranger: Stranger, manager: SessionManager) -> None:
    record = await ask(stranger, "jido.session.create", {"session_id": "s1"}, ONE)

    assert record["traceparent"] == ONE
    assert await traces(stranger) == [ONE, ONE]
    assert await traces(stranger, "jido.client.session.s1") == [ONE]


async def test_without_one_there_is_none(stranger: Stranger, manager: SessionManager) -> None:
    record = await ask(stranger, "jido.session.create", {"session_id": "s1"})

    assert "traceparent" not in record
    assert await traces(stranger) == [None, None]


async def test_a_later_command_s_trace_is_its_own_event_s_alone(stranger: Stranger, manager: SessionManager) -> None:
    await ask(stranger, "jido.session.create", {"session_id": "s1"}, ONE)
    await ask(stranger, "jido.session.idle.s1", trace=OTHER)
    record = await ask(stranger, "jido.session.activate.s1")

    assert "traceparent" not in record
    assert await traces(stranger) == [ONE, ONE, OTHER, None]


async def test_a_terminate_s_trace_is_the_whole_end_s(stranger: Stranger, manager: SessionManager) -> None:
    await ask(stranger, "jido.session.create", {"session_id": "s1"}, ONE)
    await ask(stranger, "jido.session.terminate.s1", trace=OTHER)

    assert await traces(stranger) == [ONE, ONE, OTHER, OTHER, OTHER]


async def test_an_end_in_time_has_no_trace(stranger: Stranger, manager: SessionManager) -> None:
    await ask(stranger, "jido.session.create", {"session_id": "s1", "max_lifetime_s": 0.1}, ONE)

    await stranger.ends("s1")

    assert await traces(stranger) == [ONE, ONE, None, None, None]


async def test_a_worker_knows_its_trace(stranger: Stranger, start_manager: StartManager) -> None:
    known: list[str | None] = []

    async def worker(session: Session) -> None:
        known.extend((session.traceparent, CURRENT.get()))
        await wait_for_ever(session)

    await start_manager(worker)
    await ask(stranger, "jido.session.create", {"session_id": "s1"}, ONE)

    await eventually(lambda: known == [ONE, ONE])


async def test_what_the_worker_does_has_its_trace(stranger: Stranger, start_manager: StartManager) -> None:
    async def worker(session: Session) -> None:
        await session.idle()
        await session.emit("step")
        await session.flush()

    await start_manager(worker)
    await ask(stranger, "jido.session.create", {"session_id": "s1"}, ONE)

    await stranger.ends("s1")

    assert await traces(stranger) == 5 * [ONE]
    assert await traces(stranger, "jido.client.session.s1.output", "JIDO_OUTPUT") == [ONE]


async def test_a_program_finds_it_in_its_environment(stranger: Stranger, start_manager: StartManager) -> None:
    await start_manager(child("environment.sh"))
    await ask(stranger, "jido.session.create", {"session_id": "s1"}, ONE)

    *_, in_env, _, _, line = await eventually(lambda: has_said(stranger, "s1", 6))

    assert in_env == line["traceparent"] == ONE


async def test_a_message_carries_its_own(stranger: Stranger, start_manager: StartManager, puppet: Puppet) -> None:
    await start_manager(puppet)
    await ask(stranger, "jido.session.create", {"session_id": "s1"}, ONE)
    await ask(stranger, "jido.session.send.s1", {"role": "user", "content": "x"}, OTHER)

    (message,) = await puppet.sessions["s1"].messages()

    assert message.traceparent == OTHER
    assert await traces(stranger, "jido.client.session.s1.output", "JIDO_OUTPUT") == [OTHER]


async def test_it_is_passed_on_to_the_owner(stranger: Stranger, start_manager: StartManager, puppet: Puppet) -> None:
    owner = await start_manager(puppet)
    await owner.create_session(session_id="s1")
    other = await start_manager(puppet)

    CURRENT.set(OTHER)
    await other.idle_session("s1")

    assert (await traces(stranger))[-1] == OTHER


async def test_a_client_sends_the_current_one(server: LocalServer, stranger: Stranger, manager: SessionManager) -> None:
    async with Client.connect(server.url) as client:
        CURRENT.set(ONE)
        await client.create_session(session_id="s1")

    assert await traces(stranger) == [ONE, ONE]


@pytest.mark.parametrize(
    "rubbish",
    [
        "x",
        ONE.upper(),
        ONE[:-1],
        ONE + "0",
        ONE + "\n",
        "ff" + ONE[2:],
        "00-" + 32 * "0" + "-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-" + 16 * "0" + "-01",
    ],
)
def test_one_that_is_not_valid_is_ignored(rubbish: str) -> None:
    assert traceparent_in({"traceparent": rubbish}) is None


async def test_a_command_with_an_invalid_one_is_carried_out(stranger: Stranger, manager: SessionManager) -> None:
    record = await ask(stranger, "jido.session.create", {"session_id": "s1"}, "00-rubbish")

    assert record["status"] == "active"
    assert await traces(stranger) == [None, None]


def test_the_header_s_case_does_not_matter() -> None:
    assert traceparent_in({"TraceParent": ONE}) == ONE
