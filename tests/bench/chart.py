"""Throughput and p99 of `create` against concurrency, at both sync settings: one chart, with its data beside it.

    python -m tests.bench.chart

Writes deploy/bench/concurrency.svg and deploy/bench/concurrency.json. The auditor looks after every run.
"""

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import msgspec

from jido_nats.bench.deployment import SYNC_INTERVALS
from jido_nats.bench.plan import Part, Plan, Result
from tests.bench.audited import audited
from tests.bench.svg import Line, Panel, chart

FOLDER = Path(__file__).parent.parent.parent / "deploy" / "bench"
SESSIONS_MIN, SESSIONS_MAX, SESSIONS_EACH = 400, 4000, 40
LOOKS = {"default": "a", "always": "b"}
LEGEND = [("a", "sync default"), ("a baseline", "its baseline"), ("b", "sync always"), ("b baseline", "its baseline")]


async def collect(concurrencies: list[int], sessions_each: int) -> list[dict[str, Any]]:
    """A row for each sync setting and concurrency. Raises where the auditor found something."""
    rows = []
    for sync in SYNC_INTERVALS:
        for concurrency in concurrencies:
            sessions = min(SESSIONS_MAX, max(SESSIONS_MIN, sessions_each * concurrency))
            results, violations = await audited(
                Plan(sessions, concurrency, frozenset({Part.COMMANDS})), sync=sync, managers=1
            )
            if violations:
                raise RuntimeError(f"the auditor found {len(violations)} violations, such as {violations[0]}")
            rows += [msgspec.to_builtins(result) for result in results if result.measure == "create"]
            print(_line(results), file=sys.stderr)
    return rows


def draw(rows: list[dict[str, Any]]) -> str:
    """The chart of such rows."""
    panels = [
        Panel("created to active, a second", "/s", _lines(rows, "rate")),
        Panel("latency, p99", "ms", _lines(rows, "p99")),
    ]
    machine = rows[0]["machine"]
    note = (
        f"jido-nats {rows[0]['jido_nats']}, nats-server {rows[0]['server_version']}, one manager and the server on "
        f"{machine['cores']} cores of {machine['cpu']}. The baseline: the same writes in bare nats-py."
    )
    return chart("Sessions created, against the creates that wait at once", note, "creates at once", LEGEND, panels)


def _lines(rows: list[dict[str, Any]], statistic: str) -> list[Line]:
    lines = []
    for sync, look in LOOKS.items():
        chosen = [row for row in rows if (row["sync_interval"], row["statistic"]) == (sync, statistic)]
        for which, more in (("ours", ""), ("baseline", " baseline")):
            lines.append(Line([(row["concurrency"], row[which]) for row in chosen], look + more))
    return lines


def _line(results: list[Result]) -> str:
    rate = next(result for result in results if (result.measure, result.statistic) == ("create", "rate"))
    return f"{rate.sync_interval} {rate.concurrency}: {rate.ours:,.0f}/s, baseline {rate.baseline:,.0f}/s"


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concurrency-max", type=int, default=256)
    parser.add_argument("--sessions-each", type=int, default=SESSIONS_EACH, help="sessions for each create at once")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--redraw", action="store_true", help="draw the data that is there again")
    arguments = parser.parse_args()
    data = arguments.folder / "concurrency.json"
    if arguments.redraw:
        rows = json.loads(data.read_text())
    else:
        doubled = [2**power for power in range(20) if 2**power <= arguments.concurrency_max]
        rows = asyncio.run(collect(doubled, arguments.sessions_each))
        arguments.folder.mkdir(parents=True, exist_ok=True)
        data.write_text(json.dumps(rows, indent=1, default=str) + "\n")
    (arguments.folder / "concurrency.svg").write_text(draw(rows))


if __name__ == "__main__":
    main()
