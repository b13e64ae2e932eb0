"""Sessions that outlive their worker and their owner: attempts, and one journal for each session.

    python -m tests.model.durable full 60 r 1           # random schedules
    python -m tests.model.durable full 110 x01          # exhaustive: no fault, one preemption, one lease that expires
    python -m tests.model.durable no_cas 30 r 1         # without one rule

Builds on protocol.py. Every append to the journal asserts the sequence of the entry before it. Its entries:
`claim` (an attempt with another owner begins), `message` (accepted: its caller is answered once this is stored) and
`checkpoint` (what the worker knows, `items`; in `handled` the sequence of the last message that is part of it; and in
`known` the ids of the newest messages, by which a repeat is recognized when the messages themselves are purged).
The names of the mutations are at the end; each has to show a broken promise.
"""

import sys
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar, Final, NamedTuple

from tests.model.model import TIMEOUT, Answer, Record, Steps, World
from tests.model.protocol import TRIES_MAX, Fence, Held
from tests.model.search import Budget, Fenced, command_line, main_of

MAY_BECOME: Final = {
    "-": {"initializing"},
    "initializing": {"initializing", "active", "terminating", "terminated"},
    "active": {"initializing", "terminating", "terminated"},
    "terminating": {"terminated"},
}
KNOWN: Final = 1  # newest messages whose ids are part of a checkpoint


class WorkerDied(Exception):
    """The attempt is over; its owner is alive."""


class Terminate(Exception):
    """A caller ends the session."""


class Entry(NamedTuple):
    """What the journal holds under one sequence."""

    type: str
    attempt: int
    name: str = ""
    handled: int = 0
    items: tuple[str, ...] = ()
    known: tuple[str, ...] = ()

    def __repr__(self) -> str:
        what = {"message": f" {self.name}", "handled": f" up to {self.handled}"}.get(self.type, "")
        state = f" {'+'.join(self.items)}, handled up to {self.handled}" if self.type == "checkpoint" else ""
        return f"<{self.type} of attempt {self.attempt}{what}{state}>"


Stored = tuple[tuple[int, Entry], ...]


@dataclass
class Journal:
    """What an owner knows of the journal that it writes."""

    last: int = 0
    purged: int = 0  # as far as this owner has purged
    checkpoint: int = 0
    handled: int = 0
    items: tuple[str, ...] = ()
    known: tuple[str, ...] = ()
    messages: list[tuple[int, str]] = field(default_factory=list)

    @classmethod
    def of(cls, stored: Stored) -> "Journal":
        """What the entries amount to."""
        journal = cls()
        for sequence, entry in stored:
            journal.add(sequence, entry)
        return journal

    def add(self, sequence: int, entry: Entry) -> None:
        """One more entry."""
        self.last = sequence
        if entry.type == "message":
            self.messages.append((sequence, entry.name))
        if entry.type in ("checkpoint", "handled"):
            self.handled = entry.handled
        if entry.type == "checkpoint":
            self.checkpoint, self.items, self.known = sequence, entry.items, entry.known

    @property
    def names(self) -> list[str]:
        """The ids of the messages that are known to have been accepted, in order."""
        here = [name for _, name in self.messages]
        return [*(name for name in self.known if name not in here), *here]


