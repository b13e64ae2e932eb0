"""How far long work has come, as a bar on stderr; nothing where that is no terminal."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TypeAlias

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

# What is being done, how much of it is done, and of how much (0: nobody knows).
Tell: TypeAlias = Callable[[str, int, int], None]


@contextlib.contextmanager
def progress() -> Iterator[Tell]:
    """Call what it gives as often as you like: the bar is drawn ten times a second."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda what, done, of: None
        return
    columns = (TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # What is printed to the same terminal goes above the bar; what goes to a file or a pipe must stay there.
    with Progress(*columns, console=console, transient=True, redirect_stdout=sys.stdout.isatty()) as bar:
        task = bar.add_task("starting", total=None)

        def tell(what: str, done: int, of: int) -> None:
            bar.update(task, description=what, completed=done, total=of or None)

        yield tell
