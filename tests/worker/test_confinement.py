"""Which user, limits and variables a program can be given, and what a manager says where it cannot."""

import resource
from pathlib import Path
from typing import Any

import pytest

from jido_nats import ConfigurationError, SessionManager, Settings
from jido_nats.worker.confinement import Confinement
from jido_nats.worker.program import Program
from tests.conftest import StartManager
from tests.tools.privileges import OTHER, unprivileged
from tests.tools.programs import JIDO_NATS, NEW, run
from tests.tools.support import wait_for_ever

UNKNOWN = "nobody-of-this-name"


@pytest.mark.parametrize(
    ("user", "why"),
    [
        (UNKNOWN, f"there is no user '{UNKNOWN}'"),
        ("", "there is no user ''"),
        ("-1", "there is no user '-1'"),
        ("3000000017", "no user has this number; give its group too, as 3000000017:GID"),
        ("3000000017:staff", "the group is a number"),
        ("nobody:", "the group is a number"),
        ("root", "programs run as root would be confined by nothing"),
        ("0:10", "programs run as root would be confined by nothing"),
        ("99999999999:1", "the numbers of users and groups are below"),
        ("10:99999999999", "the numbers of users and groups are below"),
    ],
)
def test_a_user_that_cannot_be_is_refused(user: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        Confinement(user)


async def test_a_manager_without_privileges_says_which_it_lacks() -> None:
    program, *words = unprivileged(str(JIDO_NATS), "serve", "--exec", "true", "--worker-user", OTHER)

    finished = await run(*words, version=NEW._replace(jido_nats=Path(program)))

    assert finished.code == 1
    assert finished.err == (
        f"jido-nats: --worker-user {OTHER}: only root, or a manager with CAP_KILL, CAP_SETGID, CAP_SETUID, can run "
        "programs as another user; this one lacks CAP_KILL, CAP_SETGID, CAP_SETUID\n"
    )


def test_a_limit_above_the_managers_own_is_refused() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]

    with pytest.raises(ConfigurationError, match=f"nofile: this manager's own hard limit is lower, {hard}"):
        Confinement(limit=f"nofile={hard + 1}")


@pytest.mark.parametrize("name", ["NATS_PASSWORD", "NATS_URL", "JIDO_X", "SERVE", "NOTIFY_SOCKET"])
def test_what_is_the_managers_own_cannot_be_listed(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{name}: that is the manager's own; give a program its own"):
        Confinement(env=[f"PATH,{name}"])


def test_nothing_but_the_minimum_is_a_list_too() -> None:
    assert Confinement(env=[]).environment({"PATH": "/bin", "A": "1", "NATS_URL": "x"}) == {"PATH": "/bin"}


OPTIONS = [{"worker_user": OTHER}, {"worker_limit": "cpu=1m"}, {"worker_env": ("A",)}]


@pytest.mark.parametrize("option", OPTIONS, ids=["user", "limit", "env"])
async def test_a_worker_inside_its_manager_cannot_be_confined(
    start_manager: StartManager, option: dict[str, Any]
) -> None:
    with pytest.raises(ConfigurationError, match="this worker runs inside its manager"):
        await start_manager(wait_for_ever, **option)


async def test_an_embedded_program_that_is_not_confined_as_the_settings_say_is_refused() -> None:
    settings = Settings(worker_limit="cpu=1m")

    with pytest.raises(ConfigurationError, match="are not those that the Program was given"):
        async with SessionManager.connect("nats://127.0.0.1:1", worker=Program("true"), settings=settings):
            pass


async def test_an_embedded_program_may_be_confined_as_the_settings_say(start_manager: StartManager) -> None:
    await start_manager(Program("true", limit="cpu=1m"), worker_limit="cpu=1m")
