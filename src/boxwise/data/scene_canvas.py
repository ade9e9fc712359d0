"""What a thing in a procedural scene is painted with: cloths, a line colour, and outlines as signed distances."""

from __future__ import annotations

import math

import numpy as np

from boxwise.data.scene_paint import Dice, Field, Grid, apart, cloth, colour, mix, turn

F = np.float32


class Canvas:
    """One thing being painted: its grid, three cloths (body, second, accent) and a line colour."""

    def __init__(self, grid: Grid, dice: Dice) -> None:
        self.grid, self.dice = grid, dice
        base = colour(dice)
        other, accent = apart(dice, base, 0.25), apart(dice, base, 0.35)
        self.body = cloth(
            grid,
            dice,
            base,
            mix(base, other, F(dice.between(0.3, 0.8))),
            scale=dice.between(1.5, 4.0),
            plain=0.6,
        )
        self.second = cloth(
            grid, dice, other, mix(other, base, F(0.5)), scale=dice.between(2.0, 5.0), plain=0.6
        )
        self.accent = np.broadcast_to(accent, self.body.shape)
        self.line = base * F(0.25) + F(0.0 if dice.chance(0.75) else 0.75)
        self.rgb = self.body

    def paint(self, distance: Field, ink: Field) -> None:
        self.rgb = mix(self.rgb, ink, self.grid.cover(distance))

    # Signed distances, negative inside, in units of the thing.

    def disc(self, x: float, y: float, r: float) -> Field:
        u, v = self.grid.u - F(x), self.grid.v - F(y)
        return np.sqrt(u * u + v * v) - F(r)

    def discs(self, centres: list[tuple[float, float]], r: float) -> Field:
        """The union of equal discs."""
        squares = [(self.grid.u - F(x)) ** 2 + (self.grid.v - F(y)) ** 2 for x, y in centres]
        return np.sqrt(np.minimum.reduce(squares)) - F(r)

    def oval(self, x: float, y: float, a: float, b: float) -> Field:
        """An ellipse; the distance is good to first order near the edge."""
        u, v = (self.grid.u - F(x)) / F(a), (self.grid.v - F(y)) / F(b)
        length = np.sqrt(u * u + v * v)
        slope = np.sqrt((u / F(a)) ** 2 + (v / F(b)) ** 2) + F(1e-6)
        return length * (length - F(1.0)) / slope

    def box(self, x: float, y: float, a: float, b: float, corner: float = 0.0) -> Field:
        """A rectangle of half sides a, b, its corners rounded if told."""
        u, v = np.abs(self.grid.u - F(x)) - F(a - corner), np.abs(self.grid.v - F(y)) - F(b - corner)
        if not corner:
            return np.maximum(u, v)
        out = np.sqrt(np.maximum(u, 0) ** 2 + np.maximum(v, 0) ** 2)
        return out + np.minimum(np.maximum(u, v), 0) - F(corner)

    def polygon(self, *points: tuple[float, float]) -> Field:
        """A convex polygon whose points run clockwise on the screen."""
        edges = []
        for (x, y), (p, q) in zip(points, (*points[1:], points[0]), strict=True):
            n = math.hypot(p - x, q - y)
            a, b = (q - y) / n, (x - p) / n
            edges.append(self.grid.u * F(a) + self.grid.v * F(b) - F(a * x + b * y))
        return np.maximum.reduce(edges)

    def bars(self, angles: list[float], half_width: float) -> Field:
        """Endless bars through the middle."""
        across = [np.abs(self.grid.v * F(c) - self.grid.u * F(s)) for c, s in map(turn, angles)]
        return np.minimum.reduce(across) - F(half_width)

    def segment(self, x: float, y: float, p: float, q: float, half_width: float) -> Field:
        """A bar with round ends from (x, y) to (p, q)."""
        u, v, a, b = self.grid.u - F(x), self.grid.v - F(y), F(p - x), F(q - y)
        t = np.clip((u * a + v * b) / (a * a + b * b), 0.0, 1.0)
        return np.sqrt((u - a * t) ** 2 + (v - b * t) ** 2) - F(half_width)


def around(n: int, r: float, start: float = 0.0) -> list[tuple[float, float]]:
    """`n` points on a circle of radius `r`."""
    return [(r * c, r * s) for c, s in (turn(start + 2.0 * math.pi * k / n) for k in range(n))]


def rim(distance: Field, half_width: float) -> Field:
    """A band along an outline."""
    return np.abs(distance) - F(half_width)
