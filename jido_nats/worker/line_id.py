"""Find the `id` of a line that cannot be decoded: too long, not JSON, or not in the protocol."""

import re
from enum import Enum, auto
from functools import cache, reduce
from typing import Final

import msgspec

from jido_nats.core.codec import DEPTH_MAX

ID_BYTES_MAX: Final = 1024
_KEY: Final = b'"id"'
# Regular expressions take long runs at once, so that a megabyte takes milliseconds; none of them backtracks.
_IN_STRING: Final = rb'[^"\\]*+(?:\\.[^"\\]*+)*+'
_BALANCED: Final = reduce(
    lambda inner, _: rb'(?:[^"{}\[\]]++|"' + _IN_STRING + rb'"|[{\[]' + inner + rb"[}\]])*+", range(DEPTH_MAX), rb""
)
_PAIRS: Final = (  # with other keys
    rb'(?:\s*+"(?!id")[^"\\]*+"\s*+:\s*+(?:[^"{}\[\],:]++|"' + _IN_STRING + rb'"|[{\[]' + _BALANCED + rb"[}\]])\s*+,)*+"
)
_MARK: Final = rb'["{}\[\]:,]'


class _Next(Enum):
    """What comes next in the object itself."""

    KEY = auto()
    COLON = auto()
    VALUE = auto()
    COMMA = auto()


class IdFinder:
    """Reads a JSON object piece by piece, however long it is, up to the value of its own key `id`.

    It stops where the text is no object, or nested too deeply for the protocol.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._next = _Next.KEY
        self._in_string = False
        self._escaped = False
        self._kept: bytearray | None = None  # of the key or the value that is being read
        self._is_id = False
        self._done = False

    def feed(self, piece: bytes) -> None:
        """Read one more piece of the line."""
        at = 0
        while at < len(piece) and not self._done:
            at = self._read_string(piece, at) if self._in_string else self._read_marks(piece, at)

    def found(self) -> bytes | None:
        """The value as JSON, once the line has ended; None without an `id`.

        `null` for a value that could not be sent back: it is not JSON, or too long.
        """
        if not self._is_id or self._kept is None:
            return None
        text = bytes(self._kept).strip()
        if text == b"null":
            return None
        return text if len(text) <= ID_BYTES_MAX and _is_json(text) else b"null"

    def _read_string(self, piece: bytes, at: int) -> int:
        if self._escaped:
            self._escaped = False
            self._keep(piece[at : at + 1])
            return at + 1
        end = _end_of(_IN_STRING, piece, at)
        self._escaped = piece[end : end + 1] == b"\\"  # the last byte of this piece
        self._in_string = piece[end : end + 1] != b'"'
        self._keep(piece[at : end + 1])
        return end + 1

    def _read_marks(self, piece: bytes, at: int) -> int:
        start = at
        if self._depth > 1:
            at = _end_of(_BALANCED, piece, at)
        elif self._depth == 1 and self._next is _Next.KEY:
            start = at = _end_of(_PAIRS, piece, at)
        mark = _compiled(_MARK).search(piece, at)
        end = mark.start() if mark else len(piece)
        self._keep(piece[start:end])
        if self._next is not _Next.VALUE and self._depth <= 1 and piece[at:end].strip():
            self._done = True
        if mark is None or self._done:
            return end
        if self._depth <= 1:
            self._on_mark(mark[0])
        else:
            self._nest(mark[0])
        return mark.end()

    def _on_mark(self, mark: bytes) -> None:
        """A mark of the object itself."""
        match self._next, mark:
            case _Next.KEY, b"{" if self._depth == 0:
                self._depth = 1
            case _Next.KEY, b'"' if self._depth == 1:
                self._kept, self._in_string, self._next = bytearray(mark), True, _Next.COLON
            case _Next.COLON, b":":
                self._is_id = self._kept is not None and bytes(self._kept).strip() == _KEY
                self._kept, self._next = bytearray() if self._is_id else None, _Next.VALUE
            case _Next.VALUE, b'"' | b"{" | b"[":
                self._next = _Next.COMMA
                self._nest(mark)
            case ((_Next.VALUE | _Next.COMMA), b","):
                self._done, self._next = self._is_id, _Next.KEY
            case _:
                self._done = True

    def _nest(self, mark: bytes) -> None:
        """A mark of a value: a string begins, or an array or object begins or ends."""
        self._keep(mark)
        if mark == b'"':
            self._in_string = True
        elif mark not in b":,":
            self._depth += 1 if mark in b"{[" else -1
            self._done = self._depth > DEPTH_MAX

    def _keep(self, text: bytes) -> None:
        if self._kept is not None and len(self._kept) <= ID_BYTES_MAX:
            self._kept += text


def id_of(line: bytes) -> bytes | None:
    """The `id` of a whole line; see `IdFinder.found`."""
    finder = IdFinder()
    finder.feed(line)
    return finder.found()


@cache
def _compiled(pattern: bytes) -> re.Pattern[bytes]:
    """Compiled when it is needed, which is rarely: that takes 20 ms."""
    return re.compile(pattern, re.DOTALL)


def _end_of(pattern: bytes, piece: bytes, at: int) -> int:
    match = _compiled(pattern).match(piece, at)
    assert match is not None, "it may be empty"
    return match.end()


def _is_json(text: bytes) -> bool:
    try:
        msgspec.json.decode(text)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return False
    return True
