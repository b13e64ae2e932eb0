"""Which manager takes a session: who runs its kind of worker with its labels, and which of those has room."""

import re
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from jido_nats.core.manager_info import ManagerInfo
from jido_nats.errors import NoSuchWorker

LABELS_MAX: Final = 32
# How many kinds of worker an error names.
NAMED_MAX: Final = 20
_LABEL: Final = re.compile(r"\A[A-Za-z0-9._/-]{1,64}\Z")


class Wanted(NamedTuple):
    """What a session needs: a kind of worker, at a manager that has all of these labels."""

    worker: str
    labels: Mapping[str, str]

    def __str__(self) -> str:
        with_labels = f" with the labels {_listed(self.labels)}" if self.labels else ""
        return f"the worker {self.worker!r}{with_labels}"


def fitting(managers: Mapping[str, ManagerInfo], wanted: Wanted) -> dict[str, ManagerInfo]:
    """The managers that run this kind with these labels, full or not, by id; empty if none does.

    Those whose workers only wait are not among them while another that answers commands has a worker of this kind.
    """
    running = {name: info for name, info in managers.items() if wanted.worker in info.kinds}
    if any(info.serves and not info.kinds[wanted.worker].waits for info in running.values()):
        running = {name: info for name, info in running.items() if not info.kinds[wanted.worker].waits}
    return {name: info for name, info in running.items() if wanted.labels.items() <= info.labels.items()}


def choose(
    candidates: Mapping[str, ManagerInfo], worker: str, sample: Callable[[list[str], int], list[str]]
) -> str | None:
    """The less loaded of two at random among the candidates that answer commands and have room; None: there is none.

    `sample`: `random.sample`. Why two: Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 1996.
    """
    with_room = [n for n, info in candidates.items() if info.serves and not (info.full or info.kinds[worker].full)]
    two = sample(with_room, min(2, len(with_room)))
    return min(two, key=lambda name: _load(candidates[name]), default=None)


def no_such_worker(managers: Mapping[str, ManagerInfo], wanted: Wanted) -> NoSuchWorker:
    """The error for a session that no manager can run; it names what there is."""
    kinds = {(name, _listed(info.labels)) for info in managers.values() for name in info.kinds}
    there = sorted(f"{name} ({labels})" if labels else name for name, labels in kinds)
    more = [f"and {len(there) - NAMED_MAX} more"] if len(there) > NAMED_MAX else []
    return NoSuchWorker(f"no manager runs {wanted}; there is: {'; '.join(there[:NAMED_MAX] + more) or 'none'}")


def check_labels(labels: Mapping[str, str]) -> None:
    """Raise `ValueError` unless these can be a manager's labels, or those that a session asks for."""
    if len(labels) > LABELS_MAX:
        raise ValueError(f"there are {len(labels)} labels; at most {LABELS_MAX} are allowed")
    for name, value in labels.items():
        if not (isinstance(name, str) and isinstance(value, str)):
            raise ValueError(f"a label and its value are text, not {name!r}: {value!r}")
        if not (_LABEL.match(name) and _LABEL.match(value)):
            given = f"{name[:100]}={value[:100]}"
            raise ValueError(f"a label is 1 to 64 letters, digits, '.', '_', '-' or '/' on each side of =, not {given}")


def _load(info: ManagerInfo) -> float:
    return info.sessions / max(1, info.sessions_max)


def _listed(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in sorted(labels.items()))
