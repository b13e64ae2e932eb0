"""The audit excuses what a restore took: what was answered between the copy and its return, and nothing else."""

from typing import Any, Final

import pytest

from tests.tools.audit import Answer, Message, Restore
from tests.tools.test_audit import (
    ACTIVE_RECORD,
    COMPLETED,
    COMPLETED_RECORD,
    IDLE,
    IDLE_RECORD,
    LATER,
    STARTED,
    answer,
    kinds,
    record,
)

RESTORE: Final = Restore(copied=10.0, back=20.0)
BEFORE, LOST, AFTER = 9.9, 15.0, 22.0
CLAIM: Final = Message("jido.fence.s", 1, {}, b'{"manager":"m1"}')
OTHER_ACTIVE: Final = {**ACTIVE_RECORD, "created_at": LATER, "updated_at": LATER}


def seen(*answers: Answer, messages: Any = STARTED, stored: Any = ACTIVE_RECORD, **given: Any) -> set[str]:
    """The kinds of violation beside one restore, of a session that is `active` in the end."""
    return kinds(messages, stored, *answers, restores=given.pop("restores", (RESTORE,)), **given)


def not_found(at: float) -> Answer:
    """A get that found nothing."""
    return answer("get", None, at=at, ok=False, code="not_found")


# What is excused


def test_a_session_that_was_created_after_the_copy_may_be_missing() -> None:
    assert seen(answer("create", ACTIVE_RECORD, at=LOST), messages=[], stored=None) == set()


def test_a_session_that_was_created_after_the_copy_may_have_been_created_again() -> None:
    answers = [answer("create", OTHER_ACTIVE, at=LOST), answer("create", ACTIVE_RECORD, at=AFTER)]
    assert seen(*answers) == set()


def test_a_change_that_was_answered_after_the_copy_may_be_missing() -> None:
    answers = [answer("create", ACTIVE_RECORD, at=BEFORE), answer("idle", IDLE_RECORD, at=LOST)]
    assert seen(*answers) == set()


def test_a_session_may_be_older_than_what_was_answered_after_the_copy() -> None:
    answers = [answer("idle", IDLE_RECORD, at=LOST), answer("get", ACTIVE_RECORD, at=AFTER)]
    assert seen(*answers) == set()


def test_what_was_asked_before_the_restore_may_be_answered_by_the_restored_store() -> None:
    answers = [answer("idle", IDLE_RECORD, at=11.0), answer("get", ACTIVE_RECORD, at=AFTER, started=12.0)]
    assert seen(*answers) == set()


def test_a_session_that_was_created_after_the_copy_may_not_be_found_before_it_is_created_again() -> None:
    answers = [answer("create", OTHER_ACTIVE, at=LOST), not_found(AFTER), answer("create", ACTIVE_RECORD, at=30.0)]
    assert seen(*answers) == set()


def test_a_claim_on_a_session_that_is_lost_is_no_session() -> None:
    assert seen(messages=[CLAIM], stored=None, all_ended=True) == set()


@pytest.mark.parametrize("code", ["start_failed", "stop_timeout"])
def test_a_refusal_that_was_answered_after_the_copy_may_be_about_what_is_lost(code: str) -> None:
    assert seen(answer("terminate", None, at=LOST, ok=False, code=code)) == set()


def test_each_of_two_restores_excuses_what_it_took() -> None:
    lost = [answer("idle", IDLE_RECORD, at=at) for at in (LOST, 45.0)]
    between = answer("get", ACTIVE_RECORD, at=35.0)
    assert seen(*lost, between, restores=(RESTORE, Restore(40.0, 50.0))) == set()


# What is not


@pytest.mark.parametrize("at", [BEFORE, 20.0, AFTER])
def test_a_session_that_was_created_at_another_time_must_be_stored(at: float) -> None:
    assert seen(answer("create", ACTIVE_RECORD, at=at), messages=[], stored=None) == {"answer_without_effect"}


