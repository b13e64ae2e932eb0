"""What may import what, read from the source: a module stands only on what is below it."""

import ast
from pathlib import Path

import pytest

import jido_nats

ROOT = Path(jido_nats.__file__).parent
# Each layer may import those above it in this list, and itself; a folder stands for all that is in it.
LAYERS: list[set[str]] = [
    {"errors", "failpoints", "ids", "logs", "trace", "stats", "systemd", "position"},
    {"core"},
    {"broker"},
    {"api", "monitoring", "inbox", "outbox", "deadlines", "blocked"},
    {"worker"},
    {"write_path", "talk", "processes"},
    {"live"},
    {"sessions", "index"},
    {"takeover", "service"},
    {"verbs"},
    {"manager"},
    {"watch", "streams"},
    {"client"},
    {"server"},
    {"ui", "tools"},
    {"demo", "running", "worker_options"},
    {"options"},
    {"cli"},
]
PURE_NOT = {"asyncio", "nats", "random", "time", "logging", "secrets", "uuid", "os", "socket", "threading"}
FLOOR = sorted((ROOT / "tools" / "floor").glob("*.py"))
MODULES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imports(path: Path) -> set[str]:
    """Every module that is imported anywhere in the file, in full."""
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
    """The layers' names that the file imports: `core`, `broker`, `manager`."""
    ours = [module.removeprefix("jido_nats.") for module in imports(path) if module.startswith("jido_nats.")]
    return {module.partition(".")[0] for module in ours}


def layer_of(name: str) -> int:
    return next(number for number, layer in enumerate(LAYERS) if name in layer)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_module_has_a_layer(path: Path) -> None:
    assert any(name_of(path).split(".")[0] in layer for layer in LAYERS)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_stands_on_what_is_below_it(path: Path) -> None:
    names = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or path.is_dir()}
    here = name_of(path).split(".")[0]

    too_high = {name for name in own_imports(path) & names if name != here and layer_of(name) > layer_of(here)}

    assert not too_high


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nats_is_imported_by_the_broker_layer_alone(path: Path) -> None:
    if name_of(path).split(".")[0] != "broker" and path not in FLOOR:
        assert not {module for module in imports(path) if module.split(".")[0] == "nats"}


@pytest.mark.parametrize("path", FLOOR, ids=name_of)
def test_the_floor_has_nothing_of_ours_but_where_to_connect(path: Path) -> None:
    ours = {module for module in imports(path) if module.startswith("jido_nats.")}
    allowed = ("jido_nats.tools.floor", "jido_nats.errors", "jido_nats.broker.connect_options")

    assert not {module for module in ours if not module.startswith(allowed)}


@pytest.mark.parametrize("path", sorted((ROOT / "core").glob("*.py")), ids=name_of)
def test_the_core_is_pure(path: Path) -> None:
    assert not {module.split(".")[0] for module in imports(path)} & PURE_NOT
    assert not [
        node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.AsyncFunctionDef | ast.Await)
    ]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_the_two_sides_of_the_api_do_not_know_each_other(path: Path) -> None:
    sides = {"service": "client", "manager": "client", "client": "service"}
    here = name_of(path)

    assert sides.get(here, "") not in own_imports(path)
    assert not (here == "client" and "manager" in own_imports(path))


def test_the_package_itself_is_names_alone() -> None:
    tree = ast.parse((ROOT / "__init__.py").read_text())

    assert all(isinstance(node, ast.ImportFrom | ast.Expr | ast.Assign) for node in tree.body)


def test_every_public_name_is_there() -> None:
    assert all(hasattr(jido_nats, name) for name in jido_nats.__all__)
