"""What these tests take from other ecosystems, kept where `tests/interop` keeps its own: outside the tree.

`kustomize` is the one on PATH, `kubectl`'s, or built with Go; `kinds` (this folder's) is built with Go.
Without them their tests are skipped, unless `JIDO_REQUIRE_INTEROP=1`.
"""

import hashlib
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from tests.interop.programs import CACHE, REQUIRED
from tests.interop.tools import alone, run

KINDS: Final = Path(__file__).parent / "kinds"
KUSTOMIZE: Final = "sigs.k8s.io/kustomize/kustomize/v5@v5.7.1"


def kustomized(folder: Path) -> list[dict[str, Any]]:
    """The objects that a kustomization makes."""
    done = subprocess.run([*_kustomize(), str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [msgspec.yaml.decode(text, type=dict[str, Any]) for text in done.stdout.split("\n---\n")]


def complaint(kind: str, text: str | bytes) -> str:
    """What the Prometheus operator's types, or Prometheus, have against a text of that kind; empty for nothing."""
    data = text.encode() if isinstance(text, str) else text
    done = subprocess.run([str(_kinds()), kind], input=data, capture_output=True, check=False)
    return done.stderr.decode()


def tool(name: str) -> str:
    """A program that has to be on PATH."""
    found = shutil.which(name)
    if found is None:
        text = f"{name} is not here"
        (pytest.fail if REQUIRED else pytest.skip)(text)
    return found or ""


def _kustomize() -> list[str]:
    if shutil.which("kustomize"):
        return ["kustomize", "build"]
    if shutil.which("kubectl"):
        return ["kubectl", "kustomize"]
    binary = CACHE / "bin" / "kustomize"
    with alone():
        if not binary.exists():
            run([tool("go"), "install", KUSTOMIZE], CACHE, GOBIN=str(binary.parent))
    return [str(binary), "build"]


def _kinds() -> Path:
    sources = b"".join((KINDS / name).read_bytes() for name in ("main.go", "go.mod", "go.sum"))
    binary = CACHE / "bin" / f"kinds-{hashlib.sha256(sources).hexdigest()[:12]}"
    if not binary.exists():
        with alone():
            if not binary.exists():
                run([tool("go"), "build", "-o", str(binary), "."], KINDS)
    return binary
