"""Names on the broker: the subjects, the ids they accept, and the order in which a version is stored."""

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jido_nats.core import subjects
from jido_nats.core.commands import COMMANDS
from jido_nats.core.session import Status
from jido_nats.errors import BadRequest
from jido_nats.ids import new_session_id
from tests.core.samples import record_in

BUILDERS = [
    subjects.session,
    subjects.output,
    subjects.fence,
    COMMANDS["get"].subject_for,
    lambda session_id: subjects.forwarded("m1", "get", session_id),
]
# \uff53\uff11 looks like s1, \u0430 like a.
BAD_IDS = [
    "",
    "a" * 65,
    "a.b",
    "*",
    ">",
    "a*",
    "a b",
    "a\n",
    "\n",
    "a\tb",
    "a/b",
    "café",
    "\uff53\uff11",
    "\u0430",
    "a\x00",
    "a\r\nb",
]


@pytest.mark.parametrize("bad", BAD_IDS)
@pytest.mark.parametrize("build", BUILDERS)
def test_an_id_that_is_not_a_token_is_refused(build: object, bad: str) -> None:
    assert callable(build)
    with pytest.raises(BadRequest):
        build(bad)


@pytest.mark.parametrize("bad", BAD_IDS)
def test_an_invalid_id_is_not_a_token(bad: str) -> None:
    assert not subjects.is_token(bad)


@pytest.mark.parametrize("good", ["a", "A-z_09", "-", "a" * 64])
def test_an_id_is_one_token_of_at_most_64(good: str) -> None:
    assert subjects.session(good) == f"jido.client.session.{good}"


def test_an_id_must_be_a_string() -> None:
    with pytest.raises(BadRequest):
        subjects.check_session_id(b"a")  # type: ignore[arg-type]


def test_names_are_the_design_s() -> None:
    assert subjects.EVENTS == "jido.client.events"
    assert subjects.output("s1") == "jido.client.session.s1.output"
    assert subjects.fence("s1") == "jido.fence.s1"
    assert COMMANDS["terminate"].subject_for("s1") == "jido.session.terminate.s1"
    assert subjects.forwarded("m1", "get", "s1") == "jido.manager.m1.get.s1"
    assert subjects.key(subjects.SESSIONS_BUCKET, "s1") == "$KV.JIDO_SESSIONS.s1"


@pytest.mark.parametrize("reply", ["_INBOX.abc", "_INBOX.user.abc", "_R_.x.y"])
def test_an_inbox_is_answered(reply: str) -> None:
    assert subjects.is_inbox(reply)


@pytest.mark.parametrize(
    "reply",
    ["", "_INBOX", "_INBOX.", "_INBOX.*", "_INBOX.a.>", "jido.client.events", "x_INBOX.a", "_INBOX.a b", "$JS.ACK.a"],
)
def test_a_reply_subject_that_is_not_an_inbox_is_not_answered(reply: str) -> None:
    assert not subjects.is_inbox(reply)


def owed(status: Status) -> list[tuple[str, str]]:
    return [(publication.subject, publication.message_id) for publication in subjects.publications(record_in(status))]


def test_the_first_version_has_no_copy_on_the_session_s_subject() -> None:
    assert owed(Status.INITIALIZING) == [("jido.client.events", "s1.1.session_created")]


def test_the_copy_on_the_session_s_subject_comes_last() -> None:
    assert owed(Status.ACTIVE) == [
        ("jido.client.events", "s1.2.session_status"),
        ("jido.client.session.s1", "s1.2.session_status.session"),
    ]


def test_the_copy_of_an_end_comes_after_both_events() -> None:
    assert owed(Status.TERMINATED) == [
        ("jido.client.events", "s1.3.session_status"),
        ("jido.client.events", "s1.3.session_terminated"),
        ("jido.client.session.s1", "s1.3.session_status.session"),
    ]


@pytest.mark.parametrize("status", Status)
def test_the_last_message_id_is_that_of_the_last_message(status: Status) -> None:
    assert subjects.last_message_id(record_in(status)) == owed(status)[-1][1]


def test_session_ids_are_in_the_order_of_time() -> None:
    ids = [new_session_id() for _ in range(3)]

    assert len({*ids}) == 3
    assert all(subjects.is_token(session_id) and session_id.startswith("session_") for session_id in ids)


# Patterns

TOKENS = st.lists(st.sampled_from("ab*"), min_size=1, max_size=4)
PATTERNS = st.builds(lambda tokens, rest: ".".join(tokens + [">"] * rest), TOKENS, st.booleans())
SUBJECTS = [".".join(tokens) for size in range(1, 6) for tokens in itertools.product("abc", repeat=size)]


def matching(pattern: str) -> set[str]:
    """The subjects (short ones, of three tokens) that a pattern matches."""
    text = re.escape(pattern).replace(r"\*", r"[^.]+").replace(">", ".+")
    return {subject for subject in SUBJECTS if re.fullmatch(text, subject)}


@given(PATTERNS, PATTERNS)
def test_a_pattern_covers_what_matches_all_that_the_other_matches(one: str, other: str) -> None:
    assert subjects.covers(one, other) == (matching(other) <= matching(one))


@given(PATTERNS, PATTERNS)
def test_patterns_overlap_if_one_subject_matches_both(one: str, other: str) -> None:
    assert subjects.overlap(one, other) == bool(matching(one) & matching(other))


def test_a_pattern_for_what_is_below_does_not_cover_the_subject_itself() -> None:
    assert not subjects.covers("jido.client.>", "jido.client")
    assert not subjects.overlap("jido.client.>", "jido.client")
    assert subjects.covers("jido.client.>", "jido.client.session.*")
    assert not subjects.covers("jido.client.*", "jido.client.>")
