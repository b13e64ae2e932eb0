"""How a bench looks: a table, or a JSON line for each result."""

import sys
from collections.abc import Sequence
from typing import Final

from rich.table import Table
from rich.text import Text

from jido_nats.core import codec
from jido_nats.tools.bench.plan import Result

NAMES: Final = {
    "create": "create to active",
    "terminate": "terminate",
    "transition": "one transition in Python",
    "heard_by_subscriber": "heard by a plain subscriber",
    "heard_by_consumer": "heard in a consumer",
    "replay": "replay",
    "recover": "recovery after the lease's end",
}
VERDICTS: Final = {True: "green", False: "red", None: ""}


def line(result: Result) -> None:
    """One result as JSON."""
    sys.stdout.write(codec.encode(result).decode() + "\n")
    sys.stdout.flush()


def table(results: Sequence[Result]) -> Table:
    """All results beside the floor and the goals."""
    first = results[0]
    machine = first.machine
    shown = Table(
        title=f"jido-nats {first.jido_nats} on nats-server {first.server_version}, sync {first.sync_interval or '?'}",
        caption=f"{first.sessions} sessions, {first.concurrency} at a time, {first.managers} manager(s); "
        f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}",
        title_justify="left",
        caption_justify="left",
    )
    shown.add_column("what")
    for name in ("ours", "floor", "ratio", "goal"):
        shown.add_column(name, justify="right")
    for result in results:
        unit = f" {result.unit}"
        shown.add_row(
            f"{NAMES[result.measure]}, {result.statistic}",
            _number(result.ours) + unit,
            _number(result.floor) + unit,
            Text(f"{result.ratio:.2f}", VERDICTS[result.met]),
            "" if result.goal is None else f"{'≥' if result.more_is_better else '≤'} {result.goal:g}",
        )
    return shown


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
