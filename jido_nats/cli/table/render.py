"""Renders a view for a screen size, as lines of text; pure, and only what is visible is rendered."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Final, NamedTuple

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from jido_nats.cli.escape import printable
from jido_nats.cli.printer import again_text, event_text, status_style
from jido_nats.cli.table.model import Order, SessionTable, pairs
from jido_nats.cli.table.view import View
from jido_nats.core.session import SessionRecord, Status

MARKS: Final = {
    Status.INITIALIZING: "◌",
    Status.ACTIVE: "●",
    Status.IDLE: "○",
    Status.TERMINATING: "◐",
    Status.TERMINATED: "✕",
}
SHORT: Final = {
    Status.INITIALIZING: "init",
    Status.ACTIVE: "active",
    Status.IDLE: "idle",
    Status.TERMINATING: "ending",
    Status.TERMINATED: "ended",
}
UNKNOWN_MARK: Final = "◇"
SPARKS: Final = "▁▂▃▄▅▆▇█"
SPARKS_S: Final = 20
KEY: Final = "bold cyan"
STATUS_WIDTH: Final = 14
FOR_WIDTH: Final = 6
SINCE_WIDTH: Final = 8
OWNER_WIDTH: Final = 14
METADATA_MIN: Final = 12
METADATA_GOOD: Final = 56
NARROW: Final = 72
WIDTH_MIN: Final = 16
EVENTS_SHOWN_MAX: Final = 10

HELP: Final = (
    ("i s t", "sort by id, status, time"),
    ("", "(again: reverse the order)"),
    ("p space", "pause; reading goes on"),
    ("↑ ↓ PgUp", "scroll (Home and End too)"),
    ("/", "search ids and metadata"),
    ("Esc", "show all again"),
    ("Ctrl-L", "redraw the screen"),
    ("q Ctrl-C", "quit"),
)
HINTS: Final = (("q", "quit"), ("?", "help"), ("p", "pause"), ("/", "search"), ("i s t", "sort"), ("↑↓", "scroll"))


class Scene(NamedTuple):
    """The context of a frame: the server, the filters, the time.

    `down_s`: for how long there has been no connection, None if connected. `monotonic`: the table's clock.
    """

    server: str
    filters: str
    now: datetime
    monotonic: float
    down_s: float | None = None
    notice: str = ""


class Layout(NamedTuple):
    """How the lines are divided."""

    rows: int
    events: int

    @classmethod
    def of(cls, height: int) -> "Layout":
        """Three lines above the rows, a line of keys below, and the events if there is room for them."""
        room = height - 4
        events = 0 if room < 5 else min(EVENTS_SHOWN_MAX, max(1, room // 4))
        return cls(max(0, room - events - bool(events)), events)


def frame(view: View, scene: Scene, width: int, height: int) -> list[Text]:
    """All lines of the screen, none wider than the screen."""
    screen, width = width, max(width, WIDTH_MIN)
    layout = Layout.of(height)
    view.fit(layout.rows)
    if view.paused_at is not None:
        scene = scene._replace(now=view.paused_at[0], monotonic=view.paused_at[1])
    columns = Columns.of(width, view.table.widest_id)
    lines = [_title(view, scene, width), _counts(view, scene, width), _heads(view, columns, width)]
    if view.help:
        lines += _padded(_help(width), max(0, height - 4))
    else:
        lines += _padded(_rows(view, scene, columns, width), layout.rows)
        if layout.events:
            lines.append(_rule(view, width))
            lines += _padded(_events(view, layout.events, width), layout.events)
    lines.append(_foot(view, scene, width))
    for line in lines:
        line.truncate(screen, overflow="crop")
    return lines if height >= 4 else [*lines[: height - 1], lines[-1]]


class Columns(NamedTuple):
    """The width of each column; one of width 0 is omitted."""

    session_id: int
    status: int
    age: int
    since: int
    owner: int
    metadata: int

    @classmethod
    def of(cls, width: int, widest_id: int) -> "Columns":
        """Status and age always, then as much of the id as is useful, then the rest if there is room."""
        fixed = 1 + STATUS_WIDTH + 1 + FOR_WIDTH + 1
        since = SINCE_WIDTH if width >= 100 else 0
        owner = OWNER_WIDTH if width >= 90 else 0
        room = width - fixed - (since + 2 if since else 0) - (owner + 2 if owner else 0)
        session_id = max(8, min(max(10, widest_id), max(room - METADATA_GOOD, room * 2 // 5) if width >= 60 else room))
        metadata = room - session_id - 2
        return cls(session_id, STATUS_WIDTH, FOR_WIDTH, since, owner, metadata if metadata >= METADATA_MIN else 0)


def age(seconds: float) -> str:
    """A duration in at most six characters: `7s`, `3m12s`, `2h05m`, `12d03h`."""
    whole = max(0, int(seconds))
    days, hours, minutes = whole // 86_400, whole // 3600 % 24, whole // 60 % 60
    if days > 99:
        return f"{days}d"
    if days:
        return f"{days}d{hours:02}h"
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{whole % 60:02}s" if minutes else f"{whole}s"


def sparks(numbers: Sequence[int]) -> str:
    """The numbers as a row of little bars."""
    most = max(numbers, default=0)
    return "".join(" " if not number else SPARKS[(number * len(SPARKS) - 1) // most] for number in numbers)


def metadata_text(record: SessionRecord, width: int) -> Text:
    """`worker=coder project=demo task=…`, cut to the width."""
    text = Text()
    for name, value in pairs(record):
        text.append(" " if text else "")
        text.append(f"{printable(name[:width])}=", "dim").append(printable(value[:width]))
        if len(text) > width:
            break
    return _cut(text, width)


def _title(view: View, scene: Scene, width: int) -> Text:
    title = Text.assemble((" jido-nats watch", "bold"), (f"  {printable(scene.server)}", "dim"))
    if scene.filters:
        title.append(f"  {printable(scene.filters)}", "cyan")
    if scene.down_s is not None:
        state = Text(f" reconnecting, {age(scene.down_s)} ", "bold black on yellow")
    elif not view.live.complete:
        state = Text("◌ reading ", "cyan")
    else:
        state = Text("● live ", "green")
    if view.paused_at is not None:
        missed = view.live.events_taken - view.table.events_taken
        paused = f" paused, {missed:,} since " if width >= NARROW else " paused "
        state = Text.assemble((paused, "bold black on cyan"), " ", state)
    if width >= NARROW:
        state.append(f" {scene.now.astimezone():%H:%M:%S} ", "dim")
    return _ends(title, state, width)


def _counts(view: View, scene: Scene, width: int) -> Text:
    table = view.table
    rate = table.rate.per_second(scene.monotonic)
    events = Text.assemble((f"{rate:,.0f}" if rate >= 10 or not rate else f"{rate:.1f}", "bold"))
    events.append(" events/s " if width >= NARROW else "/s ")
    if width >= 110:
        history = table.rate.history(scene.monotonic, SPARKS_S)
        events.append(f"{sparks(history)} ", "cyan")
    # As many words as there is room for.
    fitting = (left for left in (_counted(table, words) for words in (2, 1, 0)) if left.cell_len < width - len(events))
    return _ends(next(fitting, _counted(table, 0)), events, width)


def _counted(table: SessionTable, words: int) -> Text:
    """How many sessions are in which status; `words`: 2 for full, 1 for short, 0 for none."""
    live = sum(number for status, number in table.counts.items() if status is not Status.TERMINATED)
    line = Text.assemble(" ", (f"{live:,}", "bold"), (" session" if live == 1 else " sessions") if words == 2 else "")
    for status in Status:
        number = table.ended if status is Status.TERMINATED else table.counts[status]
        if number or (words and status in (Status.ACTIVE, Status.IDLE)):
            line.append("   " if words == 2 else "  ").append(f"{MARKS[status]} ", status_style(status))
            word = SHORT[status] if words == 1 or status is Status.TERMINATED else status.value
            line.append(f"{number:,}", "bold").append(f" {word}" if words else "")
    return line


def _heads(view: View, columns: Columns, width: int) -> Text:
    arrow = "▼" if view.table.backwards else "▲"
    marked = {order: f" {arrow}" if view.table.order is order else "" for order in Order}
    line = " " + _fit(f"SESSION{marked[Order.ID]}", columns.session_id)
    line += " " + _fit(f"  STATUS{marked[Order.STATUS]}", columns.status - 1)
    line += f"{'FOR' + marked[Order.SINCE]:>{columns.age}}"
    for name, wide in (("SINCE", columns.since), ("OWNER", columns.owner), ("METADATA", columns.metadata)):
        if wide:
            line += "  " + _fit(name, wide)
    return Text(set_cell_size(line, width), "bold reverse")


def _rows(view: View, scene: Scene, columns: Columns, width: int) -> Iterator[Text]:
    table = view.table
    found = table.rows(view.first, view.page)
    if not found:
        yield Text()
        yield _cut(Text(f"  {_why_empty(view)}", "dim italic"), width)
    for record in found:
        line = _row(record, scene.now, columns)
        if table.search:
            _highlight(line, table.search)
        yield _cut(line, width)


def _row(record: SessionRecord, now: datetime, columns: Columns) -> Text:
    style = status_style(record.status)
    ended = record.status is Status.TERMINATED
    line = Text.assemble(
        " ",
        (_fit_end(printable(record.session_id), columns.session_id), "dim" if ended else "bold"),
        (f" {MARKS.get(record.status, UNKNOWN_MARK)} {printable(record.status):<{columns.status - 3}}", style),
        f"{age((now - record.updated_at).total_seconds()):>{columns.age}}",
    )
    if columns.since:
        line.append(f"  {record.updated_at.astimezone():%H:%M:%S}", "dim")
    if columns.owner:
        line.append(f"  {_fit_end(printable(record.owner), columns.owner)}", "dim")
    if columns.metadata:
        line.append("  ")
        if again := again_text(record.attempt, record.cause):
            line.append(f"{again.strip()} ", style)
        if record.reason is not None:
            line.append(f"{printable(record.reason)} ", style)
        line.append_text(metadata_text(record, columns.metadata))
    return line


def _why_empty(view: View) -> str:
    if view.table.search:
        return f"no session has {printable(view.table.search)!r} in its id or metadata"
    return "no sessions" if view.live.complete else "reading the sessions…"


def _rule(view: View, width: int) -> Text:
    return _ends(Text("── last events ", "dim"), Text(f" position {view.table.position:,} ─", "dim"), width, "─")


def _events(view: View, number: int, width: int) -> Iterator[Text]:
    events = view.table.events
    if not events:
        yield _cut(Text("  none yet", "dim italic"), width)
    for place in range(max(0, len(events) - number), len(events)):
        yield _cut(Text(" ") + event_text(events[place]), width)


def _help(width: int) -> Iterator[Text]:
    for keys, what in HELP:
        yield _cut(Text.assemble("  ", (f"{keys:<10}", KEY), what), width)
    yield Text()
    yield _cut(Text("  any key closes this", "dim"), width)


def _foot(view: View, scene: Scene, width: int) -> Text:
    table = view.table
    last = min(view.first + view.page, table.found)
    place = Text(f" {view.first + 1:,}-{last:,} of {table.found:,} " if table.found else " ", "dim")
    if view.typing:
        return _ends(
            Text.assemble((" /", KEY), printable(table.search), ("▏", KEY), ("  Enter, Esc", "dim")), place, width
        )
    if scene.notice and scene.down_s is None:  # otherwise the title shows it
        return _ends(Text(f" {printable(scene.notice)}", "yellow"), place, width)
    left = Text()
    if table.search:
        left.append(f" /{printable(table.search)} ", KEY).append(" Esc", KEY).append(" all ")
    for key, what in HINTS:
        hint = Text.assemble((f" {key}", KEY), f" {what} ")
        if left.cell_len + hint.cell_len + place.cell_len <= width:
            left.append_text(hint)
    return _ends(left, place, width)


def _highlight(line: Text, search: str) -> None:
    plain, place = line.plain.casefold(), -1
    if len(plain) != len(line.plain):  # a letter became two: the offsets differ
        return
    while (place := plain.find(search, place + 1)) >= 0:
        line.stylize("bold black on yellow", place, place + len(search))


def _padded(lines: Iterator[Text], number: int) -> list[Text]:
    made = list(lines)[:number]
    return [*made, *(Text() for _ in range(number - len(made)))]


def _ends(left: Text, right: Text, width: int, filling: str = " ") -> Text:
    """One text at each end of a line; the left one is cut if there is no room."""
    right = _cut(right, width)
    left = _cut(left, width - right.cell_len)
    return Text.assemble(left, (filling * (width - left.cell_len - right.cell_len), "dim"), right)


def _cut(text: Text, width: int) -> Text:
    if text.cell_len > width:
        text.truncate(max(0, width), overflow="ellipsis")
    return text


def _fit(text: str, width: int) -> str:
    """Exactly this wide."""
    return set_cell_size(text, width) if cell_len(text) <= width else set_cell_size(text, width - 1) + "…"


def _fit_end(text: str, width: int) -> str:
    """Exactly this wide; a longer text keeps its end, where ids differ."""
    return _fit(text if cell_len(text) <= width else f"…{text[1 - width :]}", width)
