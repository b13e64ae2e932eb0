"""The scripts of this folder work, small; how fast anything is, is not asked."""

import asyncio
import json
import sys
from typing import Any
from xml.etree import ElementTree

import pytest
from nats.errors import NoRespondersError

from jido_nats import LocalServer
from tests.bench import chart, scale, slow_subscribers
from tests.bench.contenders import CREATE, READY
from tests.tools.programs import ROOT
from tests.tools.support import Stranger, eventually

NAMESPACE = {"svg": "http://www.w3.org/2000/svg"}


def rows() -> list[dict[str, Any]]:
    """Made-up results of three concurrencies at both settings."""
    shared = {"jido_nats": "1", "server_version": "2.15.1", "machine": {"cores": 2, "cpu": "A & B <C>"}}
    return [
        {
            **shared,
            "sync_interval": sync,
            "statistic": statistic,
            "concurrency": at,
            "ours": 100 * at,
            "baseline": 200 * at,
        }
        for sync in ("always", "default")
        for statistic in ("rate", "p99")
        for at in (1, 4, 16)
    ]


async def script(*arguments: str) -> tuple[int | None, str]:
    """The exit code of `python -m tests.bench.…`, and what it printed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", *arguments), cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(90):
        out, _ = await process.communicate()
    return process.returncode, out.decode()


async def test_a_replay_is_measured() -> None:
    code, out = await script("tests.bench.replay", "--sizes", "2000")

    assert code == 0
    assert out.count("2,000") == 4  # the size, and what was read, of ours and of the baseline


def test_the_chart_is_drawn_from_data_alone() -> None:
    drawn = ElementTree.fromstring(chart.draw(rows()))

    lines = [path.get("class") for path in drawn.findall("svg:path", NAMESPACE)]
    assert sorted(c for c in lines if c and c != "grid") == sorted(
        2 * ["line a", "line a baseline", "line b", "line b baseline"]
        + ["line a", "line a baseline", "line b", "line b baseline"]
    )  # two panels and the legend
    assert len(drawn.findall("svg:circle", NAMESPACE)) == 2 * 2 * 3
    width, height = (float(number) for number in (drawn.get("viewBox") or "").split()[2:])
    for text in drawn.findall("svg:text", NAMESPACE):
        assert 0 < float(text.get("x", "0")) < width
        assert 0 < float(text.get("y", "0")) < height


def test_more_throughput_stands_higher() -> None:
    drawn = ElementTree.fromstring(chart.draw(rows()))

    first = [float(circle.get("cy", "0")) for circle in drawn.findall("svg:circle", NAMESPACE)[:3]]
    assert first == sorted(first, reverse=True)
    assert len(set(first)) == 3


async def test_the_auditor_looks_after_a_bench() -> None:
    code, out = await script("tests.bench.audited", "--sessions", "5", "--concurrency", "2", "--only", "commands")

    assert code == 0
    assert "create to active, rate" in out
    assert "violations: 0" in out


async def test_growth_is_measured() -> None:
    code, out = await script(
        *("tests.bench.scale", "--sizes", "20", "--lease-s", "1", "--sessions", "0", "--idle-s", "0.1", "--json")
    )

    found = json.loads(out)
    assert code == 0
    assert (found["sessions"], found["violations"]) == (20, 0)
    assert found.keys() == {"sessions", *scale.SHOWN}


async def test_a_listener_is_started_for_each_kind() -> None:
    found, code = await slow_subscribers.measure("default", 8, 2, rounds=1)

    assert code == 0
    assert {kind: len(samples.seconds) for kind, samples in found.items()} == dict.fromkeys(slow_subscribers.KINDS, 8)


@pytest.mark.parametrize("kind", ["memory", "durable", "side_by_side"])
async def test_a_contender_tells_of_what_it_creates(server: LocalServer, stranger: Stranger, kind: str) -> None:
    listener = await stranger.hear("contender.events", "contender.session.*")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench.contenders", kind, server.url), cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        assert (await process.stdout.readline()).decode().strip() == READY
        record = await eventually(lambda: _created(stranger))
        await eventually(lambda: len(listener.messages) == 3)
    finally:
        process.kill()
        await process.wait()

    assert (record["session_id"], record["status"]) == ("s1", "active")


async def _created(stranger: Stranger) -> dict[str, Any] | None:
    """The record, once somebody answers."""
    try:
        reply = await stranger.request(CREATE, {"session_id": "s1"})
    except NoRespondersError:
        return None
    record: dict[str, Any] = json.loads(reply.data)
    return record
