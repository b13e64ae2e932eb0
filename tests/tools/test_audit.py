"""The audit finds each violation, and none in a healthy history."""

import asyncio
import json
import re
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from jido_nats import Cause, LocalServer, RestartPolicy, Session, SessionManager
from tests.tools.audit import Answer, Message, Record, Restore, audit, main, read, read_answers
from tests.tools.support import eventually

AT: Final = "2025-01-24T10:30:00.000001Z"
LATER: Final = "2025-01-24T10:31:00Z"
EVENTS: Final = "jido.client.events"
OWN: Final = "jido.client.session.s"
FENCE: Final = "jido.fence.s"


def message(sequence: int, subject: str, fence: int = 0, **event: Any) -> Message:
    """One event of the session `s`, as it should be stored."""
    body = {"session_id": "s", **event}
    suffix = "" if subject == EVENTS else ".session"
    headers = {
        "Nats-Msg-Id": f"s.{body['version']}.{body['type']}{suffix}",
        "Nats-Expected-Last-Subject-Sequence": str(fence),
        "Nats-Expected-Last-Subject-Sequence-Subject": FENCE,
        "Content-Type": "application/json",
    }
    return Message(subject, sequence, headers, json.dumps(body).encode())


def created(sequence: int = 1, **event: Any) -> Message:
    """A `session_created`."""
    fields = {"type": "session_created", "version": 1, "created_at": AT, "metadata": {"project": "demo"}}
    return message(sequence, EVENTS, **{**fields, **event})


def status(
    sequence: int, version: int, was: str, now: str, *, on: str = EVENTS, fence: int = 0, **event: Any
) -> Message:
    """A `session_status`."""
    fields = {"type": "session_status", "version": version, "status": now, "previous_status": was, "updated_at": AT}
    return message(sequence, on, fence, **{**fields, **event})


def both(sequence: int, version: int, was: str, now: str, **event: Any) -> list[Message]:
    """A `session_status` on both subjects, at `sequence` and behind it."""
    return [status(sequence, version, was, now, **event), status(sequence + 1, version, was, now, on=OWN, **event)]


def ended(sequence: int, version: int, *, fence: int = 0, **event: Any) -> Message:
    """A `session_terminated`."""
    fields = {"type": "session_terminated", "version": version, "updated_at": AT}
    return message(sequence, EVENTS, fence, **{**fields, **event})


def end(sequence: int, version: int, was: str, *, fence: int = 0, **why: Any) -> list[Message]:
    """The three messages of a session's end."""
    return [
        status(sequence, version, was, "terminated", fence=fence, **why),
        ended(sequence + 1, version, fence=fence, **why),
        status(sequence + 2, version, was, "terminated", on=OWN, fence=fence, **why),
    ]


def record(now: str, version: int, **fields: Any) -> dict[str, Any]:
    """A record of the session `s`."""
    base = {"session_id": "s", "status": now, "version": version, "owner": "m1", "after": 0}
    return {**base, "created_at": AT, "updated_at": AT, "metadata": {"project": "demo"}, **fields}


def answer(verb: str, fields: dict[str, Any] | None, *, at: float = 2.0, **others: Any) -> Answer:
    """An answer about the session `s`: `ok` with a record, unless told otherwise."""
    told = None if fields is None else msgspec.convert(fields, Record)
    return Answer(
        **{"verb": verb, "session_id": "s", "ok": True, "at": at, "started": at - 1, "record": told, **others}
    )


STARTED: Final = [created(), *both(2, 2, "initializing", "active")]
IDLE: Final = [*STARTED, *both(4, 3, "active", "idle")]
STOPPED: Final = [
    *IDLE,
    *both(6, 4, "idle", "terminating", reason="requested"),
    *end(8, 5, "terminating", reason="requested"),
]
COMPLETED: Final = [*STARTED, *end(4, 3, "active", reason="completed")]
ACTIVE_RECORD: Final = record("active", 2, previous_status="initializing")
IDLE_RECORD: Final = record("idle", 3, previous_status="active")
ENDED_RECORD: Final = record("terminated", 5, previous_status="terminating", reason="requested", sealed=True)
# Of a session with a restart policy, which crashed in its first attempt and runs in its second.
CRASH: Final = {"error": "boom", "attempt": 2, "cause": "crashed"}
FIRST: Final = [created(), *both(2, 2, "initializing", "active", attempt=1)]
WAITING: Final = [*FIRST, *both(4, 3, "active", "initializing", **CRASH)]
AGAIN: Final = [*WAITING, *both(6, 4, "initializing", "active", attempt=2)]
DONE: Final = [*AGAIN, *end(8, 5, "active", reason="completed", attempt=2)]
POLICY: Final = {"restart": {"on": ["crashed"]}, "needs": ["restart"]}
WAITING_RECORD: Final = record(
    "initializing", 3, previous_status="active", error="boom", run={"attempt": 2, "cause": "crashed"}, **POLICY
)
AGAIN_RECORD: Final = record("active", 4, previous_status="initializing", run={"attempt": 2}, **POLICY)
DONE_RECORD: Final = record(
    "terminated", 5, previous_status="active", reason="completed", sealed=True, run={"attempt": 2}, **POLICY
)
COMPLETED_RECORD: Final = record("terminated", 3, previous_status="active", reason="completed", sealed=True)


