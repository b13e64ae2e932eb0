"""What a start does with a stream or bucket that exists: what it adopts, what it changes, what it refuses. Pure.

* What a newer version or an operator has added is kept: more subjects, longer retention, more replicas.
* Nothing is ever lowered, since that would remove what is stored, or copies of it.
* What grows, or switches on something that is needed, is a safe change.
* Every other difference is refused.
"""

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from jido_nats.core import subjects

# Limits: -1 and 0 mean no limit.
_LIMITS: Final = frozenset({"max_age", "max_bytes", "max_msgs", "max_msgs_per_subject", "max_msg_size"})
# A stream whose configuration says -1 accepts this many consumers.
_CONSUMERS_BY_DEFAULT: Final = 1000
_GROWING: Final = _LIMITS | {"num_replicas", "max_consumers", "duplicate_window", "subject_delete_marker_ttl"}
_ENABLING: Final = frozenset({"allow_direct", "allow_msg_ttl", "allow_rollup_hdrs", "deny_delete"})
# With a longer history, a record that was sealed and has expired would uncover the one before it.
_EXACT_IN_BUCKETS: Final = frozenset({"subjects", "max_msgs_per_subject"})
# The operator's to choose, or agreed on elsewhere (see `topology`).
_IGNORED: Final = frozenset({"description", "metadata"})
# Settings that would move messages to other subjects, import others, or acknowledge them before they are stored.
_MUST_BE_UNSET: Final = ("mirror", "sources", "subject_transform", "persist_mode", "allow_msg_counter")
_UNSET: Final[tuple[Any, ...]] = (None, False, "", "default", [], {})


class Kept(NamedTuple):
    """A value that is larger than the setting, and is kept."""

    field: str
    value: int
    setting: int

    def __str__(self) -> str:
        return f"{self.field} is {self.value}, the setting is {self.setting}"


@dataclass
class Comparison:
    """How a stream that exists differs from the one that the settings describe.

    `update`: the fields to change, which loses nothing. `changes` and `refused` are sentences about single fields.
    """

    update: dict[str, Any] = field(default_factory=dict)
    changes: list[str] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


def compare(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> Comparison:
    """What to do about each field of `found` that differs from `wanted`; both are stream configurations."""
    result = Comparison()
    exact = _EXACT_IN_BUCKETS if is_bucket(wanted) else frozenset[str]()
    for name, want in wanted.items():
        have = found.get(name, _unset(want))
        if name in _IGNORED or have == want:
            continue
        if name in exact:
            result.refused.append(_difference(name, have, want))
        elif name == "subjects":
            _compare_subjects(result, want, have)
        else:
            _compare_field(result, name, want, have)
    for name in _MUST_BE_UNSET:
        if (have := found.get(name)) not in _UNSET:
            result.refused.append(f"{name} is {have}, should not be set")
    return result


def overlaps(streams: Mapping[str, Iterable[str]]) -> list[str]:
    """A sentence for each subject of one stream (by name) that overlaps one of another; no server accepts those."""
    return [
        f"{mine} of {name} overlaps {its} of {other}"
        for (name, patterns), (other, others) in itertools.combinations(streams.items(), 2)
        for mine, its in itertools.product(patterns, others)
        if subjects.overlap(mine, its)
    ]


def is_bucket(config: Mapping[str, Any]) -> bool:
    """Whether the configuration is that of a bucket's stream."""
    return str(config["name"]).startswith(subjects.bucket_stream(""))


def _compare_field(result: Comparison, name: str, want: Any, have: Any) -> None:
    size, setting = (_size(name, have), _size(name, want)) if name in _GROWING else (0, 0)
    if size > setting:
        result.kept.append(Kept(name, have, want))
    elif size < setting or (name in _ENABLING and want is True):
        result.update[name] = want
        result.changes.append(_difference(name, have, want))
    elif name not in _GROWING:
        result.refused.append(_difference(name, have, want))


def _compare_subjects(result: Comparison, want: list[str], have: list[str]) -> None:
    """Subjects within ours' root may be more than ours, unless they carry commands; what is missing is added."""
    result.refused += [f"subjects has {s}, which does not begin with {subjects.ROOT}" for s in have if not _is_ours(s)]
    result.refused += [
        f"subjects has {s}, which stores commands ({c}): JetStream would answer each with an acknowledgement"
        for s in have
        for c in subjects.COMMANDS
        if _is_ours(s) and subjects.overlap(s, c)
    ]
    missing = [s for s in want if not any(subjects.covers(h, s) for h in have)]
    if not missing:
        return
    union = [s for s in have if not any(subjects.covers(m, s) for m in missing)] + missing
    result.refused += [
        f"subjects has {one}, which overlaps {other}"
        for one, other in itertools.combinations(union, 2)
        if subjects.overlap(one, other)
    ]
    result.update["subjects"] = union
    result.changes.append(f"subjects lacks {', '.join(missing)}")


def _is_ours(subject: str) -> bool:
    return subject.startswith(subjects.ROOT)


def _difference(name: str, have: Any, want: Any) -> str:
    return f"{name} is {have}, should be {want}"


def _size(name: str, value: int) -> float:
    """What a limit's value amounts to, so that two can be compared."""
    if value > 0:
        return value
    if name == "max_consumers":
        return _CONSUMERS_BY_DEFAULT
    return math.inf if name in _LIMITS else 0


def _unset(want: Any) -> Any:
    """The value of a field that the server omits."""
    return {bool: False, int: 0, str: "", list: [], dict: {}}[type(want)]
