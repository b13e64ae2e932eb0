"""`deploy/docker`: the image's steps, run here without an engine, and the Compose file against its specification."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from jido_nats.broker.local_server import find_binary, project_config, variables
from tests.deploy.image import DOCKERFILE, Image, stages
from tests.deploy.secrets import readable_by_others, typed
from tests.tools.programs import ROOT

FOLDER: Final = ROOT / "deploy/docker"
COMPOSE: Final = FOLDER / "compose.yaml"
BESIDE: Final = Path(sys.executable).parent
HEAD: Final = re.findall(r"(?m)^#   (.*)$", COMPOSE.read_text())
# What is interpolated from the environment file; a colon in it is no separator of a mount.
INTERPOLATED: Final = re.compile(r"\$\{(\w+):\?[^}]*\}")
SERVERS: Final = ("nats-1", "nats-2", "nats-3")


def compose(values: Mapping[str, str] = {}) -> dict[str, Any]:
    """The Compose file, its anchors resolved, with the values of an environment file, or else their names."""
    text = INTERPOLATED.sub(lambda found: values.get(found[1], found[1]), COMPOSE.read_text())
    return msgspec.yaml.decode(text, type=dict[str, Any])


def services(values: Mapping[str, str] = {}) -> dict[str, dict[str, Any]]:
    """What it runs."""
    found: dict[str, dict[str, Any]] = compose(values)["services"]
    return found


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment file that the commands at the head of the Compose file make."""
    home = tmp_path_factory.mktemp("home")
    typed("\n".join(HEAD), home)
    lines = (home / ".config/jido-nats/docker/compose.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines)


@pytest.mark.timeout(400)
def test_the_images_steps_give_a_program_that_runs(tmp_path: Path) -> None:
    image = Image(tmp_path)

    pinned = (FOLDER / "constraints.txt").read_text().splitlines()
    program = image.inside("/opt/jido/bin") / image.words("ENTRYPOINT")[0]
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    frozen = subprocess.run(
        [image.inside("/opt/jido/bin/pip"), "freeze"], capture_output=True, text=True, check=True
    ).stdout
    modules = "import nkeys, prometheus_client, starlette, uvicorn, uvloop, jido_nats"
    subprocess.run([image.inside("/opt/jido/bin/python"), "-c", modules], check=True, cwd="/")

    assert said.startswith("jido-nats, version ")
    assert {line for line in frozen.splitlines() if not line.startswith("jido")} <= set(pinned)


def test_hadolint_has_nothing_to_say() -> None:
    done = subprocess.run([BESIDE / "hadolint", DOCKERFILE], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (0, "")


def test_every_stage_stands_on_one_exact_image() -> None:
    bases = {stage[0].words[0] for stage in stages()}

    assert len(bases) == 1
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-bookworm@sha256:[0-9a-f]{64}", bases.pop())


def test_the_image_s_user_is_nobody_of_the_machine() -> None:
    last = {step.name: step.value for step in stages()[-1]}

    assert last["USER"] == "10001:10001"


def test_the_health_check_asks_where_the_command_listens() -> None:
    last = {step.name: step.value for step in stages()[-1]}
    port = re.findall(r'"--metrics-port", "(\d+)"', last["CMD"])

    assert f"http://127.0.0.1:{port[0]}/livez" in last["HEALTHCHECK"]
    assert last["EXPOSE"] == port[0]


def test_what_the_image_copies_is_let_through_to_the_engine() -> None:
    allowed = {line[1:] for line in (FOLDER / "Dockerfile.dockerignore").read_text().splitlines() if line[0] == "!"}
    copied = {word for step in stages()[0] if step.name == "COPY" for word in step.words[:-1]}

    assert copied == allowed


def test_the_compose_file_is_one() -> None:
    command = [str(BESIDE / "check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(COMPOSE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout


def test_every_file_that_is_mounted_is_there() -> None:
    mounts = [mount.split(":")[0] for service in services().values() for mount in service.get("volumes", [])]
    files = {mount for mount in mounts if mount.startswith(".")}

    assert files
    assert not [file for file in files if not (FOLDER / file).exists()]


def test_every_volume_is_declared() -> None:
    mounts = [mount.split(":")[0] for service in services().values() for mount in service.get("volumes", [])]

    assert {mount for mount in mounts if not mount.startswith((".", "JIDO_TLS_DIR/"))} == set(compose()["volumes"])


def test_every_certificate_that_is_mounted_is_made(values: dict[str, str]) -> None:
    mounts = [mount.split(":")[0] for service in services(values).values() for mount in service.get("volumes", [])]
    made = {mount for mount in mounts if mount.startswith("/")}

    assert len(made) == len(SERVERS) + 1
    assert not [path for path in made if not Path(path).exists()]


def test_the_environment_file_has_every_value_that_is_wanted(values: dict[str, str]) -> None:
    wanted = set(INTERPOLATED.findall(COMPOSE.read_text()))

    assert wanted == set(values) == variables(project_config()) | {"JIDO_DASHBOARD_TOKEN", "JIDO_TLS_DIR"}


def test_only_their_owner_can_read_the_secrets(values: dict[str, str]) -> None:
    assert readable_by_others(Path(values["JIDO_TLS_DIR"]).parent) == []


@pytest.mark.parametrize("name", sorted(services()))
def test_every_service_is_confined(name: str) -> None:
    service = services()[name]

    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {"cpus", "memory", "pids"} <= set(service["deploy"]["resources"]["limits"])
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


@pytest.mark.parametrize("name", SERVERS)
def test_each_server_takes_its_configuration(name: str, values: dict[str, str], tmp_path: Path) -> None:
    server = services(values)[name]
    (certificates,) = [mount.split(":")[0] for mount in server["volumes"] if mount.endswith(":/var/lib/nats/tls:ro")]
    (tmp_path / "tls").symlink_to(certificates)
    path = f"{find_binary().parent}{os.pathsep}{os.environ['PATH']}"

    done = subprocess.run(
        [ROOT / "deploy/nats-server.sh", "-c", ROOT / "deploy/cluster/server.conf", "-t"],
        cwd=tmp_path,
        env=os.environ | server["environment"] | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert server["environment"]["JIDO_SERVER_NAME"] == name == Path(certificates).name
    assert f'"tls://{name}:6222"' in server["environment"]["JIDO_ROUTES"]


def test_a_manager_has_time_to_drain() -> None:
    manager = services()["manager"]
    drain = next(int(word.split("=")[1]) for word in manager["command"] if word.startswith("--drain-timeout="))

    assert int(manager["stop_grace_period"].removesuffix("s")) >= drain + 10
