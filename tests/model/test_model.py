"""The protocols keep their promises, and each of their rules is needed for one of them."""

import pytest

from tests.model import durable, protocol
from tests.model.search import Budget, Found, explore, sample

OWNER_AND_SURVIVOR = ("M1", "T2")
ONE_OWNER = ("M1", "T2", "T3")
TWO_OWNERS = ("M1", "M2", "T2", "T3")
RUNS_MAX = 6_000

# What a protocol without the rule breaks, among others.
BREAKS_OF_A_CHANGE = {
    "no_claim": "event stored twice",
    "no_look": "event stored twice",
    "no_settle": "committed without the knowledge of its owner",
    "no_seal": "event lost",
    "repair_after": "events out of order",
    "s_first_fast": "event lost",
    "no_reuse_check": "event stored twice",
    "replay_answers": "answered and not stored",
}
BREAKS_OF_A_JOURNAL = {
    "no_claim": "event stored twice",
    "no_look": "event stored twice",
    "no_cas": "state lost",
    "no_settle_before_restart": "an owner stops and nobody took over",
    "no_look_back": "an owner stops and nobody took over",
    "no_log_claim": "message answered and never handled",
    "no_epoch_check": "an owner stops and nobody took over",
    "read_before_claim": "message answered and never handled",
    "adopt_without_look": "a worker starts without what was stored",
    "restart_starts_empty": "a worker starts without what was stored",
    "restart_without_look": "an owner stops and nobody took over",
    "handled_before_stored": "message answered and never handled",
    "handled_after_stored": "message handled twice",
    "handled_is_count": "message answered and never handled",
    "purge_last_checkpoint": "a worker starts without what was stored",
    "purge_unhandled": "message answered and never handled",
    "purge_forgets_ids": "message stored twice",
    "purge_before_stored": "a worker starts without what was stored",
    "purge_by_count": "message answered and never handled",
    "backoff_goes_on": "a worker starts in a session that its owner has ended",
    "adopts_terminating": "illegal history",
    "remove_before_end": "message stored twice",
    "no_journal_sweep": "journal of an ended session left behind",
    "remove_without_look": "message answered and never handled",
}


@pytest.mark.parametrize(
    "budget",
    [Budget(switch=1, expire=1, forget=1), Budget(fault=1, expire=1, forget=1)],
    ids=["a process is frozen", "an operation fails"],
)
def test_no_schedule_of_a_change_breaks_a_promise(budget: Budget) -> None:
    found = explore(protocol.make("full"), OWNER_AND_SURVIVOR, budget)

    assert found.exhausted
    assert found.violations == {}


@pytest.mark.parametrize(
    "budget",
    [Budget(switch=1, expire=1, terminate=1), Budget(fault=1, expire=1, terminate=1)],
    ids=["a process is frozen", "an operation fails"],
)
def test_no_schedule_of_a_journal_with_one_message_breaks_a_promise(budget: Budget) -> None:
    found = explore(durable.Durable(messages=("m1",)), OWNER_AND_SURVIVOR, budget)

    assert found.exhausted
    assert found.violations == {}


def test_no_schedule_of_a_journal_without_faults_breaks_a_promise() -> None:
    found = explore(durable.make("full"), OWNER_AND_SURVIVOR, Budget(expire=1, forget=1, terminate=1))

    assert found.exhausted
    assert found.violations == {}


@pytest.mark.parametrize("name", protocol.HARMLESS)
def test_random_schedules_of_a_change_break_no_promise(name: str) -> None:
    found = sample(protocol.make(name), TWO_OWNERS, protocol.BUDGET, seed=7, runs=2_000)

    assert found.violations == {}


@pytest.mark.parametrize(
    ("name", "seed", "runs"), [("full", 1, 4_000), ("full", 2, 4_000), ("remove_before_seal", 3, 2_000)]
)
def test_random_schedules_of_a_journal_break_no_promise(name: str, seed: int, runs: int) -> None:
    found = sample(durable.make(name), ONE_OWNER, durable.BUDGET, seed=seed, runs=runs)

    assert found.violations == {}


@pytest.mark.parametrize("name", protocol.MUTATIONS)
def test_each_rule_of_a_change_is_needed(name: str) -> None:
    kind = BREAKS_OF_A_CHANGE[name]

    found = sample(protocol.make(name), TWO_OWNERS, protocol.BUDGET, seed=1, runs=RUNS_MAX, until=kind)

    assert kind in found.violations, _other(found)


@pytest.mark.parametrize("name", durable.MUTATIONS)
def test_each_rule_of_a_journal_is_needed(name: str) -> None:
    kind = BREAKS_OF_A_JOURNAL[name]

    found = sample(durable.make(name), ONE_OWNER, durable.BUDGET, seed=2, runs=RUNS_MAX, until=kind)

    assert kind in found.violations, _other(found)


def _other(found: Found) -> str:
    return f"{found.states} runs, other kinds: {sorted(found.violations)}"
