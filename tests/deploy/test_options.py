"""Every option that the files in `deploy` give to `jido-nats` is one that it has."""

import re
from pathlib import Path
from typing import Final

from tests.tools.programs import ROOT, run

COMMANDS: Final = ("serve", "dashboard", "create", "events")
FILES: Final = ("cluster/local.sh", "docker/Dockerfile", "docker/compose.yaml", "kubernetes/base/deployment.yaml")
UNIT: Final = "systemd/jido-nats-manager@.service"
COMMAND: Final = re.compile(r"jido-nats serve|- serve$|\"serve\"|\[dashboard", re.MULTILINE)
# Of the dashboard, which is still being written.
COMING: Final = {"--host", "--port"}


def given(file: Path) -> set[str]:
    """The options behind a file's first command."""
    text = re.sub(r"(?m)^\s*#.*$", "", file.read_text())
    begin = COMMAND.search(text)
    assert begin is not None
    return set(re.findall(r"--[a-z][a-z-]+", text[begin.start() :]))


async def known() -> set[str]:
    """The options that the commands have."""
    helps = [(await run(command, "--help")).out for command in COMMANDS]
    return set(re.findall(r"--[a-z][a-z-]+", " ".join(helps)))


async def test_every_option_that_is_given_is_there() -> None:
    options = set[str]().union(*(given(ROOT / "deploy" / file) for file in (*FILES, UNIT)))

    assert "--replicas" in options
    assert options - await known() <= COMING