class JournalWorld(World):
    """The server with a journal, the callers of the session, and its workers.

    `entries` is everything that was ever stored; an entry's sequence is its position, from 1.
    A purge removes from the front, so one number says what is left.
    """

    FAULTY: ClassVar = World.FAULTY | {"append", "purge", "keep"}
    CHOICES: ClassVar = {
        "sent": (("lost", "fault"),),
        "start": (("dies", "fault"),),
        "run": (("dies", "fault"), ("terminate", "terminate")),
        "backoff": (("terminate", "terminate"),),
    }

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[Entry] = []
        self.purged = 0
        self.answered: list[str] = []
        self.stored_at_start: dict[str, tuple[str, ...]] = {}  # the last checkpoint when a manager's attempt began

    def key(self) -> tuple[Any, ...]:
        at_start = tuple(sorted(self.stored_at_start.items()))
        return (*super().key(), tuple(self.entries), self.purged, tuple(self.answered), at_start)

    def do_put(self, who: str, expected: int, record: Record) -> Answer:
        answer = super().do_put(who, expected, record)
        if answer[0] == "ok" and record.status == "initializing":
            self._note_start(who)
        return answer

    def do_append(self, who: str, expected: int | None, entry: Entry) -> Answer:
        """Store an entry if the last one's sequence is the expected one: 0 if there is none, also after a purge."""
        if expected not in (None, len(self.entries) if self.purged < len(self.entries) else 0):
            return ("conflict",)
        if entry.type == "claim" and entry not in self.entries:  # a late copy of it begins nothing
            self._note_start(who)
        self.entries.append(entry)
        return ("ok", len(self.entries))

    def do_read(self, _who: str) -> Answer:
        return ("ok", tuple(enumerate(self.entries[self.purged :], self.purged + 1)))

    def do_purge(self, _who: str, before: int) -> Answer:
        """Remove what has a lower sequence."""
        self.purged = max(self.purged, min(before - 1, len(self.entries)))
        return ("ok",)

    def do_keep(self, _who: str, count: int) -> Answer:
        """Remove all but so many entries: the other kind of purge that the server has."""
        self.purged = max(self.purged, len(self.entries) - count)
        return ("ok",)

    def do_answered(self, _who: str, name: str) -> Answer:
        """Whether the caller knows that its message was accepted: it has no reason to send it again."""
        return ("ok", name in self.answered)

    def do_sent(self, _who: str, name: str) -> Answer:
        self.answered.append(name)
        return ("ok",)

    def do_start(self, who: str, items: tuple[str, ...]) -> Answer:
        """A worker starts with what it was given."""
        stored = self.stored_at_start.get(who, ())
        if items[: len(stored)] != stored:
            self.breaks(f"a worker starts without what was stored: {items} instead of {stored}")
        if self.record and self.record.owner == who and self.record.status in ("terminating", "terminated"):
            self.breaks(f"a worker starts in a session that its owner has ended: {self.record}")
        return ("ok",)

    def do_run(self, _who: str, _name: str) -> Answer:
        """The worker processes a message."""
        return ("ok",)

    def do_backoff(self, _who: str) -> Answer:
        """The wait before the next attempt is over."""
        return ("over",)

    def do_stopped(self, who: str, attempt: int) -> Answer:
        """An owner stops because a newer attempt must have claimed the journal."""
        record = self.record
        if record and record.owner == who and record.attempt == attempt and record.status != "terminated":
            self.breaks(f"an owner stops and nobody took over: {who}, {record}")
        return ("ok",)

    def violation(self) -> str | None:
        return super().violation() or self._messages() or self._state() or self._left_over()

    def _note_start(self, who: str) -> None:
        checkpoints = [entry.items for entry in self.entries if entry.type == "checkpoint"]
        self.stored_at_start[who] = checkpoints[-1] if checkpoints else ()

    def _illegal(self) -> str | None:
        for _, status, previous in self.history:
            if status not in MAY_BECOME[previous]:
                return f"illegal history: {self.history}"
        return super()._illegal()

    def _messages(self) -> str | None:
        names = [entry.name for entry in self.entries if entry.type == "message"]
        if len(set(names)) != len(names):
            return f"message stored twice: {names}"
        if lost := [name for name in self.answered if name not in names]:
            return f"message answered and not stored: {lost}"
        return None

    def _state(self) -> str | None:
        states = [(), *(entry.items for entry in self.entries if entry.type == "checkpoint")]
        for before, after in pairwise(states):
            if after[: len(before)] != before:
                return f"state lost: {before}, then {after}"
        final = states[-1]
        if len(set(final)) != len(final):
            return f"message handled twice: {final}"
        ended_by_command = any(status == "terminating" for _, status, _ in self.history)
        if not ended_by_command and (left := [name for name in self.answered if name not in final]):
            return f"message answered and never handled: {left}"
        return None

    def _left_over(self) -> str | None:
        left = self.entries[self.purged :]
        return f"journal of an ended session left behind: {left}" if left else None


