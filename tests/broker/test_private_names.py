"""Which private names of nats-py the library uses: the reason why pyproject.toml pins its minor version."""

import ast
import importlib.metadata
import tomllib
from pathlib import Path
from typing import Any, Final

from nats.aio.client import Client
from nats.aio.subscription import Subscription
from nats.aio.transport import TcpTransport
from packaging.requirements import Requirement

import jido_nats
from jido_nats.broker import nats_client
from jido_nats.broker.nats_client import NatsClient

ROOT: Final = Path(jido_nats.__file__).parent
# By the class of nats-py that has them.
PRIVATE: Final[dict[type, set[str]]] = {
    Client: {
        "_build_message",
        "_current_server",
        "_flush_queue",
        "_max_payload",
        "_parse_header_lines",
        "_pending",
        "_pending_data_size",
        "_process_headers",
        "_process_info",
        "_process_msg",
        "_send_unsubscribe",
        "_server_info",
        "_subs",
        "_transport",
    },
    Subscription: {"_cb", "_id"},
    TcpTransport: {"_io_reader", "_io_writer"},
}


def is_private(name: object) -> bool:
    """`_name`, neither `__name` nor `_name_`."""
    return isinstance(name, str) and name.startswith("_") and not name.startswith("__") and not name.endswith("_")


def imports_nats(tree: ast.Module) -> bool:
    """Whether a module imports nats-py."""
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    return any(module.partition(".")[0] == "nats" for module in modules)


def defined(tree: ast.Module) -> set[str]:
    """The names that a module gives to its own functions and attributes; `x.name += …` changes somebody's."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.attr for target in targets if isinstance(target, ast.Attribute)}
    return names


def of_the_base(node: ast.AST) -> str | None:
    """The name in `super().name`."""
    if isinstance(node, ast.Attribute) and isinstance(call := node.value, ast.Call):
        return node.attr if isinstance(call.func, ast.Name) and call.func.id == "super" else None
    return None


def read(node: ast.AST) -> object:
    """The name in `x.name` or `getattr(x, "name", …)`."""
    if isinstance(node, ast.Attribute):
        return node.attr
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
        return node.args[1].value if isinstance(node.args[1], ast.Constant) else None
    return None


def foreign(path: Path) -> set[str]:
    """The private names that a module uses and does not define, or overrides; none unless it imports nats-py."""
    tree = ast.parse(path.read_text())
    if not imports_nats(tree):
        return set()
    nodes = list(ast.walk(tree))
    used = {str(name) for node in nodes if is_private(name := read(node))}
    overridden = {name for node in nodes if (name := of_the_base(node)) is not None and is_private(name)}
    return (used - defined(tree)) | overridden


def instance(kind: type) -> Any:
    """One of nats-py's objects, without a connection."""
    return Subscription(Client()) if kind is Subscription else kind()


def test_the_private_names_of_nats_py_that_are_used_are_these() -> None:
    used = set().union(*(foreign(path) for path in ROOT.rglob("*.py")))
    assert used == set().union(*PRIVATE.values())


async def test_the_installed_nats_py_has_each_of_these_names() -> None:
    missing = {f"{kind.__name__}.{name}" for kind, names in PRIVATE.items() for name in names}
    missing -= {f"{kind.__name__}.{name}" for kind in PRIVATE for name in dir(instance(kind))}
    assert not missing


def test_no_attribute_of_our_own_hides_one_of_nats_py() -> None:
    own = {name for name in defined(ast.parse(Path(nats_client.__file__).read_text())) if is_private(name)}
    assert own & set(dir(Client())) == {name for name in PRIVATE[Client] if name in vars(NatsClient)}


def test_the_installed_nats_py_is_of_the_minor_version_that_is_pinned() -> None:
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["project"]
    pinned = next(r for text in project["dependencies"] if (r := Requirement(text)).name == "nats-py")
    installed = importlib.metadata.version("nats-py")
    assert pinned.specifier.contains(installed)
    major, minor, *_ = map(int, installed.split("."))
    assert not pinned.specifier.contains(f"{major}.{minor + 1}.0"), "private names may change with every minor version"
