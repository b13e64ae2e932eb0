"""What contributors use holds together: pinned packages, hooks, the modes of CI, and links in their pages."""

import re
import tomllib
from pathlib import Path
from typing import Final

import msgspec
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT: Final = Path(__file__).parents[2]
DECISIONS: Final = ROOT / "deploy/docs/decisions"
PAGES: Final = [*(ROOT / ".github").glob("*.md"), *DECISIONS.glob("*.md")]
CI: Final = (ROOT / ".ci/run").read_text()


def requirements() -> list[Requirement]:
    """Every dependency of the package, its extras and its development."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]
    return [one for one in map(Requirement, texts) if one.name != project["name"]]


def pins(path: str) -> dict[str, str]:
    """The version of each package that a constraints file pins."""
    lines = (ROOT / path).read_text().splitlines()
    return {
        canonicalize_name(name): version for name, is_pin, version in (line.partition("==") for line in lines) if is_pin
    }


def ids(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_a_dependency_is_pinned_to_a_version_in_its_range(requirement: Requirement) -> None:
    assert requirement.specifier.contains(pins("deploy/constraints-dev.txt")[canonicalize_name(requirement.name)])


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_a_dependency_has_a_lowest_version(requirement: Requirement) -> None:
    """Otherwise `.ci/run lowest` would test with the first version that there ever was."""
    assert {">=", "=="} & {specifier.operator for specifier in requirement.specifier}


def test_the_image_has_the_versions_that_are_tested() -> None:
    assert pins("deploy/docker/constraints.txt").items() <= pins("deploy/constraints-dev.txt").items()


def test_the_hooks_run_what_ci_checks() -> None:
    repositories = msgspec.yaml.decode((ROOT / ".pre-commit-config.yaml").read_bytes())["repos"]

    assert [repository["repo"] for repository in repositories] == ["local"]
    hooks = {hook["name"]: hook["entry"] for hook in repositories[0]["hooks"]}
    checks = dict(re.findall(r'step "(\w+)" (\.venv/bin/(?:ruff \w+|codespell|mypy))', CI))
    assert hooks == checks


def test_the_contributors_page_names_every_mode_of_ci() -> None:
    modes = re.search(r"^(full( \| \w+)+)\)", CI, re.MULTILINE)

    assert modes is not None
    page = (ROOT / ".github/CONTRIBUTING.md").read_text()
    assert [mode for mode in modes[1].split(" | ") if mode != "full" and f"| `.ci/run {mode}" not in page] == []


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_a_page_links_and_names_files_that_exist(page: Path) -> None:
    text = page.read_text()
    links = [page.parent / link for link in re.findall(r"\]\(([^)#:]+)\)", text)]
    files = [ROOT / name for name in re.findall(r"`((?:jido_nats|tests|deploy|\.ci)/[\w./-]+)`", text)]

    assert [path for path in links + files if not path.exists()] == []


def test_every_decision_is_in_the_index() -> None:
    index = (DECISIONS / "README.md").read_text()

    assert re.findall(r"\]\((\d[^)]+)\) (.+)", index) == [
        (page.name, page.read_text().partition("\n")[0].removeprefix("# ")) for page in sorted(DECISIONS.glob("[0-9]*"))
    ]
