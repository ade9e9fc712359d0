"""Curves of several arms at the same few places, each with its spread over seeds, as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from boxwise.report.charts import BOTTOM, COLOURS, HEIGHT, RIGHT, WIDTH, Frame, axes, ticks

MARGIN = 0.06
"""Share of the width left free beside the first and the last place."""


@dataclass(frozen=True)
class Point:
    """What the seeds of one arm came to at one place."""

    place: float
    """Where it stands, from left to right."""
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return sum(self.values) / len(self.values)


@dataclass(frozen=True)
class Arm:
    """One line of the chart."""

    label: str
    points: tuple[Point, ...]
    """From left to right; none without values."""


def spread_chart(
    title: str,
    arms: Sequence[Arm],
    places: Sequence[tuple[float, str]],
    *,
    axis: str,
    note: str = "",
    colours: Sequence[int] = (),
    zero: bool = True,
) -> str:
    """A figure with a line through the means, a band from the least to the greatest seed, and a dot a seed.

    `places` are the marks below with their words; `zero` keeps 0 in sight. Empty where nothing was measured.
    """
    values = [v for arm in arms for point in arm.points for v in point.values]
    if not values:
        return ""
    ends = [0.0] if zero else []
    ys = ticks(min([*values, *ends]), max([*values, *ends]))
    reach = [*(at for at, _ in places), *(point.place for arm in arms for point in arm.points)]
    low, high = min(reach), max(reach)
    free = MARGIN * (high - low) or 1.0
    frame = Frame(low - free, high + free, ys[0], ys[-1])
    hues = [c % COLOURS for c in (colours or range(len(arms)))]
    keys = "".join(
        f'<span class="key"><i class="chip s{hue}"></i>{escape(arm.label)}</span>'
        for arm, hue in zip(arms, hues, strict=True)
    )
    hint = f'<span class="note">{escape(note)}</span>' if note else ""
    return (
        f'<figure class="chart"><figcaption>{escape(title)}{hint}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"{axes(frame, [], ys)}{_marks(frame, places)}"
        f"{''.join(_drawn(frame, arm, hue) for arm, hue in zip(arms, hues, strict=True))}"
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end">{escape(axis)}</text></svg>'
        f'<div class="legend">{keys}</div></figure>'
    )


def _marks(frame: Frame, places: Sequence[tuple[float, str]]) -> str:
    foot = HEIGHT - BOTTOM
    return "".join(
        f'<line class="axis" x1="{frame.x(at):.1f}" x2="{frame.x(at):.1f}" y1="{foot}" y2="{foot + 4}"/>'
        f'<text x="{frame.x(at):.1f}" y="{foot + 17}" text-anchor="middle">{escape(words)}</text>'
        for at, words in places
    )


def _drawn(frame: Frame, arm: Arm, hue: int) -> str:
    """Band below, line above, dots on top."""
    there = [(frame.x(point.place), point) for point in arm.points]
    top = [f"{x:.1f} {frame.y(max(p.values)):.1f}" for x, p in there]
    bottom = [f"{x:.1f} {frame.y(min(p.values)):.1f}" for x, p in reversed(there)]
    line = [f"{x:.1f} {frame.y(p.mean):.1f}" for x, p in there]
    parts = []
    if len(there) > 1:
        parts.append(f'<path class="band s{hue}" d="M{"L".join([*top, *bottom])}Z"/>')
        parts.append(f'<path class="line s{hue}" d="M{"L".join(line)}"/>')
    parts += [
        f'<circle class="dot s{hue}" cx="{x:.1f}" cy="{frame.y(value):.1f}" r="2.5">'
        f"<title>{escape(arm.label)}: {value:.2f}</title></circle>"
        for x, point in there
        for value in point.values
    ]
    return f"<g>{''.join(parts)}</g>"
