"""Deadlines of thousands of keys: one task, found due in order, moved by asking again."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from jido_nats.broker.clock import boottime
from jido_nats.manager.deadlines import HEAP_MIN, Deadlines
from tests.tools.support import eventually


class Calendar:
    """When each key is due, and what was found due: as the manager uses deadlines."""

    def __init__(self) -> None:
        self.due: dict[str, float] = {}
        self.called: list[str] = []
        self.deadlines = Deadlines()

    def put(self, key: str, in_s: float) -> None:
        """It is due then."""
        self.due[key] = boottime() + in_s
        self.deadlines.watch(key, self.due[key])

    async def run(self) -> None:
        """Call what is due, and watch again what was put off."""
        while True:
            key = await self.deadlines.next()
            due = self.due.get(key)
            if due is not None and due <= boottime():
                self.called.append(key)
                del self.due[key]
            else:
                self.deadlines.watch(key, due)


@pytest.fixture
async def calendar() -> AsyncIterator[Calendar]:
    calendar = Calendar()
    running = asyncio.create_task(calendar.run())
    yield calendar
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


async def test_each_is_called_once_in_the_order_in_which_they_are_due(calendar: Calendar) -> None:
    for key, in_s in (("c", 0.06), ("a", 0.02), ("b", 0.04)):
        calendar.put(key, in_s)

    await eventually(lambda: not calendar.due)

    assert calendar.called == ["a", "b", "c"]


async def test_one_that_moves_on_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("jido_nats.manager.deadlines.boottime", lambda: now)
    deadlines = Deadlines()
    deadlines.watch("a", 2.0)
    deadlines.watch("b", 5.0)

    now = 3.0
    assert await deadlines.next() == "a"
    deadlines.watch("a", 10.0)  # activity: nobody told the deadlines before
    now = 20.0

    assert [await deadlines.next(), await deadlines.next()] == ["b", "a"]


async def test_one_that_comes_nearer_is_called_then_and_once(calendar: Calendar) -> None:
    calendar.put("a", 0.1)
    calendar.put("a", 0.02)
    calendar.put("z", 0.15)

    await eventually(lambda: not calendar.due)

    assert calendar.called == ["a", "z"]


async def test_one_that_is_never_due_is_not_called(calendar: Calendar) -> None:
    calendar.put("a", 0.01)
    del calendar.due["a"]
    calendar.deadlines.watch("b", None)
    calendar.put("z", 0.05)

    await eventually(lambda: not calendar.due)

    assert calendar.called == ["z"]


async def test_one_that_is_forgotten_is_not_called(calendar: Calendar) -> None:
    calendar.put("a", 0.01)
    calendar.deadlines.forget("a")
    calendar.deadlines.forget("never heard of")
    calendar.put("z", 0.05)

    await eventually(lambda: "z" not in calendar.due)

    assert calendar.called == ["z"]


async def test_ten_thousand_are_one_task(calendar: Calendar) -> None:
    before = len(asyncio.all_tasks())
    for number in range(10_000):
        calendar.put(f"k{number}", 0.02)

    assert len(asyncio.all_tasks()) == before
    await eventually(lambda: len(calendar.called) == 10_000)


async def test_what_is_forgotten_takes_no_memory_until_it_would_be_due(calendar: Calendar) -> None:
    for number in range(20_000):
        calendar.put(f"k{number}", 1e9)
        calendar.deadlines.forget(f"k{number}")

    assert len(calendar.deadlines._heap) <= HEAP_MIN + 1


async def test_what_is_left_after_much_was_forgotten_is_called_in_order(calendar: Calendar) -> None:
    for number in range(3 * HEAP_MIN):
        calendar.put(f"k{number}", 1e9)
    for key, in_s in (("c", 0.06), ("a", 0.02), ("b", 0.04)):
        calendar.put(key, in_s)
    for number in range(3 * HEAP_MIN):
        calendar.deadlines.forget(f"k{number}")

    await eventually(lambda: len(calendar.called) == 3)

    assert calendar.called == ["a", "b", "c"]


async def test_what_is_replaced_again_and_again_does_not_pile_up(calendar: Calendar) -> None:
    for number in range(20_000):
        calendar.put("k", 1e9 - number)

    assert len(calendar.deadlines._heap) <= HEAP_MIN + 4