def said(sequence: int, number: int, attempt: int | None, text: str = "hello", **headers: str) -> Message:
    """A `conversation_added`, as it should be stored."""
    body = {"type": "conversation_added", "session_id": "s", "number": number, "content": text}
    if attempt is not None:
        body["attempt"] = attempt
    numbers = f"{number}" if attempt is None else f"{attempt}.{number}"
    of_output = {"Nats-Msg-Id": f"s.{numbers}.output", "Content-Type": "application/json", **headers}
    return Message(f"{OWN}.output", sequence, of_output, json.dumps(body).encode())


def entry(sequence: int, kind: str, attempt: int, created_at: str = AT) -> Message:
    """An entry of the journal."""
    body = {"type": kind, "attempt": attempt, "created_at": created_at}
    return Message("jido.journal.s", sequence, {}, json.dumps(body).encode())


def kinds(
    messages: list[Message],
    stored: dict[str, Any] | None = None,
    *answers: Answer,
    leases: tuple[str, ...] = ("m1",),
    quiet: bool = True,
    all_ended: bool = False,
    restores: tuple[Restore, ...] = (),
    output: tuple[Message, ...] = (),
    journal: tuple[Message, ...] = (),
) -> set[str]:
    """The kinds of violation that the audit finds."""
    records = {} if stored is None else {"s": json.dumps(stored).encode()}
    found = audit(
        messages, records, leases, output, journal, answers, quiet=quiet, all_ended=all_ended, restores=restores
    )
    return {violation.kind for violation in found}


def without(messages: list[Message], sequence: int) -> list[Message]:
    """All but one message."""
    return [message for message in messages if message.sequence != sequence]


def changed(
    messages: list[Message], sequence: int, headers: dict[str, str] | None = None, **fields: Any
) -> list[Message]:
    """The messages, one of them with other headers or another body."""

    def change(one: Message) -> Message:
        body = {**json.loads(one.data), **fields}
        data = json.dumps(body).encode() if fields else one.data
        return one._replace(headers={**one.headers, **(headers or {})}, data=data)

    return [change(message) if message.sequence == sequence else message for message in messages]


def swapped(messages: list[Message], one: int, other: int) -> list[Message]:
    """The messages, two of them in each other's place."""
    places = {one: other, other: one}
    return [message._replace(sequence=places.get(message.sequence, message.sequence)) for message in messages]


# Healthy histories


def test_a_live_session_has_no_violation() -> None:
    answers = [answer("create", ACTIVE_RECORD), answer("idle", IDLE_RECORD, at=4.0)]
    assert kinds(IDLE, IDLE_RECORD, *answers) == set()


def test_a_stopped_session_has_no_violation() -> None:
    answers = [answer("terminate", ENDED_RECORD), answer("get", ENDED_RECORD, at=3.0)]
    assert kinds(STOPPED, ENDED_RECORD, *answers, all_ended=True) == set()


def test_a_completed_session_whose_record_has_expired_has_no_violation() -> None:
    assert kinds(COMPLETED, None, all_ended=True) == set()


def test_a_failed_start_has_no_violation() -> None:
    failed = end(2, 2, "initializing", reason="start_failed", error="RuntimeError: boom")
    refused = answer("create", None, ok=False, code="start_failed")
    assert kinds([created(), *failed], None, refused) == set()


def test_an_orphan_that_another_manager_ended_has_no_violation() -> None:
    claim = Message(FENCE, 4, {}, b'{"manager":"m2"}')
    lost = end(5, 3, "active", fence=4, reason="owner_lost", error="gone")
    told = record("terminated", 3, previous_status="active", reason="owner_lost", error="gone", owner="m2", sealed=True)
    assert kinds([*STARTED, claim, *lost], told, leases=("m2",)) == set()


def test_messagepack_is_read() -> None:
    packed = {"Content-Type": "application/msgpack"}
    messages = [
        m._replace(data=msgspec.msgpack.encode(json.loads(m.data)), headers={**m.headers, **packed}) for m in IDLE
    ]
    assert kinds(messages, IDLE_RECORD) == set()


