"""`deploy/kubernetes`: what the kustomizations make, against Kubernetes' own schemas and what a manager needs."""

import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from jido_nats.broker.local_server import find_binary, project_config, variables
from jido_nats.core.settings import Settings, load
from tests.deploy.tools import complaint, kustomized
from tests.tools.programs import ROOT

FOLDER: Final = ROOT / "deploy/kubernetes"
OVERLAYS: Final = ("trial", "production")
OPERATOR: Final = ("ServiceMonitor",)
VERSIONS: Final = ("1.31", "1.37")  # an old one, and the newest whose schemas are here
CLEAN_UP_S: Final = 10

pytestmark = pytest.mark.timeout(600)  # kustomize may have to be built


@cache
def objects(overlay: str) -> list[dict[str, Any]]:
    """What an overlay makes."""
    return kustomized(FOLDER / "overlays" / overlay)


def one(overlay: str, kind: str, name: str = "") -> dict[str, Any]:
    """The object of that kind; of that name, where there are several."""
    found = [o for o in objects(overlay) if o["kind"] == kind and o["metadata"]["name"].startswith(name)]
    assert len(found) == 1
    return found[0]


def pod(overlay: str) -> dict[str, Any]:
    """The manager's pod."""
    spec: dict[str, Any] = one(overlay, "Deployment")["spec"]["template"]["spec"]
    return spec


def container(overlay: str) -> dict[str, Any]:
    """The manager's container."""
    (found,) = pod(overlay)["containers"]
    assert isinstance(found, dict)
    return found


def settings(overlay: str) -> Settings:
    """The managers' settings, as they read them."""
    return load(one(overlay, "ConfigMap")["data"]["settings.toml"].encode())


