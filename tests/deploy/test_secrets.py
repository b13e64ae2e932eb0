"""What scripts and documented commands write is readable by its owner alone, and is no part of the project."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

from jido_nats.broker.local_server import project_config, variables
from tests.deploy.secrets import (
    PASSWORDS_SCRIPT,
    UMASK,
    certificates,
    readable_by_others,
    turn_into_version_0_1,
    typed,
)
from tests.deploy.test_kubernetes import helm
from tests.deploy.tools import tool
from tests.tools.pages import blocks, section
from tests.tools.programs import ROOT

README: Final = (ROOT / "deploy/README.md").read_text()
IGNORED: Final = (ROOT / ".gitignore").read_text().partition("# Secrets")[2].splitlines()[1:]
# What the scripts make when they are given a folder of the project, and what earlier versions were told to put there.
INSIDE: Final = (
    *("passwords", "tls/ca.key", "tls/ca.srl", "tls/nats/server.key", "tls/nats/route.key", "tls/ca.pem"),
    *("kept/env", "kept/passwords", "kept/certificates/routes-ca.key", "kept/n1/jetstream/SYS/x", "jetstream/x"),
    *("deploy/docker/.env", "deploy/docker/compose.env", "deploy/docker/tls/nats-1/server.key", "backup/JIDO_CLIENT/x"),
    *("client.nk", "user.creds"),
)


def commands(heading: str) -> list[str]:
    """The commands of a part of deploy/README.md, in its blocks."""
    return blocks(section(README, heading), "sh")


# Passwords


def test_a_file_of_passwords_is_its_owner_s(tmp_path: Path) -> None:
    subprocess.run([PASSWORDS_SCRIPT, tmp_path / "new/passwords"], check=True, umask=UMASK)

    lines = (tmp_path / "new/passwords").read_text().splitlines()
    assert {line.partition("=")[0] for line in lines} == variables(project_config())
    assert readable_by_others(tmp_path / "new") == []


def test_passwords_that_servers_may_use_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "passwords").write_text("in use")

    done = subprocess.run([PASSWORDS_SCRIPT, tmp_path / "passwords"], capture_output=True, text=True, check=False)

    assert done.returncode != 0
    assert "File exists" in done.stderr
    assert (tmp_path / "passwords").read_text() == "in use"


# Documented commands


def test_the_commands_for_kubernetes_give_it_every_secret_that_is_named(tmp_path: Path) -> None:
    (block,) = commands("## On Kubernetes")

    said = typed(block, tmp_path)

    values = helm()
    tls = {values["config"][part]["tls"]["secretName"] for part in ("cluster", "nats")}
    assert set(re.findall(r"secret\ngeneric\n(.*)", said)) == tls | {"jido-nats-passwords"}
    assert len(tls) == 2


def test_the_commands_for_kubernetes_read_files_that_are_its_owner_s(tmp_path: Path) -> None:
    (block,) = commands("## On Kubernetes")

    said = typed(block, tmp_path)

    files = re.findall(rf"(?m)^(?:[\w.]+=)?({tmp_path}/.*)$", said)
    assert [Path(file).relative_to(tmp_path / ".config/jido-nats/kubernetes").as_posix() for file in files] == [
        "passwords",
        *(f"tls/nats/{name}" for name in ("server.pem", "server.key", "ca.pem")),
        *(f"tls/nats/{name}" for name in ("route.pem", "route.key", "routes-ca.pem")),
    ]
    assert not [file for file in files if not Path(file).exists()]
    assert readable_by_others(tmp_path / ".config/jido-nats") == []


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    """/etc/jido-nats after the commands for a machine with systemd."""
    (tmp_path / "etc/systemd/system").mkdir(parents=True)
    block, _ = commands("## On machines of your own")
    typed(block.replace("/etc/", f"{tmp_path}/etc/"), tmp_path)
    return tmp_path / "etc/jido-nats"


def test_the_commands_for_systemd_write_secrets_for_root_alone(etc: Path) -> None:
    assert readable_by_others(etc / "passwords") + readable_by_others(etc / "manager") == []


def test_a_manager_can_read_its_settings(etc: Path) -> None:
    """It runs as a user of its own."""
    assert (etc.stat().st_mode & 0o777, (etc / "settings.toml").stat().st_mode & 0o777) == (0o755, 0o644)


def test_a_manager_gets_its_passwords(etc: Path) -> None:
    passwords = dict(line.split("=") for line in (etc / "passwords").read_text().splitlines())

    manager = dict(line.split("=", 1) for line in (etc / "manager").read_text().splitlines())

    assert manager["NATS_PASSWORD"] == passwords["JIDO_MANAGER_PASSWORD"]
    assert manager["NATS_API_PASSWORD"] == passwords["JIDO_MANAGER_API_PASSWORD"]


def test_certificates_for_systemd_are_the_user_s(tmp_path: Path) -> None:
    _, block = commands("## On machines of your own")

    typed(block, tmp_path)

    assert (tmp_path / ".config/jido-nats/tls/n3/route.key").exists()
    assert readable_by_others(tmp_path / ".config/jido-nats") == []


@pytest.fixture
def moved(tmp_path: Path) -> Path:
    """Where the secrets of version 0.1.0 are after the commands that move them out of a project."""
    project, home = tmp_path / "project", tmp_path / "home"
    shutil.copytree(ROOT / "deploy", project / "deploy")
    shutil.copy(ROOT / "nats.conf", project)
    certificates(project / "deploy/docker/tls", "nats-1", "nats-2", "nats-3")
    turn_into_version_0_1(project / "deploy/docker/tls")
    (project / "deploy/docker/.env").write_text("JIDO_DASHBOARD_TOKEN=t\n")
    (project / "deploy/docker/.env").chmod(0o644)
    (block,) = blocks(section(README, "### Certificates for routes"), "sh")
    typed(block, home, project=project)
    return home / ".config/jido-nats/docker"


def test_the_secrets_of_version_0_1_are_moved_out_of_the_project(moved: Path) -> None:
    folder = f"JIDO_TLS_DIR={moved / 'tls'}"

    assert (moved / "compose.env").read_text().splitlines() == ["JIDO_DASHBOARD_TOKEN=t", folder]
    assert (moved / "tls/nats-3/route.key").exists()
    assert readable_by_others(moved) == []


# What is put inside the project nevertheless


@pytest.mark.parametrize("path", INSIDE)
def test_git_ignores_what_must_not_be_committed(path: str) -> None:
    command = [tool("git"), "check-ignore", "--no-index", "--quiet", path]

    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0


def test_git_ignores_no_file_of_the_project() -> None:
    command = [tool("git"), "ls-files", "--cached", "--ignored", "--exclude-standard"]

    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout == ""


def test_what_git_ignores_is_not_let_through_to_the_engine() -> None:
    """The last pattern that matches counts."""
    patterns = (ROOT / "deploy/docker/Dockerfile.dockerignore").read_text().splitlines()
    last_allowed = max(number for number, pattern in enumerate(patterns) if pattern.startswith("!"))

    assert {f"**/{pattern.rstrip('/')}" for pattern in IGNORED} <= set(patterns[last_allowed:])
