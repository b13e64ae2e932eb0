"""Searches the schedules of a protocol, and what can go wrong in them, for a broken promise.

Faults, out of a budget, at an operation that writes: `acklost` (applied, no answer), `late` (no answer; applied at any
later moment or never), `crash` and `crashafter` (the process dies before or after it). Out of budgets of their own:
a switch away from a process that could go on, a manager's lease that expires, the duplicate window that passes
(`forget`), a sealed record that expires (`ttl`), a command that ends the session (`terminate`).
A process that is not scheduled is frozen. To go back, the search starts over along a list of moves, because a
generator cannot be copied. It does not go on from a state (the server's, and every answer so far) that it has seen.
"""

import itertools
import random
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple, Protocol

from tests.model.model import TIMEOUT, Answer, Operation, Steps, World

SWEEPERS: Final = ("R1", "R2")
MANAGERS: Final = ("M1", "M2", "T2", "T3", *SWEEPERS)
MAY_EXPIRE: Final = ("M1", "M2", "T2")
MOVES_MAX: Final = 260


class Fenced(Exception):
    """The process gives up what it was doing."""


class Model(Protocol):
    """What is searched."""

    seals: bool

    def world(self) -> World: ...
    def process(self, name: str) -> Steps[None]: ...
    def recover(self, me: str) -> Steps[None]: ...


class Budget(NamedTuple):
    """How often each of the things that can go wrong may happen."""

    fault: int = 0
    switch: int = 0
    expire: int = 0
    forget: int = 0
    ttl: int = 0
    terminate: int = 0


class Move(NamedTuple):
    """A step of the search: what happens, to which process or which late operation, with which answer."""

    what: str
    who: str = ""
    number: int = 0
    answer: str = ""
    cost: str = ""


class Violation(NamedTuple):
    """A broken promise, and the shortest trace that was seen to lead there."""

    text: str
    trace: list[str]

    @property
    def kind(self) -> str:
        return self.text.partition(":")[0]


class Found(NamedTuple):
    """What a search has seen: states or runs, how many are distinct, whether these are all, and violations by kind."""

    states: int
    distinct: int
    exhausted: bool
    violations: dict[str, Violation]


