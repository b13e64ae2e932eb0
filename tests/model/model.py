"""The server as the protocols see it: one session, one KV key, and one stream.

A process is a generator that yields one server operation at a time, as a tuple, and is sent the answer.
`World` carries operations out; an operation `("put", …)` is its method `do_put`.
The stream has three subjects: G is `jido.client.events`, S the session's own, F its fence.
"""

from collections import Counter
from collections.abc import Generator, Mapping
from copy import copy
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple, TypeVar

Result = TypeVar("Result")
Operation = tuple[Any, ...]
Answer = tuple[Any, ...]
Steps = Generator[Operation, Any, Result]
EventName = tuple[str, str]  # the subject and what distinguishes the event on it
TIMEOUT: Answer = ("timeout",)


class Record(NamedTuple):
    """What the bucket holds for the session."""

    version: int
    status: str
    previous: str
    owner: str
    after: int
    sealed: bool = False
    attempt: int = 1

    def __repr__(self) -> str:
        return f"v{self.version} {self.status} by {self.owner}" + (" sealed" if self.sealed else "")


def events(version: int, status: str, previous: str) -> list[EventName]:
    """The events of a version, in the order in which they are published."""
    tag = f"v{version}:{previous}>{status}"
    if version == 1:
        return [("G", f"{tag}:created")]
    ended = [("G", f"{tag}:ended")] if status == "terminated" else []
    return [("G", f"{tag}:status"), *ended, ("S", f"{tag}:status")]


def events_of(record: Record) -> list[EventName]:
    """The events of the version that the record stands for."""
    return events(record.version, record.status, record.previous)


class World:
    """The server's state, what has been promised, and the first promise that was seen broken."""

    FAULTY: ClassVar = frozenset({"put", "pub", "claim"})  # operations that may be lost, late or cut short
    CHOICES: ClassVar[Mapping[str, tuple[tuple[str, str], ...]]] = {}  # other answers, and the budget of each

    def __init__(self) -> None:
        self.revision = 0
        self.record: Record | None = None
        self.log: list[tuple[int, str, str]] = []
        self.sequence = 0
        self.last = {"G": 0, "S": 0, "F": 0}
        self.duplicates: frozenset[EventName] = frozenset()
        self.fence_owner: str | None = None
        self.history: list[tuple[int, str, str]] = []
        self.late: list[tuple[str, Operation]] = []
        self.dead: set[str] = set()  # managers without a lease
        self.answers: list[Record] = []
        self.broken: str | None = None

    def key(self) -> tuple[Any, ...]:
        """Equal keys have equal futures."""
        return (
            *(self.revision, self.record, self.sequence, tuple(self.log), self.duplicates, *self.last.values()),
            *(self.fence_owner, tuple(self.late), frozenset(self.dead), tuple(self.answers), tuple(self.history)),
            self.broken,
        )

    def copy(self) -> "World":
        """One that goes another way from here."""
        other = copy(self)
        for name, value in vars(self).items():
            if isinstance(value, list | set | dict):
                setattr(other, name, value.copy())
        return other

    def do(self, who: str, operation: Operation) -> Answer:
        """Carry an operation out."""
        name, *arguments = operation
        answer: Answer = getattr(self, f"do_{name}")(who, *arguments)
        return answer

    def do_get(self, _who: str) -> Answer:
        return ("ok", self.revision, self.record)

    def do_put(self, _who: str, expected: int, record: Record) -> Answer:
        """Compare and set; an entry that has expired leaves the revision of its marker."""
        if self.revision != expected:
            return ("conflict",)
        self.revision += 1
        self.record = record
        step = (record.version, record.status, record.previous)
        if not self.history or self.history[-1] != step:
            self.history.append(step)
        return ("ok", self.revision)

    def do_pub(self, _who: str, subject: str, name: str, expected: int) -> Answer:
        """Publish an event that asserts the fence's last sequence."""
        if (subject, name) in self.duplicates:
            return ("dup",)
        if self.last["F"] != expected:
            return ("conflict",)
        self._store(subject, name)
        self.duplicates |= {(subject, name)}
        return ("ok", self.sequence)

    def do_claim(self, who: str, expected: int) -> Answer:
        """Move the fence."""
        if self.last["F"] != expected:
            return ("conflict",)
        self._store("F", who)
        self.fence_owner = who
        return ("ok", self.sequence)

    def do_fence(self, _who: str) -> Answer:
        return ("ok", self.last["F"], self.fence_owner)

    def do_last(self, _who: str, subject: str) -> Answer:
        names = (name for _, other, name in reversed(self.log) if other == subject)
        return ("ok", self.last[subject], next(names, None))

    def do_scan(self, _who: str, after: int) -> Answer:
        newer = ((subject, name) for sequence, subject, name in self.log if sequence > after)
        return ("ok", tuple(event for event in newer if event[0] != "F"))

    def do_alive(self, _who: str, manager: str) -> Answer:
        return ("ok", manager not in self.dead)

    def do_answer(self, _who: str, record: Record) -> Answer:
        """A caller gets its reply: what it is promised must be stored."""
        self.answers.append(record)
        stored = {(subject, name) for _, subject, name in self.log}
        for subject, name in events_of(record):
            if (subject, name) not in stored:
                self.breaks(f"answered and not stored: {subject}:{name}")
        return ("ok",)

    def choose(self, _who: str, _operation: Operation, answer: str) -> Answer:
        """One of CHOICES instead of what the operation would have answered."""
        return (answer,)

    def expire_record(self) -> None:
        self.record = None
        self.revision += 1

    def breaks(self, promise: str) -> None:
        """Remember the first promise that is broken on the way."""
        self.broken = self.broken or promise

    def violation(self) -> str | None:
        """The promise that is broken once everything has come to rest; what precedes the colon is its kind."""
        return self.broken or self._doubled() or self._illegal() or self._lost() or self._unfinished()

    def _store(self, subject: str, name: str) -> None:
        self.sequence += 1
        self.last[subject] = self.sequence
        self.log.append((self.sequence, subject, name))

    def _doubled(self) -> str | None:
        counts = Counter((subject, name) for _, subject, name in self.log if subject != "F")
        return next((f"event stored twice: {subject}:{name}" for (subject, name), n in counts.items() if n > 1), None)

    def _illegal(self) -> str | None:
        for before, after in pairwise(self.history):
            if before[1] == "terminated" or after[0] != before[0] + 1:
                return f"illegal history: {self.history}"
        return None

    def _lost(self) -> str | None:
        for subject in "GS":
            wanted = [name for step in self.history for other, name in events(*step) if other == subject]
            stored = [name for _, other, name in self.log if other == subject]
            if missing := [name for name in wanted if name not in stored]:
                return f"event lost: {subject}:{missing}"
            if stored != wanted:
                return f"events out of order: {subject} {stored}"
        return None

    def _unfinished(self) -> str | None:
        if self.history and self.history[-1][1] != "terminated":
            return f"never terminated: {self.history}"
        return None
