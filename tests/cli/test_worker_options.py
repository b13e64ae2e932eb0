"""Which workers the options of `serve` and `up` mean."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from jido_nats import LocalServer, Settings
from jido_nats.cli.worker_options import WorkerOptions, only_programs, only_waits
from jido_nats.core.settings import WorkerSettings
from jido_nats.errors import ConfigurationError
from jido_nats.worker.program import Program
from jido_nats.worker.session import wait_forever
from tests.tools.agents import waiting
from tests.tools.programs import run, running, serving
from tests.tools.support import Stranger, eventually

PYTHON = "tests.tools.agents:waiting"
PROCESS = {"coder": WorkerSettings(isolation="process")}


def loaded(*workers: str, command: str | None = None, isolation: str | None = None, **settings: Any) -> dict[str, Any]:
    """The workers by name."""
    return dict(WorkerOptions(workers, command, isolation).load(Settings(**settings)))


def test_without_a_worker_sessions_only_wait() -> None:
    assert loaded() == {"default": wait_forever}
    assert only_waits(loaded())
    assert not only_waits(loaded(PYTHON))


def test_a_worker_without_a_name_is_the_default() -> None:
    assert loaded(PYTHON) == {"default": waiting}
    assert loaded(f"default={PYTHON}") == {"default": waiting}


@pytest.mark.parametrize("text", ["sh tests/tools/children/waits.sh", "sh", "sh -c 'a=1; pkg.mod:agent'"])
def test_what_is_no_name_of_a_callable_is_a_program(text: str) -> None:
    assert {type(worker) for worker in loaded(text, f"coder={text}").values()} == {Program}


@pytest.mark.parametrize("text", [f"coder = {PYTHON}", f" coder={PYTHON} "])
def test_space_around_a_name_does_not_matter(text: str) -> None:
    assert loaded(text) == {"coder": waiting}


def test_what_has_a_slash_is_a_program(tmp_path: Path) -> None:
    program = tmp_path / "p:q"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)

    assert isinstance(loaded(str(program))["default"], Program)


def test_a_program_may_be_said_to_have_no_process_of_its_own_only_by_an_old_option() -> None:
    assert isinstance(loaded(command="sh", isolation="task")["default"], Program)
    with pytest.raises(ConfigurationError, match="always has a process of its own"):
        loaded("coder=sh", workers={"coder": WorkerSettings(isolation="task")})


def test_settings_of_the_default_kind_hold_for_who_only_waits(caplog: pytest.LogCaptureFixture) -> None:
    assert loaded(workers={"default": WorkerSettings(isolation="process", sessions_max=3)}) == {"default": wait_forever}
    assert not caplog.records


def test_several_workers_have_their_names() -> None:
    workers = loaded(f"coder={PYTHON}", "reviewer=sh -c 'x=1'", command="sh")

    assert workers.keys() == {"coder", "reviewer", "default"}
    assert workers["coder"] is waiting
    assert only_programs(workers) == []


def test_only_programs_may_be_followed_beyond_their_groups() -> None:
    assert len(only_programs(loaded("coder=sh", command="sh"))) == 2


def test_isolation_is_of_the_worker_without_a_name_or_in_the_settings() -> None:
    assert isinstance(loaded(PYTHON, isolation="process")["default"], Program)
    workers = loaded(f"coder={PYTHON}", PYTHON, workers=PROCESS)
    assert isinstance(workers["coder"], Program)
    assert workers["default"] is waiting
    assert (
        loaded(PYTHON, isolation="task", workers={"default": WorkerSettings(isolation="process")})["default"] is waiting
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"workers": (PYTHON, PYTHON)}, "names 'default' twice"),
        ({"workers": (f"a={PYTHON}", "a=sh")}, "names 'a' twice"),
        ({"workers": (PYTHON,), "command": "sh"}, "exclude each other"),
        ({"workers": (f"coder={PYTHON}",), "isolation": "process"}, r"under \[workers.NAME\]"),
        ({"workers": ("coder=no_such_program",)}, "package.module:callable"),
        ({"workers": ("coder=",)}, "package.module:callable"),
        ({"workers": ("a.b=pkg:agent",)}, "not 'a.b'"),
        ({"workers": ("=pkg:agent",)}, "not ''"),
        ({"workers": ("coder=no_such_module:agent",)}, "no_such_module"),
    ],
)
def test_what_makes_no_sense_is_told(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        loaded(*options.get("workers", ()), command=options.get("command"), isolation=options.get("isolation"))


def test_settings_of_a_worker_that_is_not_run_are_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    loaded(PYTHON, workers={"codre": WorkerSettings(sessions_max=1)})

    assert [vars(record)["worker"] for record in caplog.records] == ["codre"]


def test_a_program_has_the_limits_of_its_kind() -> None:
    workers = {"coder": WorkerSettings(stop_timeout_s=9.0, worker_limit="cpu=1")}

    coder = loaded("coder=sh", command="sh", workers=workers)["coder"]

    assert (coder._stop_timeout_s, coder.confinement.options[1]) == (9.0, "cpu=1")


async def test_serve_and_create_by_kind_and_label(server: LocalServer, stranger: Stranger, tmp_path: Path) -> None:
    config = tmp_path / "jido.toml"
    config.write_text('[workers.coder]\nisolation = "process"\nsessions_max = 1\n')
    options = ("--worker", f"coder={PYTHON}", "--exec", "sh tests/tools/children/waits.sh", "--label", "gpu=true")
    async with serving(server.url, *options, "--config", str(config)):
        created = await run("create", "--worker", "coder", "--label", "gpu=true", "--server", server.url)
        full = await run("create", "--worker", "coder", "--server", server.url)
        missing = await run("create", "--worker", "nobody", "--label", "x=y", "--server", server.url)
        await run("create", "--server", server.url)
        listed = await run("list", "--worker", "coder", "--server", server.url)

    assert 'worker           coder\nlabels           {"gpu":"true"}\n' in created.out
    assert "is full" in full.err
    assert "there is: coder (gpu=true); default (gpu=true)" in missing.err
    assert (listed.out.count("\n"), " worker=coder" in listed.out) == (1, True)


@pytest.mark.parametrize("labels", [["gpu"], ["gpu="], ["=true"], ["a b=c"], ["a=1", "a=2"]])
async def test_what_is_no_label_is_one_sentence(labels: list[str]) -> None:
    options = [option for label in labels for option in ("--label", label)]
    finished = await run("serve", *options, "--server", "nats://127.0.0.1:1")

    assert (finished.code, finished.err.count("\n"), "label" in finished.err) == (1, 1, True), finished.err


async def test_a_manager_without_a_worker_says_so(server: LocalServer) -> None:
    async with serving(server.url) as manager:
        await manager.said("sessions only wait until they are terminated; --worker or --exec gives one")


async def test_up_without_a_worker_says_so() -> None:
    async with running("up", "--port", "0") as program:
        await program.said("sessions only wait")


async def test_up_suggests_commands_that_its_workers_can_carry_out() -> None:
    async with running("up", "--port", "0", "--worker", f"coder={PYTHON}") as program:
        await program.said("Ctrl-C stops it")

    assert "create --metadata project=demo --worker coder --server" in program.out
    assert """create '{"worker":"coder"}' -s""" in program.out


async def test_events_and_watch_show_the_kind(server: LocalServer, stranger: Stranger) -> None:
    async with serving(server.url, "--worker", f"coder={PYTHON}", "--worker", PYTHON):
        async with running("watch", "--plain", "--worker", "coder", "--server", server.url) as watching:
            await watching.said("changes follow")
            await stranger.create("other")
            await stranger.create("s1", worker="coder", metadata={"a": 1})
            await watching.said("active")
        events = await run("events", "--since", "all", "--no-follow", "--server", server.url)

    assert "s1" in watching.out
    assert "other" not in watching.out
    assert 's1 v1 created worker=coder {"a":1}' in events.out


async def test_the_doctor_tells_of_kinds(server: LocalServer, stranger: Stranger) -> None:
    gpu = (
        "--worker",
        f"coder={PYTHON}",
        "--worker",
        "reviewer=sh tests/tools/children/waits.sh",
        "--label",
        "gpu=true",
    )
    async with serving(server.url, *gpu), serving(server.url):
        await eventually(partial(created, stranger, "coder"))
        await eventually(lambda: is_reported(server, "workers: coder (1), reviewer (0), labels: gpu=true"))

        report = (await run("doctor", "--server", server.url)).out

    assert "the worker 'default' only waits at every manager that has it" in report


async def created(stranger: Stranger, worker: str) -> bool:
    """Whether a session can be created; not before each manager has read the other's lease."""
    return (await stranger.create("s1", worker=worker)).get("status") == "active"


async def is_reported(server: LocalServer, text: str) -> bool:
    """Whether the doctor says so."""
    return text in (await run("doctor", "--server", server.url)).out