class Run:
    """One execution: a world, its processes, and what the budget still allows."""

    def __init__(self, model: Model, names: Sequence[str], budget: Budget) -> None:
        self.model = model
        self.names = names
        self.world = model.world()
        self.left = budget._asdict()
        self.current: str | None = None
        self.trace: list[tuple[str, Operation | None, str]] = []  # who, what, and what came of it: text costs time
        self.answers: dict[str, tuple[Answer, ...]] = dict.fromkeys(names, ())
        self.done: set[str] = set()
        self.gave_up: set[str] = set()
        self._next: dict[str, Operation] = {}
        self._processes = {name: model.process(name) for name in names}
        for name in names:
            self._resume(name, None)

    def key(self) -> tuple[Any, ...]:
        """Equal keys have equal futures."""
        answers, left = tuple(self.answers.values()), tuple(self.left.values())
        return (self.world.key(), answers, frozenset(self.done), left, self.current)

    def moves(self) -> list[Move]:
        """Everything that may happen next."""
        return [*self._moves_of_processes(), *self._moves_of_the_world()]

    def step(self, move: Move) -> None:
        """Let it happen."""
        if move.cost:
            self.left[move.cost] -= 1
        if move.who in self.names and move.what != "expire":
            self._step_of(move.who, move)
        elif move.what == "arrive":
            self._arrive(*self.world.late.pop(move.number))
        elif move.what == "expire":
            self.world.dead.add(move.who)
            self.trace.append((f"the lease of {move.who}", None, "expires"))
        elif move.what == "forget":
            self.world.duplicates = frozenset()
            self.trace.append(("the duplicate window", None, "passes"))
        else:
            self.world.expire_record()
            self.trace.append(("the sealed record", None, "expires"))

    def violation(self) -> str | None:
        """Once everything has come to rest: after a sweep, what was in flight, and another sweep. Changes nothing."""
        world = self.world.copy()
        self._sweep(world, "R1")
        for who, operation in world.late:
            world.do(who, operation)
        world.late = []
        self._sweep(world, "R2")
        return world.violation()

    def story(self) -> list[str]:
        """The trace as text."""
        return [
            f"{who} {outcome}" if what is None else f"{who}: {_text(what)} {outcome}"
            for who, what, outcome in self.trace
        ]

    def _moves_of_processes(self) -> Iterator[Move]:
        for name in self.names:
            if name in self.done or (self._is_switch(name) and self.left["switch"] <= 0):
                continue
            yield Move("go", name)
            operation = self._next[name][0]
            if self.left["fault"] > 0 and operation in self.world.FAULTY:
                for fault in ("acklost", "late", "crashafter", "crash"):
                    yield Move(fault, name, cost="fault")
            for answer, cost in self.world.CHOICES.get(operation, ()):
                if self.left[cost] > 0:
                    yield Move("choice", name, answer=answer, cost=cost)

    def _moves_of_the_world(self) -> Iterator[Move]:
        world, left = self.world, self.left
        yield from (Move("arrive", number=number) for number in range(len(world.late)))
        if left["expire"] > 0:
            managers = (name for name in self.names if name in MAY_EXPIRE and name not in world.dead)
            yield from (Move("expire", name, cost="expire") for name in managers)
        if left["forget"] > 0 and world.duplicates:
            yield Move("forget", cost="forget")
        record = world.record
        if left["ttl"] > 0 and record and record.status == "terminated" and (record.sealed or not self.model.seals):
            yield Move("ttl", cost="ttl")

    def _is_switch(self, name: str) -> bool:
        return self.current not in (None, name, *self.done)

    def _step_of(self, name: str, move: Move) -> None:
        world, operation = self.world, self._next[name]
        if self._is_switch(name):
            self.left["switch"] -= 1
        self.current = name
        if move.what == "crash":
            self._die(name, operation, "not sent: it dies before")
            return
        if move.what == "late":
            world.late.append((name, operation))
            answer = TIMEOUT
        elif move.what == "choice":
            answer = world.choose(name, operation, move.answer)
        else:
            answer = world.do(name, operation)
        if move.what == "crashafter":
            self._die(name, operation, "applied, and it dies")
            return
        if move.what == "acklost":
            answer = TIMEOUT
        outcome = {"acklost": "applied, no answer", "late": "no answer, still in flight"}.get(move.what)
        self.trace.append((name, operation, outcome or f"-> {answer}"))
        self.answers[name] += (answer,)
        self._resume(name, answer)

    def _arrive(self, who: str, operation: Operation) -> None:
        answer = self.world.do(who, operation)
        self.trace.append((f"late, {who}", operation, f"-> {answer}"))
        if operation[0] == "put" and answer[0] == "ok" and who in self.done - self.world.dead - self.gave_up:
            self.world.breaks(f"committed without the knowledge of its owner: {_text(operation)}, {who} is alive")

    def _resume(self, name: str, answer: Answer | None) -> None:
        try:
            self._next[name] = self._processes[name].send(answer)
        except StopIteration:
            self.done.add(name)
        except Fenced:  # stands for: still trying
            self.done.add(name)
            self.gave_up.add(name)

    def _die(self, name: str, operation: Operation, how: str) -> None:
        self.done.add(name)
        self.world.dead.add(name)
        self.trace.append((name, operation, how))

    def _sweep(self, world: World, name: str) -> None:
        """Everybody else is dead, and nothing goes wrong."""
        world.dead = set(MANAGERS) - {name}
        process, answer = self.model.recover(name), None
        try:
            while True:
                answer = world.do(name, process.send(answer))
        except (StopIteration, Fenced):
            pass


def explore(model: Model, names: Sequence[str], budget: Budget, *, seconds: float | None = None) -> Found:
    """Every schedule within the budget. Each state is also checked: to be frozen for good is a possible future."""
    seen: set[tuple[Any, ...]] = set()
    violations: dict[str, Violation] = {}
    count = 0
    paths: list[tuple[Move, ...]] = [()]
    run: Run | None = None
    for count in _within(None, seconds):
        if not paths:
            return Found(count, len(seen), True, violations)
        path = paths.pop()
        run = _again(model, names, budget, path) if run is None else run
        key, ended = run.key(), True
        if key not in seen:
            seen.add(key)
            moves = run.moves()
            if not _note_violation(run, violations) and moves:
                paths.extend((*path, move) for move in reversed(moves))
                run.step(moves[0])  # is what is popped next
                ended = False
        if ended:
            run = None
    return Found(count + 1, len(seen), False, violations)