def test_a_version_under_way_is_no_violation_before_quiet_time() -> None:
    assert kinds(IDLE[:-1], IDLE_RECORD, quiet=False) == set()
    assert kinds(STARTED, IDLE_RECORD, answer("get", IDLE_RECORD), quiet=False) == set()


@pytest.mark.parametrize(("messages", "told"), [(WAITING, WAITING_RECORD), (AGAIN, AGAIN_RECORD), (DONE, DONE_RECORD)])
def test_a_session_of_several_attempts_has_no_violation(messages: list[Message], told: dict[str, Any]) -> None:
    output = (said(1, 1, 1), said(2, 2, 2), said(3, 2, 1, "late"), said(4, 3, 2), said(5, 3, 2))
    journal = () if messages is DONE else (entry(1, "claim", 1), entry(2, "message", 1), entry(3, "checkpoint", 2))
    assert kinds(messages, told, output=output, journal=journal) == set()


def test_a_session_that_ends_while_it_waits_has_no_violation() -> None:
    why: dict[str, Any] = {"reason": "requested", "error": "boom", "attempt": 2}
    messages = [*WAITING, *both(6, 4, "initializing", "terminating", **why), *end(8, 5, "terminating", **why)]
    told = {**DONE_RECORD, "previous_status": "terminating", "reason": "requested", "error": "boom"}
    assert kinds(messages, told) == set()


# Messages that cannot be placed


def test_a_message_on_another_subject_is_found() -> None:
    stray = Message("jido.client.other", 6, {}, b"")
    assert kinds([*IDLE, stray], IDLE_RECORD) == {"unknown_subject"}


@pytest.mark.parametrize("data", [b"", b"{}", b"not json", b"\xff", b'{"type":"session_status"}'])
def test_a_message_that_is_no_event_is_found(data: bytes) -> None:
    stray = Message(EVENTS, 6, {"Content-Type": "application/json"}, data)
    assert kinds([*IDLE, stray], IDLE_RECORD) == {"undecodable"}


def test_an_event_without_content_type_is_found() -> None:
    assert "undecodable" in kinds(changed(IDLE, 5, {"Content-Type": ""}), IDLE_RECORD)


def test_a_record_that_is_none_is_found() -> None:
    assert kinds(COMPLETED, {"session_id": "s"}) == {"undecodable"}


def test_an_unknown_type_of_event_is_found() -> None:
    assert kinds([*IDLE, message(6, EVENTS, type="session_sang", version=4)], IDLE_RECORD) == {"unknown_type"}


def test_an_event_on_the_subject_of_another_session_is_found() -> None:
    stray = status(6, 3, "active", "idle", on="jido.client.session.t")
    assert kinds([*IDLE, stray], IDLE_RECORD) == {"wrong_subject"}


def test_session_terminated_on_the_session_s_own_subject_is_found() -> None:
    stray = message(11, OWN, type="session_terminated", version=5, updated_at=AT, reason="requested")
    assert kinds([*STOPPED, stray], ENDED_RECORD) == {"wrong_subject"}


# Versions, order and copies


def test_a_missing_version_is_found() -> None:
    assert "missing_version" in kinds(without(without(IDLE, 2), 3), IDLE_RECORD)


def test_a_missing_version_is_found_before_quiet_time_too() -> None:
    assert "missing_version" in kinds(without(without(IDLE, 2), 3), IDLE_RECORD, quiet=False)


@pytest.mark.parametrize("sequence", [1, 5, 10])
def test_a_repeated_event_is_found(sequence: int) -> None:
    again = next(m for m in STOPPED if m.sequence == sequence)._replace(sequence=11)
    assert "repeated_event" in kinds([*STOPPED, again], ENDED_RECORD)


@pytest.mark.parametrize("sequence", [3, 5, 7, 9, 10])
def test_a_missing_event_is_found(sequence: int) -> None:
    assert "missing_event" in kinds(without(STOPPED, sequence), ENDED_RECORD)


def test_a_missing_copy_of_an_earlier_version_is_found_before_quiet_time_too() -> None:
    assert kinds(without(IDLE, 3), IDLE_RECORD, quiet=False) == {"missing_event"}


def test_a_copy_that_differs_in_one_byte_is_found() -> None:
    messages = [m._replace(data=m.data.replace(b": ", b":  ", 1)) if m.sequence == 5 else m for m in IDLE]
    assert kinds(messages, IDLE_RECORD) == {"copy_differs"}


@pytest.mark.parametrize(("one", "other"), [(4, 5), (9, 10)])
def test_a_copy_that_is_stored_before_the_version_s_events_is_found(one: int, other: int) -> None:
    assert "copy_before_event" in kinds(swapped(STOPPED, one, other), ENDED_RECORD)


