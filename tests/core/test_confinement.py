"""How limits and an allow-list of variables are written."""

import re

import pytest

from jido_nats import ConfigurationError, Settings
from jido_nats.core.confinement import limits_of, variables_of
from jido_nats.core.settings import load


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("memory=512M", {"memory": 512 * 2**20}),
        ("memory=1G, nofile=1024 ,cpu=90", {"memory": 2**30, "nofile": 1024, "cpu": 90}),
        ("cpu=2m", {"cpu": 120}),
        ("cpu=1h,fsize=10K", {"cpu": 3600, "fsize": 10240}),
        ("memory=1T,nproc=64", {"memory": 2**40, "nproc": 64}),
        ("core=0,fsize=0", {"core": 0, "fsize": 0}),
        ("memory=1048576", {"memory": 2**20}),
    ],
)
def test_limits_have_units(text: str, limits: dict[str, int]) -> None:
    assert limits_of(text) == limits


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "'' is no limit; there are memory, nofile, cpu, nproc, fsize, core"),
        ("memory", "memory takes an integer and K, M, G or T, not ''"),
        ("memory=", "memory takes an integer and K, M, G or T, not ''"),
        ("memory=512MB", "memory takes an integer and K, M, G or T, not '512MB'"),
        ("memory=1.5G", "memory takes an integer and K, M, G or T, not '1.5G'"),
        ("memory=-1", "memory takes an integer and K, M, G or T, not '-1'"),
        ("memory=٣", "memory takes an integer and K, M, G or T, not '٣'"),
        ("memory=0", "memory cannot be 0"),
        ("memory=99999999999999T", "memory cannot be 99999999999999T"),
        (f"memory=1{'0' * 5000}", f"memory cannot be 1{'0' * 5000}"),
        ("nofile=1K", "nofile takes an integer, not '1K'"),
        ("cpu=1d", "cpu takes an integer and s, m or h, not '1d'"),
        ("ram=1G", "'ram' is no limit; there are memory, nofile, cpu, nproc, fsize, core"),
        ("cpu=1,cpu=2", "cpu is given twice"),
        ("cpu=1,", "'' is no limit; there are memory, nofile, cpu, nproc, fsize, core"),
    ],
)
def test_a_limit_that_is_none_is_refused_with_what_is_wrong(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(why)}$"):
        limits_of(text)


def test_an_item_is_names_or_one_value() -> None:
    variables = variables_of(["A, B", "C", "D=x,y=z", "E="])

    assert variables.inherited == {"A", "B", "C"}
    assert variables.values == {"D": "x,y=z", "E": ""}


@pytest.mark.parametrize("item", ["", "A,", "1A", "A-B", "=x", "A B=x", "A=\0", "Ä", "LC_*"])
def test_what_is_no_variable_is_refused(item: str) -> None:
    with pytest.raises(ValueError, match=r"no name of an environment variable|has a NUL byte"):
        variables_of([item])


def test_the_settings_take_them_from_a_file() -> None:
    settings = load(b'worker_user = "agent"\nworker_limit = "cpu=1m"\nworker_env = ["A,B", "C=1"]')

    assert settings == Settings(worker_user="agent", worker_limit="cpu=1m", worker_env=("A,B", "C=1"))


@pytest.mark.parametrize(
    ("toml", "why"),
    [
        (b'worker_limit = "ram=1"', "invalid settings: worker_limit: 'ram' is no limit"),
        (b'worker_env = ["A-B"]', "invalid settings: worker_env: 'A-B' is no name of an environment variable"),
        (b'worker_env = "A"', "invalid settings: Expected `array"),
    ],
)
def test_the_settings_name_what_is_wrong(toml: bytes, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        load(toml)
