"""Load a worker by its name, `package.module:callable`."""

import contextlib
import importlib
import sys
from pathlib import Path

from jido_nats.errors import ConfigurationError
from jido_nats.worker.session import Worker


def load_worker(name: str) -> Worker:
    """The worker of that name, from the current folder or an installed package. Raises `ConfigurationError`."""
    module_name, separator, attribute = name.partition(":")
    if not (separator and module_name and attribute) or module_name.startswith("."):
        raise ConfigurationError(f"--worker takes package.module:callable, not {name!r}")
    with contextlib.suppress(ValueError):
        sys.path.remove("")
    sys.path.insert(0, str(Path.cwd()))
    try:
        worker = getattr(importlib.import_module(module_name), attribute)
    except ImportError as error:
        raise ConfigurationError(f"--worker {name}: the module cannot be imported: {error}") from error
    except AttributeError as error:
        raise ConfigurationError(f"--worker {name}: {module_name} has no {attribute!r}") from error
    if not callable(worker):
        raise ConfigurationError(f"--worker {name}: {attribute!r} is not callable")
    chosen: Worker = worker
    return chosen