def test_a_version_that_begins_before_the_last_is_stored_is_found() -> None:
    assert kinds(swapped(IDLE, 3, 4), IDLE_RECORD) == {"versions_overlap"}


def test_versions_out_of_order_are_found() -> None:
    assert "out_of_order" in kinds(swapped(IDLE, 2, 4), IDLE_RECORD)


def test_copies_out_of_order_are_found() -> None:
    assert "out_of_order" in kinds(swapped(IDLE, 3, 5), IDLE_RECORD)


def test_session_terminated_before_its_status_is_found() -> None:
    assert kinds(swapped(STOPPED, 8, 9), ENDED_RECORD) == {"out_of_order"}


def test_a_history_that_does_not_begin_with_its_creation_is_found() -> None:
    assert "created_not_first" in kinds(swapped(IDLE, 1, 2), IDLE_RECORD)


def test_a_second_creation_is_found() -> None:
    assert "created_not_first" in kinds([*IDLE, created(6, version=4)], IDLE_RECORD)


def test_an_event_after_the_end_is_found() -> None:
    after = both(7, 4, "terminated", "active")
    assert "after_end" in kinds([*COMPLETED, *after], COMPLETED_RECORD)


def test_session_terminated_without_the_status_is_found() -> None:
    assert "end_without_status" in kinds([*IDLE, ended(6, 3, reason="completed")], IDLE_RECORD)


@pytest.mark.parametrize(
    "field", [{"reason": "timed_out"}, {"error": "other"}, {"forced": True}, {"output_incomplete": True}]
)
def test_session_terminated_that_says_something_else_is_found(field: dict[str, Any]) -> None:
    assert kinds(changed(STOPPED, 9, **field), ENDED_RECORD) == {"end_differs"}


# Transitions and reasons


def test_a_previous_status_that_was_not_is_found() -> None:
    messages = [*STARTED, *both(4, 3, "idle", "active")]
    told = record("active", 3, previous_status="idle")
    assert kinds(messages, told) == {"wrong_previous_status"}


@pytest.mark.parametrize(
    ("was", "now", "reason"),
    [("active", "active", None), ("active", "asleep", None)],
)
def test_an_illegal_transition_is_found(was: str, now: str, reason: str | None) -> None:
    messages = [*STARTED, *both(4, 3, was, now)]
    assert kinds(messages, record(now, 3, previous_status=was)) == {"illegal_transition"}


def test_a_way_back_from_terminating_is_found() -> None:
    messages = [
        *STARTED,
        *both(4, 3, "active", "terminating", reason="requested"),
        *both(6, 4, "terminating", "active"),
    ]
    assert kinds(messages, record("active", 4, previous_status="terminating")) == {"illegal_transition"}


@pytest.mark.parametrize("reason", ["requested", "timed_out", "manager_stopped", "start_failed", "bored", None])
def test_a_reason_that_may_not_end_a_running_session_at_once_is_found(reason: str | None) -> None:
    messages = [*STARTED, *end(4, 3, "active", reason=reason, error="boom")]
    assert "wrong_reason" in kinds(messages, None)


@pytest.mark.parametrize("reason", ["completed", "crashed", "start_failed", "owner_lost", None])
def test_a_reason_that_may_not_pass_through_terminating_is_found(reason: str | None) -> None:
    messages = [*STARTED, *both(4, 3, "active", "terminating", reason=reason, error="boom")]
    assert "wrong_reason" in kinds(messages, None)


@pytest.mark.parametrize("reason", ["completed", "crashed", "requested", None])
def test_a_reason_that_may_not_end_a_start_is_found(reason: str | None) -> None:
    messages = [created(), *end(2, 2, "initializing", reason=reason, error="boom")]
    assert "wrong_reason" in kinds(messages, None)


def test_a_reason_that_changes_on_the_way_is_found() -> None:
    messages = [*STOPPED[:7], *end(8, 5, "terminating", reason="manager_stopped")]
    assert kinds(messages, {**ENDED_RECORD, "reason": "manager_stopped"}) == {"wrong_reason"}


def test_a_reason_to_go_on_is_found() -> None:
    messages = [*STARTED, *both(4, 3, "active", "idle", reason="requested")]
    assert kinds(messages, {**IDLE_RECORD, "reason": "requested"}) == {"wrong_reason"}


@pytest.mark.parametrize("reason", ["crashed", "owner_lost"])
def test_a_failure_without_an_error_is_found(reason: str) -> None:
    messages = [*STARTED, *end(4, 3, "active", reason=reason)]
    assert kinds(messages, {**COMPLETED_RECORD, "reason": reason}) == {"wrong_error"}