@dataclass(kw_only=True)
class Durable(Fence):
    """Owners, and the managers that adopt. Each field is a rule; the other value takes it out."""

    messages: tuple[str, ...] = ("m1", "m2", "m3")
    # appends
    asserts_sequence: bool = True
    settles_appends: bool = True
    looks_after_conflict: bool = True
    # the start of an attempt
    claims_journal: bool = True
    yields_to_newer: bool = True
    reads_after_journal_claim: bool = True
    adopter_looks_at_record: bool = True
    restart_reads: bool = True
    restart_looks_at_record: bool = True
    # handled
    handled_with_state: str = "one entry"  # or "before" it, or "after" it
    handled_is_sequence: bool = True
    # purging
    keeps_last_checkpoint: bool = True
    keeps_unhandled: bool = True
    checkpoint_has_ids: bool = True
    purges_after_stored: bool = True
    purges_by_sequence: bool = True
    # the end
    ends_wait: bool = True
    ends_what_is_terminating: bool = True
    removes_after_end: bool = True
    removes_after_seal: bool = True
    removes_left_overs: bool = True
    looks_again_before_removal: bool = True

    def world(self) -> JournalWorld:
        """An empty server."""
        return JournalWorld()

    def owner(self, me: str) -> Steps[None]:
        """Create the session, and take it through its life."""
        record = Record(1, "initializing", "-", me, 0)
        revision = yield from self.commit(0, record)
        if revision is None:
            return
        held = Held(me, revision, record)
        yield from self.publish(held, look=False)
        yield from self.live(held)

    def take_over(self, me: str) -> Steps[None]:
        """Adopt an orphan: claim, look, repair, then one more version, `initializing`, with a new owner."""
        held = yield from self.claim_orphan(me)
        if held is None:
            return
        yield from self.publish(held, look=True)
        if held.record.status == "terminated":
            yield from self.end(held)
        elif held.record.status == "terminating" and self.ends_what_is_terminating:
            yield from self.finish(held)
        else:
            yield from self.step(held, "initializing", held.record.attempt + 1)
            yield from self.live(held)

    def live(self, held: Held) -> Steps[None]:
        """One attempt after another, until the session has ended."""
        journal = yield from self.claim_journal(held)
        while True:
            try:
                yield from self.attempt(held, journal)
            except Terminate:
                yield from self.terminate(held)
                return
            except WorkerDied:
                yield from self.step(held, "initializing", held.record.attempt + 1)
                journal = yield from self.read_again(held, journal)
                if (yield from self.wait(held, journal)) == ("terminate",):
                    yield from self.terminate(held)
                    if not self.ends_wait:
                        yield ("start", journal.items)
                    return
            else:
                yield from self.finish(held)
                return

    def claim_journal(self, held: Held) -> Steps[Journal]:
        """Refuse whatever an older attempt still writes; only then read, and only then look who owns the session."""
        attempt, claim = held.record.attempt, Entry("claim", held.record.attempt)
        _, early = yield from self.settle(("read",))
        if self.claims_journal:
            for _ in range(TRIES_MAX + 1):
                _, before = yield from self.settle(("read",))
                if self.yields_to_newer and any(entry.attempt > attempt for _, entry in before):
                    raise Fenced
                if before and before[-1][1] == claim:
                    break
                if (yield ("append", Journal.of(before).last, claim))[0] == "ok":
                    break
            else:
                raise Fenced
        _, stored = yield from self.settle(("read",))
        journal = Journal.of(stored if self.reads_after_journal_claim else early)
        journal.last = Journal.of(stored).last
        if self.adopter_looks_at_record:
            yield from self.check_owner(held)
        return journal

    def read_again(self, held: Held, journal: Journal) -> Steps[Journal]:
        """Restart in place: the same owner reads what it wrote, and claims nothing."""
        if not self.restart_reads:
            return Journal(journal.last)
        _, stored = yield from self.settle(("read",))
        if self.restart_looks_at_record:
            yield from self.check_owner(held)
        return Journal.of(stored)

    def wait(self, held: Held, journal: Journal) -> Steps[Answer]:
        """The backoff: no worker runs, and a message is accepted."""
        for name in self.messages:
            if not (yield ("answered", name))[1]:
                yield from self.accept(held, journal, name)
                break
        answer: Answer = yield ("backoff",)
        return answer

    def check_owner(self, held: Held) -> Steps[None]:
        """The record is still this attempt's, so what was read before is all that there is."""
        _, _, record = yield from self.settle(("get",))
        if record != held.record:
            raise Fenced

    def attempt(self, held: Held, journal: Journal) -> Steps[None]:
        """Start a worker, give it what is not handled, and accept messages. M1's accepts faster than it works."""
        self.check_worker((yield ("start", journal.items)))
        yield from self.to(held, "active")
        for name in self.messages:
            if held.me != "M1":
                yield from self.work_off(held, journal)
            while not (yield ("answered", name))[1]:
                if not (yield from self.accept(held, journal, name)):
                    yield from self.work_off(held, journal)  # the caller sends it again, a little later
        yield from self.work_off(held, journal)

    def accept(self, held: Held, journal: Journal, name: str) -> Steps[bool]:
        """Store a message, unless it is known, and answer; whether the caller got the answer."""
        if name not in journal.names:
            yield from self.append(held, journal, Entry("message", held.record.attempt, name))
        answer = yield ("sent", name)
        yield from self.purge(journal)
        return bool(answer != ("lost",))

    def work_off(self, held: Held, journal: Journal) -> Steps[None]:
        """Give the worker what is not handled, one after another."""
        while unhandled := self.unhandled(journal):
            self.check_worker((yield ("run", unhandled[0][1])))
            yield from self.handle(held, journal, *unhandled[0])
            yield from self.purge(journal)

    def unhandled(self, journal: Journal) -> list[tuple[int, str]]:
        """What was accepted and is not handled."""
        if not self.handled_is_sequence:
            return journal.messages[journal.handled :]
        return [(sequence, name) for sequence, name in journal.messages if sequence > journal.handled]

    def handle(self, held: Held, journal: Journal, sequence: int, name: str) -> Steps[None]:
        """The worker has processed a message: store what it knows now."""
        handled = sequence if self.handled_is_sequence else journal.handled + 1
        mark = Entry("handled", held.record.attempt, handled=handled)
        known = tuple(journal.names[-KNOWN:]) if self.checkpoint_has_ids else ()
        items = (*journal.items, name)
        checkpoint = Entry("checkpoint", held.record.attempt, handled=handled, items=items, known=known)
        if not self.purges_after_stored:
            expected = deepcopy(journal)
            expected.add(journal.last + 1, checkpoint)
            yield from self.purge(expected)
        if self.handled_with_state == "before":
            yield from self.append(held, journal, mark)
        if self.handled_with_state == "after":
            checkpoint = checkpoint._replace(handled=journal.handled)
        yield from self.append(held, journal, checkpoint)
        if self.handled_with_state == "after":
            yield from self.append(held, journal, mark)

    def append(self, held: Held, journal: Journal, entry: Entry) -> Steps[None]:
        """The same again until there is an answer; after a conflict look whether it is stored."""
        expected = journal.last if self.asserts_sequence else None
        for _ in range(TRIES_MAX):
            answer = yield ("append", expected, entry)
            if answer == TIMEOUT:
                if entry.type == "checkpoint" and not self.settles_appends:
                    raise WorkerDied  # the worker is started again while what it stored is on its way
                continue
            if answer[0] == "ok":
                journal.add(answer[1], entry)
                return
            if self.looks_after_conflict:
                _, stored = yield from self.settle(("read",))
                if stored and stored[-1][1] == entry:
                    journal.add(*stored[-1])
                    return
            yield ("stopped", held.record.attempt)
            break
        raise Fenced

    def purge(self, journal: Journal) -> Steps[None]:
        """Remove what nobody needs. The answer does not matter: the next purge includes this one."""
        limit = self.purge_limit(journal)
        if limit <= journal.purged + 1:
            return
        journal.purged = limit - 1
        yield ("purge", limit) if self.purges_by_sequence else ("keep", journal.last - limit + 1)

    def purge_limit(self, journal: Journal) -> int:
        """The lowest sequence that is needed."""
        needed = [journal.checkpoint if self.keeps_last_checkpoint else journal.checkpoint + 1]
        if self.keeps_unhandled:
            needed.extend(sequence for sequence, _ in self.unhandled(journal))
        return min(needed)

    def terminate(self, held: Held) -> Steps[None]:
        """A caller ends the session; a worker, if one runs, is stopped in between."""
        yield from self.to(held, "terminating")
        yield from self.finish(held)

    def finish(self, held: Held) -> Steps[None]:
        """The last version."""
        if not self.removes_after_end:
            yield from self.remove()
        yield from self.step(held, "terminated", held.record.attempt)
        yield ("answer", held.record)
        yield from self.end(held)

    def end(self, held: Held) -> Steps[None]:
        """After `terminated` is published: seal, then remove the journal."""
        if not self.removes_after_seal:
            yield from self.remove()
        yield from self.seal(held)
        if self.removes_after_seal:
            yield from self.remove()

    def clean_up(self) -> Steps[None]:
        """A sweep removes the journal of a session that is done: its owner may have died before it did."""
        if self.removes_left_overs:
            yield from self.remove()

    def remove(self) -> Steps[None]:
        """Remove what was read before the session was seen to have ended: the id may be used again."""
        _, stored = yield from self.settle(("read",))
        if not stored:
            return
        if self.removes_after_end and self.looks_again_before_removal:
            _, _, record = yield from self.settle(("get",))
            if record and record.status != "terminated":
                return
        yield ("purge", stored[-1][0] + 1)

    @staticmethod
    def check_worker(answer: Answer) -> None:
        """Raise what ended the attempt, if anything did."""
        if answer == ("dies",):
            raise WorkerDied
        if answer == ("terminate",):
            raise Terminate


