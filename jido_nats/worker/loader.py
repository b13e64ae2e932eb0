"""Load a worker by its name, `package.module:callable`."""

import contextlib
import importlib
import sys
from pathlib import Path
from types import ModuleType

from jido_nats.errors import ConfigurationError
from jido_nats.worker.crash import error_text
from jido_nats.worker.session import Worker


def load_worker(name: str) -> Worker:
    """The worker of that name, from the current folder or an installed package.

    Raises `ConfigurationError`; if the module itself failed, what it raised is the cause, and named with its place.
    """
    module_name, separator, attribute = name.partition(":")
    if not (separator and module_name and attribute) or module_name.startswith("."):
        raise ConfigurationError(f"--worker takes package.module:callable, not {name!r}")
    with contextlib.suppress(ValueError):
        sys.path.remove("")
    sys.path.insert(0, str(Path.cwd()))
    module = _imported(module_name, f"--worker {name}")
    try:
        worker = getattr(module, attribute)
    except AttributeError:
        raise ConfigurationError(f"--worker {name}: {module_name} has no {attribute!r}") from None
    if not callable(worker):
        raise ConfigurationError(f"--worker {name}: {attribute!r} is not callable")
    chosen: Worker = worker
    return chosen


def _imported(name: str, option: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        if (
            isinstance(error, ModuleNotFoundError)
            and error.name is not None
            and f"{name}.".startswith(f"{error.name}.")
        ):
            raise ConfigurationError(f"{option}: the module cannot be imported: {error}") from None
        raise ConfigurationError(f"{option}: the module cannot be imported: {error_text(error)}") from error
