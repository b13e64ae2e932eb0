"""Encoding and decoding: round trips, and every way in which bytes can be invalid."""

import contextlib
import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jido_nats.core import codec
from jido_nats.core.codec import DecodeError, Encoding, decode, decode_event, encode
from jido_nats.core.events import Event, SessionStatus, UnknownEvent, event_type
from jido_nats.core.requests import CreateRequest, Empty, ListRequest, TerminateRequest, same_content
from jido_nats.core.session import SessionRecord, Status
from jido_nats.errors import BadRequest, TooLarge
from tests.core.samples import METADATA, record_in, walks

BOTH = pytest.mark.parametrize("encoding", Encoding)
COMMANDS: list[type[Any]] = [Empty, CreateRequest, ListRequest, TerminateRequest]
KINDS: list[type[Any]] = [*COMMANDS, SessionRecord]
STATUS_EVENT = {
    "type": "session_status",
    "session_id": "s1",
    "version": 2,
    "status": "active",
    "previous_status": "initializing",
    "updated_at": "2025-01-24T10:30:00Z",
}


def packed(value: object, encoding: Encoding) -> bytes:
    return msgspec.json.encode(value) if encoding is Encoding.JSON else msgspec.msgpack.encode(value)


@given(walks(), st.sampled_from(Encoding))
def test_records_come_back(walk: list[tuple[SessionRecord, tuple[Event, ...]]], encoding: Encoding) -> None:
    for record, _ in walk:
        assert decode(encode(record, encoding), SessionRecord, encoding) == record


@given(walks(), st.sampled_from(Encoding))
def test_events_come_back(walk: list[tuple[SessionRecord, tuple[Event, ...]]], encoding: Encoding) -> None:
    for event in [event for _, events in walk for event in events]:
        assert decode_event(encode(event, encoding), encoding) == event


@given(METADATA)
def test_plain_metadata_is_the_same_in_both_encodings(metadata: dict[str, Any]) -> None:
    request = CreateRequest(metadata=metadata)
    request.check()

    for encoding in Encoding:
        assert decode(encode(request, encoding), CreateRequest, encoding) == request


@given(st.binary(max_size=200), st.sampled_from(Encoding), st.sampled_from(KINDS))
def test_any_bytes_are_a_value_or_a_decode_error(data: bytes, encoding: Encoding, kind: type[Any]) -> None:
    with contextlib.suppress(DecodeError):
        assert isinstance(decode(data, kind, encoding), kind)


@given(st.binary(max_size=200), st.sampled_from(Encoding))
def test_any_bytes_are_an_event_or_a_decode_error(data: bytes, encoding: Encoding) -> None:
    with contextlib.suppress(DecodeError):
        decode_event(data, encoding)


@given(st.data(), st.sampled_from(Encoding))
def test_damaged_bytes_are_a_record_or_a_decode_error(data: st.DataObject, encoding: Encoding) -> None:
    whole = bytearray(encode(record_in(Status.TERMINATED, metadata={"a": ["ä", 1.5]}), encoding))
    whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(DecodeError):
        assert isinstance(decode(bytes(whole), SessionRecord, encoding), SessionRecord)


@BOTH
def test_truncated_bytes_are_a_decode_error(encoding: Encoding) -> None:
    whole = encode(record_in(Status.ACTIVE), encoding)

    for length in range(len(whole)):
        with pytest.raises(DecodeError):
            decode(whole[:length], SessionRecord, encoding)


@BOTH
def test_what_follows_a_value_is_a_decode_error(encoding: Encoding) -> None:
    with pytest.raises(DecodeError):
        decode(encode(record_in(Status.ACTIVE), encoding) + b"{}", SessionRecord, encoding)


@pytest.mark.parametrize("data", [b'{"session_id":"\xff"}', b'{"metadata":{"\xc3\x28":1}}', b"\xff\xfe"])
def test_invalid_utf_8_is_a_decode_error(data: bytes) -> None:
    with pytest.raises(DecodeError):
        decode(data, CreateRequest)


def test_invalid_utf_8_in_messagepack_is_a_decode_error() -> None:
    with pytest.raises(DecodeError):
        decode(b"\x81\xaasession_id\xa1\xff", CreateRequest, Encoding.MSGPACK)


@pytest.mark.parametrize("data", [b'{"metadata":{"a":' + b"[" * 30_000, b"[" * 30_000 + b"]" * 30_000])
def test_deep_nesting_is_a_decode_error(data: bytes) -> None:
    with pytest.raises(DecodeError):
        decode(data, CreateRequest)


def test_deep_nesting_in_messagepack_is_a_decode_error() -> None:
    with pytest.raises(DecodeError):
        decode(b"\x81\xa8metadata\x81\xa1a" + b"\x91" * 30_000 + b"\xc0", CreateRequest, Encoding.MSGPACK)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_json_has_no_number_that_is_not_finite(number: str) -> None:
    with pytest.raises((DecodeError, BadRequest)):
        decode(f'{{"metadata":{{"a":{number}}}}}'.encode(), CreateRequest).check()