def test_an_error_of_what_completed_is_found() -> None:
    messages = [*STARTED, *end(4, 3, "active", reason="completed", error="boom")]
    assert kinds(messages, {**COMPLETED_RECORD, "error": "boom"}) == {"wrong_error"}


# Attempts


@pytest.mark.parametrize(("before", "was"), [([created()], "initializing"), (STARTED, "active"), (IDLE, "idle")])
def test_a_new_attempt_without_a_policy_is_found(before: list[Message], was: str) -> None:
    messages = [*before, *both(6, 4, was, "initializing", error="boom", cause="crashed")]
    assert "illegal_transition" in kinds(messages, None)


def test_a_step_that_no_policy_allows_is_found() -> None:
    messages = [*WAITING, *both(6, 4, "initializing", "idle", attempt=2)]
    assert kinds(messages, {**AGAIN_RECORD, "status": "idle"}) == {"illegal_transition"}


@pytest.mark.parametrize("attempt", [None, 1, 3])
def test_a_new_attempt_that_is_not_the_next_one_is_found(attempt: int | None) -> None:
    messages = [*FIRST, *both(4, 3, "active", "initializing", **{**CRASH, "attempt": attempt})]
    assert "wrong_attempt" in kinds(messages, None)


@pytest.mark.parametrize("attempt", [None, 1, 3])
def test_an_attempt_that_begins_elsewhere_is_found(attempt: int | None) -> None:
    messages = [*WAITING, *both(6, 4, "initializing", "active", attempt=attempt)]
    assert kinds(messages, {**AGAIN_RECORD, "run": attempt and {"attempt": attempt}}) == {"wrong_attempt"}


@pytest.mark.parametrize("attempt", [0, 2])
def test_a_first_attempt_that_is_not_1_is_found(attempt: int) -> None:
    messages = [created(), *both(2, 2, "initializing", "active", attempt=attempt)]
    assert kinds(messages, {**ACTIVE_RECORD, "run": {"attempt": attempt}}) == {"wrong_attempt"}


def test_a_new_attempt_without_a_cause_is_found() -> None:
    messages = [*FIRST, *both(4, 3, "active", "initializing", attempt=2)]
    told = {**WAITING_RECORD, "run": {"attempt": 2}, "error": None}
    assert kinds(messages, told) == {"wrong_cause"}


def test_a_cause_where_no_attempt_begins_is_found() -> None:
    messages = [*WAITING, *both(6, 4, "initializing", "active", attempt=2, cause="crashed", error="boom")]
    assert "wrong_cause" in kinds(messages, None)


def test_a_new_attempt_without_an_error_is_found() -> None:
    messages = [*FIRST, *both(4, 3, "active", "initializing", attempt=2, cause="crashed")]
    assert kinds(messages, {**WAITING_RECORD, "error": None}) == {"wrong_error"}


def test_an_error_that_is_not_cleared_is_found() -> None:
    messages = [*WAITING, *both(6, 4, "initializing", "active", attempt=2, error="boom")]
    assert kinds(messages, {**AGAIN_RECORD, "error": "boom"}) == {"wrong_error"}


@pytest.mark.parametrize("run", [None, {"attempt": 1}, {"attempt": 2}, {"attempt": 2, "cause": "owner_lost"}])
def test_a_record_in_another_attempt_than_its_events_is_found(run: dict[str, Any] | None) -> None:
    assert kinds(WAITING, {**WAITING_RECORD, "run": run}) == {"record_differs"}


def test_an_end_in_another_attempt_is_found() -> None:
    assert "end_differs" in kinds(changed(DONE, 9, attempt=1), DONE_RECORD)


# Output and journals


@pytest.mark.parametrize("attempt", [None, 3])
def test_output_of_an_attempt_that_has_not_begun_is_found(attempt: int | None) -> None:
    assert kinds(AGAIN, AGAIN_RECORD, output=(said(1, 1, attempt),)) == {"wrong_attempt"}


def test_output_with_an_attempt_of_a_session_that_has_none_is_found() -> None:
    assert kinds(STARTED, ACTIVE_RECORD, output=(said(1, 1, 1),)) == {"wrong_attempt"}


def test_two_outputs_under_one_number_are_found() -> None:
    output = (said(1, 1, 2), said(2, 1, 2, "something else"))
    assert kinds(AGAIN, AGAIN_RECORD, output=output) == {"output_differs"}


def test_what_an_older_attempt_says_late_does_not_count() -> None:
    output = (said(1, 1, 1), said(2, 2, 2), said(3, 1, 1, "something else"))
    assert kinds(AGAIN, AGAIN_RECORD, output=output) == set()


