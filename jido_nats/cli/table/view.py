"""What the user has chosen: the visible part of the table, and what the keys do; pure."""

import codecs
import re
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Final

from jido_nats.cli.table.model import Order, SessionTable

_KEY: Final = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1bO[@-~]|.", re.DOTALL)
_NAMES: Final = {
    **dict.fromkeys(("\x1b[A", "\x1bOA", "k"), "up"),
    **dict.fromkeys(("\x1b[B", "\x1bOB", "j"), "down"),
    **dict.fromkeys(("\x1b[5~", "\x02"), "page up"),
    **dict.fromkeys(("\x1b[6~", "\x06"), "page down"),
    **dict.fromkeys(("\x1b[H", "\x1bOH", "\x1b[1~", "g"), "home"),
    **dict.fromkeys(("\x1b[F", "\x1bOF", "\x1b[4~", "G"), "end"),
    **dict.fromkeys(("\r", "\n"), "enter"),
    **dict.fromkeys(("\x7f", "\x08"), "backspace"),
    "\x15": "clear",
    "\x0c": "redraw",
    "\x1b": "escape",
}


class Keys:
    """Decodes a terminal's input into keys: a letter stands for itself, others have names."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def read(self, data: bytes) -> Iterator[str]:
        """The keys that were pressed; a letter whose bytes arrive in two reads comes with the second."""
        yield from _KEY.findall(self._decoder.decode(data))


class View:
    """A table as the user sees it. `live` is the table being updated; `table` the visible one, which is frozen
    while paused.
    """

    def __init__(self, table: SessionTable) -> None:
        self.live = table
        self.table = table
        self.first = 0
        self.page = 1
        self.typing = False
        self.help = False
        self.done = False
        self.redraw = False
        self.paused_at: tuple[datetime, float] | None = None
        self._commands: Final[dict[str, Callable[[], None]]] = {
            "q": self._quit,
            "?": self._ask_help,
            "h": self._ask_help,
            "/": self._type,
            "escape": lambda: self._find(""),
            "i": lambda: self._sort(Order.ID),
            "s": lambda: self._sort(Order.STATUS),
            "t": lambda: self._sort(Order.SINCE),
            "up": lambda: self._scroll(-1),
            "down": lambda: self._scroll(1),
            "page up": lambda: self._scroll(-self.page),
            "page down": lambda: self._scroll(self.page),
            "home": lambda: self._scroll(-self.first),
            "end": lambda: self._scroll(self.table.found),
            "redraw": self._redraw,
        }

    def press(self, key: str, now: datetime, monotonic: float) -> None:
        """Do what the key stands for; unknown keys are ignored."""
        if self.typing:
            self._typed(key)
        elif self.help:
            self.help = False
        elif key in ("p", " "):
            self._pause(now, monotonic)
        elif (command := self._commands.get(_NAMES.get(key, key))) is not None:
            command()

    def fit(self, rows: int) -> None:
        """Set how many rows are visible; scroll no further than the last row."""
        self.page = max(1, rows)
        self._scroll(0)

    def _typed(self, key: str) -> None:
        match _NAMES.get(key, key) if len(key) > 1 or not key.isprintable() else key:
            case "enter":
                self.typing = False
            case "escape":
                self.typing = False
                self._find("")
            case "backspace":
                self._find(self.table.search[:-1])
            case "clear":
                self._find("")
            case letter if len(letter) == 1 and letter.isprintable():
                self._find(self.table.search + letter)

    def _find(self, text: str) -> None:
        self.first = 0
        self.live.find(text)
        if self.table is not self.live:
            self.table.find(text)

    def _sort(self, order: Order) -> None:
        self.first = 0
        self.live.sort_by(order)
        if self.table is not self.live:
            self.table.sort_by(order)

    def _scroll(self, by: int) -> None:
        self.first = max(0, min(self.first + by, self.table.found - self.page))

    def _pause(self, now: datetime, monotonic: float) -> None:
        if self.paused_at is None:
            self.paused_at, self.table = (now, monotonic), self.live.copy()
        else:
            self.paused_at, self.table = None, self.live

    def _type(self) -> None:
        self.typing = True

    def _ask_help(self) -> None:
        self.help = True

    def _quit(self) -> None:
        self.done = True

    def _redraw(self) -> None:
        self.redraw = True
