"""Setting a procedural scene: what stands where, what it hides, and the picture of it. numpy alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from boxwise.data import scene_paint
from boxwise.data.scene_paint import Dice, Field, Grid, mix
from boxwise.data.scene_things import KINDS, Patch, junk, paint

CLASSES = tuple(kind.draw.__name__ for kind in KINDS)
"""Names of the labels 1, 2, ..."""

SMALLEST, LARGEST = 0.25, 0.65
"""Diameter of a thing's disc as a share of the picture's side."""

VISIBLE = 0.4
"""Least share of a thing's pixels that must be seen, those outside the picture counted as hidden."""

_F = np.float32


@dataclass(frozen=True)
class Drawn:
    """A scene as arrays, nearest thing first: (3, S, S) uint8, (N, 4) xyxy, (N,) from 1, (N, S, S) bool."""

    image: NDArray[np.uint8]
    boxes: Field
    labels: NDArray[np.int64]
    masks: NDArray[np.bool_]


def draw(index: int, *, seed: int, size: int) -> Drawn:
    """Scene `index` of series `seed`; see scenes.scene."""
    if size < 32:
        raise ValueError(f"a scene of {size} pixels shows nothing; size must be at least 32")
    if index < 0 or seed < 0:
        raise ValueError(f"seed and index count from 0: got seed {seed}, index {index}")
    stage = Stage(Dice(seed, index, size), size)
    things = stage.cast()
    masks = np.stack([t.visible for t in things])
    return Drawn(
        image=stage.render([t.item for t in things]),
        boxes=np.stack([_box(m) for m in masks]),
        labels=np.array([t.label for t in things], dtype=np.int64),
        masks=masks,
    )


