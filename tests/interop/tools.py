"""What tests take from other ecosystems: the `nats` command and AsyncAPI's official schema, kept outside the tree."""

import contextlib
import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NoReturn

import msgspec
import pytest

from tests.interop.programs import BUILD_TIMEOUT_S, CACHE, REQUIRED

NATS_CLI: Final = "github.com/nats-io/natscli/nats@v0.5.1"
ASYNCAPI: Final = "@asyncapi/specs@6.11.1"


def nats_cli() -> Path:
    """The `nats` command: `JIDO_NATS_CLI`, the one on PATH, or built with Go; the test is skipped without."""
    if chosen := os.environ.get("JIDO_NATS_CLI") or shutil.which("nats"):
        return Path(chosen)
    binary = CACHE / "bin" / "nats"
    if not binary.exists() and shutil.which("go") is None:
        _absent("the nats CLI: neither it nor Go, to build it, is here; JIDO_NATS_CLI may name one")
    with alone():
        if not binary.exists():
            run(["go", "install", NATS_CLI], CACHE, GOBIN=str(binary.parent))
    return binary


def asyncapi_schema(version: str) -> dict[str, Any]:
    """The official JSON Schema of AsyncAPI documents, from npm; the test is skipped where npm is missing."""
    folder = CACHE / "asyncapi"
    file = folder / "node_modules" / "@asyncapi" / "specs" / "schemas" / f"{version}-without-$id.json"
    if not file.exists() and shutil.which("npm") is None:
        _absent("AsyncAPI's schema: npm is not here")
    with alone():
        if not file.exists():
            folder.mkdir(exist_ok=True)
            run(["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(folder), ASYNCAPI], folder)
    return msgspec.json.decode(file.read_bytes(), type=dict[str, Any])


def _absent(text: str) -> NoReturn:
    if REQUIRED:
        pytest.fail(text)
    pytest.skip(text)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """One test at a time: pytest-xdist runs several."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def run(command: list[str], folder: Path, **env: str) -> None:
    """Run it to its end, behind the tests; what it said, where it failed."""
    done = subprocess.run(
        ["nice", "-n", "10", *command],
        cwd=folder,
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=BUILD_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
