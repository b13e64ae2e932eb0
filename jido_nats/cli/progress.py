"""Progress of long work, as a bar on stderr; nothing if that is not a terminal."""

import contextlib
import os
import stat
import sys
from collections.abc import Iterator
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

_COLUMNS: Final = (TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())


class Bar:
    """May be called as often as you like: it is drawn ten times a second."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._task = progress.add_task("starting", total=None) if progress is not None else None

    def __call__(self, what: str, done: int, of: int) -> None:
        """What is being done, how much of it is done, and the total (0: unknown)."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, description=what, completed=done, total=of or None)

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Hide the bar while something is printed."""
        if self._progress is None:
            yield
            return
        self._progress.stop()
        yield
        self._progress.start()


@contextlib.contextmanager
def progress() -> Iterator[Bar]:
    """A bar that disappears at the end."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Bar(None)
        return
    # What is printed to the same terminal goes above the bar; what goes to a file or a pipe must stay there.
    with Progress(*_COLUMNS, console=console, transient=True, redirect_stdout=sys.stdout.isatty()) as shown:
        yield Bar(shown)


def prints_to_file() -> bool:
    """Whether stdout is a file: neither a terminal, nor a pipe, whose reader may print to one."""
    return not (sys.stdout.isatty() or stat.S_ISFIFO(os.fstat(sys.stdout.fileno()).st_mode))
