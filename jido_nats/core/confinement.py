"""What a deployment denies its workers' programs, as it is written in options and settings: limits, environment."""

import re
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

_SIZES: Final = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_TIMES: Final = {"": 1, "s": 1, "m": 60, "h": 3600}
_COUNTS: Final = {"": 1}
# The limits by name: the name of the operating system's (`RLIMIT_…`), and the units of a value.
LIMITS: Final[Mapping[str, tuple[str, Mapping[str, int]]]] = {
    "memory": ("AS", _SIZES),
    "nofile": ("NOFILE", _COUNTS),
    "cpu": ("CPU", _TIMES),
    "nproc": ("NPROC", _COUNTS),
    "fsize": ("FSIZE", _SIZES),
    "core": ("CORE", _SIZES),
}
VALUE_MAX: Final = 2**62
_MAY_BE_ZERO: Final = frozenset({"core", "fsize"})
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Variables(NamedTuple):
    """An allow-list of environment variables: those that are inherited, and those that are set."""

    inherited: frozenset[str]
    values: Mapping[str, str]


def limits_of(text: str) -> dict[str, int]:
    """`memory=512M,nofile=1024` as numbers (bytes, files, seconds, processes). Raises `ValueError`."""
    found: dict[str, int] = {}
    for part in text.split(","):
        name, _, value = (piece.strip() for piece in part.partition("="))
        if name not in LIMITS:
            raise ValueError(f"{name!r} is no limit; there are {', '.join(LIMITS)}")
        if name in found:
            raise ValueError(f"{name} is given twice")
        found[name] = _number(name, value)
    return found


def _number(name: str, text: str) -> int:
    units = LIMITS[name][1]
    digits = re.match(r"[0-9]*", text, re.ASCII)
    assert digits is not None, "it may be empty"
    number, unit = digits[0], text[digits.end() :]
    if not number or unit not in units:
        known = [unit for unit in units if unit]
        after = f" and {', '.join(known[:-1])} or {known[-1]}" if known else ""
        raise ValueError(f"{name} takes an integer{after}, not {text!r}")
    value = int(number[:20]) * units[unit]
    if not (name not in _MAY_BE_ZERO) <= value <= VALUE_MAX:
        raise ValueError(f"{name} cannot be {text}")
    return value


def variables_of(items: Iterable[str]) -> Variables:
    """Each item is `NAME=VALUE`, or names separated by commas. Raises `ValueError`."""
    inherited: set[str] = set()
    values: dict[str, str] = {}
    for item in items:
        name, sets, value = item.partition("=")
        names = [name] if sets else [part.strip() for part in item.split(",")]
        for one in names:
            if not _VARIABLE.fullmatch(one):
                raise ValueError(f"{one!r} is no name of an environment variable")
        if "\0" in value:
            raise ValueError(f"the value of {name} has a NUL byte")
        if sets:
            values[name] = value
        else:
            inherited.update(names)
    return Variables(frozenset(inherited), values)
