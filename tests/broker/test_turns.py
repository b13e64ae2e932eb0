"""Turns: how many blocks run at a time, whose turn comes next, and what a cancellation leaves."""

import asyncio
from collections.abc import Sequence

import pytest

from jido_nats.broker.turns import PARTY, Party, Turns

A, B = Party("a"), Party("b")


class Works:
    """Tasks that wait for a turn, and what has run so far."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self.running: list[Party] = []
        self._tasks: list[asyncio.Task[None]] = []
        self.begun: list[Party] = []

    async def start(self, *parties: Party) -> list[asyncio.Task[None]]:
        tasks = [asyncio.create_task(self._work(party)) for party in parties]
        await settle()
        return tasks

    async def _work(self, party: Party) -> None:
        PARTY.set(party)
        async with self._turns:
            self.running.append(party)
            task = asyncio.current_task()
            assert task is not None
            self._tasks.append(task)
            self.begun.append(party)
            try:
                await asyncio.Event().wait()
            finally:
                self.running.remove(party)
                self._tasks.remove(task)

    async def end_running(self) -> None:
        await self.end(list(self._tasks))

    async def end(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await settle()


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_no_more_run_than_are_allowed() -> None:
    works = Works(Turns(2))

    tasks = await works.start(A, A, B)
    assert works.running == [A, A]

    await works.end(tasks[:1])
    assert works.running == [A, B]
    await works.end(tasks)


async def test_a_party_with_many_does_not_keep_another_waiting() -> None:
    works = Works(Turns(1))
    tasks = await works.start(*[A] * 5, B)

    for task in tasks[:2]:
        await works.end([task])

    assert works.begun == [A, A, B]
    await works.end(tasks)


async def test_callers_take_turns_however_many_purposes_one_has() -> None:
    works = Works(Turns(1))
    many = [Party("a", str(number)) for number in range(5)]
    tasks = await works.start(*many, B, B)

    for _ in range(4):
        await works.end_running()

    assert [party.caller for party in works.begun] == ["a", "a", "b", "a", "b"]
    await works.end(tasks)


async def test_the_purposes_of_a_caller_take_turns() -> None:
    works = Works(Turns(1))
    one, two = Party("a", "1"), Party("a", "2")
    tasks = await works.start(one, one, one, two)

    await works.end(tasks[:1])
    await works.end(tasks[1:2])

    assert works.begun == [one, one, two]
    await works.end(tasks)


@pytest.mark.parametrize("turns", [Turns(each=2), Turns(9, each=2), Turns(each_caller=2)])
async def test_a_party_has_a_limit_of_its_own(turns: Turns) -> None:
    works = Works(turns)

    tasks = await works.start(A, A, A, B, B, B)

    assert works.running == [A, A, B, B]
    await works.end(tasks)


async def test_a_caller_has_a_limit_for_all_its_purposes() -> None:
    works = Works(Turns(each_caller=2))

    tasks = await works.start(Party("a", "1"), Party("a", "2"), Party("a", "3"), B)

    assert [party.caller for party in works.running] == ["a", "a", "b"]
    await works.end(tasks)


async def test_the_program_itself_has_the_limit_of_all() -> None:
    works = Works(Turns(3, each=1, each_caller=1))

    tasks = await works.start(*[Party()] * 4)

    assert len(works.running) == 3
    await works.end(tasks)


async def test_one_that_is_cancelled_while_it_waits_costs_no_turn() -> None:
    works = Works(Turns(1))
    tasks = await works.start(A, A, A, B)

    await works.end(tasks[1:3])
    await works.end(tasks[:1])

    assert works.running == [B]
    await works.end(tasks)


async def test_one_that_is_cancelled_as_its_turn_comes_passes_it_on() -> None:
    works = Works(Turns(1))
    first, second, third = await works.start(A, A, B)

    first.cancel()
    await asyncio.sleep(0)  # it has left its block: the turn is the second's, which does not know it yet
    second.cancel()
    await settle()

    assert works.running == [B]
    await works.end([first, second, third])


async def test_after_all_have_left_everything_is_free_again() -> None:
    works = Works(Turns(2, each=1))
    await works.end(await works.start(A, A, B, B))

    tasks = await works.start(A, B)

    assert works.running == [A, B]
    await works.end(tasks)
