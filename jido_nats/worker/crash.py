"""What is reported of a worker that crashed: its error in one line, the place in its own code, and its traceback."""

import logging
import sysconfig
import traceback
from pathlib import Path
from types import FrameType
from typing import Final, NamedTuple

ERROR_LENGTH_MAX: Final = 2000
TRACEBACK_LENGTH_MAX: Final = 64 * 1024

_STANDARD_LIBRARY: Final = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib")})
_INSTALLED: Final = frozenset({"site-packages", "dist-packages"})

log = logging.getLogger(__name__)


class RemoteTraceback(Exception):
    """The traceback of a worker in another process, as text."""

    def __str__(self) -> str:
        return f"\n{self.args[0].rstrip()}"


def log_crash(session_id: str, error: BaseException) -> None:
    """Log what a session's worker raised, with its traceback."""
    log.error("a worker crashed", exc_info=error, extra={"session_id": session_id})


def traceback_text(error: BaseException) -> str:
    """The traceback as text, for another process; of a very long one, the end."""
    try:
        text = "".join(traceback.format_exception(error))
    except Exception as failure:  # no memory is left, for example
        text = f"{_text(error)}\n(formatting its traceback failed: {_text(failure)})"
    return _valid(text)[-TRACEBACK_LENGTH_MAX:]


def error_text(error: BaseException) -> str:
    """An exception and its place, for a record: `RuntimeError: boom (agent.py:42 in plan)`; always valid UTF-8."""
    first, text = error, _text(error)
    while isinstance(first, BaseExceptionGroup):  # what a TaskGroup raises says nothing itself
        first = first.exceptions[0]
    if first is not error:
        text = f"{text}: {_text(first)}"
    place = place_of(first)
    suffix = "" if place is None else _valid(f" ({place})")
    return in_record(text, ERROR_LENGTH_MAX - len(suffix)) + suffix


def in_record(text: str, length_max: int = ERROR_LENGTH_MAX) -> str:
    """The text in a form that a record can hold: valid UTF-8, and not too long."""
    return _valid(text)[:length_max]


def place_of(error: BaseException) -> str | None:
    """The last frame of an exception that is in the worker's own code, such as `agent.py:42 in plan`.

    None if there is none, or if the exception's text has the place already (`SyntaxError`). A worker's own code is
    what is not installed; if all of it is, that of the package which was called first.
    """
    if isinstance(error, SyntaxError) and error.lineno is not None:
        return None
    frames = [_frame(frame, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    frames = [frame for frame in frames if not frame.is_ours]
    installed = [frame for frame in frames if not frame.is_standard]
    own = [frame for frame in installed if not frame.is_installed]
    own = own or [frame for frame in installed if frame.package == installed[0].package]
    return own[-1].place if own else None


class _Frame(NamedTuple):
    place: str
    package: str
    is_ours: bool
    is_standard: bool
    is_installed: bool


def _frame(frame: FrameType, line: int) -> _Frame:
    file = frame.f_code.co_filename
    package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
    is_installed = not _INSTALLED.isdisjoint(Path(file).parts)
    return _Frame(
        place=f"{Path(file).name}:{line} in {frame.f_code.co_name}",
        package=package,
        is_ours=package == "jido_nats",
        is_standard=file.startswith("<frozen ") or (file.startswith(_STANDARD_LIBRARY) and not is_installed),
        is_installed=is_installed,
    )


def _text(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    except Exception:
        return type(error).__name__


def _valid(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