@pytest.mark.parametrize("number", [2**63, 2**64, 10**30, -(2**63) - 1, -(10**30)])
def test_an_integer_of_more_than_64_bits_in_json_is_refused(number: int) -> None:
    with pytest.raises((DecodeError, BadRequest)):
        decode(f'{{"metadata":{{"a":{number}}}}}'.encode(), CreateRequest).check()


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        math.inf,
        2**63,
        -(2**63) - 1,
        b"raw",
        {1: "a"},
        {"\ud800": 1},
        "\ud800",
        (1,),
        {1},
        object(),
        [[math.nan]],
    ],
)
def test_metadata_that_is_not_plain_is_refused(value: Any) -> None:
    with pytest.raises(BadRequest):
        CreateRequest(metadata={"a": value}).check()


def nested(depth: int) -> dict[str, Any]:
    value: Any = 1
    for _ in range(depth - 1):
        value = [value]
    return {"a": value}


def test_metadata_may_be_nested_32_levels_deep() -> None:
    CreateRequest(metadata=nested(31)).check()


def test_metadata_that_is_nested_deeper_is_refused() -> None:
    with pytest.raises(BadRequest):
        CreateRequest(metadata=nested(33)).check()


def test_metadata_that_is_too_large_is_refused() -> None:
    with pytest.raises(TooLarge):
        CreateRequest(metadata={"a": "x" * 1000}).check_size(1000)


@BOTH
@pytest.mark.parametrize("kind", COMMANDS)
def test_an_unknown_field_of_a_command_is_refused(encoding: Encoding, kind: type[Any]) -> None:
    with pytest.raises(DecodeError, match="metdata"):
        decode(packed({"metdata": {}}, encoding), kind, encoding)


@BOTH
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [[], "text", 1, None, True])
def test_a_command_that_is_not_an_object_is_refused(encoding: Encoding, kind: type[Any], value: Any) -> None:
    with pytest.raises(DecodeError):
        decode(packed(value, encoding), kind, encoding)


@BOTH
def test_an_unknown_field_of_an_event_is_ignored(encoding: Encoding) -> None:
    event = decode_event(packed(STATUS_EVENT | {"colour": ["red"]}, encoding), encoding)

    assert event == decode_event(packed(STATUS_EVENT, encoding), encoding)
    assert event is not None


@BOTH
def test_an_event_of_an_unknown_type_counts_as_its_version(encoding: Encoding) -> None:
    data = packed({"type": "session_painted", "session_id": "s1", "version": 7, "colour": "red"}, encoding)

    event = decode_event(data, encoding)

    assert event == UnknownEvent(event_type="session_painted", session_id="s1", version=7)
    assert event_type(event) == "session_painted"


@BOTH
@pytest.mark.parametrize("event", [{}, {"session_id": "s1"}, {"session_id": "s1", "version": "7"}])
def test_an_event_of_an_unknown_type_without_id_or_version_is_broken(encoding: Encoding, event: Any) -> None:
    with pytest.raises(DecodeError):
        decode_event(packed({"type": "session_painted"} | event, encoding), encoding)


@BOTH
@pytest.mark.parametrize(
    "event", [{}, {"type": 1}, {"type": "session_status"}, STATUS_EVENT | {"version": "2"}, [], None]
)
def test_a_broken_event_is_not_ignored(encoding: Encoding, event: Any) -> None:
    with pytest.raises(DecodeError):
        decode_event(packed(event, encoding), encoding)


@pytest.mark.parametrize("status", [1, None, ["active"]])
def test_a_status_that_is_not_text_is_broken(status: Any) -> None:
    with pytest.raises(DecodeError):
        decode_event(packed(STATUS_EVENT | {"status": status}, Encoding.JSON))


@BOTH
def test_an_unknown_status_keeps_its_text(encoding: Encoding) -> None:
    event = decode_event(packed(STATUS_EVENT | {"status": "waiting", "reason": "handed_over"}, encoding), encoding)

    assert isinstance(event, SessionStatus)
    assert (event.status, event.status.is_known, event.reason) == ("waiting", False, "handed_over")
    assert decode_event(encode(event, encoding), encoding) == event


def test_an_unknown_value_is_none_of_the_known_ones() -> None:
    assert Status("waiting") not in set(Status)
    assert Status("active") is Status.ACTIVE
    assert Status("waiting") == Status("waiting")


@pytest.mark.parametrize(
    ("header", "encoding"),
    [
        (None, Encoding.JSON),
        ("", Encoding.JSON),
        ("application/json", Encoding.JSON),
        ("Application/JSON; charset=utf-8", Encoding.JSON),
        ("application/msgpack", Encoding.MSGPACK),
    ],
)
def test_a_content_type_names_an_encoding(header: str | None, encoding: Encoding) -> None:
    assert codec.encoding_of(header) is encoding


def test_another_content_type_is_refused() -> None:
    with pytest.raises(DecodeError, match="text/plain"):
        codec.encoding_of("text/plain")


@pytest.mark.parametrize(
    ("one", "other"), [({"a": 1}, {"a": 2}), ({}, {"a": None}), ({"a": 1}, {"a": True}), ({"a": 0}, {"a": False})]
)
def test_different_metadata_is_different_content(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert not same_content(CreateRequest(metadata=one), record_in(Status.ACTIVE, metadata=other))


def test_the_order_of_keys_does_not_matter() -> None:
    record = record_in(Status.ACTIVE, metadata={"a": 1, "b": 2}, llm_config={"m": 1})

    assert same_content(CreateRequest(metadata={"b": 2, "a": 1}, llm_config={"m": 1}), record)


def test_a_different_llm_config_is_different_content() -> None:
    assert not same_content(CreateRequest(llm_config={}), record_in(Status.ACTIVE))
