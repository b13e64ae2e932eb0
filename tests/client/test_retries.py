"""What an error means for the next try of a command."""

import asyncio

import pytest

from jido_nats.client.retries import ATTEMPT_TIMEOUT_S, RETRY_WAIT_S, Tries
from jido_nats.errors import NoResponders, NotSent, OutcomeUnknown, Unavailable

LONG_S = 60.0


async def test_a_try_takes_no_longer_than_the_command_may() -> None:
    assert 0.9 < Tries(1.0).attempt_s() <= 1.0


async def test_one_try_leaves_time_for_another() -> None:
    assert Tries(LONG_S).attempt_s() == ATTEMPT_TIMEOUT_S


async def test_a_command_without_time_is_tried_all_the_same() -> None:
    assert Tries(0.0).attempt_s() > 0


@pytest.mark.parametrize(
    ("error", "in_doubt"),
    [
        (NoResponders("nobody answers"), False),
        (NotSent("not connected"), False),
        (OutcomeUnknown("no answer"), True),
        (Unavailable("ask again"), True),
    ],
)
async def test_a_command_that_may_have_been_carried_out_is_in_doubt(
    error: NotSent | OutcomeUnknown | Unavailable, *, in_doubt: bool
) -> None:
    tries = Tries(LONG_S)

    await tries.after(error)

    assert tries.in_doubt is in_doubt


async def test_doubt_stays() -> None:
    tries = Tries(LONG_S)

    await tries.after(OutcomeUnknown("no answer"))
    await tries.after(NotSent("not connected"))

    assert tries.in_doubt


async def test_a_lost_answer_ends_as_unavailable() -> None:
    lost = OutcomeUnknown("no answer")

    with pytest.raises(Unavailable, match="may or may not have been carried out") as raised:
        await Tries(0.0).after(lost)

    assert raised.value.__cause__ is lost


async def test_a_manager_that_cannot_now_says_so_itself() -> None:
    answered = Unavailable("the owner does not answer")

    with pytest.raises(Unavailable) as raised:
        await Tries(0.0).after(answered)

    assert raised.value is answered


async def test_what_a_manager_said_is_not_forgotten_when_the_time_is_over() -> None:
    answered, tries = Unavailable("starting"), Tries(1.4 * RETRY_WAIT_S)
    await tries.after(answered)

    with pytest.raises(Unavailable, match="starting"):
        await tries.after(OutcomeUnknown("no answer"))


async def test_nobody_who_answers_is_named() -> None:
    with pytest.raises(Unavailable, match="no session manager is running"):
        await Tries(0.0).after(NoResponders("nobody answers"))


async def test_the_next_try_is_waited_for() -> None:
    started = asyncio.get_running_loop().time()

    await Tries(LONG_S).after(NotSent("not connected"))

    assert asyncio.get_running_loop().time() - started >= RETRY_WAIT_S / 2 - 0.001
