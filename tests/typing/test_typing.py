"""What the type checkers report about a user's programs: nothing about correct ones, and every mistake.

The programs are checked in a folder of their own, as a user's are: with the user's settings, and jido_nats installed.
"""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

HERE: Final = Path(__file__).parent
MYPY_CACHE: Final = HERE.parents[1] / ".mypy_cache" / "programs"
MYPY: Final = ("mypy", "--strict", "--config-file=", f"--cache-dir={MYPY_CACHE}", ".")
PYRIGHT: Final = ("basedpyright", f"--pythonpath={sys.executable}")


@pytest.mark.parametrize("command", [MYPY, PYRIGHT], ids=lambda command: command[0])
def test_a_user_s_programs_pass_in_strict_mode(command: tuple[str, ...], tmp_path: Path) -> None:
    for path in HERE.iterdir():
        if path.is_file() and not path.name.startswith(("test_", "__init__")):
            shutil.copy(path, tmp_path)

    checked = subprocess.run(
        [sys.executable, "-m", *command], cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert checked.returncode == 0, checked.stdout + checked.stderr