MUTATIONS: Final[Mapping[str, Mapping[str, Any]]] = {
    "no_claim": {"claims": False},
    "no_look": {"looks": False},
    "no_cas": {"asserts_sequence": False},
    "no_settle_before_restart": {"settles_appends": False},
    "no_look_back": {"looks_after_conflict": False},
    "no_log_claim": {"claims_journal": False},
    "no_epoch_check": {"yields_to_newer": False},
    "read_before_claim": {"reads_after_journal_claim": False},
    "adopt_without_look": {"adopter_looks_at_record": False},
    "restart_starts_empty": {"restart_reads": False},
    "restart_without_look": {"restart_looks_at_record": False},
    "handled_before_stored": {"handled_with_state": "before"},
    "handled_after_stored": {"handled_with_state": "after"},
    "handled_is_count": {"handled_is_sequence": False},
    "purge_last_checkpoint": {"keeps_last_checkpoint": False},
    "purge_unhandled": {"keeps_unhandled": False},
    "purge_forgets_ids": {"checkpoint_has_ids": False},
    "purge_before_stored": {"purges_after_stored": False},
    "purge_by_count": {"purges_by_sequence": False},
    "backoff_goes_on": {"ends_wait": False},
    "adopts_terminating": {"ends_what_is_terminating": False},
    "remove_before_end": {"removes_after_end": False},
    "no_journal_sweep": {"removes_left_overs": False},
    "remove_without_look": {"looks_again_before_removal": False},
}
# No schedule was found in which these break a promise.
HARMLESS: Final[Mapping[str, Mapping[str, Any]]] = {"full": {}, "remove_before_seal": {"removes_after_seal": False}}
BUDGET: Final = Budget(fault=4, switch=12, expire=2, forget=2, ttl=1, terminate=1)


def make(name: str) -> Durable:
    """The protocol, or the one without a rule."""
    return Durable(**{**HARMLESS, **MUTATIONS}[name])


if __name__ == "__main__":
    sys.exit(main_of(make, BUDGET, command_line(__doc__, [*HARMLESS, *MUTATIONS])))
