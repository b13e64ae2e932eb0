"""What a release is made of builds, installs where there is nothing, and runs."""

import os
import shutil
import subprocess
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Final

import pytest

from tests.tools.programs import ROOT

SHIPPED: Final = {"jido_nats/nats.conf", "jido_nats/py.typed", "jido_nats/cli/main.py"}


def release(script: Path, folder: Path) -> "subprocess.CompletedProcess[str]":
    """How the script ended, outside of the environment of the tests."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run([script, folder], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.timeout(300)
def test_the_demo_runs_from_what_is_released(tmp_path: Path) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

    done = release(ROOT / "deploy/release.sh", tmp_path)

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(f"jido-nats, version {version}\n")
    with zipfile.ZipFile(tmp_path / f"jido_nats-{version}-py3-none-any.whl") as wheel:
        names = set(wheel.namelist())
        assert names >= SHIPPED
        assert not [name for name in names if name.endswith("ARCHITECTURE.md")]
    with tarfile.open(tmp_path / f"jido_nats-{version}.tar.gz") as sdist:
        assert f"jido_nats-{version}/deploy/cluster/local.sh" in sdist.getnames()


def test_a_version_that_the_changelog_does_not_describe_is_not_built(tmp_path: Path) -> None:
    (tmp_path / "deploy").mkdir()
    script = shutil.copy(ROOT / "deploy/release.sh", tmp_path / "deploy")
    shutil.copy(ROOT / "deploy/CHANGELOG.md", tmp_path / "deploy")
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "9.9.9"\n')

    done = release(Path(script), tmp_path / "dist")

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("deploy/CHANGELOG.md has no section [9.9.9]")
    assert not (tmp_path / "dist").exists()
