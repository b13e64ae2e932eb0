"""Which manager takes a session."""

import random
from collections import Counter
from typing import Any

import pytest

from jido_nats.core import placement
from jido_nats.core.manager_info import KindInfo, ManagerInfo
from jido_nats.core.placement import Wanted
from tests.core.samples import T0

WAITS = {"default": KindInfo(waits=True)}
GPU = {"gpu": "true", "zone": "a"}


def manager(**fields: Any) -> ManagerInfo:
    """A manager's lease."""
    return ManagerInfo(manager_id="m", host="h", pid=1, started_at=T0, version="1", **fields)


def running(*names: str, **fields: Any) -> ManagerInfo:
    """A manager that runs these kinds of worker."""
    return manager(workers={name: KindInfo() for name in names}, **fields)


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (Wanted("default", {}), {"old", "default"}),
        (Wanted("coder", {}), {"coder", "gpu"}),
        (Wanted("coder", {"gpu": "true"}), {"gpu"}),
        (Wanted("coder", GPU), {"gpu"}),
        (Wanted("coder", {"gpu": "false"}), set()),
        (Wanted("default", {"gpu": "true"}), set()),
        (Wanted("nobody", {}), set()),
    ],
)
def test_who_fits_has_the_kind_and_every_label(wanted: Wanted, found: set[str]) -> None:
    managers = {
        "old": manager(),
        "default": running("default"),
        "coder": running("default2", "coder"),
        "gpu": running("coder", labels=GPU),
    }

    assert placement.fitting(managers, wanted).keys() == found


def test_a_manager_that_only_waits_is_left_out_while_another_has_a_worker() -> None:
    waiting, busy = manager(workers=WAITS), running("default", full=True)

    assert placement.fitting({"waiting": waiting, "busy": busy}, Wanted("default", {})).keys() == {"busy"}
    assert placement.fitting({"waiting": waiting}, Wanted("default", {})).keys() == {"waiting"}
    assert placement.fitting({"waiting": waiting, "busy": running("coder")}, Wanted("default", {})).keys() == {
        "waiting"
    }


@pytest.mark.parametrize(
    "full",
    [
        manager(full=True),
        manager(full=True, workers={"default": KindInfo()}),
        manager(workers={"default": KindInfo(full=True)}),
    ],
)
def test_a_full_manager_is_not_chosen(full: ManagerInfo) -> None:
    assert placement.choose({"full": full}, "default", random.sample) is None
    assert placement.choose({"full": full, "m": manager(sessions=99_999)}, "default", random.sample) == "m"


def test_a_manager_that_only_waits_is_left_out_whatever_its_labels() -> None:
    managers = {"waiting": manager(workers=WAITS, labels=GPU), "working": running("default")}

    assert placement.fitting(managers, Wanted("default", GPU)) == {}


def test_a_manager_that_answers_no_commands_fits_and_is_not_chosen() -> None:
    silent, waiting = running("default", serves=False), manager(workers=WAITS)

    assert placement.fitting({"silent": silent}, Wanted("default", {})).keys() == {"silent"}
    assert placement.choose({"silent": silent}, "default", random.sample) is None
    found = placement.fitting({"silent": silent, "waiting": waiting}, Wanted("default", {}))
    assert placement.choose(found, "default", random.sample) == "waiting"


def test_the_less_loaded_of_two_is_chosen() -> None:
    managers = {"half": manager(sessions=50, sessions_max=100), "tenth": manager(sessions=100, sessions_max=1000)}

    assert {placement.choose(managers, "default", random.sample) for _ in range(100)} == {"tenth"}


def test_a_lease_that_takes_no_sessions_at_all_is_no_error() -> None:
    managers = {"odd": manager(sessions_max=0), "m": manager()}

    assert placement.choose(managers, "default", random.sample) in managers


def gap(choices: int, managers: int, balls: int, rng: random.Random) -> int:
    """The largest load over the mean when each ball goes to the least loaded of so many at random: the literature's."""
    loads = [0] * managers
    for _ in range(balls):
        loads[min(rng.sample(range(managers), choices), key=loads.__getitem__)] += 1
    return max(loads) - balls // managers


@pytest.mark.parametrize("seed", range(5))
def test_ten_thousand_sessions_are_as_even_as_two_random_choices_make_them(seed: int) -> None:
    rng, names = random.Random(seed), [f"m{number}" for number in range(10)]
    managers = dict.fromkeys(names, manager())

    for _ in range(10_000):
        chosen = placement.choose(managers, "default", rng.sample)
        assert chosen is not None
        managers[chosen] = manager(sessions=managers[chosen].sessions + 1)

    over = max(info.sessions for info in managers.values()) - 1000
    assert over <= max(gap(2, 10, 10_000, rng) for _ in range(20)) < gap(1, 10, 10_000, rng)


def test_managers_with_equal_loads_are_chosen_equally_often() -> None:
    rng, managers = random.Random(7), dict.fromkeys("abc", manager())

    counts = Counter(placement.choose(managers, "default", rng.sample) for _ in range(9000))

    assert all(abs(count - 3000) < 4 * (9000 * 2 / 9) ** 0.5 for count in counts.values()), counts


def test_what_cannot_be_run_is_told_with_what_there_is() -> None:
    managers = {"a": running("default", "coder", labels={"zone": "a"}), "b": running("coder"), "c": running("coder")}

    error = placement.no_such_worker(managers, Wanted("reviewer", {"gpu": "true"}))

    assert (error.status, error.code) == (404, "no_such_worker")
    assert str(error) == (
        "no manager runs the worker 'reviewer' with the labels gpu=true; "
        "there is: coder; coder (zone=a); default (zone=a)"
    )


def test_an_error_does_not_name_a_thousand_kinds() -> None:
    managers = {"m": running(*(f"kind{number:03}" for number in range(1000)))}

    assert str(placement.no_such_worker(managers, Wanted("x", {}))).endswith("; kind018; kind019; and 980 more")


@pytest.mark.parametrize(
    "labels",
    [{"": "x"}, {"x": ""}, {"a b": "x"}, {"x": "a\n"}, {"x": "ü"}, {"x" * 65: "x"}, {f"l{n}": "x" for n in range(33)}],
)
def test_what_is_no_label_is_refused(labels: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="label"):
        placement.check_labels(labels)