@dataclass(frozen=True)
class Item:
    """A patch whose middle lies on pixel (y, x) of the picture."""

    patch: Patch
    x: int
    y: int

    def windows(self, size: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Where it lies in the picture, and the part of the patch that falls there."""
        height, width = self.patch.alpha.shape
        pairs = []
        for middle, length in ((self.y, height), (self.x, width)):
            start = middle - length // 2
            low, high = max(start, 0), max(min(start + length, size), 0)
            pairs.append((slice(low, high), slice(low - start, high - start)))
        return (pairs[0][0], pairs[1][0]), (pairs[0][1], pairs[1][1])


@dataclass(frozen=True)
class Thing:
    """A placed item of class `label` (1 is the first) and the pixels of the picture that show it."""

    item: Item
    label: int
    visible: NDArray[np.bool_]


class Stage:
    """Draws a scene from front to back (what is seen is known at once) and paints it from back to front."""

    def __init__(self, dice: Dice, size: int) -> None:
        self.dice, self.size = dice, size
        cos, sin = dice.angle()
        strength = dice.between(0.05, 0.3)
        self.light = (strength * cos, strength * sin)
        self.hidden = np.zeros((size, size), dtype=bool)  # by what is nearer
        self.front = [self._junk(0.08, 0.25) for _ in range(dice.whole(0, 1))]
        for item in self.front:
            there, part = item.windows(size)
            self.hidden[there] |= item.patch.alpha[part] >= 0.5
        self.back = [self._junk(0.08, 0.3) for _ in range(dice.whole(0, 2))]

    def _junk(self, low: float, high: float) -> Item:
        side = self.dice.between(low, high) * self.size
        x, y = (self.dice.whole(0, self.size - 1) for _ in range(2))
        return Item(paint(junk, self.dice, side=side, tilt=180, light=self.light), x, y)

    def cast(self) -> list[Thing]:
        """Two to four things; a thing that finds no place where enough of it is seen is left out."""
        things: list[Thing] = []
        wanted, tried = self.dice.whole(2, 4), 0
        while tried < wanted or len(things) < 2:
            tried += 1
            label = self.dice.whole(1, len(KINDS))
            # Evenly over octaves, leaning to the large; after failures only small ones, which fit in the end.
            share = SMALLEST * (LARGEST / SMALLEST) ** (
                self.dice.between(0.0, 1.0) ** 0.75 * (1.0 if tried <= wanted else 0.3)
            )
            kind = KINDS[label - 1]
            patch = paint(kind.draw, self.dice, side=share * self.size, tilt=kind.tilt, light=self.light)
            thing = self._place(patch, label, share * self.size / 2, things)
            if thing is not None:
                self.hidden |= thing.visible
                things.append(thing)
        return things

    def _place(self, patch: Patch, label: int, radius: float, things: list[Thing]) -> Thing | None:
        solid = patch.alpha >= 0.5
        for _ in range(8):
            item = Item(patch, *self._spot(radius, things))
            there, part = item.windows(self.size)
            visible = np.zeros_like(self.hidden)
            visible[there] = solid[part] & ~self.hidden[there]
            if np.count_nonzero(visible) >= max(12.0, VISIBLE * np.count_nonzero(solid)):
                return Thing(item, label, visible)
        return None

    def _spot(self, radius: float, things: list[Thing]) -> tuple[int, int]:
        """Half the time beside or behind a nearer thing; up to half a radius may leave the picture."""
        inset = min(0.5 * radius, self.size / 2)
        if things and self.dice.chance(0.5):
            near = self.dice.one_of(things).item
            cos, sin = self.dice.angle()
            reach = self.dice.between(0.5, 1.1) * (radius + near.patch.alpha.shape[0] / 2)
            x, y = near.x + reach * cos, near.y + reach * sin
        else:
            x, y = (self.dice.between(inset, self.size - inset) for _ in range(2))
        return tuple(int(min(max(z, inset), self.size - 1 - inset)) for z in (x, y))  # type: ignore[return-value]

    def render(self, things: list[Item]) -> NDArray[np.uint8]:
        image = _ground(self.dice, self.size)
        shadow = int(self.dice.between(0.01, 0.04) * self.size) if self.dice.chance(0.6) else 0
        for item in [*self.back, *reversed(things), *self.front]:
            if shadow:
                sx, sy = (
                    item.x - int(np.sign(self.light[0])) * shadow,
                    item.y - int(np.sign(self.light[1])) * shadow,
                )
                there, part = Item(item.patch, sx, sy).windows(self.size)
                image[:, *there] *= _F(1.0) - _F(0.4) * item.patch.alpha[part]
            there, part = item.windows(self.size)
            image[:, *there] = mix(image[:, *there], item.patch.rgb[:, *part], item.patch.alpha[part])
        return _develop(image, self.dice)


def _ground(dice: Dice, size: int) -> Field:
    """One or two regions of cloth, paler than the things on them."""
    steps = (np.arange(size, dtype=_F) + _F(0.5)) / _F(size / 2) - _F(1.0)
    grid = Grid(steps + np.zeros_like(steps)[:, None], steps[:, None] + np.zeros_like(steps), size / 2)
    image = np.zeros((3, size, size), dtype=_F)
    for k in range(dice.whole(1, 2)):
        base = scene_paint.colour(dice)
        other = mix(base, scene_paint.colour(dice), _F(dice.between(0.05, 0.25)))
        region = scene_paint.cloth(grid, dice, base, other, scale=dice.between(1.0, 7.0), plain=0.7)
        cos, sin = dice.angle()
        side = grid.u * _F(cos) + grid.v * _F(sin) + _F(dice.between(-0.5, 0.5))
        image = mix(image, region, grid.cover(side)) if k else region.copy()
    grain = scene_paint.noise(grid, dice, dice.between(3.0, 12.0)) - _F(0.5)
    return image + grain * _F(dice.between(0.0, 0.06))


def _develop(image: Field, dice: Dice) -> NDArray[np.uint8]:
    """Uneven light, a tint, now and then a soft lens, and the sensor's noise."""
    size = image.shape[1]
    steps = (np.arange(size, dtype=_F) + _F(0.5)) / _F(size / 2) - _F(1.0)
    a, b, centre = dice.between(-0.2, 0.2), dice.between(-0.2, 0.2), dice.between(0.75, 1.2)
    light = _F(centre) + _F(a) * steps + _F(b) * steps[:, None]
    light -= _F(dice.between(0.0, 0.15)) * (steps * steps + (steps * steps)[:, None])
    tint = _F(1.0) + (dice.field(3, 1, 1) - _F(0.5)) * _F(0.2)
    image = image * (light * tint)
    if dice.chance(0.1):
        for axis in (1, 2):
            before, after = (np.take(image, at, axis) for at in _neighbours(size))
            image = (before + image * _F(2.0) + after) * _F(0.25)
    image += (dice.field(3, size, size) - _F(0.5)) * _F(dice.between(0.0, 0.06))
    return np.floor(np.clip(image, 0.0, 1.0) * _F(255.0) + _F(0.5)).astype(np.uint8)


def _neighbours(size: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    at = np.arange(size)
    return np.maximum(at - 1, 0), np.minimum(at + 1, size - 1)


def _box(mask: NDArray[np.bool_]) -> Field:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=_F)
