"""`deploy/systemd`: systemd's own tools read the units, and what they say of the sandbox."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from jido_nats.broker.local_server import variables
from tests.deploy.tools import tool
from tests.tools.programs import ROOT

FOLDER: Final = ROOT / "deploy/systemd"
SERVER: Final = FOLDER / "jido-nats-server.service"
MANAGER: Final = FOLDER / "jido-nats-manager@.service"
CLUSTER: Final = FOLDER / "cluster.conf"
WORKER_USER: Final = FOLDER / "worker-user.conf"
BESIDE: Final = Path(sys.executable).parent
EXPOSURE_MAX: Final = 1.5  # of 10; systemd calls up to 2.9 "OK"
CLEAN_UP_S: Final = 10


def here(unit: Path) -> str:
    """A unit's text, with this checkout in the place of /opt/jido-nats."""
    text = unit.read_text().replace("/opt/jido-nats/.venv/bin", str(BESIDE))
    return text.replace("/opt/jido-nats", str(ROOT))


def setting(unit: Path, name: str) -> str:
    """What a unit says of a setting."""
    found: list[str] = re.findall(rf"(?m)^{name}=(.*)$", unit.read_text())
    return found[-1]


def verified(unit: Path) -> str:
    """What `systemd-analyze verify` complains of: nothing, or lines of text."""
    done = subprocess.run(
        [tool("systemd-analyze"), "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize("unit", [SERVER, MANAGER], ids=lambda path: path.name)
def test_systemd_takes_the_unit(unit: Path, tmp_path: Path) -> None:
    (tmp_path / unit.name).write_text(here(unit))

    assert verified(tmp_path / unit.name) == ""


def test_systemd_takes_what_makes_the_server_one_of_three(tmp_path: Path) -> None:
    (tmp_path / SERVER.name).write_text(here(SERVER))
    folder = tmp_path / f"{SERVER.name}.d"
    folder.mkdir()
    (folder / CLUSTER.name).write_text(here(CLUSTER))

    assert verified(tmp_path / SERVER.name) == ""


def test_systemd_takes_what_gives_programs_a_user_of_their_own(tmp_path: Path) -> None:
    (tmp_path / MANAGER.name).write_text(here(MANAGER))
    folder = tmp_path / f"{MANAGER.name}.d"
    folder.mkdir()
    (folder / WORKER_USER.name).write_text(WORKER_USER.read_text())

    assert verified(tmp_path / MANAGER.name) == ""


def test_systemd_complains_of_a_setting_that_it_does_not_know(tmp_path: Path) -> None:
    (tmp_path / SERVER.name).write_text(here(SERVER).replace("DynamicUser=", "DynamicUsher="))

    assert "DynamicUsher" in verified(tmp_path / SERVER.name)


@pytest.mark.parametrize("unit", [SERVER, MANAGER], ids=lambda path: path.name)
def test_systemd_calls_the_sandbox_tight(unit: Path) -> None:
    threshold = str(int(EXPOSURE_MAX * 10))
    done = subprocess.run(
        [tool("systemd-analyze"), "security", "--offline=true", f"--threshold={threshold}", "--no-pager", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout[-300:]


def test_a_manager_tells_systemd_how_it_is() -> None:
    assert setting(MANAGER, "Type") == "notify"
    assert int(setting(MANAGER, "WatchdogSec")) >= 10


def test_a_manager_has_time_to_drain() -> None:
    drain = int(re.findall(r"--drain-timeout (\d+)", MANAGER.read_text())[0])

    assert int(setting(MANAGER, "TimeoutStopSec")) >= drain + CLEAN_UP_S


def test_one_of_three_is_given_every_file_that_its_configuration_names() -> None:
    named = set(re.findall(r'"\./tls/([^"]+)"', (ROOT / "deploy/cluster/server.conf").read_text()))
    given = dict(re.findall(r"(?m)^LoadCredential=([^:]+):/etc/jido-nats/tls/(.+)$", CLUSTER.read_text()))

    assert given == {name: name for name in named}


def test_one_of_three_is_given_all_that_its_configuration_takes_from_outside() -> None:
    given = set(re.findall(r"Environment='?(\w+)=", CLUSTER.read_text()))

    assert given == variables((ROOT / "deploy/cluster/server.conf").read_text())