@pytest.mark.parametrize("found", ["s.1.output", "s.1.1.output", ""])
def test_a_message_id_of_output_that_is_not_as_designed_is_found(found: str) -> None:
    output = (said(1, 1, 2, **{"Nats-Msg-Id": found}),)
    assert kinds(AGAIN, AGAIN_RECORD, output=output) == {"wrong_message_id"}


def test_output_that_is_missing_in_between_is_found() -> None:
    output = (said(1, 2, 1), said(2, 4, 2))
    assert kinds(DONE, DONE_RECORD, output=output) == {"missing_output"}


def test_output_that_only_a_late_attempt_has_is_missing() -> None:
    output = (said(1, 1, 1), said(2, 3, 2), said(3, 2, 1))
    assert kinds(DONE, DONE_RECORD, output=output) == {"missing_output"}


def test_output_may_be_missing_where_the_end_says_so() -> None:
    messages = [*AGAIN, *end(8, 5, "active", reason="completed", attempt=2, output_incomplete=True)]
    output = (said(1, 1, 1), said(2, 3, 2))
    assert kinds(messages, {**DONE_RECORD, "output_incomplete": True}, output=output) == set()


def test_output_under_another_session_s_subject_is_found() -> None:
    stray = said(1, 1, 2)._replace(subject="jido.client.session.t.output")
    assert "wrong_subject" in kinds(AGAIN, AGAIN_RECORD, output=(stray,))


def test_output_that_is_none_is_found() -> None:
    assert kinds(AGAIN, AGAIN_RECORD, output=(said(1, 1, 2)._replace(data=b"{}"),)) == {"undecodable"}


def test_an_entry_that_is_none_is_found() -> None:
    assert kinds(AGAIN, AGAIN_RECORD, journal=(entry(1, "claim", 1)._replace(data=b"{}"),)) == {"undecodable"}


def test_an_older_attempt_that_writes_to_the_journal_is_found() -> None:
    journal = (entry(1, "checkpoint", 2), entry(2, "message", 1))
    assert kinds(AGAIN, AGAIN_RECORD, journal=journal) == {"old_attempt_wrote"}


def test_entries_of_an_earlier_session_of_that_id_are_no_attempts_of_this_one() -> None:
    journal = (entry(1, "checkpoint", 7, LATER), entry(2, "claim", 1))
    assert kinds(AGAIN, AGAIN_RECORD, journal=journal) == set()


@pytest.mark.parametrize("told", [DONE_RECORD, None])
def test_the_journal_of_a_sealed_session_is_found(told: dict[str, Any] | None) -> None:
    assert kinds(DONE, told, journal=(entry(1, "claim", 1),)) == {"journal_left"}


def test_a_journal_may_be_about_to_be_removed_before_quiet_time() -> None:
    assert kinds(DONE, DONE_RECORD, journal=(entry(1, "claim", 1),), quiet=False) == set()


# Headers


@pytest.mark.parametrize("sequence", [1, 4, 5])
def test_a_message_id_that_is_not_as_designed_is_found(sequence: int) -> None:
    assert kinds(changed(IDLE, sequence, {"Nats-Msg-Id": "s.3"}), IDLE_RECORD) == {"wrong_message_id"}


def test_a_copy_with_the_message_id_of_the_event_is_found() -> None:
    assert kinds(changed(IDLE, 5, {"Nats-Msg-Id": "s.3.session_status"}), IDLE_RECORD) == {"wrong_message_id"}


def test_an_event_that_was_stored_under_an_older_fence_is_found() -> None:
    claim = Message(FENCE, 4, {}, b'{"manager":"m2"}')
    late = both(5, 3, "active", "idle", fence=0)
    assert kinds([*STARTED, claim, *late], IDLE_RECORD) == {"wrong_fence"}


def test_an_event_without_a_fence_is_found() -> None:
    header = {"Nats-Expected-Last-Subject-Sequence-Subject": ""}
    assert kinds(changed(IDLE, 5, header), IDLE_RECORD) == {"wrong_fence"}


# Records


@pytest.mark.parametrize(
    "fields",
    [
        {"status": "active"},
        {"previous_status": "idle"},
        {"reason": "requested"},
        {"error": "boom"},
        {"detail": "why"},
        {"updated_at": LATER},
        {"created_at": LATER},
        {"metadata": {}},
        {"session_id": "t"},
    ],
)
def test_a_record_that_differs_from_its_events_is_found(fields: dict[str, Any]) -> None:
    assert kinds(IDLE, {**IDLE_RECORD, **fields}, quiet=False) == {"record_differs"}


def test_a_record_that_is_behind_its_events_is_found() -> None:
    assert kinds(IDLE, ACTIVE_RECORD, quiet=False) == {"record_behind"}


