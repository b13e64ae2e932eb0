"""An inbox: in order, each message once, bounded; also for several who wait, and those who give up."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from jido_nats.core.requests import SendRequest
from jido_nats.errors import AlreadyExists, Overloaded
from jido_nats.worker.inbox import SEEN_MAX, Inbox, Message


def put(inbox: Inbox, number: int, content: Any = None) -> SendRequest:
    """Put the message of that number."""
    request = SendRequest(role="user", content=content or number, message_id=f"m{number}")
    at = datetime(2025, 1, 1, tzinfo=UTC)
    inbox.put(Message(role="user", content=request.content, message_id=f"m{number}", number=number, created_at=at))
    return request


async def test_they_are_taken_in_order() -> None:
    inbox = Inbox()
    for number in (1, 2, 3):
        put(inbox, number)

    assert [(await inbox.take()).number for _ in range(3)] == [1, 2, 3]


async def test_all_that_wait_are_taken_at_once() -> None:
    inbox = Inbox()
    for number in (1, 2, 3):
        put(inbox, number)

    assert [message.number for message in await inbox.take_all()] == [1, 2, 3]


async def test_each_of_several_who_wait_gets_one() -> None:
    inbox = Inbox()
    waiting = [asyncio.create_task(inbox.take()) for _ in range(3)]
    await asyncio.sleep(0)
    for number in (1, 2, 3):
        put(inbox, number)

    assert sorted(message.number for message in await asyncio.gather(*waiting)) == [1, 2, 3]


async def test_who_gives_up_takes_nothing_along() -> None:
    inbox = Inbox()
    impatient = asyncio.create_task(inbox.take())
    await asyncio.sleep(0)
    put(inbox, 1)
    impatient.cancel()
    await asyncio.wait({impatient})

    if impatient.cancelled():
        assert (await inbox.take()).number == 1


async def test_a_full_inbox_is_overloaded_until_one_is_taken() -> None:
    inbox = Inbox()
    put(inbox, 1)
    with pytest.raises(Overloaded):
        inbox.check_room(1)

    await inbox.take()

    inbox.check_room(1)


def test_a_message_is_known_when_it_is_repeated() -> None:
    inbox = Inbox()
    request = put(inbox, 7, {"a": 1, "b": [2]})

    assert inbox.number_of(request) == 7
    assert inbox.number_of(SendRequest(role="user", content={"b": [2], "a": 1}, message_id="m7")) == 7
    assert inbox.number_of(SendRequest(role="user", content={"a": 1, "b": [2]})) is None


@pytest.mark.parametrize(("role", "content"), [("user", 1.0), ("user", True), ("user", "1"), ("system", 1)])
def test_the_same_id_with_other_content_is_refused(role: str, content: Any) -> None:
    inbox = Inbox()
    put(inbox, 1)

    with pytest.raises(AlreadyExists):
        inbox.number_of(SendRequest(role=role, content=content, message_id="m1"))


def test_the_last_thousand_ids_are_known() -> None:
    inbox = Inbox()
    requests = [put(inbox, number) for number in range(1, SEEN_MAX + 2)]

    assert inbox.number_of(requests[0]) is None
    assert [inbox.number_of(request) for request in requests[1:]] == list(range(2, SEEN_MAX + 2))
