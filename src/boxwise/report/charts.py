"""Line and bar charts as inline SVG, drawn here: no script, no font, no file from elsewhere.

Colours are CSS classes (`s0` .. `s7`, `axis`, `grid`), so that one drawing serves light and dark pages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from boxwise.report.read import Curve

WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 36
COLOURS = 8
POINTS = 240
"""Points drawn of a curve: about one every two pixels."""


@dataclass(frozen=True)
class Line:
    """One curve of a chart. Lines of one run share a colour; the dash tells them apart."""

    label: str
    curve: Curve
    colour: int
    dash: int = 0

    @property
    def last(self) -> float | None:
        return next((v for _, v in reversed(self.curve) if v is not None), None)


def line_chart(title: str, lines: Sequence[Line], *, note: str = "", zero: bool = False) -> str:
    """A figure with axes, ticks, curves over steps and a legend that ends in each curve's last value.

    `zero` keeps 0 in sight. Long curves show their spread faintly behind a moving mean; gaps stay gaps.
    """
    values = [v for line in lines for _, v in line.curve if v is not None]
    steps = [s for line in lines for s, _ in line.curve]
    ys = ticks(min([*values, *([0.0] if zero else [])]), max([*values, *([0.0] if zero else [])]))
    xs = ticks(min(steps), max(steps), count=6)
    low, high = min(steps), max(max(steps), min(steps) + 1)
    frame = Frame(low, high, ys[0], ys[-1])
    parts = [axes(frame, [x for x in xs if low <= x <= high], ys), *(_drawn(frame, line) for line in lines)]
    keys = "".join(
        f'<span class="key"><svg viewBox="0 0 22 8" aria-hidden="true"><line x1="1" x2="21" y1="4" y2="4" '
        f'class="line s{line.colour % COLOURS} d{line.dash % 3}"/></svg>{escape(line.label)} '
        f"<b>{short(line.last)}</b></span>"
        for line in lines
    )
    hint = f'<span class="note">{escape(note)}</span>' if note else ""
    return (
        f'<figure class="chart"><figcaption>{escape(title)}{hint}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)} over steps">'
        f'{"".join(parts)}<text x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end">step</text></svg>'
        f'<div class="legend">{keys}</div></figure>'
    )


def bar_chart(
    title: str, groups: Sequence[str], bars: Sequence[tuple[str, int, Sequence[float | None]]]
) -> str:
    """Groups of bars from 0 up; each bar is a label, a colour and one value a group, and wears its value."""
    values = [v for _, _, row in bars for v in row if v is not None]
    ys = ticks(0.0, max([*values, 1.0]))
    frame = Frame(0.0, 1.0, 0.0, ys[-1])
    room = (WIDTH - LEFT - RIGHT) / len(groups)
    thick = min(44.0, 0.78 * room / len(bars))
    parts = [axes(frame, [], ys)]
    for g, group in enumerate(groups):
        middle = LEFT + room * (g + 0.5)
        foot = HEIGHT - BOTTOM + 18
        parts.append(f'<text x="{middle:.1f}" y="{foot}" text-anchor="middle">{escape(group)}</text>')
        for b, (label, colour, row) in enumerate(bars):
            if (value := row[g]) is not None:
                x = middle + thick * (b - len(bars) / 2)
                parts.append(_bar(frame, x, thick, value, colour, f"{label}: {group} {value:.2f}"))
    keys = "".join(
        f'<span class="key"><i class="chip s{colour % COLOURS}"></i>{escape(label)}</span>'
        for label, colour, _ in bars
    )
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
        f'<div class="legend">{keys}</div></figure>'
    )


def _bar(frame: Frame, x: float, thick: float, value: float, colour: int, title: str) -> str:
    top = frame.y(value)
    place = (
        f'x="{x + 1:.1f}" y="{top:.1f}" width="{thick - 2:.1f}" height="{HEIGHT - BOTTOM - top:.1f}" rx="2"'
    )
    bar = f'<rect class="bar s{colour % COLOURS}" {place}><title>{escape(title)}</title></rect>'
    if thick < 20:
        return bar
    middle = x + thick / 2
    return (
        f'{bar}<text class="value" x="{middle:.1f}" y="{top - 4:.1f}" text-anchor="middle">{value:.1f}</text>'
    )


def ticks(low: float, high: float, *, count: int = 5) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten) from below `low` to above `high`."""
    if high - low <= max(1e-9 * max(abs(low), abs(high)), 1e-30):  # as good as constant
        pad = abs(low) * 0.1 if abs(low) > 1e-20 else 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [k * step for k in range(first, last + 1)]