def test_a_record_that_is_ahead_of_its_events_is_found_after_quiet_time() -> None:
    assert kinds(STARTED, IDLE_RECORD) == {"record_ahead"}


def test_a_record_without_any_event_is_found_after_quiet_time() -> None:
    assert kinds([], record("initializing", 1)) == {"record_ahead"}


def test_a_seal_before_the_end_is_found() -> None:
    assert kinds(IDLE, {**IDLE_RECORD, "sealed": True}, quiet=False) == {"sealed_early"}


def test_an_end_that_is_never_sealed_is_found() -> None:
    assert kinds(STOPPED, {**ENDED_RECORD, "sealed": False}) == {"not_sealed"}


# Answers


def test_a_create_that_left_nothing_is_found() -> None:
    assert kinds([], None, answer("create", ACTIVE_RECORD)) == {"answer_without_effect"}


def test_a_create_without_a_record_that_left_nothing_is_found() -> None:
    assert kinds([], None, answer("create", None)) == {"answer_without_effect"}


@pytest.mark.parametrize(("verb", "told"), [("terminate", ENDED_RECORD), ("idle", IDLE_RECORD), ("get", IDLE_RECORD)])
def test_an_answer_whose_version_is_not_stored_is_found(verb: str, told: dict[str, Any]) -> None:
    assert kinds(STARTED, ACTIVE_RECORD, answer(verb, told)) == {"answer_without_effect"}


def test_an_answered_command_whose_event_is_still_to_come_is_found_before_quiet_time_too() -> None:
    assert kinds(STARTED, IDLE_RECORD, answer("idle", IDLE_RECORD), quiet=False) == {"answer_without_effect"}


def test_a_read_that_was_two_versions_ahead_is_found() -> None:
    ahead = record("active", 4, previous_status="idle")
    assert kinds(STARTED, ahead, answer("get", ahead), quiet=False) == {"answer_without_effect"}


@pytest.mark.parametrize("verb", ["terminate", "activate"])
def test_an_answer_in_another_status_than_was_asked_for_is_found(verb: str) -> None:
    assert kinds(IDLE, IDLE_RECORD, answer(verb, IDLE_RECORD)) == {"wrong_answer"}


def test_a_create_that_was_answered_too_early_is_found() -> None:
    assert kinds(IDLE, IDLE_RECORD, answer("create", record("initializing", 1))) == {"wrong_answer"}


@pytest.mark.parametrize("fields", [{"error": "boom"}, {"updated_at": LATER}, {"metadata": {"other": 1}}])
def test_an_answer_that_differs_from_the_events_is_found(fields: dict[str, Any]) -> None:
    assert kinds(IDLE, IDLE_RECORD, answer("idle", {**IDLE_RECORD, **fields})) == {"answer_differs"}


def test_an_answer_that_is_older_than_one_before_it_is_found() -> None:
    answers = [answer("idle", IDLE_RECORD, at=2.0), answer("get", ACTIVE_RECORD, at=4.0)]
    assert kinds(IDLE, IDLE_RECORD, *answers) == {"stale_answer"}


def test_an_older_answer_to_who_asked_at_the_same_time_is_no_violation() -> None:
    answers = [answer("idle", IDLE_RECORD, at=2.0), answer("get", ACTIVE_RECORD, at=2.5)]
    assert kinds(IDLE, IDLE_RECORD, *answers) == set()


def test_not_found_about_what_was_answered_before_is_found() -> None:
    answers = [answer("create", ACTIVE_RECORD, at=2.0), answer("get", None, at=4.0, ok=False, code="not_found")]
    assert kinds(IDLE, IDLE_RECORD, *answers) == {"false_refusal"}


@pytest.mark.parametrize("code", ["start_failed", "stop_timeout"])
def test_a_refusal_that_the_stream_knows_nothing_of_is_found(code: str) -> None:
    refusal = answer("terminate", None, ok=False, code=code)
    assert kinds(IDLE, IDLE_RECORD, refusal) == {"false_refusal"}


def test_already_exists_of_what_never_was_is_found() -> None:
    assert kinds([], None, answer("create", None, ok=False, code="already_exists")) == {"false_refusal"}


def test_other_refusals_say_nothing_that_could_be_false() -> None:
    refusals = [answer("idle", None, ok=False, code=code) for code in ("unavailable", "invalid_transition", None)]
    assert kinds(IDLE, IDLE_RECORD, *refusals) == set()


# After quiet time


def test_a_live_session_without_a_live_owner_is_found() -> None:
    assert kinds(IDLE, IDLE_RECORD, leases=("m2",)) == {"orphan"}


def test_an_owner_may_just_have_died_before_quiet_time() -> None:
    assert kinds(IDLE, IDLE_RECORD, leases=(), quiet=False) == set()


