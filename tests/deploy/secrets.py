"""The scripts that make secrets, run by a user whose other files everybody may read, and who can read the result."""

import os
import subprocess
from pathlib import Path
from typing import Final

from tests.tools.programs import ROOT

CERTIFICATES_SCRIPT: Final = ROOT / "deploy/cluster/certificates.sh"
PASSWORDS_SCRIPT: Final = ROOT / "deploy/passwords.sh"
UMASK: Final = 0o022
OTHERS: Final = 0o077


def certificates(folder: Path, *names: str) -> None:
    """What `certificates.sh` makes for servers of these names."""
    subprocess.run([CERTIFICATES_SCRIPT, folder, *names], check=True, umask=UMASK)


def turn_into_version_0_1(folder: Path) -> None:
    """Leave what the script of version 0.1.0 made: one CA, and folders that everybody may enter."""
    for pattern in ("routes-ca.*", "route.*"):
        for path in [*folder.rglob(pattern)]:
            path.unlink()
    for path in (folder, *(key.parent for key in folder.rglob("server.key"))):
        path.chmod(0o755)


def readable_by_others(folder: Path) -> list[str]:
    """Folder and files that others may use in any way, without certificates, which are public."""
    found = [folder, *folder.rglob("*")]
    return [
        str(path) for path in found if path.suffix != ".pem" and path.lstat().st_mode & OTHERS and not path.is_symlink()
    ]


def typed(commands: str, home: Path, *, project: Path = ROOT) -> str:
    """What documented commands print to a user with that home, who types them at the root of the project.

    `kubectl`, `helm` and `systemctl`, which need a cluster or a machine of their own, print their arguments instead.
    """
    elsewhere = "".join(f"{name}() {{ printf '%s\\n' {name} \"$@\"; }}\n" for name in ("kubectl", "helm", "systemctl"))
    environment = {name: value for name, value in os.environ.items() if name != "XDG_CONFIG_HOME"}
    done = subprocess.run(
        ["sh", "-eu", "-c", elsewhere + commands],
        cwd=project,
        env=environment | {"HOME": str(home)},
        umask=UMASK,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
