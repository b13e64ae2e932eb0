"""Messages of version 1, kept forever: every later version decodes them, and writes them the same.

A line of `tests/golden/v1.jsonl` is never changed; what is new gets new lines.
"""

import base64
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from jido_nats.core import codec, journal, requests
from jido_nats.core.codec import Encoding
from jido_nats.core.events import KnownEvent, SessionCreated, SessionStatus, SessionTerminated
from jido_nats.core.manager_info import ManagerInfo
from jido_nats.core.output import ConversationAdded, Output, SessionOutput
from jido_nats.core.session import Cause, Reason, RestartPolicy, Run, SessionRecord, Status

GOLDEN: Final = Path(__file__).parent.parent / "golden" / "v1.jsonl"
KINDS: Final[dict[str, type[Any]]] = {
    "session_created": SessionCreated,
    "session_status": SessionStatus,
    "session_terminated": SessionTerminated,
    "record": SessionRecord,
    "manager": ManagerInfo,
    "empty": requests.Empty,
    "create_request": requests.CreateRequest,
    "list_request": requests.ListRequest,
    "terminate_request": requests.TerminateRequest,
    "history_request": requests.HistoryRequest,
    "send_request": requests.SendRequest,
    "send_reply": requests.SendReply,
    "session_output": SessionOutput,
    "conversation_added": ConversationAdded,
    "create_reply": requests.CreateReply,
    "list_reply": requests.ListReply,
    "history_reply": requests.HistoryReply,
    "error_reply": requests.ErrorReply,
    "journal_claim": journal.Claim,
    "journal_message": journal.AcceptedMessage,
    "journal_checkpoint": journal.Checkpoint,
}
ENTRY: Final[Any] = journal.JournalEntry
# The kinds in which a record's seal is left out.
NEVER: Final = {"create_reply": {"sealed"}}


class Golden(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line."""

    kind: str
    json: str
    msgpack: str

    def bytes_in(self, encoding: Encoding) -> bytes:
        """The message as it was written."""
        return self.json.encode() if encoding is Encoding.JSON else base64.b64decode(self.msgpack)

    def value(self, encoding: Encoding = Encoding.JSON) -> Any:
        """The message, decoded."""
        return codec.decode(self.bytes_in(encoding), KINDS[self.kind], encoding)


LINES: Final = [msgspec.json.decode(line, type=Golden) for line in GOLDEN.read_bytes().splitlines()]
EACH: Final = pytest.mark.parametrize("line", LINES, ids=[f"{n}-{line.kind}" for n, line in enumerate(LINES, start=1)])


@EACH
def test_a_message_is_written_as_it_always_was(line: Golden) -> None:
    assert codec.encode(line.value()) == line.bytes_in(Encoding.JSON)


@EACH
def test_a_message_in_messagepack_says_what_it_always_did(line: Golden) -> None:
    # The bytes may differ: a type that has more than 15 fields by now has a longer header, however few are written.
    written = codec.encode(line.value(Encoding.MSGPACK), Encoding.MSGPACK)

    was, now = (msgspec.msgpack.decode(data) for data in (line.bytes_in(Encoding.MSGPACK), written))
    assert (now, list(now)) == (was, list(was))


@EACH
def test_both_encodings_say_the_same(line: Golden) -> None:
    assert line.value(Encoding.JSON) == line.value(Encoding.MSGPACK)


@pytest.mark.parametrize("encoding", Encoding)
def test_an_event_is_known_by_its_type(encoding: Encoding) -> None:
    for line in LINES:
        if KINDS[line.kind] in KnownEvent.__args__:
            assert codec.decode_event(line.bytes_in(encoding), encoding) == line.value(encoding)


@pytest.mark.parametrize("encoding", Encoding)
def test_an_output_is_known_by_its_type(encoding: Encoding) -> None:
    for line in LINES:
        if KINDS[line.kind] in Output.__args__:
            assert codec.decode_output(line.bytes_in(encoding), encoding) == line.value(encoding)


@pytest.mark.parametrize("encoding", Encoding)
def test_an_entry_of_a_journal_is_known_by_its_type(encoding: Encoding) -> None:
    for line in LINES:
        if KINDS[line.kind] in journal.JournalEntry.__args__:
            assert codec.decode(line.bytes_in(encoding), ENTRY, encoding) == line.value(encoding)


def test_an_entry_of_a_journal_is_stored_as_it_always_was() -> None:
    for line in LINES:
        if KINDS[line.kind] in journal.JournalEntry.__args__:
            assert journal.encode(journal.decode(line.json.encode())) == line.json.encode()


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_of_every_kind_is_there(kind: str) -> None:
    written = {name for line in LINES if line.kind == kind for name in msgspec.json.decode(line.json)}

    fields = {field.encode_name for field in msgspec.structs.fields(KINDS[kind])}
    assert written >= fields - NEVER.get(kind, set())


@pytest.mark.parametrize(("name", "kind"), [("restart", RestartPolicy), ("run", Run)])
def test_every_field_of_an_attempt_is_there(name: str, kind: type[msgspec.Struct]) -> None:
    records = [msgspec.json.decode(line.json) for line in LINES if line.kind == "record"]
    written = {field for record in records if name in record for field in record[name]}

    assert written == {field.encode_name for field in msgspec.structs.fields(kind)}


def test_a_record_whose_policy_has_a_field_of_the_future_is_readable() -> None:
    line = next(line for line in LINES if line.kind == "record" and '"restart":{' in line.json)
    record = msgspec.json.decode(line.json)
    record["restart"]["a_field_of_the_future"] = 1

    assert codec.decode(codec.encode(record), SessionRecord) == line.value()


def test_a_request_whose_policy_has_a_field_of_the_future_is_refused() -> None:
    with pytest.raises(codec.DecodeError, match="a_field_of_the_future"):
        codec.decode(b'{"restart":{"on":["crashed"],"a_field_of_the_future":1}}', requests.CreateRequest)


def test_every_cause_is_there() -> None:
    assert {line.value().cause for line in LINES if line.kind == "session_status"} >= set(Cause)


def test_every_status_is_there() -> None:
    assert {line.value().status for line in LINES if line.kind == "record"} == set(Status)


@pytest.mark.parametrize("kind", ["session_terminated", "record"])
def test_every_reason_is_there(kind: str) -> None:
    assert {line.value().reason for line in LINES if line.kind == kind} >= set(Reason)
