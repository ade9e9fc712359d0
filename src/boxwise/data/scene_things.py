"""The things in procedural scenes: eight classes told apart by outline, parts and markings, never by colour.

Four are round (wheel, gear, flower, beetle) and differ by what is inside or along the edge; house and mug
share a boxy body, fish and key a long one. Each is drawn inside the unit disc. Colours know no class.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from boxwise.data.scene_canvas import Canvas, F, around, rim
from boxwise.data.scene_paint import Dice, Field, Grid, turn

# Each paints on the canvas and returns the outline.


def wheel(c: Canvas) -> Field:
    """Tyre, rim, hub and spokes; one sees through between the spokes."""
    n, tyre = c.dice.whole(3, 5), c.dice.between(0.14, 0.22)
    outer, hub = c.disc(0, 0, 1), c.disc(0, 0, c.dice.between(0.18, 0.26))
    inner = c.disc(0, 0, 1 - tyre)
    spokes = c.bars([math.pi * k / n for k in range(n)], c.dice.between(0.05, 0.085))
    c.paint(inner, c.second)
    c.paint(rim(inner, 0.035), c.line)
    c.paint(hub, c.accent)
    c.paint(c.disc(0, 0, 0.07), c.line)
    return np.maximum(outer, np.minimum(np.minimum(-inner, hub), spokes))


def gear(c: Canvas) -> Field:
    """A toothed disc with a round hole and a ring of bolts."""
    n, root = c.dice.whole(4, 6), c.dice.between(0.72, 0.8)
    teeth = np.maximum(c.bars([math.pi * k / n for k in range(n)], 1.6 * root / (2 * n)), c.disc(0, 0, 1))
    hole = c.dice.between(0.2, 0.3)
    c.paint(rim(c.disc(0, 0, hole + 0.05), 0.05), c.line)
    c.paint(c.discs(around(c.dice.whole(3, 5), (root + hole) / 2, 0.4), 0.1), c.accent)
    return np.maximum(np.minimum(c.disc(0, 0, root), teeth), -c.disc(0, 0, hole))


def flower(c: Canvas) -> Field:
    """Round petals about a dotted eye."""
    n = c.dice.whole(5, 7)
    r = {5: 0.4, 6: 0.36, 7: 0.31}[n]
    petals = c.discs(around(n, 1 - r), r)
    eye = c.disc(0, 0, c.dice.between(0.3, 0.38))
    c.paint(c.discs(around(n, 0.62), 0.09), c.second)
    c.paint(rim(petals, 0.03), c.line)
    c.paint(eye, c.accent)
    c.paint(c.discs([(0.0, 0.0), *around(5, 0.2)], 0.055), c.line)
    return np.minimum(np.minimum(petals, c.disc(0, 0, 0.55)), eye)


def beetle(c: Canvas) -> Field:
    """An oval back with a seam and paired spots, a head, feelers and six legs."""
    wide = c.dice.between(0.56, 0.68)
    back, head = c.oval(-0.12, 0, 0.8, wide), c.disc(0.68, 0, 0.25)
    lines = [c.segment(x, -y, x - 0.1, y, 0.05) for x, y in ((-0.5, 0.8), (-0.1, 0.88), (0.35, 0.8))]
    lines += [c.segment(0.7, 0, 0.93, y, 0.035) for y in (-0.32, 0.32)]
    legs = np.minimum.reduce(lines)
    c.paint(legs, c.line)
    c.paint(back, c.body)
    spots = [(x, s * y * wide) for x, y in ((-0.55, 0.45), (-0.08, 0.6), (0.3, 0.42)) for s in (-1, 1)]
    c.paint(c.discs(spots[: 2 * c.dice.whole(2, 3)], c.dice.between(0.12, 0.16)), c.accent)
    c.paint(np.maximum(c.segment(-0.9, 0, 0.6, 0, 0.035), back), c.line)
    c.paint(head, c.second)
    c.paint(c.discs([(0.76, -0.11), (0.76, 0.11)], 0.06), c.line)
    return np.minimum(np.minimum(back, head), legs)


def fish(c: Canvas) -> Field:
    """A lens of a body with tail, fins, gill and eye."""
    tall, tip = c.dice.between(0.36, 0.48), c.dice.between(0.38, 0.55)
    body = c.oval(0.2, 0, 0.76, tall)
    tail = c.polygon((-0.95, -tip), (-0.4, 0.0), (-0.95, tip))
    notch = c.polygon((-1.1, -0.2), (-0.78, 0.0), (-1.1, 0.2))
    fin = c.polygon((-0.2, -tall - 0.22), (0.45, -tall * 0.8), (0.1, 0.0), (-0.2, -tall * 0.6))
    c.paint(np.minimum(tail, fin), c.second)
    c.paint(body, c.body)
    c.paint(np.maximum(rim(c.disc(0.85, 0, 0.42), 0.035), body), c.line)
    c.paint(c.polygon((-0.1, 0.05), (0.2, 0.1), (-0.05, 0.3)), c.second)
    c.paint(c.disc(0.68, -0.1, 0.12), c.accent)
    c.paint(c.disc(0.7, -0.1, 0.055), c.line)
    return np.minimum(np.minimum(body, fin), np.maximum(tail, -notch))


def house(c: Canvas) -> Field:
    """Walls, a gable roof, a chimney, a door and two windows."""
    wide, eaves = c.dice.between(0.58, 0.68), c.dice.between(-0.2, 0.0)
    walls = c.box(0, (eaves + 0.74) / 2, wide, (0.74 - eaves) / 2)
    roof = c.polygon((0, -0.95), (wide + 0.12, eaves), (-wide - 0.12, eaves))
    side = 1 if c.dice.chance(0.5) else -1
    chimney = c.box(side * 0.38, -0.6, 0.1, 0.25)
    c.paint(chimney, c.accent)
    c.paint(roof, c.second)
    c.paint(rim(roof, 0.025), c.line)
    door = c.box(side * -0.3, 0.5, 0.14, 0.24)
    c.paint(door, c.line)
    pane = c.box(side * 0.25, 0.35, 0.19, 0.17)
    c.paint(pane, c.accent)
    c.paint(
        np.maximum(np.minimum(np.abs(c.grid.u - F(side * 0.25)), np.abs(c.grid.v - F(0.35))) - F(0.03), pane),
        c.line,
    )
    c.paint(c.disc(0, eaves - 0.3, 0.11), c.accent)
    return np.minimum(np.minimum(walls, roof), chimney)


def mug(c: Canvas) -> Field:
    """A rounded body with a band, a dark mouth and a handle one sees through."""
    half = c.dice.between(0.5, 0.58)
    body = c.box(-0.22, 0.05, half, 0.72, 0.14)
    mouth = c.oval(-0.22, -0.58, half, 0.17)
    loop = c.oval(half - 0.22, 0.05, 0.4, 0.38)
    handle = np.maximum(np.maximum(loop, -c.oval(half - 0.22, 0.05, 0.22, 0.21)), F(half - 0.25) - c.grid.u)
    c.paint(handle, c.second)
    c.paint(body, c.body)
    band = c.dice.between(0.0, 0.3)
    c.paint(np.maximum(np.abs(c.grid.v - F(band)) - F(c.dice.between(0.1, 0.18)), body), c.accent)
    c.paint(mouth, c.second)
    c.paint(c.oval(-0.22, -0.57, half - 0.1, 0.1), c.line)
    return np.minimum(np.minimum(body, mouth), handle)


def key(c: Canvas) -> Field:
    """A ring, a shaft and two or three teeth of unlike length."""
    bow, thick = c.dice.between(0.34, 0.42), c.dice.between(0.09, 0.13)
    ring = c.disc(bow - 0.98, 0, bow)
    hole = c.disc(bow - 0.98, 0, bow - 0.17)
    shaft = c.box(0.15 + bow / 2, 0, 0.8 - bow / 2, thick)
    lengths = [c.dice.between(0.16, 0.32) for _ in range(c.dice.whole(2, 3))]
    teeth = np.minimum.reduce(
        [c.box(0.86 - 0.23 * k, thick + h / 2, 0.07, h / 2 + 0.02) for k, h in enumerate(lengths)]
    )
    collar = c.box(2 * bow - 0.9, 0, 0.07, thick + 0.08)
    c.paint(rim(hole, 0.05), c.line)
    c.paint(collar, c.accent)
    c.paint(c.box(0.3, 0, 0.55, 0.025), c.line)
    return np.maximum(np.minimum(np.minimum(ring, shaft), np.minimum(teeth, collar)), -hole)


@dataclass(frozen=True)
class Kind:
    """A class of things: how it is drawn, and how far from upright it may stand, in degrees."""

    draw: Callable[[Canvas], Field]
    tilt: float


KINDS = (
    Kind(wheel, 180),
    Kind(gear, 180),
    Kind(flower, 180),
    Kind(beetle, 180),
    Kind(fish, 35),
    Kind(house, 20),
    Kind(mug, 25),
    Kind(key, 180),
)


def junk(c: Canvas) -> Field:
    """Clutter that belongs to no class: a blob, a bar, a wedge, a frame or a crescent."""
    a, b = c.dice.between(0.4, 0.95), c.dice.between(0.15, 0.5)
    if c.dice.chance(0.5):
        c.paint(c.bars([0.0], b / 2), c.second)
    shape = c.dice.whole(0, 4)
    if shape == 0:
        return np.minimum(c.oval(-0.2, 0.1, 0.6 * a, b), c.disc(0.3, -0.1, 0.8 * b))
    if shape == 1:
        return c.segment(-a, 0, a, 0, 0.4 * b)
    if shape == 2:
        return c.polygon((-a, -b), (a, -0.6 * b), (0.2 * a, b))
    if shape == 3:
        return rim(c.box(0, 0, 0.7 * a, 0.9 * b), 0.08)
    return np.maximum(c.disc(0, 0, 0.8), -c.disc(0.3, 0.1, 0.75))


@dataclass(frozen=True)
class Patch:
    """A painted thing: (3, h, w) colours, (h, w) coverage in 0..1, around pixel (h // 2, w // 2)."""

    rgb: Field
    alpha: Field


def paint(
    draw: Callable[[Canvas], Field], dice: Dice, *, side: float, tilt: float, light: tuple[float, float]
) -> Patch:
    """One thing in a square of `side` pixels: mirrored, turned, squeezed, lit, perhaps outlined."""
    grid = _grid(dice, side, tilt)
    canvas = Canvas(grid, dice)
    outline = draw(canvas)
    if dice.chance(0.5):
        canvas.paint(rim(outline, dice.between(0.02, 0.05)), canvas.line)
    half = outline.shape[0] // 2
    steps: Field = np.arange(-half, half + 1, dtype=F) * F(1.0 / half)
    shade = steps * F(light[0]) + steps[:, None] * F(light[1]) + F(1.0)
    return Patch(canvas.rgb * shade, grid.cover(outline))


def _grid(dice: Dice, side: float, tilt: float) -> Grid:
    """Pixel centres seen from inside the thing; squeezing and leaning never leave the square's disc."""
    half = int(side / 2) + 2
    steps = np.arange(-half, half + 1, dtype=F)
    x, y = steps + F(dice.between(-0.5, 0.5)), (steps + F(dice.between(-0.5, 0.5)))[:, None]
    cos, sin = turn(math.radians(dice.between(-tilt, tilt)))
    squeeze, lean = dice.between(0.75, 1.0), dice.between(-0.15, 0.15)
    mirror = -1.0 if dice.chance(0.5) else 1.0
    r, flat = side / 2, dice.chance(0.5)
    a, b = (squeeze, 1.0) if flat else (1.0, squeeze)
    u = (x * F(cos) + y * F(sin)) * F(mirror / (r * a))
    v = (y * F(cos) - x * F(sin)) * F(1.0 / (r * b))
    return Grid(u + v * F(lean), v, r * math.sqrt(a * b))