def helm(name: str = "nats-values.yaml") -> dict[str, Any]:
    """The values for the NATS chart."""
    return msgspec.yaml.decode((FOLDER / name).read_bytes(), type=dict[str, Any])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubernetes_takes_every_object(overlay: str, version: str, tmp_path: Path) -> None:
    for number, item in enumerate(objects(overlay)):
        if item["kind"] not in OPERATOR:
            (tmp_path / f"{number}.yaml").write_bytes(msgspec.yaml.encode(item))
    command = [str(Path(sys.executable).parent / "kubernetes-validate"), "--strict", "-k", version]
    done = subprocess.run(
        [*command, *map(str, sorted(tmp_path.iterdir()))], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr


def test_the_operator_takes_the_service_monitor() -> None:
    assert complaint("ServiceMonitor", msgspec.yaml.encode(one("production", "ServiceMonitor"))) == ""


def test_the_operator_s_types_refuse_what_is_no_field_of_theirs() -> None:
    monitor = one("production", "ServiceMonitor")

    assert "unknown field" in complaint("ServiceMonitor", msgspec.yaml.encode(monitor | {"spek": {}}))


def test_the_service_monitor_finds_the_metrics() -> None:
    service, spec = one("production", "Service"), one("production", "ServiceMonitor")["spec"]

    assert spec["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert {e["port"] for e in spec["endpoints"]} <= {port["name"] for port in service["spec"]["ports"]}


@pytest.mark.parametrize("kind", ["Service", "PodDisruptionBudget", "NetworkPolicy"])
def test_what_is_about_the_managers_selects_their_pods(kind: str) -> None:
    spec = one("production", kind, "jido-manager")["spec"]
    selector = spec.get("podSelector") or spec["selector"]

    labels = one("production", "Deployment")["spec"]["template"]["metadata"]["labels"]

    assert selector.get("matchLabels", selector).items() <= labels.items()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_manager_has_time_to_drain(overlay: str) -> None:
    drain = next(int(a.split("=")[1]) for a in container(overlay)["args"] if a.startswith("--drain-timeout="))

    grace = pod(overlay)["terminationGracePeriodSeconds"]

    assert grace >= drain + settings(overlay).stop_timeout_s + CLEAN_UP_S


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_pod_is_what_the_restricted_standard_wants(overlay: str) -> None:
    security = container(overlay)["securityContext"]

    assert pod(overlay)["securityContext"]["runAsNonRoot"] is True
    assert pod(overlay)["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert security["allowPrivilegeEscalation"] is False
    assert security["readOnlyRootFilesystem"] is True
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert pod(overlay)["automountServiceAccountToken"] is False


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_secrets_are_references(overlay: str) -> None:
    assert not [item for item in objects(overlay) if item["kind"] == "Secret"]
    secrets = [variable for variable in container(overlay)["env"] if "PASSWORD" in variable["name"]]

    assert len(secrets) == 2
    assert {secret["valueFrom"]["secretKeyRef"]["key"] for secret in secrets} <= variables(project_config())


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_probes_ask_where_the_command_listens(overlay: str) -> None:
    ports = {port["name"]: port["containerPort"] for port in container(overlay)["ports"]}
    paths = [container(overlay)[probe]["httpGet"] for probe in ("livenessProbe", "readinessProbe", "startupProbe")]

    assert f"--metrics-port={ports['metrics']}" in container(overlay)["args"]
    assert [(get["path"], get["port"]) for get in paths] == [(p, "metrics") for p in ("/livez", "/readyz", "/livez")]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_image_is_this_version(overlay: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert container(overlay)["image"] == f"jido-nats:{project['version']}"


@pytest.mark.parametrize(("overlay", "replicas"), [("trial", 1), ("production", 3)])
def test_what_is_stored_has_as_many_copies_as_there_are_servers(overlay: str, replicas: int) -> None:
    cluster = helm()["config"]["cluster"] | (
        helm("nats-values-trial.yaml")["config"]["cluster"] if overlay == "trial" else {}
    )

    assert settings(overlay).replicas == replicas
    assert (cluster["replicas"] if cluster["enabled"] else 1) == replicas


def test_the_servers_get_every_password() -> None:
    env = helm()["container"]["env"]
    references = {name: value for name, value in env.items() if isinstance(value, dict)}

    assert set(references) == variables(project_config())
    assert all(value["valueFrom"]["secretKeyRef"]["key"] == name for name, value in references.items())


def test_the_chart_s_values_are_the_cluster_s_configuration() -> None:
    server = (ROOT / "deploy/cluster/server.conf").read_text()
    config = helm()["config"]

    assert f'sync_interval: "{config["jetstream"]["merge"]["sync_interval"]}"' in server
    assert f"name: {config['cluster']['merge']['name']}\n" in server
    assert config["cluster"]["tls"]["merge"]["verify"] is True
    assert config["nats"]["tls"]["enabled"] is True


def test_routes_have_certificates_of_a_ca_of_their_own() -> None:
    values = helm()
    routes, clients = values["config"]["cluster"]["tls"], values["config"]["nats"]["tls"]

    assert routes["secretName"] != clients["secretName"] == values["tlsCA"]["secretName"]
    assert routes["merge"]["ca_file"] == "/etc/nats-certs/cluster/ca.crt"  # where the chart mounts that secret


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_manager_trusts_the_clients_ca(overlay: str) -> None:
    (ca,) = [volume["secret"] for volume in pod(overlay)["volumes"] if volume["name"] == "ca"]

    assert ca == {"secretName": helm()["tlsCA"]["secretName"], "items": [{"key": "ca.crt", "path": "ca.crt"}]}


def test_a_server_listens_where_the_chart_says_behind_nats_conf(tmp_path: Path) -> None:
    merge = helm()["config"]["merge"]
    own = {name: value for name, value in merge.items() if not name.endswith("$include")}
    (tmp_path / merge["00$include"]).write_text(project_config())
    lines = [f"include {merge['00$include']};", *(f"{name}: {msgspec.json.encode(own[name]).decode()}" for name in own)]
    (tmp_path / "nats.conf").write_text("\n".join([*lines, "port: 4222", "http_port: 8222"]))
    secrets = {name: f"p-{name}" for name in variables(project_config())}

    done = subprocess.run(
        [find_binary(), "-t", "-c", tmp_path / "nats.conf"], env=secrets, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert own == {"listen": "0.0.0.0:4222", "http": "0.0.0.0:8222"}
