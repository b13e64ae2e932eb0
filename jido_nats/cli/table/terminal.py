"""A terminal as a screen of our own: entered, painted, read, and always given back as it was."""

import asyncio
import atexit
import contextlib
import os
import select
import sys
import termios
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Final, Self

from rich.color import ColorSystem
from rich.console import Console
from rich.text import Text

# Another screen, no cursor, and lines that end at the edge.
ENTER: Final = b"\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J"
LEAVE: Final = b"\x1b[0m\x1b[?7h\x1b[?25h\x1b[?1049l"
# A terminal that knows it shows what is between them at once.
BEGIN_FRAME: Final = b"\x1b[?2026h"
END_FRAME: Final = b"\x1b[?2026l"
LEAVE_TIMEOUT_S: Final = 1.0
_COLORS: Final = {
    "standard": ColorSystem.STANDARD,
    "256": ColorSystem.EIGHT_BIT,
    "truecolor": ColorSystem.TRUECOLOR,
}
_LOCAL_FLAGS: Final = 3
_CONTROL_KEYS: Final = 6


def is_screen() -> bool:
    """Whether stdout is a terminal that can be painted on."""
    return sys.stdout.isatty() and not Console().is_dumb_terminal


class Terminal:
    """The terminal of stdin and stdout; `with` it. `on_input` is called with the bytes of keys that are pressed."""

    def __init__(self, on_input: Callable[[bytes], None]) -> None:
        self._on_input = on_input
        self._in = sys.stdin.fileno() if sys.stdin.isatty() else None
        self._out = _own_descriptor(sys.stdout.fileno())
        found = Console(file=sys.stdout)
        self._encoding = found.encoding
        self._console = found
        self._colors = _COLORS.get(found.color_system or "")
        self._before: list[Any] | None = None
        self._entered = False
        self._painted: list[bytes] = []
        self._size = os.terminal_size((80, 24))

    def __enter__(self) -> Self:
        atexit.register(self.leave)
        try:
            self.enter()
        except BaseException:
            self.leave()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()
        atexit.unregister(self.leave)
        os.close(self._out)

    def enter(self) -> None:
        """Take the terminal; again after it was given back for a while."""
        self._entered = True
        self._painted = []
        if self._in is not None:
            self._before = self._before or termios.tcgetattr(self._in)
            termios.tcsetattr(self._in, termios.TCSANOW, _key_by_key(self._before))
            asyncio.get_running_loop().add_reader(self._in, self._read)
        self._write_now(ENTER)

    def leave(self) -> None:
        """Give the terminal back as it was; whatever fails of that, and however often it is called."""
        if not self._entered:
            return
        self._entered = False
        with contextlib.suppress(OSError):
            self._write_now(LEAVE)
        if self._in is not None:
            with contextlib.suppress(RuntimeError):  # no loop any more
                asyncio.get_running_loop().remove_reader(self._in)
            with contextlib.suppress(termios.error):
                termios.tcflush(self._in, termios.TCIFLUSH)
                if self._before is not None:
                    termios.tcsetattr(self._in, termios.TCSANOW, self._before)

    def size(self) -> tuple[int, int]:
        """Columns and rows, now."""
        with contextlib.suppress(OSError):
            self._size = os.get_terminal_size(self._out)
        return max(1, self._size.columns), max(1, self._size.lines)

    def forget(self) -> None:
        """Paint all of the next frame, whatever the screen has."""
        self._painted = []

    async def paint(self, lines: Sequence[Text]) -> None:
        """Show these lines; only those that differ are sent, and it takes as long as the terminal does."""
        inked = [self._inked(line) for line in lines]
        if len(inked) != len(self._painted):
            self._painted = []
        frame = b"" if self._painted else b"\x1b[2J"
        for row, line in enumerate(inked):
            if not self._painted or line != self._painted[row]:
                frame += b"\x1b[%d;1H\x1b[2K" % (row + 1) + line
        self._painted = inked
        if frame:
            await self._write(BEGIN_FRAME + frame + END_FRAME)

    def _inked(self, line: Text) -> bytes:
        """The line as the terminal is sent it; not by `Console.print`, which costs three times as much."""
        ink = ""
        whole = line if line.spans else Text().append_text(line)  # `render` leaves out the style of plain text
        for text, style, _ in whole.render(self._console):
            seen = style.without_color if style and self._console.no_color else style
            ink += seen.render(text, color_system=self._colors) if seen else text
        return ink.encode(self._encoding, "replace")

    async def _write(self, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        while data and self._entered:
            try:
                data = data[os.write(self._out, data) :]
            except BlockingIOError:
                writable = asyncio.Event()
                loop.add_writer(self._out, writable.set)
                try:
                    await writable.wait()
                finally:
                    loop.remove_writer(self._out)

    def _write_now(self, data: bytes) -> None:
        deadline = time.monotonic() + LEAVE_TIMEOUT_S
        while data and time.monotonic() < deadline:
            try:
                data = data[os.write(self._out, data) :]
            except BlockingIOError:
                select.select([], [self._out], [], LEAVE_TIMEOUT_S)

    def _read(self) -> None:
        assert self._in is not None
        try:
            data = os.read(self._in, 4096)
        except OSError:
            data = b""
        if data:
            self._on_input(data)
        else:  # the terminal is gone
            asyncio.get_running_loop().remove_reader(self._in)


def _own_descriptor(descriptor: int) -> int:
    """The same terminal without blocking: a slow one must not hold up the reader, nor the shell find it so."""
    try:
        return os.open(os.ttyname(descriptor), os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError:
        return os.dup(descriptor)


def _key_by_key(before: list[Any]) -> list[Any]:
    """Keys at once and unseen. Ctrl-C and Ctrl-Z stay signals; Ctrl-\\ ends nothing, Ctrl-S holds up nothing."""
    mode = [*before[:_CONTROL_KEYS], list(before[_CONTROL_KEYS])]
    mode[0] &= ~(termios.IXON | termios.ICRNL)
    mode[_LOCAL_FLAGS] &= ~(termios.ECHO | termios.ICANON | termios.IEXTEN)
    mode[_CONTROL_KEYS][termios.VMIN] = 1
    mode[_CONTROL_KEYS][termios.VTIME] = 0
    mode[_CONTROL_KEYS][termios.VQUIT] = b"\x00"
    return mode
