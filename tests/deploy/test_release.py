"""What a release is made of builds, installs where there is nothing, and runs."""

import os
import subprocess
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Final

import pytest

from tests.tools.programs import ROOT

SHIPPED: Final = {"jido_nats/nats.conf", "jido_nats/py.typed", "jido_nats/cli.py"}


@pytest.mark.timeout(300)
def test_the_demo_runs_from_what_is_released(tmp_path: Path) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}

    done = subprocess.run(
        [ROOT / "deploy/release.sh", tmp_path], env=environment, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(f"jido-nats, version {version}\n")
    with zipfile.ZipFile(tmp_path / f"jido_nats-{version}-py3-none-any.whl") as wheel:
        assert set(wheel.namelist()) >= SHIPPED
    with tarfile.open(tmp_path / f"jido_nats-{version}.tar.gz") as sdist:
        assert f"jido_nats-{version}/deploy/cluster/local.sh" in sdist.getnames()
