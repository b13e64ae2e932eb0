"""What the entries of a journal amount to."""

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jido_nats.core import journal
from jido_nats.core.codec import DecodeError
from jido_nats.core.journal import AcceptedMessage, Checkpoint, Claim, JournalEntry, KnownMessage, Stored, fold

BORN = datetime(2026, 1, 1, 12, 0, 0, 123456, UTC)
OTHER = BORN - timedelta(days=1)


def message(number: int, *, attempt: int = 1, created_at: datetime = BORN) -> AcceptedMessage:
    return AcceptedMessage(
        attempt=attempt,
        created_at=created_at,
        role="user",
        content=f"c{number}",
        message_id=f"m{number}",
        number=number,
        accepted_at=BORN,
    )


def checkpoint(handled: int, **fields: Any) -> Checkpoint:
    return Checkpoint(**{"attempt": 1, "created_at": BORN, "handled": handled, **fields})


def stored(*entries: JournalEntry) -> list[Stored]:
    return [Stored(sequence, entry) for sequence, entry in enumerate(entries, start=1)]


def test_an_empty_journal_is_the_beginning() -> None:
    found = fold([], BORN)

    assert (found.last, found.attempt, found.handled, found.state, found.messages) == (0, 0, 0, msgspec.UNSET, [])


def test_the_last_checkpoint_with_a_state_has_the_state() -> None:
    found = fold(stored(checkpoint(0, state="old"), message(1), checkpoint(2, state=None), checkpoint(3)), BORN)

    assert (found.state, found.handled, found.last) == (None, 3, 4)


def test_handled_never_goes_back() -> None:
    assert fold(stored(message(1), checkpoint(1), checkpoint(0, state="s")), BORN).handled == 1


def test_the_newest_attempt_is_the_greatest_of_any_entry() -> None:
    found = fold(stored(Claim(attempt=1, created_at=BORN), message(1, attempt=3), checkpoint(2)), BORN)

    assert found.attempt == 3


def test_entries_of_another_session_count_only_as_the_last() -> None:
    found = fold(
        stored(message(1, created_at=OTHER), checkpoint(9, state="s", created_at=OTHER, attempt=7)),
        BORN,
    )

    assert (found.last, found.attempt, found.handled, found.state, found.messages) == (2, 0, 0, msgspec.UNSET, [])


def test_the_ids_of_purged_messages_are_those_of_the_last_purge() -> None:
    one, two = KnownMessage("m1", 1, "d"), KnownMessage("m2", 2, "d")
    found = fold(stored(checkpoint(1, known=(one,)), checkpoint(2, known=(one, two)), checkpoint(3)), BORN)

    assert found.known == (one, two)


@pytest.mark.parametrize("data", [b"", b"{}", b'{"type":"other"}', b'{"type":"claim","attempt":"1"}', b"\xff", b"[1]"])
def test_what_is_no_entry_is_refused(data: bytes) -> None:
    with pytest.raises(DecodeError):
        journal.decode(data)


@given(
    st.lists(
        st.one_of(
            st.builds(message, st.integers(1, 99), attempt=st.integers(1, 9)),
            st.builds(checkpoint, st.integers(0, 50), state=st.just(msgspec.UNSET) | st.none() | st.text()),
            st.builds(Claim, attempt=st.integers(1, 9), created_at=st.sampled_from([BORN, OTHER])),
        ),
        max_size=30,
    )
)
def test_a_journal_says_the_same_after_it_was_stored(entries: list[JournalEntry]) -> None:
    read = [Stored(sequence, journal.decode(journal.encode(entry))) for sequence, entry in stored(*entries)]

    assert fold(read, BORN) == fold(stored(*entries), BORN)
    assert fold(read, BORN).last == len(entries)
