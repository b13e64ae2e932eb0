"""What may import what, read from the source: a folder is a layer, and stands on the layers below it alone."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Final

import pytest

import jido_nats

ROOT = Path(jido_nats.__file__).parent
# From the bottom up: modules of a layer may import those of the layers before it, and of their own folder.
LAYERS: Final[list[set[str]]] = [
    {"errors", "ids", "trace"},
    {"core"},
    {"broker", "api"},
    {"store", "worker"},
    {"manager", "client", "contract"},
    {"bench", "dashboard"},
    {"cli"},
    {"__main__"},
]
PURE_NOT = {"asyncio", "nats", "random", "time", "logging", "secrets", "uuid", "os", "socket", "threading"}
BASELINE = sorted((ROOT / "bench" / "baseline").glob("*.py"))
MODULES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def name_of(path: Path) -> str:
    """`store.records` of `jido_nats/store/records.py`."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imports(path: Path) -> set[str]:
    """Every module, and every name of a module, that the file imports anywhere, in full."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            assert node.module is not None
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own_imports(path: Path) -> set[str]:
    """The modules of this package that the file imports: `core.codec`, `errors`."""
    ours = {module.removeprefix("jido_nats.") for module in imports(path) if module.startswith("jido_nats.")}
    return ours & {name_of(module) for module in MODULES}


def folder_of(name: str) -> str:
    return name.partition(".")[0]


def rank_of(name: str) -> int:
    return next(rank for rank, layer in enumerate(LAYERS) if folder_of(name) in layer)


def test_every_folder_has_a_layer() -> None:
    ranked = set().union(*LAYERS)

    assert {folder_of(name_of(path)) for path in MODULES} == ranked


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_its_own_folder_and_layers_below(path: Path) -> None:
    here = name_of(path)

    wrong = {
        name for name in own_imports(path) if folder_of(name) != folder_of(here) and rank_of(name) >= rank_of(here)
    }

    assert not wrong


def test_no_module_imports_itself_through_others() -> None:
    graph = {name_of(path): own_imports(path) - {name_of(path)} for path in MODULES}

    assert list(TopologicalSorter(graph).static_order())  # CycleError names the circle


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nats_is_imported_by_the_broker_layer_alone(path: Path) -> None:
    if folder_of(name_of(path)) != "broker" and path not in BASELINE:
        assert not {module for module in imports(path) if module.split(".")[0] == "nats"}


@pytest.mark.parametrize("path", BASELINE, ids=name_of)
def test_the_baseline_has_nothing_of_ours_but_where_to_connect(path: Path) -> None:
    ours = {module for module in imports(path) if module.startswith("jido_nats.")}
    allowed = ("jido_nats.bench.baseline", "jido_nats.errors", "jido_nats.broker.options")

    assert not {module for module in ours if not module.startswith(allowed)}


@pytest.mark.parametrize("path", sorted((ROOT / "core").glob("*.py")), ids=name_of)
def test_the_core_is_pure(path: Path) -> None:
    assert not {module.split(".")[0] for module in imports(path)} & PURE_NOT
    assert not [
        node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.AsyncFunctionDef | ast.Await)
    ]


def test_the_package_itself_is_names_alone() -> None:
    tree = ast.parse((ROOT / "__init__.py").read_text())

    assert all(isinstance(node, ast.ImportFrom | ast.Expr | ast.Assign) for node in tree.body)


def test_every_public_name_is_there() -> None:
    assert all(hasattr(jido_nats, name) for name in jido_nats.__all__)