@pytest.mark.parametrize("at", [BEFORE, 20.0, AFTER])
def test_a_change_that_was_answered_at_another_time_must_be_stored(at: float) -> None:
    assert seen(answer("idle", IDLE_RECORD, at=at)) == {"answer_without_effect"}


def test_a_read_of_what_is_lost_is_found_after_the_restore() -> None:
    answers = [answer("create", OTHER_ACTIVE, at=LOST), answer("get", OTHER_ACTIVE, at=AFTER)]
    assert seen(*answers) == {"answer_differs"}


def test_an_answer_of_the_restored_store_that_is_older_than_the_copy_is_found() -> None:
    answers = [answer("idle", IDLE_RECORD, at=BEFORE), answer("get", ACTIVE_RECORD, at=AFTER)]
    assert seen(*answers, messages=IDLE, stored=IDLE_RECORD) == {"stale_answer"}


def test_a_stale_answer_between_copy_and_restore_is_found() -> None:
    answers = [answer("idle", IDLE_RECORD, at=11.0), answer("get", ACTIVE_RECORD, at=13.0)]
    assert seen(*answers, messages=IDLE, stored=IDLE_RECORD) == {"stale_answer"}


def test_a_stale_answer_after_the_restore_is_found() -> None:
    answers = [answer("idle", IDLE_RECORD, at=AFTER), answer("get", ACTIVE_RECORD, at=AFTER + 2)]
    assert seen(*answers, messages=IDLE, stored=IDLE_RECORD) == {"stale_answer"}


@pytest.mark.parametrize("at", [LOST, AFTER])
def test_not_found_about_a_session_that_is_in_the_copy_is_found(at: float) -> None:
    assert seen(answer("create", ACTIVE_RECORD, at=BEFORE), not_found(at)) == {"false_refusal"}


def test_a_lost_answer_in_another_status_than_was_asked_for_is_found() -> None:
    assert seen(answer("idle", ACTIVE_RECORD, at=LOST)) == {"wrong_answer"}


@pytest.mark.parametrize("code", ["start_failed", "stop_timeout"])
@pytest.mark.parametrize("at", [BEFORE, AFTER])
def test_a_refusal_at_another_time_must_be_true(code: str, at: float) -> None:
    assert seen(answer("terminate", None, at=at, ok=False, code=code)) == {"false_refusal"}


def test_a_restore_excuses_nothing_that_another_took() -> None:
    between = answer("idle", IDLE_RECORD, at=35.0)
    assert seen(between, restores=(RESTORE, Restore(40.0, 50.0))) == {"answer_without_effect"}


def test_a_claim_on_a_session_that_is_lost_is_found_without_a_restore() -> None:
    assert seen(messages=[CLAIM], stored=None, all_ended=True, restores=()) == {"lost_record", "not_ended"}


def test_a_claimed_session_that_has_a_record_must_end() -> None:
    assert "not_ended" in seen(messages=[CLAIM], all_ended=True)


def test_a_claimed_session_that_was_answered_before_the_copy_must_be_stored() -> None:
    answers = [answer("create", ACTIVE_RECORD, at=BEFORE)]
    assert seen(*answers, messages=[CLAIM], stored=None) == {"answer_without_effect"}


def test_a_session_of_the_copy_must_end() -> None:
    assert seen(answer("create", ACTIVE_RECORD, at=BEFORE), all_ended=True) == {"not_ended"}


def test_a_session_that_was_created_after_the_copy_must_end_if_it_is_there() -> None:
    assert seen(answer("create", ACTIVE_RECORD, at=LOST), all_ended=True) == {"not_ended"}


def test_a_record_beside_other_events_is_found_after_a_restore() -> None:
    ahead = record("idle", 3, previous_status="active")
    assert seen(answer("create", ACTIVE_RECORD, at=LOST), stored=ahead) == {"record_ahead"}


def test_a_gap_in_the_events_is_found_after_a_restore() -> None:
    found = seen(answer("create", COMPLETED_RECORD, at=LOST), messages=COMPLETED[:1] + COMPLETED[3:], stored=None)
    assert found == {"missing_version"}
