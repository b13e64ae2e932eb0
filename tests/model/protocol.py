"""How a session changes: the fenced protocol, and one mutation for each of its rules.

    python -m tests.model.protocol full 110 x11     # exhaustive: one fault, one preemption, one lease that expires
    python -m tests.model.protocol no_claim 8 r2 3  # random, two owners, seed 3, without one rule

The names of the mutations are at the end.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from tests.model.model import TIMEOUT, Answer, EventName, Operation, Record, Steps, World, events_of
from tests.model.search import Budget, Fenced, command_line, main_of

TRIES_MAX: Final = 3


@dataclass
class Held:
    """What an owner knows of its session."""

    me: str
    revision: int
    record: Record
    fence: int = 0
    top: int = 0  # the highest sequence that it has seen acknowledged


@dataclass(kw_only=True)
class Fence:
    """The protocol of owners and of those managers that take over. Each field is a rule; False takes it out."""

    claims: bool = True
    looks: bool = True
    looks_at_last: bool = True
    settles_commits: bool = True
    reads_after_claim: bool = True
    repairs_first: bool = True
    seals: bool = True
    session_copy_last: bool = True
    checks_reuse: bool = True
    answers_sealed_only: bool = True

    def world(self) -> World:
        """An empty server."""
        return World()

    def process(self, name: str) -> Steps[None]:
        """What runs under a name: M… creates and owns, the others take over."""
        return self.owner(name) if name.startswith("M") else self.recover(name)

    def owner(self, me: str) -> Steps[None]:
        """Create the session, and take it through its life."""
        record = Record(1, "initializing", "-", me, 0)
        _, last, current = yield from self.settle(("get",))
        _, events, _ = yield from self.settle(("last", "S"))
        revision = None
        if current is None:
            if self.checks_reuse and events:  # the stream still remembers this id
                return
            revision = yield from self.commit(last, record)
        if revision is None:  # the id is taken: the same request reached two managers
            _, _, current = yield from self.settle(("get",))
            if current and (current.sealed or not self.answers_sealed_only):
                yield ("answer", current)
            return
        held = Held(me, revision, record)
        yield from self.publish(held, look=False)
        yield ("answer", record)
        for status in ("active", "terminated"):
            yield from self.to(held, status)

    def recover(self, me: str) -> Steps[None]:
        """A sweep: bring an orphan to its end."""
        for _ in range(TRIES_MAX + 1):
            try:
                yield from self.take_over(me)
            except Fenced:
                continue
            return

    def take_over(self, me: str) -> Steps[None]:
        """Claim, look, repair, terminate."""
        held = yield from self.claim_orphan(me)
        if held is None:
            return
        orphan = held.record
        if self.repairs_first:
            yield from self.publish(held, look=True)
        held.top = max(held.top, orphan.after)
        if orphan.status == "terminated":
            yield from self.seal(held)
            return
        yield from self.to(held, "terminated")
        if not self.repairs_first:
            held.record = orphan
            yield from self.publish(held, look=True)

    def claim_orphan(self, me: str) -> Steps[Held | None]:
        """The session, if it has no owner that is alive and is not done."""
        _, revision, record = yield from self.settle(("get",))
        if record is None or record.sealed:
            yield from self.clean_up()
            return None
        if record.owner != me and (yield from self.settle(("alive", record.owner)))[1]:
            return None
        fence = yield from self.claim(me)
        if self.reads_after_claim:
            _, revision, record = yield from self.settle(("get",))
            if record is None or record.sealed:
                return None
        return Held(me, revision, record, fence)

    def clean_up(self) -> Steps[None]:
        """What a sweep does about a session that is done: nothing is left of it."""
        yield from ()

    def to(self, held: Held, status: str) -> Steps[None]:
        """One transition, its answer, and the seal if it is the last."""
        yield from self.step(held, status, held.record.attempt)
        yield ("answer", held.record)
        if status == "terminated":
            yield from self.seal(held)

    def step(self, held: Held, status: str, attempt: int) -> Steps[None]:
        """Commit the next version and publish it."""
        before = held.record
        record = Record(before.version + 1, status, before.status, held.me, held.top, attempt=attempt)
        revision = yield from self.commit(held.revision, record)
        if revision is None:
            raise Fenced
        held.revision, held.record = revision, record
        yield from self.publish(held, look=False)

    def seal(self, held: Held) -> Steps[None]:
        """The same version once more, which may expire; a conflict means that another has sealed it."""
        if self.seals:
            yield from self.commit(held.revision, held.record._replace(sealed=True))

    def commit(self, expected: int, record: Record) -> Steps[int | None]:
        """The revision; None if another write came first."""
        if self.settles_commits:
            answer = yield from self.settle(("put", expected, record))
        else:
            answer = yield ("put", expected, record)
        if answer[0] == "ok":
            return int(answer[1])
        _, revision, current = yield from self.settle(("get",))
        return revision if current == record else None

    def publish(self, held: Held, *, look: bool) -> Steps[None]:
        """Every event of the version, once; after any doubt claim and look."""
        held.top = held.fence
        for _ in range(TRIES_MAX):
            stored: set[EventName] = set()
            if look:
                held.fence = yield from self.claim(held.me)
                held.top = max(held.top, held.fence)
                stored = yield from self.look(held.record)
            if (yield from self.publish_missing(held, stored)):
                return
            look = True
        raise Fenced

    def publish_missing(self, held: Held, stored: set[EventName]) -> Steps[bool]:
        """Whether all are stored."""
        for subject, name in self.in_order(held.record):
            if (subject, name) in stored:
                continue
            answer = yield ("pub", subject, name, held.fence)
            if answer in (TIMEOUT, ("conflict",)):
                return False
            if answer[0] == "ok":
                held.top = max(held.top, answer[1])
        return True

    def in_order(self, record: Record) -> list[EventName]:
        """The session's copy last, so that it proves the version complete."""
        return sorted(events_of(record), key=lambda event: (event[0] == "S") is self.session_copy_last)

    def claim(self, me: str) -> Steps[int]:
        """The fence's sequence, once it names this manager."""
        _, fence, holder = yield from self.settle(("fence",))
        if not self.claims:
            return int(fence)
        if holder not in (None, me) and (yield from self.settle(("alive", holder)))[1]:
            raise Fenced
        answer = yield ("claim", fence)
        if answer[0] == "ok":
            return int(answer[1])
        _, _, holder = yield from self.settle(("fence",))
        if holder != me:
            raise Fenced
        return (yield from self.claim(me))

    def look(self, record: Record) -> Steps[set[EventName]]:
        """What is stored of the version."""
        if not self.looks:
            return set()
        if self.looks_at_last and record.version > 1:
            _, _, name = yield from self.settle(("last", "S"))
            if name == events_of(record)[-1][1]:
                return set(events_of(record))
        _, stored = yield from self.settle(("scan", record.after))
        return set(stored)

    def settle(self, operation: Operation) -> Steps[Answer]:
        """The same again until there is an answer."""
        for _ in range(TRIES_MAX):
            answer: Answer = yield operation
            if answer != TIMEOUT:
                return answer
        raise Fenced  # stands for: still trying, and the process may die meanwhile


MUTATIONS: Final[Mapping[str, Mapping[str, bool]]] = {
    "no_claim": {"claims": False},
    "no_look": {"looks": False},
    "no_settle": {"settles_commits": False},
    "no_seal": {"seals": False},
    "repair_after": {"repairs_first": False},
    "s_first_fast": {"session_copy_last": False},
    "no_reuse_check": {"checks_reuse": False},
    "replay_answers": {"answers_sealed_only": False},
}
# No schedule was found in which these break a promise.
HARMLESS: Final[Mapping[str, Mapping[str, bool]]] = {
    "full": {},
    "no_reread": {"reads_after_claim": False},
    "s_first_nofast": {"session_copy_last": False, "looks_at_last": False},
}
BUDGET: Final = Budget(fault=6, switch=9, expire=2, forget=3, ttl=1)


def make(name: str) -> Fence:
    """The protocol, or the one without a rule."""
    return Fence(**{**HARMLESS, **MUTATIONS}[name])


if __name__ == "__main__":
    sys.exit(main_of(make, BUDGET, command_line(__doc__, [*HARMLESS, *MUTATIONS])))
