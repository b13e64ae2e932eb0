"""The old version, as its users have it: the wheel of an earlier commit, in a virtual environment of its own.

    python -m tests.tools.old_version     # installs it, if that has not been done, and prints the path of its jido-nats

`tests/system/old_version.txt` has the commit; only the Git history is needed beside it. Installed once for each
commit and each version of Python, under `build/`.
"""

import contextlib
import fcntl
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.tools.programs import ROOT, Version

COMMIT: Final = ROOT / "tests" / "system" / "old_version.txt"
BUILD: Final = ROOT / "build"
INSTALL_TIMEOUT_S: Final = 540
# What its managers run in tests. Not this version's: they may use what the old one does not have.
WORKERS: Final = ("tests/__init__.py", "tests/tools/__init__.py", "tests/tools/agents.py")


class NotInHistory(Exception):
    """The commit is not here: the checkout is shallow, or has no Git history at all."""


def old_version() -> Version:
    """The old version, installed. Raises `NotInHistory`."""
    commit = COMMIT.read_text().strip()
    _check_is_here(commit)
    python = f"py{sys.version_info.major}.{sys.version_info.minor}"
    folder = BUILD / f"old-{commit[:12]}-{python}"
    complete = folder / "complete"
    with _alone(folder):
        if not complete.exists():
            shutil.rmtree(folder, ignore_errors=True)
            _install(commit, folder)
            complete.touch()
    jido_nats = folder / "venv" / "bin" / "jido-nats"
    return Version("old", jido_nats, (str(jido_nats),), folder)


def _check_is_here(commit: str) -> None:
    try:
        _git("cat-file", "-e", f"{commit}^{{commit}}")
    except (OSError, subprocess.CalledProcessError) as error:
        reason = f"the old version, {commit[:12]}, is not in the Git history here; `git fetch --unshallow` may get it"
        raise NotInHistory(reason) from error


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time: pytest-xdist runs several."""
    BUILD.mkdir(exist_ok=True)
    with (BUILD / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _install(commit: str, folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="jido-old-version-") as temporary:
        source = Path(temporary)
        subprocess.run(["tar", "-x", "-C", temporary], input=_git("archive", "--format=tar", commit), check=True)
        _run(sys.executable, "-m", "venv", str(folder / "venv"))
        pip = str(folder / "venv" / "bin" / "pip")
        _run(pip, "wheel", "--no-deps", "--wheel-dir", str(source / "dist"), str(source))
        (wheel,) = (source / "dist").glob("*.whl")
        _install_pinned(pip, f"{wheel}[all]", source / "deploy" / "constraints-dev.txt")
        for name in WORKERS:
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copy(source / name, folder / name)


def _install_pinned(pip: str, wheel: str, constraints: Path) -> None:
    """With the pinned dependencies, or the newest that it allows if those cannot be installed here."""
    try:
        _run(pip, "install", "-c", str(constraints), wheel)
    except subprocess.CalledProcessError:
        _run(pip, "install", wheel)


def _git(*arguments: str) -> bytes:
    # CI may run as another user than the one that made the checkout.
    command = ["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, check=True).stdout


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False)
    if done.returncode != 0:
        print(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}", file=sys.stderr)
        done.check_returncode()


if __name__ == "__main__":
    try:
        print(old_version().jido_nats)
    except NotInHistory as error:
        print(error)  # its tests skip, and say so