def test_a_live_session_that_is_not_in_the_bucket_is_found() -> None:
    assert kinds(IDLE, None) == {"lost_record"}


def test_a_session_that_has_not_ended_is_found_where_all_should_have() -> None:
    assert kinds(IDLE, IDLE_RECORD, all_ended=True) == {"not_ended"}


def test_a_record_without_events_has_not_ended() -> None:
    assert "not_ended" in kinds([], record("initializing", 1), all_ended=True)


# Reading


def test_the_last_line_of_a_log_may_be_cut_off(tmp_path: Path) -> None:
    log = tmp_path / "answers"
    log.write_bytes(msgspec.json.encode(answer("create", ACTIVE_RECORD)) + b'\n{"at": 3.0, "verb"')
    assert read_answers(log) == [answer("create", ACTIVE_RECORD)]


async def work(session: Session) -> None:
    """A worker that does what its session's metadata says."""
    match session.metadata.get("task"):
        case "return":
            await session.idle()
            await session.activate()
        case "crash":
            raise RuntimeError("boom")
        case "fail":
            await session.say("not again")
            if session.attempt == 1:
                raise RuntimeError("boom")
            await asyncio.Event().wait()
        case _:
            await asyncio.Event().wait()


async def play(manager: SessionManager) -> None:
    """A few sessions, of which `live` and some ten others are left."""
    for task in ("return", "crash"):
        await manager.create_session(session_id=task, metadata={"task": task})
    for number in range(20):
        await manager.create_session(session_id=f"n{number}")
    await manager.create_session(session_id="live")
    await manager.idle_session("live")
    for number in range(10):
        await manager.terminate_session(f"n{number}", detail="enough")


async def test_a_real_session_of_several_attempts_has_no_violation(server: LocalServer) -> None:
    policy = RestartPolicy(on=(Cause.CRASHED,), backoff_s=0.01)
    async with SessionManager.connect(server.url, worker=work) as manager:
        for session_id in ("ends", "lives"):
            await manager.create_session(session_id=session_id, metadata={"task": "fail"}, restart=policy)
            await eventually(partial(is_in_attempt, manager, session_id, 2))
            await manager.send_message(session_id, "user", "hello")
        await manager.terminate_session("ends")
        await eventually(lambda: is_stored(server.url, 6))
        evidence = await read(server.url)
        assert audit(*evidence, quiet=True) == []
        assert {message.subject for message in evidence.journals} == {"jido.journal.lives"}


async def is_in_attempt(manager: SessionManager, session_id: str, attempt: int) -> bool:
    record = await manager.get_session_info(session_id)
    return record.status == "active" and record.attempt == attempt


async def is_stored(url: str, outputs: int) -> bool:
    evidence = await read(url)
    return len(evidence.output) == outputs and b'"sealed":true' in evidence.records["ends"]


async def all_sealed(url: str, sessions: set[str]) -> None:
    """Return when these sessions' records are sealed."""
    async with asyncio.timeout(30):
        while True:
            records = (await read(url)).records
            if all(json.loads(records[session]).get("sealed") for session in sessions):
                return


async def test_a_real_server_and_manager_have_no_violation(server: LocalServer) -> None:
    async with SessionManager.connect(server.url, worker=work) as manager:
        await play(manager)
        await all_sealed(server.url, {"return", "crash", *(f"n{number}" for number in range(10))})
        evidence = await read(server.url)
        assert audit(*evidence, quiet=True) == []
        assert {v.session_id for v in audit(*evidence, all_ended=True)} >= {"live"}
    evidence = await read(server.url)
    assert (len(evidence.records), len(evidence.leases)) == (23, 0)
    assert audit(*evidence, quiet=True, all_ended=True) == []


async def test_the_command_line_tells_and_exits_with_what_it_found(
    server: LocalServer, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*flags: str) -> int:
        return main(["--server", server.url, *flags])

    async with SessionManager.connect(server.url, worker=work) as manager:
        await manager.create_session(session_id="live")
        assert await asyncio.to_thread(run, "--quiet") == 0
        assert await asyncio.to_thread(run, "--quiet", "--all-ended") == 1
    assert "not_ended: live: v2 is its last" in capsys.readouterr().out


def test_every_kind_has_a_test() -> None:
    rules, tests = (Path(__file__).with_name(name).read_text() for name in ("audit.py", "test_audit.py"))
    reported = set(re.findall(r'(?:violation|Violation)\(\s*"?(?:[a-z_.]+, )?"([a-z_]+)"', rules))
    assert len(reported) > 30
    assert {kind for kind in reported if f'"{kind}"' not in tests} == set()
