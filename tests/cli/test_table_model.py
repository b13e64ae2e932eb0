"""The live table without a terminal: the table, what keys do to a view, and the lines that a frame is made of."""

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

from jido_nats.cli.escape import printable, printable_lines
from jido_nats.cli.table.model import ENDED_MAX, ENDED_SHOWN_S, Order, Rate, SessionTable
from jido_nats.cli.table.render import Scene, age, frame, sparks
from jido_nats.cli.table.view import Keys, View
from jido_nats.client.watch import SessionChanged, SnapshotComplete, WatchedSession
from jido_nats.core import lifecycle
from jido_nats.core.session import Reason, SessionRecord, Status
from tests.core.samples import POLICY, T0, record_in, seconds, waiting

NOW = datetime(2025, 1, 24, 11, 0, tzinfo=UTC)
SCENE = Scene("nats://127.0.0.1:4222", "", NOW, 100.0)


def record(session_id: str, status: Status = Status.ACTIVE, **fields: Any) -> SessionRecord:
    return msgspec.structs.replace(record_in(status), session_id=session_id, **fields)


def created(session_id: str, position: int = 1, **fields: Any) -> SessionChanged:
    """A session that has just been made."""
    made, events = lifecycle.create(session_id, owner="m1", at=T0, **fields)
    return SessionChanged(events[0], made, position)


def changed(before: SessionRecord, status: Status, *, at: float = 60) -> list[SessionChanged]:
    """All that is told of one transition."""
    reason = Reason.COMPLETED if status is Status.TERMINATED else None
    after, events = lifecycle.transition(before, status, at=seconds(at), reason=reason)
    return [SessionChanged(event, after, 9) for event in events]


def board_of(*records: SessionRecord, status: Status | None = None) -> SessionTable:
    """A table whose snapshot had these."""
    table = SessionTable(status)
    for one in records:
        table.take(WatchedSession(one), 0.0)
    table.take(SnapshotComplete(5), 0.0)
    return table


def ids(table: SessionTable) -> list[str]:
    return [row.session_id for row in table.rows(0, 1000)]


def press(view: View, *keys: str) -> None:
    for key in keys:
        view.press(key, NOW, 100.0)


def plain(view: View, width: int = 80, height: int = 24, scene: Scene = SCENE) -> str:
    return "\n".join(line.plain.rstrip() for line in frame(view, scene, width, height))


def test_a_snapshot_is_the_rows() -> None:
    table = board_of(record("b"), record("a", Status.IDLE))
    assert (ids(table), table.counts, table.position) == (["a", "b"], {Status.ACTIVE: 1, Status.IDLE: 1}, 5)


def test_a_change_moves_a_session_to_its_new_status() -> None:
    table = board_of(before := record("a"))
    for message in changed(before, Status.IDLE):
        table.take(message, 1.0)
    assert (table.rows(0, 9)[0].status, +table.counts) == (Status.IDLE, {Status.IDLE: 1})


def test_what_has_ended_is_shown_for_a_while() -> None:
    table = board_of(before := record("a"))
    for message in changed(before, Status.TERMINATED):
        table.take(message, 1.0)
    table.drop_ended(0.9 + ENDED_SHOWN_S)
    assert ids(table) == ["a"]
    table.drop_ended(1.0 + ENDED_SHOWN_S)
    assert (ids(table), table.ended) == ([], 1)


def test_what_has_ended_stays_where_ended_ones_are_asked_for() -> None:
    table = board_of(before := record("a"), status=Status.TERMINATED)
    for message in changed(before, Status.TERMINATED):
        table.take(message, 1.0)
    table.drop_ended(10**9)
    assert ids(table) == ["a"]


def test_not_more_than_so_many_ended_ones_are_kept() -> None:
    table = SessionTable(Status.TERMINATED)
    for number in range(ENDED_MAX + 10):
        for message in changed(record(f"s{number:06}"), Status.TERMINATED):
            table.take(message, 1.0)
        table.drop_ended(1.0)
    assert (len(table), ids(table)[0]) == (ENDED_MAX, "s000010")


