"""The output of a bench: a table, or one line of JSON per result."""

import sys
from collections.abc import Sequence
from typing import Final

from rich import box
from rich.table import Table
from rich.text import Text

from jido_nats.bench.plan import Result
from jido_nats.core import codec

VERDICTS: Final = {True: "green", False: "red", None: ""}


def line(result: Result) -> None:
    """One result as JSON."""
    sys.stdout.write(codec.encode(result).decode() + "\n")
    sys.stdout.flush()


def table(results: Sequence[Result]) -> Table:
    """All results next to the baseline and the goals."""
    first = results[0]
    machine = first.machine
    shown = Table(
        box=box.SIMPLE,
        pad_edge=False,
        title=f"jido-nats {first.jido_nats} on nats-server {first.server_version}, sync {first.sync_interval or '?'}",
        caption=f"{first.sessions} sessions, {first.concurrency} at a time, {first.managers} manager(s); "
        f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}",
        title_justify="left",
        caption_justify="left",
    )
    shown.add_column("what", no_wrap=True)
    shown.add_column("unit")
    for name in ("ours", "baseline", "ratio", "goal"):
        shown.add_column(name, justify="right", no_wrap=True)
    for result in results:
        shown.add_row(
            f"{result.label}, {result.statistic}",
            result.unit,
            _number(result.ours),
            _number(result.baseline),
            Text(f"{result.ratio:.2f}", VERDICTS[result.met]),
            "" if result.goal is None else f"{'≥' if result.more_is_better else '≤'} {result.goal:g}",
        )
    return shown


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
