"""Encode and decode structs as JSON or MessagePack; invalid bytes of any kind raise one error, `DecodeError`."""

import math
from collections.abc import Hashable
from enum import StrEnum
from functools import cache
from typing import Any, Final, TypeVar, cast

import msgspec

from jido_nats.core.events import Event, KnownEvent, UnknownEvent
from jido_nats.core.output import Output

T = TypeVar("T")

DEPTH_MAX: Final = 32
_INT64_MIN: Final = -(2**63)
_INT64_MAX: Final = 2**63 - 1


class Encoding(StrEnum):
    """How a payload is encoded. The value is its name in the settings; `content_type` is its name in headers."""

    JSON = "json"
    MSGPACK = "msgpack"

    @property
    def content_type(self) -> str:
        """The media type for the `Content-Type` header."""
        return _CONTENT_TYPES[self]


_CONTENT_TYPES: Final = {Encoding.JSON: "application/json", Encoding.MSGPACK: "application/msgpack"}


class DecodeError(ValueError):
    """The bytes cannot be decoded, or the value cannot be encoded; the message says what is wrong, and where."""


def encoding_of(content_type: str | None) -> Encoding:
    """The encoding that a `Content-Type` header names; JSON without one. Raises `DecodeError` for any other."""
    if not content_type or content_type == _CONTENT_TYPES[Encoding.JSON]:
        return Encoding.JSON
    media_type = content_type.partition(";")[0].strip().lower()
    for encoding, known in _CONTENT_TYPES.items():
        if media_type == known:
            return encoding
    raise DecodeError(f"unknown Content-Type {media_type[:80]!r}; use {' or '.join(_CONTENT_TYPES.values())}")


def encode(value: object, encoding: Encoding = Encoding.JSON) -> bytes:
    """The value's bytes. Raises `DecodeError` if the encoding cannot represent it."""
    try:
        return _JSON_ENCODER.encode(value) if encoding is Encoding.JSON else _MSGPACK_ENCODER.encode(value)
    except (msgspec.MsgspecError, OverflowError, RecursionError, TypeError, UnicodeError) as error:
        raise DecodeError(f"the value cannot be encoded as {encoding}: {error}") from error


def decode(data: bytes, kind: type[T], encoding: Encoding = Encoding.JSON) -> T:
    """The bytes as a `kind`. Raises `DecodeError` if they are not one."""
    try:
        return cast(T, _decoder(cast(Hashable, kind), encoding).decode(data))
    except RecursionError as error:
        raise DecodeError("the payload is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise DecodeError("the payload is not valid UTF-8") from error
    except (msgspec.MsgspecError, ValueError) as error:
        raise DecodeError(str(error)) from error


def decode_event(data: bytes, encoding: Encoding = Encoding.JSON) -> Event:
    """The event; an `UnknownEvent` if this version does not know its type. Raises `DecodeError`."""
    event = _decode_tagged(data, cast(type[KnownEvent], KnownEvent), encoding)
    return decode(data, UnknownEvent, encoding) if event is None else event


def decode_output(data: bytes, encoding: Encoding = Encoding.JSON) -> Output | None:
    """The output or conversation message, or None if its type is unknown."""
    return _decode_tagged(data, cast(type[Output], Output), encoding)


def _decode_tagged(data: bytes, union: type[T], encoding: Encoding) -> T | None:
    try:
        return cast(T, _decoder(cast(Hashable, union), encoding).decode(data))
    except Exception:
        tag = decode(data, _AnyTagged, encoding).type
        if tag not in _KNOWN_TYPES[union]:
            return None
    return decode(data, union, encoding)


def check_plain(value: Any, name: str) -> None:
    """Raise `DecodeError` unless the value is plain: the same in JSON and in MessagePack.

    Plain values are None, bool, finite floats, 64-bit integers, strings, and lists and dicts of those with string
    keys, nested at most `DEPTH_MAX` levels deep.
    """
    stack = [([value], 0)]
    while stack:
        elements, depth = stack.pop()
        if depth >= DEPTH_MAX and elements:
            raise DecodeError(f"{name} is nested more than {DEPTH_MAX} levels deep")
        for element in elements:
            if _is_plain_scalar(element):
                continue
            if isinstance(element, list):
                stack.append((element, depth + 1))
            elif isinstance(element, dict):
                _check_keys(element, name)
                stack.append((list(element.values()), depth + 1))
            else:
                _check_scalar(element, name)


def _is_plain_scalar(value: Any) -> bool:
    """Whether `_check_scalar` surely has no objection; much faster, and clients may send very many."""
    kind = type(value)
    if kind is str:
        return bool(value.isascii())
    if kind is int:
        return bool(_INT64_MIN <= value <= _INT64_MAX)
    return kind is bool or value is None or (kind is float and math.isfinite(value))


def _check_keys(value: dict[Any, Any], name: str) -> None:
    for key in value:
        if not isinstance(key, str):
            raise DecodeError(f"{name} has a key that is not a string")
        _check_scalar(key, name)


def _check_scalar(value: Any, name: str) -> None:
    match value:
        case None | bool():
            pass
        case str():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise DecodeError(f"{name} contains a string that is not valid Unicode") from error
        case int():
            if not _INT64_MIN <= value <= _INT64_MAX:
                raise DecodeError(f"{name} contains an integer that does not fit into 64 bits")
        case float():
            if not math.isfinite(value):
                raise DecodeError(f"{name} contains a number that is not finite")
        case _:
            raise DecodeError(f"{name} contains a {type(value).__name__}, which JSON cannot represent")


class _AnyTagged(msgspec.Struct):
    type: str


_KNOWN_TYPES: Final[dict[Any, frozenset[str]]] = {
    union: frozenset(str(kind.__struct_config__.tag) for kind in union.__args__) for union in (KnownEvent, Output)
}
_JSON_ENCODER: Final = msgspec.json.Encoder()
_MSGPACK_ENCODER: Final = msgspec.msgpack.Encoder()


@cache
def _decoder(kind: Any, encoding: Encoding) -> msgspec.json.Decoder[Any] | msgspec.msgpack.Decoder[Any]:
    if encoding is Encoding.JSON:
        return msgspec.json.Decoder(kind)
    return msgspec.msgpack.Decoder(kind)
