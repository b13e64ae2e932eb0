"""A chart with panels and lines as SVG, by hand: readable on light and on dark ground, whatever the fonts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 880, 410
PANEL_WIDTH, PANEL_HEIGHT = 340, 250
TOP, LEFT, GAP = 82, 70, 90

STYLE = """
  text { font: 12px system-ui, sans-serif; fill: #1f2328; }
  .title { font-weight: 600; font-size: 14px; }
  .note { fill: #59636e; font-size: 11px; }
  .grid { stroke: #d1d9e0; stroke-width: 1; }
  .line { fill: none; stroke-width: 2; stroke-linejoin: round; }
  .baseline { stroke-dasharray: 5 4; }
  .a { stroke: #0969da; } .dot.a { fill: #0969da; }
  .b { stroke: #bc4c00; } .dot.b { fill: #bc4c00; }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc; } .note { fill: #9198a1; } .grid { stroke: #3d444d; }
    .a { stroke: #4493f8; } .dot.a { fill: #4493f8; }
    .b { stroke: #f0883e; } .dot.b { fill: #f0883e; }
  }
"""


@dataclass(frozen=True)
class Line:
    """One line: its points, and its look: `a` or `b`, and `baseline` for a broken one."""

    points: Sequence[tuple[float, float]]
    look: str


@dataclass(frozen=True)
class Panel:
    """One pair of axes; both are logarithmic."""

    title: str
    unit: str
    lines: Sequence[Line] = field(default_factory=list)


def chart(title: str, note: str, x_label: str, legend: Sequence[tuple[str, str]], panels: Sequence[Panel]) -> str:
    """The SVG; `legend` has pairs of a look and what it means."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<title>{escape(title)}</title><style>{STYLE}</style>",
        f'<text class="title" x="{LEFT}" y="20">{escape(title)}</text>',
        f'<text class="note" x="{LEFT}" y="{HEIGHT - 8}">{escape(note)}</text>',
    ]
    for number, (look, text) in enumerate(legend):
        x = LEFT + 200 * number
        parts.append(f'<path class="line {look}" d="M{x} 38h28"/>')
        parts.append(f'<text x="{x + 34}" y="42">{escape(text)}</text>')
    for number, panel in enumerate(panels):
        parts += _panel(panel, LEFT + number * (PANEL_WIDTH + GAP), x_label)
    return "\n".join([*parts, "</svg>", ""])


def _panel(panel: Panel, left: float, x_label: str) -> list[str]:
    xs = sorted({x for line in panel.lines for x, _ in line.points})
    ys = [y for line in panel.lines for _, y in line.points]
    ticks = _ticks(min(ys), max(ys))
    low, high = ticks[0], ticks[-1]

    def at(x: float, y: float) -> tuple[float, float]:
        across = math.log(x / xs[0]) / math.log(xs[-1] / xs[0])
        up = math.log(y / low) / math.log(high / low)
        return round(left + PANEL_WIDTH * across, 1), round(TOP + PANEL_HEIGHT * (1 - up), 1)

    parts = [f'<text x="{left}" y="{TOP - 8}">{escape(panel.title)}</text>']
    for tick in ticks:
        y = at(xs[0], tick)[1]
        parts.append(f'<path class="grid" d="M{left} {y}h{PANEL_WIDTH}"/>')
        parts.append(f'<text class="note" x="{left - 6}" y="{y + 4}" text-anchor="end">{tick:,g} {panel.unit}</text>')
    for x in xs:
        parts.append(
            f'<text class="note" x="{at(x, low)[0]}" y="{TOP + PANEL_HEIGHT + 18}" text-anchor="middle">{x:g}</text>'
        )
    middle = left + PANEL_WIDTH / 2
    parts.append(f'<text class="note" x="{middle}" y="{TOP + PANEL_HEIGHT + 36}" text-anchor="middle">{x_label}</text>')
    for line in panel.lines:
        places = [at(x, y) for x, y in line.points]
        parts.append(f'<path class="line {line.look}" d="M{" L".join(f"{x} {y}" for x, y in places)}"/>')
        if "baseline" not in line.look:
            parts += [f'<circle class="dot {line.look}" cx="{x}" cy="{y}" r="2.5"/>' for x, y in places]
    return parts


def _ticks(least: float, greatest: float) -> list[float]:
    """1, 2 and 5 of each power of ten, from the last one that is below all values to the first above."""
    powers = range(math.floor(math.log10(least)), math.ceil(math.log10(greatest)) + 1)
    ticks = [step * 10.0**power for power in powers for step in (1, 2, 5)]
    low = max(tick for tick in ticks if tick <= least)
    high = min(tick for tick in ticks if tick >= greatest and tick > low)
    return [tick for tick in ticks if low <= tick <= high]
