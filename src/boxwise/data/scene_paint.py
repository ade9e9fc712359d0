"""Colours, textures and light of the procedural scenes: fields of numbers in 0..1 over a grid of points.

Pictures must not depend on the machine. So arrays meet only operations that IEEE 754 rounds exactly (+ - * /,
sqrt, floor, comparison), sines are taken of single numbers in double precision, and every draw comes from
`Generator.random` of a PCG64, whose bits are the same everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]
T = TypeVar("T")


class Dice:
    """Draws that are a function of the numbers it was made from."""

    def __init__(self, *key: int) -> None:
        self._bits = np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * float(self._bits.random())

    def chance(self, share: float) -> bool:
        return float(self._bits.random()) < share

    def whole(self, low: int, high: int) -> int:
        """An integer from low to high, both included."""
        return low + int(float(self._bits.random()) * (high - low + 1))

    def one_of(self, options: Sequence[T]) -> T:
        return options[self.whole(0, len(options) - 1)]

    def angle(self) -> tuple[float, float]:
        """Cosine and sine of any direction."""
        return turn(self.between(0.0, 2.0 * math.pi))

    def field(self, *shape: int) -> Field:
        return self._bits.random(shape, dtype=np.float32)


def turn(radians: float) -> tuple[float, float]:
    """Cosine and sine."""
    return math.cos(radians), math.sin(radians)


@dataclass(frozen=True)
class Grid:
    """Points at which to paint: u to the right and v downwards in units of the thing, `px` pixels each."""

    u: Field
    v: Field
    px: float

    def cover(self, distance: Field) -> Field:
        """Share of each pixel inside a shape, from the signed distance to its edge (negative inside)."""
        return np.clip(np.float32(0.5) - distance * np.float32(self.px), 0.0, 1.0)


def mix(under: Field, over: Field, share: Field | np.float32) -> Field:
    """`share` of the second, the rest of the first."""
    return under + (over - under) * share


def _wave(x: Field) -> Field:
    """A triangle wave of period 1 in -0.5..0.5."""
    return np.abs(x - np.floor(x) - np.float32(0.5)) * np.float32(2.0) - np.float32(0.5)


def _steep(x: Field, sharpness: float) -> Field:
    return np.clip(x * np.float32(sharpness) + np.float32(0.5), 0.0, 1.0)


def _turned(grid: Grid, dice: Dice, scale: float) -> tuple[Field, Field]:
    c, s = (np.float32(x * scale) for x in dice.angle())
    shift = np.float32(dice.between(0.0, 1.0))
    return grid.u * c + grid.v * s + shift, grid.v * c - grid.u * s + shift


def _sharpness(grid: Grid, scale: float) -> float:
    """Steepness that spreads an edge over about a pixel."""
    return max(1.0, grid.px / (2.0 * scale))


def stripes(grid: Grid, dice: Dice, scale: float) -> Field:
    """A texture, as all below: a field in 0..1 with about `scale` periods to a unit."""
    x, _ = _turned(grid, dice, scale)
    return _steep(_wave(x) + np.float32(dice.between(-0.2, 0.2)), _sharpness(grid, scale))


def checks(grid: Grid, dice: Dice, scale: float) -> Field:
    """A chessboard."""
    x, y = _turned(grid, dice, 0.6 * scale)
    return _steep(_wave(x) * _wave(y), 4.0 * _sharpness(grid, scale))


def dots(grid: Grid, dice: Dice, scale: float) -> Field:
    """Discs in staggered columns."""
    x, y = _turned(grid, dice, scale)
    y = y + np.float32(0.5) * (
        np.floor(x) - np.float32(2.0) * np.floor(x * np.float32(0.5))
    )  # every other column sinks
    x, y = x - np.floor(x) - np.float32(0.5), y - np.floor(y) - np.float32(0.5)
    return _steep(
        np.float32(dice.between(0.22, 0.36)) - np.sqrt(x * x + y * y), 2.0 * _sharpness(grid, scale)
    )


def rings(grid: Grid, dice: Dice, scale: float) -> Field:
    """Circles about a point near the middle."""
    x, y = (w + np.float32(dice.between(-0.3, 0.3)) for w in (grid.u, grid.v))
    return _steep(_wave(np.sqrt(x * x + y * y) * np.float32(scale)), _sharpness(grid, scale))


def weave(grid: Grid, dice: Dice, scale: float) -> Field:
    """Crossed bands, the second fainter than the first."""
    x, y = _turned(grid, dice, 0.8 * scale)
    steep = _sharpness(grid, scale)
    return np.float32(0.6) * _steep(_wave(x) - np.float32(0.1), steep) + np.float32(0.4) * _steep(
        _wave(y), steep
    )


def gradient(grid: Grid, dice: Dice, scale: float) -> Field:
    """From one side to the other, whatever the scale."""
    c, s = dice.angle()
    return np.clip(grid.u * np.float32(0.5 * c) + grid.v * np.float32(0.5 * s) + np.float32(0.5), 0.0, 1.0)


def noise(grid: Grid, dice: Dice, scale: float) -> Field:
    """Two octaves of smooth value noise, along the rows and columns of the grid."""
    height, width = grid.u.shape
    coarse = _octave(dice, height, width, cell=2.0 * grid.px / scale)
    fine = _octave(dice, height, width, cell=0.8 * grid.px / scale)
    return np.clip(
        (coarse * np.float32(0.65) + fine * np.float32(0.35) - np.float32(0.5)) * np.float32(1.8)
        + np.float32(0.5),
        0,
        1,
    )


def _octave(dice: Dice, height: int, width: int, cell: float) -> Field:
    cell = max(cell, 1.0)
    (i, f), (j, g) = (_cells(n, cell, dice.between(0.0, 1.0)) for n in (height, width))
    knots = dice.field(int(i[-1]) + 2, int(j[-1]) + 2)
    rows = knots[i] + (knots[i + 1] - knots[i]) * f[:, None]  # (height, knots)
    return rows[:, j] + (rows[:, j + 1] - rows[:, j]) * g


def _cells(length: int, cell: float, shift: float) -> tuple[NDArray[np.intp], Field]:
    x = np.arange(length, dtype=np.float64) / cell + shift
    whole = np.floor(x)
    f = (x - whole).astype(np.float32)
    return whole.astype(np.intp), f * f * (np.float32(3.0) - np.float32(2.0) * f)


Texture = Callable[[Grid, Dice, float], Field]
TEXTURES: tuple[Texture, ...] = (stripes, checks, dots, rings, weave, gradient, noise)


def colour(dice: Dice) -> Field:
    """Any colour, as (3, 1, 1), greys included. Drawn without regard to what it paints."""
    grey, vivid = dice.between(0.1, 0.9), dice.between(0.2, 1.0)
    return np.clip(np.float32(grey) + (dice.field(3, 1, 1) - np.float32(0.5)) * np.float32(vivid), 0.02, 0.98)


def apart(dice: Dice, other: Field, least: float) -> Field:
    """A colour whose brightness is at least `least` from another's (as far as 0..1 lets it)."""
    new = colour(dice)
    if abs(_luma(new) - _luma(other)) < least:
        wanted = _luma(other) + (least if _luma(other) < 0.5 else -least)
        new = np.clip(new + np.float32(wanted - _luma(new)), 0.0, 1.0)
    return new


def _luma(ink: Field) -> float:
    r, g, b = (float(x) for x in ink[:, 0, 0])
    return 0.3 * r + 0.59 * g + 0.11 * b


def cloth(grid: Grid, dice: Dice, first: Field, second: Field, *, scale: float, plain: float = 0.15) -> Field:
    """(3, h, w): two colours woven by a texture drawn at random, or (share `plain`) the first alone."""
    if dice.chance(plain):
        return np.broadcast_to(first, (3, *grid.u.shape))
    return mix(first, second, dice.one_of(TEXTURES)(grid, dice, scale))