def short(value: float | None) -> str:
    """At most four digits; thousands as k and M."""
    if value is None:
        return "\u2013"
    for size, unit in ((1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):.4g}{unit}"
    return f"{value:.4g}"


@dataclass(frozen=True)
class Frame:
    """The values at the edges of a drawing, and where they lie in it."""

    left: float
    right: float
    bottom: float
    top: float

    def x(self, step: float) -> float:
        return LEFT + (step - self.left) / (self.right - self.left) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.bottom) / (self.top - self.bottom) * (HEIGHT - TOP - BOTTOM)


def axes(frame: Frame, xs: Sequence[float], ys: Sequence[float]) -> str:
    """Lines across at `ys`, marks below at `xs`, each with its number."""
    parts = []
    for y in ys:
        at = frame.y(y)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{at + 3.5:.1f}" text-anchor="end">{_tick(y, ys)}</text>')
    for x in xs:
        at = frame.x(x)
        foot = HEIGHT - BOTTOM
        parts.append(f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{foot}" y2="{foot + 4}"/>')
        parts.append(f'<text x="{at:.1f}" y="{foot + 17}" text-anchor="middle">{_tick(x, xs)}</text>')
    foot = HEIGHT - BOTTOM
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{foot}" y2="{foot}"/>')
    return "".join(parts)


def _tick(value: float, among: Sequence[float]) -> str:
    """As many decimals as the distance between ticks needs."""
    step = abs(among[1] - among[0]) if len(among) > 1 else abs(value) or 1.0
    largest = max(abs(v) for v in among)
    if largest >= 1e4:
        unit, name = (1e6, "M") if largest >= 1e6 else (1e3, "k")
        return f"{value / unit:.{_decimals(step / unit)}f}{name}" if value else "0"
    if largest < 1e-3:
        return f"{value:.1e}".replace("e-0", "e-") if value else "0"
    return f"{value:.{_decimals(step)}f}"


def _decimals(step: float) -> int:
    return max(0, -math.floor(math.log10(step) + 1e-9))


def _drawn(frame: Frame, line: Line) -> str:
    look = f"s{line.colour % COLOURS} d{line.dash % 3}"
    pieces = []
    for run in _unbroken(line.curve):
        if len(run) == 1:
            (step, value) = run[0]
            pieces.append(
                f'<circle class="dot {look}" cx="{frame.x(step):.1f}" cy="{frame.y(value):.1f}" r="3"/>'
            )
        elif len(run) <= 40:
            pieces.append(f'<path class="line {look}" d="{_path(frame, run)}"/>')
        else:
            pieces.append(f'<path class="spread {look}" d="{_path(frame, _extremes(run))}"/>')
            pieces.append(f'<path class="line {look}" d="{_path(frame, _smooth(run))}"/>')
    return f"<g><title>{escape(line.label)}: {short(line.last)}</title>{''.join(pieces)}</g>"


def _unbroken(curve: Curve) -> list[list[tuple[float, float]]]:
    runs: list[list[tuple[float, float]]] = [[]]
    for step, value in curve:
        if value is not None:
            runs[-1].append((step, value))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _path(frame: Frame, points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{frame.x(s):.1f} {frame.y(v):.1f}" for s, v in points)


def _extremes(run: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The least and greatest of each stretch, in their order, so that no peak is lost to thinning."""
    size = max(1, 2 * len(run) // POINTS)
    kept: list[tuple[float, float]] = []
    for start in range(0, len(run), size):
        part = run[start : start + size]
        kept += sorted({min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])})
    return kept


def _smooth(run: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """A centred mean whose window shrinks towards the ends, thinned to what a screen shows."""
    sums = [0.0]
    for _, value in run:
        sums.append(sums[-1] + value)
    reach, n = max(1, len(run) // 40), len(run)
    every = max(1, n // POINTS)
    at = sorted({*range(0, n, every), n - 1})
    widths = [(i, min(reach, i, n - 1 - i)) for i in at]
    return [(run[i][0], (sums[i + w + 1] - sums[i - w]) / (2 * w + 1)) for i, w in widths]