def _again(model: Model, names: Sequence[str], budget: Budget, path: Iterable[Move]) -> Run:
    run = Run(model, names, budget)
    for move in path:
        run.step(move)
    return run


def sample(
    model: Model,
    names: Sequence[str],
    budget: Budget,
    *,
    seed: int,
    runs: int | None = None,
    seconds: float | None = None,
    until: str | None = None,
) -> Found:
    """Random schedules, until a promise of the kind `until` is broken.

    A process runs on for a while, so that switches fall at every depth, and each run has its own number of faults.
    """
    dice = random.Random(seed)
    violations: dict[str, Violation] = {}
    count = 0
    for _ in _within(runs, seconds):
        count += 1
        run = Run(model, names, budget._replace(fault=dice.randrange(budget.fault + 1)))
        _wander(run, dice)
        _note_violation(run, violations)
        if until in violations:
            break
    return Found(count, count, False, violations)


def _wander(run: Run, dice: random.Random) -> None:
    stay, odd = dice.choice((0.5, 0.8, 0.93)), dice.choice((0.03, 0.1, 0.3))
    for _ in range(MOVES_MAX):
        moves = run.moves()
        if not moves or run.world.broken:
            return
        ordinary = [move for move in moves if move.what == "go"]
        others = [move for move in moves if move.what != "go"]
        same = [move for move in ordinary if move.who == run.current]
        if others and (not ordinary or dice.random() < odd):
            run.step(dice.choice(others))
        elif same and dice.random() < stay:
            run.step(same[0])
        else:
            run.step(dice.choice(ordinary))


def _note_violation(run: Run, violations: dict[str, Violation]) -> bool:
    """Keep the shortest trace of each kind."""
    text = run.violation()
    if text is None:
        return False
    violation = Violation(text, run.story())
    shortest = violations.get(violation.kind)
    if shortest is None or len(violation.trace) < len(shortest.trace):
        violations[violation.kind] = violation
    return True


def _within(most: int | None, seconds: float | None) -> Iterator[int]:
    """0, 1, … as long as both limits allow."""
    deadline = None if seconds is None else time.monotonic() + seconds
    for count in itertools.count() if most is None else range(most):
        if deadline is not None and time.monotonic() > deadline:
            return
        yield count


def _text(operation: Operation) -> str:
    name, *arguments = operation
    return f"{name}({', '.join(map(repr, arguments))})"


def command_line(description: str | None, mutations: Iterable[str]) -> Namespace:
    """The arguments of a model's command."""
    parser = ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("protocol", choices=sorted(mutations), metavar="PROTOCOL", help=", ".join(mutations))
    parser.add_argument("seconds", type=float, help="stop after so long")
    parser.add_argument("mode", help="xFS: exhaustive with F faults and S switches; r: random; r2: random, two owners")
    parser.add_argument("seed", type=int, nargs="?", default=0)
    return parser.parse_args()


def main_of(make: Callable[[str], Model], budget: Budget, arguments: Namespace) -> int:
    """Search, print the shortest traces, exit 1 if there is any."""
    model, mode = make(arguments.protocol), arguments.mode
    if mode.startswith("x"):
        fixed = Budget(int(mode[1]), int(mode[2]), expire=1, forget=1, terminate=min(1, budget.terminate))
        found = explore(model, ("M1", "T2"), fixed, seconds=arguments.seconds)
        extent = "all" if found.exhausted else "time is up"
        print(f"{arguments.protocol}: {found.states} states, {found.distinct} distinct, {extent}; {fixed}")
    else:
        names = ("M1", "M2", "T2", "T3") if mode == "r2" else ("M1", "T2", "T3")
        found = sample(model, names, budget, seed=arguments.seed, seconds=arguments.seconds)
        print(f"{arguments.protocol}: {found.states} random runs of {', '.join(names)}; {budget}")
    for violation in sorted(found.violations.values(), key=lambda each: len(each.trace)):
        print(f"  {violation.text}", *violation.trace, sep="\n      ")
    print("  kinds:", ", ".join(sorted(found.violations)) or "none")
    return 1 if found.violations else 0