def test_a_session_that_leaves_the_status_asked_for_leaves_the_table() -> None:
    table = board_of(before := record("a"), status=Status.ACTIVE)
    for message in changed(before, Status.IDLE):
        table.take(message, 1.0)
    assert (ids(table), len(table.events)) == ([], 1)


def test_a_new_snapshot_shows_the_old_one_until_it_is_complete() -> None:
    table = board_of(record("a"), record("b"))
    table.begin()
    table.take(WatchedSession(record("b", Status.IDLE)), 1.0)
    assert ids(table) == ["a", "b"]
    table.take(SnapshotComplete(9), 1.0)
    assert (ids(table), +table.counts) == (["b"], {Status.IDLE: 1})


def test_a_copy_stands_still() -> None:
    table = board_of(record("a"))
    copied = table.copy()
    table.take(created("b"), 1.0)
    assert (ids(copied), len(copied.events), copied.counts) == (["a"], 0, {Status.ACTIVE: 1})


CHANGES = st.lists(
    st.tuples(
        st.sampled_from("abcdefgh"), st.sampled_from(Status), st.integers(0, 5), st.sampled_from(["red", "green"])
    )
)


@given(before=CHANGES, after=CHANGES, order=st.sampled_from(Order), again=st.booleans(), search=st.text("aegr"))
def test_the_order_that_is_kept_is_the_order_that_sorting_gives(
    before: list[Any], after: list[Any], order: Order, again: bool, search: str
) -> None:
    table = SessionTable()

    def take(changes: list[Any]) -> None:
        for name, status, at, colour in changes:
            fields = {"updated_at": seconds(at), "metadata": {"colour": colour}}
            table.take(WatchedSession(record(name, status, **fields)), 0.0)

    take(before)
    table.sort_by(order)
    if again:
        table.sort_by(order)
    table.find(search)
    take(after)

    kept = ids(table)
    table.find(search)  # sorts all of them anew
    assert kept == ids(table)
    assert sum(table.counts.values()) == len(table)
    assert [row.session_id for row in table.rows(1, 2)] == kept[1:3]


def test_the_same_key_again_sorts_the_other_way() -> None:
    view = View(board_of(record("a"), record("b")))
    press(view, "i")
    assert ids(view.table) == ["b", "a"]
    press(view, "i")
    assert ids(view.table) == ["a", "b"]


def test_by_time_the_last_change_comes_first() -> None:
    view = View(board_of(record("a", updated_at=seconds(1)), record("b", updated_at=seconds(2))))
    press(view, "t")
    assert ids(view.table) == ["b", "a"]


def test_by_status_is_in_the_order_of_a_life() -> None:
    view = View(board_of(record("a", Status.TERMINATING), record("b", Status.IDLE), record("c")))
    press(view, "s")
    assert ids(view.table) == ["c", "b", "a"]


def test_typed_letters_are_searched_for() -> None:
    view = View(board_of(record("qips"), record("other", metadata={"task": "QIPS"}), record("none")))
    press(view, "/", "q", "i", "p", "?", "\x7f", "s", "\r")
    assert (ids(view.table), view.typing, view.done) == (["other", "qips"], False, False)
    press(view, "\x1b")
    assert ids(view.table) == ["none", "other", "qips"]


@pytest.mark.parametrize("text", ["project=demo", "n=[1,2]", r"note=\x1b[2j", "LONG"])
def test_what_is_seen_can_be_searched_for(text: str) -> None:
    metadata = {"project": "demo", "n": [1, 2], "note": "\x1b[2J", "text": "x" * 1000 + "long"}
    view = View(board_of(record("s1", metadata=metadata), record("s2")))
    press(view, "/", *text)
    assert ids(view.table) == ["s1"]


def test_keys_that_are_no_letters_are_not_searched_for() -> None:
    view = View(board_of(record("s1")))
    press(view, "/", "s", "\x07", "\x1b[A", "\x1b[15~", "1")
    assert view.table.search == "s1"


