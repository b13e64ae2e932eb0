"""`deploy/monitoring`: the alerts and the dashboard speak of metrics that there are, and Prometheus can read them."""

import asyncio
import re
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from jido_nats import SessionManager
from jido_nats.manager.health_server import HealthServer
from tests.deploy.tools import complaint
from tests.tools.programs import ROOT
from tests.tools.support import Stranger

FOLDER: Final = ROOT / "deploy/monitoring"
RUN_BOOK: Final = (ROOT / "deploy/README.md").read_text().partition("## Run book")[2]
ADDED: Final = {"job", "instance"}  # by Prometheus, to everything
# What Grafana puts in, as Prometheus gets it.
GRAFANA: Final = {"$__rate_interval": "1m", "$instance": ".*"}


def alerts() -> list[dict[str, Any]]:
    """Every alert."""
    groups: list[dict[str, Any]] = msgspec.yaml.decode((FOLDER / "alerts.yaml").read_bytes())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    """Grafana's dashboard."""
    return msgspec.json.decode((FOLDER / "grafana.json").read_bytes(), type=dict[str, Any])


def panels() -> Iterator[tuple[str, str]]:
    """What the dashboard asks Prometheus for: the panel's title and the expression."""
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


ALERTS: Final = {alert["alert"]: alert["expr"] for alert in alerts()}
PANELS: Final = {f"{title} {number}": expression for number, (title, expression) in enumerate(panels())}
EXPRESSIONS: Final = ALERTS | PANELS


def named(expression: str) -> set[str]:
    """The metrics of ours that it speaks of."""
    return set(re.findall(r"\bjido_\w+", expression))


def labels(expression: str) -> set[str]:
    """The labels that it selects by or groups by."""
    groups = ",".join(re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", expression))
    return set(re.findall(r"\w+", groups)) | set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", expression))


@pytest.fixture
async def metrics(manager: SessionManager, stranger: Stranger) -> Mapping[str, set[str]]:
    """The metrics that a manager serves, with their labels, once something has happened to it."""
    await stranger.create("s1")
    await stranger.ask("jido.session.get.nobody")
    with HealthServer(manager.snapshot, host="127.0.0.1", port=0) as monitoring:
        text = await asyncio.to_thread(scrape, monitoring.port)
    families = text_string_to_metric_families(text)
    return {sample.name: set(sample.labels) for family in families for sample in family.samples}


def scrape(port: int) -> str:
    """What Prometheus gets."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text: bytes = answer.read()
    return text.decode()


async def test_only_metrics_that_there_are_are_named(metrics: Mapping[str, set[str]]) -> None:
    unknown = {name: named(expression) - set(metrics) for name, expression in EXPRESSIONS.items()}

    assert not {name: metrics for name, metrics in unknown.items() if metrics}


async def test_only_labels_that_the_metrics_have_are_named(metrics: Mapping[str, set[str]]) -> None:
    known = {name: set().union(*(metrics[m] for m in named(text))) for name, text in EXPRESSIONS.items()}
    unknown = {name: labels(text) - known[name] - ADDED for name, text in EXPRESSIONS.items()}

    assert not {name: labels for name, labels in unknown.items() if labels}


async def test_every_metric_is_shown(metrics: Mapping[str, set[str]]) -> None:
    shown = set().union(*(named(expression) for expression in PANELS.values()))

    assert {name for name in metrics if not name.endswith(("_bucket", "_count", "_sum"))} == {
        name for name in shown if not name.endswith(("_bucket", "_count", "_sum"))
    }


@pytest.mark.timeout(600)
def test_prometheus_takes_the_alerts() -> None:
    assert complaint("rules", (FOLDER / "alerts.yaml").read_bytes()) == ""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", PANELS)
def test_prometheus_can_parse_what_a_panel_asks(name: str) -> None:
    expression = PANELS[name]
    for variable, value in GRAFANA.items():
        expression = expression.replace(variable, value)

    assert "$" not in expression
    assert complaint("expression", expression) == ""


@pytest.mark.timeout(600)
def test_the_alerts_fit_into_a_rule_of_the_operator() -> None:
    head = "apiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nmetadata: {name: jido-nats}\nspec:\n"
    rules = "".join(f"  {line}\n" for line in (FOLDER / "alerts.yaml").read_text().splitlines())

    assert complaint("PrometheusRule", head + rules) == ""


@pytest.mark.parametrize("name", ALERTS)
def test_the_run_book_has_every_alert(name: str) -> None:
    assert f"### {name}\n" in RUN_BOOK


def test_the_run_book_has_no_other_alert() -> None:
    assert set(re.findall(r"(?m)^### (Jido\w+)$", RUN_BOOK)) == set(ALERTS)


def test_no_panel_lies_on_another() -> None:
    places = [panel["gridPos"] for panel in dashboard()["panels"]]
    cells = [(x, y) for p in places for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])]

    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
