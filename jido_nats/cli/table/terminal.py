"""A terminal in full-screen mode: entered, painted, read, and always restored."""

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

# Alternate screen, no cursor, no line wrap.
ENTER: Final = b"\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J"
LEAVE: Final = b"\x1b[0m\x1b[?7h\x1b[?25h\x1b[?1049l"
# Synchronized output: a terminal that supports it shows a frame at once.
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
    """The terminal of stdin and stdout; a context manager. `on_input` is called with the bytes of pressed keys."""

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
        """Enter full-screen mode; also after `leave`."""
        self._entered = True
        self._painted = []
        if self._in is not None:
            self._before = self._before or termios.tcgetattr(self._in)
            termios.tcsetattr(self._in, termios.TCSANOW, _key_by_key(self._before))
            asyncio.get_running_loop().add_reader(self._in, self._read)
        self._write_now(ENTER)

    def leave(self) -> None:
        """Restore the terminal, as far as possible; may be called repeatedly."""
        if not self._entered:
            return
        self._entered = False
        with contextlib.suppress(OSError):
            self._write_now(LEAVE)
        if self._in is not None:
            with contextlib.suppress(RuntimeError):  # no event loop any more
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
        """Repaint the whole screen with the next frame."""
        self._painted = []

    async def paint(self, lines: Sequence[Text]) -> None:
        """Show these lines; sends only those that changed, and waits for the terminal."""
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
        """The line as bytes for the terminal; without `Console.print`, which takes three times as long."""
        ink = ""
        whole = line if line.spans else Text().append_text(line)  # `render` omits the style of plain text
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
        else:  # the terminal was closed
            asyncio.get_running_loop().remove_reader(self._in)


def _own_descriptor(descriptor: int) -> int:
    """The terminal, opened again as non-blocking: a slow one must not delay the reader; the shell keeps its mode."""
    try:
        return os.open(os.ttyname(descriptor), os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError:
        return os.dup(descriptor)


def _key_by_key(before: list[Any]) -> list[Any]:
    """Unbuffered keys without echo. Ctrl-C and Ctrl-Z remain signals; Ctrl-\\ and Ctrl-S have no effect."""
    mode = [*before[:_CONTROL_KEYS], list(before[_CONTROL_KEYS])]
    mode[0] &= ~(termios.IXON | termios.ICRNL)
    mode[_LOCAL_FLAGS] &= ~(termios.ECHO | termios.ICANON | termios.IEXTEN)
    mode[_CONTROL_KEYS][termios.VMIN] = 1
    mode[_CONTROL_KEYS][termios.VTIME] = 0
    mode[_CONTROL_KEYS][termios.VQUIT] = b"\x00"
    return mode