def test_scrolling_ends_with_the_rows() -> None:
    view = View(board_of(*(record(f"s{number}") for number in range(9))))
    view.fit(4)
    press(view, "\x1b[6~", "\x1b[6~", "\x1b[B")
    assert view.first == 5
    press(view, "\x1b[A", "k")
    assert view.first == 3
    press(view, "\x1b[5~", "\x1b[5~")
    assert view.first == 0
    press(view, "G")
    assert view.first == 5


def test_fewer_rows_scroll_back() -> None:
    view = View(board_of(*(record(f"s{number}") for number in range(9))))
    view.fit(4)
    press(view, "G", "/", "8")
    assert plain(view).count("s8") == 1


def test_a_pause_holds_the_screen_alone() -> None:
    view = View(board_of(record("a")))
    press(view, "p")
    still = plain(view, scene=SCENE._replace(now=NOW, monotonic=100.0))
    view.live.take(created("b"), 101.0)
    later = plain(view, scene=SCENE._replace(now=NOW.replace(minute=5), monotonic=105.0))
    assert later == still.replace("0 since", "1 since")
    press(view, " ")
    assert " b " in plain(view)


def test_sorting_works_while_paused() -> None:
    view = View(board_of(record("a"), record("b")))
    press(view, "p", "i")
    assert ids(view.table) == ids(view.live) == ["b", "a"]


@pytest.mark.parametrize(
    ("pieces", "keys"),
    [
        ([b"q"], ["q"]),
        ([b"\x1b[A\x1b[6~x"], ["\x1b[A", "\x1b[6~", "x"]),
        ([b"\x1b"], ["\x1b"]),
        ([b"\x1b[1;5A"], ["\x1b[1;5A"]),
        (["ü".encode()[:1], "ü".encode()[1:]], ["ü"]),
        ([b"\xff"], ["\ufffd"]),
    ],
)
def test_what_a_terminal_sends_is_read_as_keys(pieces: list[bytes], keys: list[str]) -> None:
    reader = Keys()
    assert [key for piece in pieces for key in reader.read(piece)] == keys


@pytest.mark.parametrize("keys", ["", "?", "/日本", "p"])
@pytest.mark.parametrize("width", [1, 5, 20, 40, 59, 60, 72, 80, 90, 100, 132, 250])
def test_a_frame_fits_its_screen(width: int, keys: str) -> None:
    table = board_of(*(record(f"session_{n}" * 4, metadata={"日本語": "データ" * n, "n": [n]}) for n in range(30)))
    for message in changed(table.rows(0, 1)[0], Status.TERMINATED):
        table.take(message, 99.0)
    view = View(table)
    press(view, *keys)
    for height in (1, 2, 3, 4, 5, 9, 10, 24, 60):
        for scene in (SCENE, SCENE._replace(down_s=3, notice="a notice " * 30, filters="x=y " * 40)):
            lines = frame(view, scene, width, height)
            assert len(lines) == height
            assert max(line.cell_len for line in lines) <= width


def test_a_row_tells_what_is_known() -> None:
    one = record("s1", Status.IDLE, updated_at=NOW.replace(hour=9), metadata={"project": "demo", "n": [1, 2]})
    seen = plain(View(board_of(one)), 120)
    assert "s1" in seen
    assert "○ idle" in seen
    assert "2h00m" in seen
    assert "project=demo n=[1,2]" in seen


def test_a_row_shows_that_a_session_waits_for_its_next_attempt() -> None:
    seen = plain(View(board_of(waiting(metadata={"project": "demo"}))), 120)
    assert "◌ initializing" in seen
    assert "attempt 2, crashed project=demo" in seen


def test_a_row_of_a_later_attempt_has_its_number_alone() -> None:
    active, _ = lifecycle.transition(waiting(), Status.ACTIVE, at=seconds(9))
    seen = plain(View(board_of(active)), 120)
    assert "attempt 2" in seen
    assert "crashed" not in seen


