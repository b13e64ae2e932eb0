"""The errors that readers of a stream handle."""

import pytest

import jido_nats
from jido_nats import PositionUnavailable


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PositionUnavailable(9, 1, 7), "position 9 is beyond the end of the stream (7); was the stream deleted"),
        (PositionUnavailable(2, 5, 7), "position 2 is too old: the stream starts at 5"),
        (PositionUnavailable(2, None, None), "position 2 is too old: later messages may have been removed"),
    ],
)
def test_a_position_that_is_unavailable_is_explained(error: PositionUnavailable, message: str) -> None:
    assert str(error).startswith(message)


def test_the_former_name_of_position_unavailable_catches_it() -> None:
    with pytest.raises(jido_nats.PositionTooOld):
        raise PositionUnavailable(9, 1, 7)
