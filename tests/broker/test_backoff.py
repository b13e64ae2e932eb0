"""The wait between two tries grows to its limit, and is spread."""

import asyncio

from jido_nats.broker.backoff import Backoff


def waits(backoff: Backoff, number: int) -> list[float]:
    return [backoff.next_s() for _ in range(number)]


def test_a_wait_doubles_up_to_its_limit() -> None:
    backoff = Backoff(1.0, 5.0, uniform=lambda: 1.0)

    assert waits(backoff, 5) == [1.0, 2.0, 4.0, 5.0, 5.0]


def test_jitter_takes_at_most_half_of_a_wait() -> None:
    backoff = Backoff(1.0, 5.0, uniform=lambda: 0.0)

    assert waits(backoff, 5) == [0.5, 1.0, 2.0, 2.5, 2.5]


def test_a_wait_grows_from_what_it_was_before_jitter() -> None:
    uniform = iter([0.0, 1.0, 0.5])
    backoff = Backoff(1.0, 8.0, uniform=lambda: next(uniform))

    assert waits(backoff, 3) == [0.5, 2.0, 3.0]


def test_without_a_random_source_of_its_own_waits_differ_within_the_bounds() -> None:
    found = waits(Backoff(1.0, 1.0), 100)

    assert len(set(found)) > 1
    assert 0.5 <= min(found) <= max(found) <= 1.0


def test_after_a_reset_the_first_wait_comes_again() -> None:
    backoff = Backoff(1.0, 5.0, uniform=lambda: 1.0)
    waits(backoff, 3)

    backoff.reset()

    assert waits(backoff, 2) == [1.0, 2.0]


async def test_waiting_takes_the_next_wait() -> None:
    backoff = Backoff(0.02, 0.04, uniform=lambda: 1.0)
    started = asyncio.get_running_loop().time()

    await backoff.wait()

    assert asyncio.get_running_loop().time() - started >= 0.019
    assert backoff.next_s() == 0.04
