"""What the worker does in a session, over NATS, as its callers see it."""

import asyncio
from typing import Any

from jido_nats import Client, ConversationAdded, Output, Reason, SessionOutput, Status

DEADLINE_S = 10.0


async def outputs(client: Client, session_id: str, count: int) -> list[Output]:
    """The first outputs that the session kept, as soon as there are so many."""
    async with asyncio.timeout(DEADLINE_S), client.output(session_id=session_id, since="all") as stream:
        return [(await anext(stream)).output for _ in range(count)]


def answers(found: list[Output]) -> list[Any]:
    """What the worker said, among it."""
    return [each.content for each in found if isinstance(each, ConversationAdded) and each.role == "assistant"]


async def test_a_session_becomes_active(client: Client) -> None:
    record = await client.create_session(session_id="s1")

    assert record.status is Status.ACTIVE
    history = await client.session_history("s1")
    assert [type(event).__name__ for event in history] == ["SessionCreated", "SessionStatus"]


async def test_it_answers_each_message(client: Client) -> None:
    await client.create_session(session_id="s1")

    await client.send_message("s1", "user", 40)
    await client.send_message("s1", "user", 2)

    assert answers(await outputs(client, "s1", 4)) == [40, 42]


async def test_it_completes_when_it_is_done(client: Client) -> None:
    await client.create_session(session_id="s1")

    await client.send_message("s1", "user", "done")

    record = await client.wait("s1", Status.TERMINATED, timeout_s=DEADLINE_S)
    assert record.reason is Reason.COMPLETED


async def test_what_is_no_number_crashes_it(client: Client) -> None:
    await client.create_session(session_id="s1")

    await client.send_message("s1", "user", "three")

    record = await client.wait("s1", Status.TERMINATED, timeout_s=DEADLINE_S)
    assert record.reason is Reason.CRASHED
    assert record.error is not None
    assert record.error.startswith("ValueError: not a number: 'three'")  # where it was raised follows


async def test_it_is_terminated_on_request(client: Client) -> None:
    await client.create_session(session_id="s1")

    record = await client.terminate_session("s1", detail="enough")

    assert (record.status, record.reason, record.detail) == (Status.TERMINATED, Reason.REQUESTED, "enough")


async def test_the_total_is_kept_when_it_is_terminated(client: Client) -> None:
    await client.create_session(session_id="s1")
    await client.send_message("s1", "user", 7)
    await outputs(client, "s1", 2)  # it has answered

    await client.terminate_session("s1")

    last = (await outputs(client, "s1", 3))[-1]
    assert isinstance(last, SessionOutput)
    assert (last.name, last.data) == ("total", 7)
