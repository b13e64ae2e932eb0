"""Lines out of a stream of bytes, however they come."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jido_nats.core import codec
from jido_nats.core.codec import DecodeError
from jido_nats.worker.protocol import (
    LINES_AT_ONCE,
    Done,
    FromProgram,
    Idle,
    OutputLine,
    Refused,
    RoundRobin,
    Say,
    lines_of,
)


class Pieces:
    """A stream whose bytes come in these pieces."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = list(pieces)

    async def read(self, n: int) -> bytes:
        """The next piece, or what fits of it."""
        if not self._pieces:
            return b""
        piece = self._pieces.pop(0)
        if len(piece) > n:
            self._pieces.insert(0, piece[n:])
        return piece[:n]


async def read(*pieces: bytes, bytes_max: int = 100) -> list[tuple[bytes, bool]]:
    return [(line.data, line.whole) async for line in lines_of(Pieces(*pieces), bytes_max, RoundRobin())]


@pytest.mark.parametrize(
    ("pieces", "lines"),
    [
        ([], []),
        ([b"one\n"], [b"one"]),
        ([b"one\ntwo\n"], [b"one", b"two"]),
        ([b"o", b"ne\nt", b"wo", b"\n"], [b"one", b"two"]),
        ([b"\n\n"], [b"", b""]),
        ([b"last"], [b"last"]),
        ([b"one\nla", b"st"], [b"one", b"last"]),
        ([b"one\r\n"], [b"one\r"]),
    ],
)
async def test_lines_are_found(pieces: list[bytes], lines: list[bytes]) -> None:
    assert await read(*pieces) == [(line, True) for line in lines]


async def test_of_a_line_that_is_too_long_the_beginning_is_given() -> None:
    assert await read(b"12345678\nshort\n", bytes_max=5) == [(b"12345", False), (b"short", True)]


async def test_a_line_of_just_that_length_is_whole() -> None:
    assert await read(b"123", b"45\n12345", b"6\n", bytes_max=5) == [(b"12345", True), (b"12345", False)]


async def test_an_endless_line_is_not_kept() -> None:
    (line,) = await read(*[b"x" * 10_000] * 1000, bytes_max=5)
    assert line == (b"xxxxx", False)


@given(text=st.binary(max_size=60), cuts=st.lists(st.integers(1, 20), max_size=10), bytes_max=st.integers(1, 20))
def test_how_the_bytes_come_makes_no_difference(text: bytes, cuts: list[int], bytes_max: int) -> None:
    rest, pieces = text, []
    for cut in cuts:
        pieces.append(rest[:cut])
        rest = rest[cut:]
    pieces = [piece for piece in [*pieces, rest] if piece]  # an empty one is the end

    whole = text.split(b"\n")
    expected = [(line[:bytes_max], len(line) <= bytes_max) for line in (whole if whole[-1] else whole[:-1])]
    assert asyncio.run(read(*pieces, bytes_max=bytes_max)) == expected


async def test_others_have_their_turn_between_many_lines() -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    await read(b"x\n" * 10 * LINES_AT_ONCE)
    task.cancel()

    assert turns >= 10


async def test_several_who_have_much_to_say_share_one_turn_a_round() -> None:
    shared, count, rounds = RoundRobin(), 0, 0

    async def say_much() -> None:
        nonlocal count
        async for _ in lines_of(Pieces(b"x\n" * 4 * LINES_AT_ONCE), 100, shared):
            count += 1

    saying = asyncio.gather(*(say_much() for _ in range(20)))
    before = count
    while not saying.done():
        await asyncio.sleep(0)
        rounds += 1
        if rounds > 1:  # in the first, each begins
            assert count - before <= 2 * LINES_AT_ONCE
        before = count

    assert count == 20 * 4 * LINES_AT_ONCE


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"type":"idle"}', Idle()),
        (b'{"type":"idle","id":"a","unknown":1}', Idle(id="a")),
        (b'{"type":"output"}', OutputLine()),
        (b'{"type":"output","data":[1],"name":"n","ephemeral":true,"id":1}', OutputLine([1], "n", True, id=1)),
        (b'{"type":"say","content":"x"}', Say("x")),
    ],
)
def test_what_a_program_may_say(line: bytes, said: FromProgram) -> None:
    assert codec.decode(line, FromProgram) == said  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "line", [b"", b"x", b"{}", b'{"type":"x"}', b'{"type":7}', b'{"type":"idle","id":1.5}', b'{"type":"say"}', b"\xff"]
)
def test_what_it_may_not(line: bytes) -> None:
    with pytest.raises(DecodeError):
        codec.decode(line, FromProgram)  # type: ignore[arg-type]


def test_what_it_is_answered() -> None:
    assert codec.encode(Done(1)) == b'{"type":"done","id":1}'
    assert codec.encode(Done("a", 7)) == b'{"type":"done","id":"a","number":7}'
    assert codec.encode(Refused(1, "c", "m")) == b'{"type":"refused","id":1,"code":"c","message":"m"}'
