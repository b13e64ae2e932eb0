"""Who runs a program in a test: an ordinary user, or root."""

import os
import shutil
import sys
from pathlib import Path
from typing import Final

# Root without capabilities is a user like any other: what belongs to another is refused, and so is what is undumpable.
_NO_CAPABILITIES: Final = ("setpriv", "--bounding-set", "-all", "--inh-caps", "-all")
OTHER_UID: Final = 65533
OTHER: Final = f"{OTHER_UID}:{OTHER_UID}"


def unprivileged(*words: str) -> list[str]:
    """The words that run a program as the user of the tests, without any privilege."""
    return [*(_NO_CAPABILITIES if os.geteuid() == 0 else ()), *words]


def privileged(*words: str) -> list[str]:
    """The words that run a program as root."""
    return [*(() if os.geteuid() == 0 else ("sudo", "-n", "-E")), *words]


def public_python() -> str:
    """A Python that every user can run: not one in somebody's home."""
    candidates = [Path(sys.executable).resolve(), Path(shutil.which("python3", path="/usr/bin:/usr/local/bin") or "/")]
    return str(next(path for path in candidates if all(folder.stat().st_mode & 1 for folder in path.parents)))