def test_a_row_of_a_first_attempt_does_not_show_it() -> None:
    assert "attempt" not in plain(View(board_of(record_in(Status.ACTIVE, restart=POLICY))), 120)


def test_the_last_events_show_attempts() -> None:
    (event,) = lifecycle.events_of(waiting())
    table = board_of(waiting())
    table.take(SessionChanged(event, waiting(), 9), 1.0)
    assert "active → initializing attempt 2, crashed RuntimeError: boom" in plain(View(table), 120)


def test_metadata_that_is_long_is_cut() -> None:
    seen = plain(View(board_of(record("s1", metadata={"text": "x" * 10_000, "more": 1}))))
    assert "text=xxx" in seen
    assert "…" in seen


@pytest.mark.parametrize("text", ["\x1b[2J", "\x9b2J", "a\nb", "\u202e", "\u2028", "\x7f", "\r"])
def test_nothing_in_a_session_can_speak_to_the_terminal(text: str) -> None:
    view = View(board_of(record("s1", metadata={text: text}, owner=text)))
    view.live.take(created("s2", metadata={text: text}), 1.0)
    for message in changed(record("s3"), Status.TERMINATED):
        told = msgspec.structs.replace(message.event, error=text)
        view.live.take(message._replace(event=told), 1.0)
    press(view, "/", *text)
    for shown in (SCENE, SCENE._replace(server=text, filters=text, notice=text)):
        assert all(line.isprintable() for line in plain(view, 200, scene=shown).splitlines())


def test_the_search_is_marked() -> None:
    view = View(board_of(record("s1", metadata={"task": "Write a Haiku"})))
    press(view, "/", *"haiku", "\r")
    (row,) = [line for line in frame(view, SCENE, 80, 24) if "Haiku" in line.plain]
    assert _marked(row) == ["Haiku"]


def test_a_notice_takes_the_place_of_the_hints() -> None:
    assert "something is odd" in plain(View(board_of()), scene=SCENE._replace(notice="something is odd"))


def test_reconnecting_is_told() -> None:
    assert "reconnecting, 12s" in plain(View(board_of()), scene=SCENE._replace(down_s=12.4))


@pytest.mark.parametrize(
    ("keys", "says"), [("", "no sessions"), ("/x", "no session has 'x' in its id or metadata")], ids=["all", "search"]
)
def test_an_empty_table_says_why(keys: str, says: str) -> None:
    view = View(board_of())
    press(view, *keys)
    assert says in plain(view)


def test_before_the_snapshot_it_says_that_it_reads() -> None:
    assert "reading the sessions…" in plain(View(SessionTable()))


def test_a_rate_is_of_whole_seconds() -> None:
    rate = Rate()
    for second in range(10):
        for _ in range(7):
            rate.count(100.0 + second)
    assert (rate.per_second(110.5), rate.per_second(113.0), rate.per_second(200.0)) == (7.0, 2.8, 0.0)
    assert rate.history(110.0, 3) == [7, 7, 7]


def test_a_rate_that_has_just_begun_is_not_less_for_it() -> None:
    rate = Rate()
    for _ in range(7):
        rate.count(100.5)
    assert rate.per_second(101.0) == 7.0


@pytest.mark.parametrize(
    ("of", "text"), [(-1, "0s"), (59.9, "59s"), (61, "1m01s"), (7260, "2h01m"), (1e5, "1d03h"), (1e7, "115d")]
)
def test_a_duration_is_short(of: float, text: str) -> None:
    assert age(of) == text


def test_sparks_stand_for_numbers() -> None:
    assert sparks([0, 1, 4, 8]) == " ▁▄█"
    assert sparks([]) == ""


def test_what_can_be_shown_is_shown_as_it_is() -> None:
    assert printable("Grüße, 日本 🎉 {}") == "Grüße, 日本 🎉 {}"
    assert printable_lines("a\tb\n\x1b[2J") == "a    b\n  | \\x1b[2J"


def _marked(line: Text) -> list[str]:
    return [line.plain[span.start : span.end] for span in line.spans if "on yellow" in str(span.style)]
