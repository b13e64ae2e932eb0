"""Positions and their tokens: what is written is read again, and nothing else is taken for one."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as some

from jido_nats.core.position import Position, is_position_token, nanoseconds, parse_position
from jido_nats.errors import BadRequest

NUMBERS = some.integers(0, 2**63 - 1)


@given(NUMBERS, NUMBERS, NUMBERS)
def test_a_token_is_read_as_what_it_was_made_of(sequence: int, stored_ns: int, created_ns: int) -> None:
    position = Position(sequence, stored_ns, created_ns)

    assert parse_position(position.token) == position
    assert is_position_token(position.token)


@pytest.mark.parametrize("sequence", [0, 42, "42"])
def test_a_bare_sequence_is_a_position_that_cannot_be_verified(sequence: int | str) -> None:
    position = parse_position(sequence)

    assert (position, position.is_verifiable) == (Position(int(sequence)), False)
    assert not is_position_token(str(sequence))


@pytest.mark.parametrize(
    "text", ["", "-1", "x", "1.2.3", "2.1.1.1", "1.1.1.1.1", "1.1.1.1\n", "1.-1.1.1", "1.\u0661.1.1", "9" * 30, "all"]
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="is not a position"):
        parse_position(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-26T00:19:13.85495914Z", 1795652353854959140),
        ("2026-11-26T00:19:13.000000001Z", 1795652353000000001),
        ("2026-11-26T00:19:13Z", 1795652353000000000),
        ("2026-11-26T02:19:13.5+02:00", 1795652353500000000),
        ("0001-01-01T00:00:00Z", 0),
    ],
)
def test_a_time_of_the_server_keeps_its_nanoseconds(text: str, expected: int) -> None:
    assert nanoseconds(text) == expected


def test_a_time_is_that_of_the_clock() -> None:
    moment = datetime(2026, 11, 26, 1, 2, 3, 456789, UTC)

    assert nanoseconds(moment.isoformat()) == round(moment.timestamp() * 1e6) * 1000


@pytest.mark.parametrize("text", ["", "yesterday", "2026-11-26", "2026-13-26T00:00:00Z"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a time|month must be"):
        nanoseconds(text)
