"""`jido-nats` in a terminal: what somebody before it would see, and the keys that they press."""

import asyncio
import contextlib
import fcntl
import os
import pty
import signal
import struct
import termios
from collections.abc import AsyncIterator
from typing import Any

import pyte

from tests.tools.programs import JIDO_NATS, ROOT
from tests.tools.support import DEADLINE_S, eventually


class Terminal:
    """A pseudo-terminal, with the screen that its bytes make."""

    def __init__(self, columns: int, rows: int) -> None:
        self.master, self.slave = pty.openpty()
        self.before = termios.tcgetattr(self.slave)
        self.screen = pyte.Screen(columns, rows)
        self.raw = b""
        self.process: asyncio.subprocess.Process
        self._stream = pyte.ByteStream(self.screen)
        self._set_size(columns, rows)
        os.set_blocking(self.master, False)
        asyncio.get_running_loop().add_reader(self.master, self._read)

    @property
    def lines(self) -> list[str]:
        """What is seen, without the blanks behind it."""
        return [line.rstrip() for line in self.screen.display]

    def shows(self, *texts: str) -> bool:
        """Whether all of these are seen."""
        seen = "\n".join(self.lines)
        return all(text in seen for text in texts)

    async def showed(self, *texts: str, within_s: float = DEADLINE_S) -> None:
        """Wait until all of these are seen at once."""
        try:
            await eventually(lambda: self.shows(*texts), within_s=within_s)
        except AssertionError:
            raise AssertionError(f"{texts} not seen in\n" + "\n".join(self.lines)) from None

    def press(self, keys: str) -> None:
        """Type."""
        os.write(self.master, keys.encode())

    def resize(self, columns: int, rows: int) -> None:
        """Make the window larger or smaller."""
        self.screen.resize(rows, columns)
        self._set_size(columns, rows)

    async def ended(self) -> int:
        """The exit code; the terminal has to be as it was."""
        async with asyncio.timeout(DEADLINE_S):
            code = await self.process.wait()
        self._read()
        return code

    def is_as_before(self) -> bool:
        """Whether it echoes, shows its cursor, wraps its lines, and is on its first screen."""
        last = {mode: self.raw.rfind(b"\x1b[?%d%s" % (number, on)) for mode, number, on in _MODES}
        return (
            termios.tcgetattr(self.slave) == self.before
            and last["cursor"] >= last["no cursor"]
            and last["wrap"] >= last["no wrap"]
            and last["main screen"] >= last["other screen"]
        )

    def _set_size(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError, OSError):
            while data := os.read(self.master, 65536):
                self.raw += data
                self._stream.feed(data)


_MODES = (
    ("cursor", 25, b"h"),
    ("no cursor", 25, b"l"),
    ("wrap", 7, b"h"),
    ("no wrap", 7, b"l"),
    ("main screen", 1049, b"l"),
    ("other screen", 1049, b"h"),
)


@contextlib.asynccontextmanager
async def in_terminal(
    *arguments: str, columns: int = 80, rows: int = 24, stdout: Any = None, **env: str
) -> AsyncIterator[Terminal]:
    """`jido-nats` with these arguments in a terminal of its own; killed in the end where it still runs."""
    terminal = Terminal(columns, rows)
    unset = ("NATS_URL", "COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "COLORTERM", "TERM")
    clean = {name: value for name, value in os.environ.items() if name not in unset}
    terminal.process = await asyncio.create_subprocess_exec(
        *(str(JIDO_NATS), *arguments),
        cwd=ROOT,
        env=clean | {"TERM": "xterm-256color", "TZ": "UTC"} | env,
        stdin=terminal.slave,
        stdout=terminal.slave if stdout is None else stdout,
        stderr=terminal.slave,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that Ctrl-C is a signal to it
    )
    try:
        yield terminal
    finally:
        asyncio.get_running_loop().remove_reader(terminal.master)
        with contextlib.suppress(ProcessLookupError):
            terminal.process.send_signal(signal.SIGKILL)
        await terminal.process.wait()
        os.close(terminal.master)
        os.close(terminal.slave)
