"""A place in a stream, as a reader keeps it: which message, and of which life of the stream.

A sequence alone does not say that. A stream that was deleted and made again, or restored from a backup, uses the same
sequences for other messages.
"""

import re
from datetime import datetime
from typing import Final, NamedTuple

from jido_nats.errors import BadRequest

NS_PER_S: Final = 1_000_000_000
_TOKEN: Final = re.compile(r"\A1\.(\d{1,19})\.(\d{1,19})\.(\d{1,19})\Z", re.ASCII)
_SEQUENCE: Final = re.compile(r"\A\d{1,18}\Z", re.ASCII)
_MOMENT: Final = re.compile(r"\A([^.Z+]+)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)\Z")


class Position(NamedTuple):
    """The message at `sequence` and everything before it, in one life of a stream.

    `stored_ns`: when that message was stored; `created_ns`: when the stream was created. Both are in nanoseconds since
    1970, by the server's clock; 0: not known, so it is not compared.
    """

    sequence: int
    stored_ns: int = 0
    created_ns: int = 0

    @property
    def token(self) -> str:
        """The `position_token` on the wire; opaque to readers."""
        return f"1.{self.sequence}.{self.stored_ns}.{self.created_ns}"

    @property
    def is_verifiable(self) -> bool:
        """Whether it says which life of the stream it is of: a bare sequence does not."""
        return self.created_ns > 0


def parse_position(text: str | int) -> Position:
    """The position in a `position_token`, or in a bare sequence, which cannot be verified. Raises `BadRequest`."""
    text = str(text)
    if (token := _TOKEN.match(text)) is not None:
        return Position(*map(int, token.groups()))
    if _SEQUENCE.match(text) is None:
        raise BadRequest(f"{text[:64]!r} is not a position: use a position_token, or the sequence of a stream")
    return Position(int(text))


def is_position_token(text: str) -> bool:
    """Whether the text is a `position_token`."""
    return _TOKEN.match(text) is not None


def nanoseconds(text: str) -> int:
    """A time of the JetStream API (RFC 3339 with nanoseconds) in nanoseconds since 1970; 0 for Go's zero time.

    Raises `ValueError`.
    """
    if (parts := _MOMENT.match(text)) is None:
        raise ValueError(f"{text!r} is not a time of RFC 3339")
    whole, fraction, zone = parts.groups()
    seconds = int(datetime.fromisoformat(whole + zone).timestamp())
    return max(0, seconds * NS_PER_S + int((fraction or "").ljust(9, "0")))
