"""The image of deploy/docker/Dockerfile without a Docker engine: its own steps, run under a folder."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from tests.tools.programs import ROOT

DOCKERFILE: Final = ROOT / "deploy/docker/Dockerfile"
BUILD_TIMEOUT_S: Final = 300


class Step(NamedTuple):
    """One instruction, and what stands behind it."""

    name: str
    value: str

    @property
    def words(self) -> list[str]:
        """The arguments, in the form of a shell or of JSON."""
        if self.value.startswith("["):
            return msgspec.json.decode(self.value, type=list[str])
        return shlex.split(self.value)


class Image:
    """The file system, user, working directory and command that the Dockerfile makes."""

    def __init__(self, root: Path) -> None:
        """Run the steps of the first stage under `root`, and take over what the last one copies from it."""
        *_, build, last = stages()
        self.root = root
        self.last = last
        folder = root
        for step in build:
            match step.name:
                case "WORKDIR":
                    folder = self.inside(step.value)
                    folder.mkdir(parents=True)
                case "COPY":
                    _copy(step.words, folder)
                case "RUN":
                    self._run(step.value, folder)

    def inside(self, path: str) -> Path:
        """Where a path of the image is on this machine."""
        return self.root / path.lstrip("/")

    def one(self, name: str) -> str:
        """The value of the last stage's last instruction of that name."""
        return [step.value for step in self.last if step.name == name][-1]

    def words(self, name: str) -> list[str]:
        """The same as words."""
        return [step.words for step in self.last if step.name == name][-1]

    def _run(self, line: str, folder: Path) -> None:
        for path in ("/opt/", "/src/"):
            line = line.replace(path, f"{self.root}{path}")
        line = re.sub(r"^python ", f"{sys.executable} ", line)
        done = subprocess.run(
            line, shell=True, cwd=folder, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False
        )
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def stages() -> list[list[Step]]:
    """The Dockerfile's instructions, in a list for each `FROM`, which stands first in it."""
    text = re.sub(r"(?m)^#.*\n", "", DOCKERFILE.read_text()).replace("\\\n", " ")
    found: list[list[Step]] = []
    for line in text.splitlines():
        if line.strip():
            name, _, value = line.strip().partition(" ")
            if name == "FROM":
                found.append([])
            found[-1].append(Step(name, re.sub(r" +", " ", value.strip())))
    return found


def _copy(words: list[str], folder: Path) -> None:
    *sources, target = words
    for source in sources:
        path = ROOT / source
        if path.is_dir():
            shutil.copytree(path, folder / target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, folder / target)
