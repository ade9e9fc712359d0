"""Worker side: which of an image's proposed boxes its views are compared by, and where each view shows them.

SoCo's convention throughout: a box's right and bottom are its last pixels, so that a box around a whole view of w
pixels ends at w - 1. `View.place` then gives exactly the shares of the view that the official code pools from.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from boxwise.config import Amount, Share, settings
from boxwise.data.cut import Crop, Cut
from boxwise.data.cutout import HOLES
from boxwise.data.order import NAMED

USE = NAMED + zlib.crc32(b"objects of views")
"""What the random numbers of the boxes are for, as of `order.numbers`."""
Count = Annotated[int, Field(gt=0)]
Boxes = NDArray[np.float64]
"""(N, 4) xyxy, source pixels, right and bottom inclusive."""
BLOCK = 2**20
"""Ids of one set of boxes lie this far from those of the next."""


@runtime_checkable
class Proposer(Protocol):
    """Where boxes come from: a file of proposals, or any object of a user's that crosses to workers."""

    def boxes(self, index: int) -> NDArray[np.float32]:
        """(N, 4) xyxy, source pixels, right and bottom exclusive; none where nothing was found."""
        ...


class WholeImage:
    """Proposes nothing, so that every image is its own only object."""

    def boxes(self, index: int) -> NDArray[np.float32]:
        return np.empty((0, 4), dtype=np.float32)


@settings
class Objects:
    """Which proposals are compared, and how their copies in the first view are moved. SoCo's values."""

    count: Count = 4
    """Boxes per pair of views."""
    proposals: Literal["selective-search", "random", "grid", "whole"] = "selective-search"
    """What proposes the boxes where a run is given no file of them; whole: each image is its own only object."""
    jitter: Share = 0.5
    """Share of the first view's boxes that are moved and scaled."""
    jitter_amount: Amount = 0.1
    """Most that a box is moved and scaled by, as a share of its sides."""
    jitter_anchor: Literal["corner", "center"] = "corner"
    """What is moved and stays when a box is scaled: its left top corner (the code), or its centre (the paper)."""
    jitter_shared: bool = False
    """One number moves and scales a box along both axes, as the paper prints it; else four (the code)."""
    min_visible: Share = 0.0
    """Least share of a box that both views must show; 0: any part will do, and is what is compared."""
    attempts: Count = 5
    """Most times that the views of an image are drawn, until they share enough boxes."""


class Draws(NamedTuple):
    """Uniform numbers in [0, 1) behind one set of boxes. Each has one use, whatever the settings."""

    order: NDArray[np.float64]
    """(N,): the boxes with the least are taken, in this order."""
    moved: NDArray[np.float64]
    """(K,): those below the share are jittered."""
    amount: NDArray[np.float64]
    """(K, 4): by how much along x, y, width and height."""
    repeated: NDArray[np.float64]
    """(2, K): which box fills an empty row, for the first view and for the others."""


class Listed(NamedTuple):
    """One view's boxes of one image, and whose they are."""

    boxes: Boxes
    ids: NDArray[np.int64]


class Known(NamedTuple):
    """What one view knows: of an image, or stacked of a batch."""

    boxes: NDArray[np.float32]
    """(N, 4), source pixels."""
    ids: NDArray[np.int64]
    """(N,)."""
    holes: NDArray[np.float32]
    """(N, HOLES) uniform numbers, for `cut_out`."""


def draw_objects(
    rng: np.random.Generator,
    draw: Callable[[], list[Cut]],
    crops: Sequence[Crop],
    proposed: NDArray[np.float32],
    objects: Objects,
    *,
    width: int,
    height: int,
) -> tuple[list[Cut], list[Known]]:
    """Where the views of a picture of `width` x `height` pixels are cut, and the boxes that each of them shows.

    The first view is paired with every other. Views that show one part (`Crop.like`) share a set of boxes; every
    other pair has a set of its own, and the first view the sets of all pairs, one after the other. `draw` is
    called anew, up to `objects.attempts` times, until each set has half of the boxes asked for, then a quarter ...
    """
    boxes = inclusive(proposed, width=width, height=height)
    roots, needed = shared_parts(crops), max(objects.count // 2, 1)
    for _ in range(objects.attempts):
        cuts = draw()
        seen = {root: seen_by_both(boxes, cuts[0], cuts[root], objects.min_visible) for root in roots}
        if min(int(some.sum()) for some in seen.values()) >= needed:
            break
        needed //= 2
    sets = {
        root: select(boxes, some, cuts[0], cuts[root], draws_of(rng, len(boxes), objects.count), objects)
        for root, some in seen.items()
    }
    return cuts, [
        Known(one.boxes.astype(np.float32), one.ids, rng.random((len(one.ids), HOLES), dtype=np.float32))
        for one in by_view(sets, roots)
    ]


def stacked(images: Sequence[Sequence[Known]]) -> tuple[Known, ...]:
    """View by view, what is known of all images."""
    return tuple(Known(*map(np.stack, zip(*views, strict=True))) for views in zip(*images, strict=True))


def by_view(sets: Mapping[int, tuple[Listed, Listed]], roots: Sequence[int]) -> list[Listed]:
    """All sets for the first view, and its own for each of the others; no id stands in two sets."""
    apart = {
        root: [Listed(part.boxes, part.ids + BLOCK * i) for part in pair]
        for i, (root, pair) in enumerate(sets.items())
    }
    boxes, ids = zip(*(here for here, _ in apart.values()), strict=True)
    return [Listed(np.concatenate(boxes), np.concatenate(ids)), *(apart[root][1] for root in roots)]


def shared_parts(crops: Sequence[Crop]) -> list[int]:
    """For every view but the first, the earliest one that shows the same part of the picture."""
    roots = [0]
    for i, crop in enumerate(crops[1:], start=1):
        roots.append(roots[crop.like] if crop.like else i)
    return roots[1:]


def known_per_view(crops: Sequence[Crop], objects: Objects) -> list[int]:
    """How many boxes each view knows."""
    roots = shared_parts(crops)
    return [objects.count * len({*roots}), *(objects.count for _ in roots)]


def inclusive(proposed: NDArray[np.float32], *, width: int, height: int) -> Boxes:
    """Proposals in this file's convention; the whole picture where there are none."""
    if not len(proposed):
        return np.array([[0, 0, width - 1, height - 1]], dtype=np.float64)
    return proposed.astype(np.float64) - [0, 0, 1, 1]


def seen_by_both(boxes: Boxes, a: Cut, b: Cut, min_visible: float) -> NDArray[np.bool_]:
    """Boxes of which both parts of the picture show something, and no less than the share `min_visible`."""
    return _seen(boxes, a, min_visible) & _seen(boxes, b, min_visible)


def _seen(boxes: Boxes, cut: Cut, min_visible: float) -> NDArray[np.bool_]:
    low, high = _corners(cut)
    overlaps = ((boxes[:, :2] < high) & (low < boxes[:, 2:])).all(
        1
    )  # sharing the border column is not enough
    shown = np.clip(boxes[:, 2:], low, high) - np.clip(boxes[:, :2], low, high) + 1
    share = shown.prod(1) / (boxes[:, 2:] - boxes[:, :2] + 1).prod(1)
    return overlaps & (share >= min_visible)


def draws_of(rng: np.random.Generator, boxes: int, count: int) -> Draws:
    """The numbers of one set, in the order in which they leave the generator."""
    return Draws(rng.random(boxes), rng.random(count), rng.random((count, 4)), rng.random((2, count)))


def select(
    boxes: Boxes, seen: NDArray[np.bool_], first: Cut, other: Cut, draws: Draws, objects: Objects
) -> tuple[Listed, Listed]:
    """K of the boxes that are seen: as the first view lists them, jittered, and as the other does.

    Rows that are missing repeat boxes that are there, drawn for either view by itself. Where nothing is seen,
    the views' whole parts stand for one object.
    """
    if not seen.any():
        ids = np.ones(objects.count, dtype=np.int64)
        here, there = (Listed(np.repeat(_whole(cut), objects.count, 0), ids) for cut in (first, other))
        return here, there
    rows = np.flatnonzero(seen)
    rows = rows[np.argsort(draws.order[rows], kind="stable")][: objects.count]
    moved = jittered(boxes[rows], draws, objects)
    here, there = (
        _filled(Listed(clipped(some, cut), rows + 1), repeated)
        for some, cut, repeated in zip((moved, boxes[rows]), (first, other), draws.repeated, strict=True)
    )
    return here, there


def _filled(listed: Listed, repeated: NDArray[np.float64]) -> Listed:
    there = len(listed.ids)
    rows = np.arange(len(repeated))
    rows = np.where(rows < there, rows, (repeated * there).astype(np.int64))
    return Listed(listed.boxes[rows], listed.ids[rows])


def jittered(boxes: Boxes, draws: Draws, objects: Objects) -> Boxes:
    """Some of the boxes, moved by a share of their sides and scaled; not clipped."""
    some = len(boxes)
    swing = objects.jitter_amount * (2 * draws.amount[:some] - 1)
    if objects.jitter_shared:
        swing = np.repeat(swing[:, :1], 4, axis=1)
    swing = swing * (draws.moved[:some, None] < objects.jitter)
    size = boxes[:, 2:] - boxes[:, :2] + 1
    new = size * (1 + swing[:, 2:])
    corner = boxes[:, :2] + swing[:, :2] * size
    if objects.jitter_anchor == "center":
        corner += (size - new) / 2
    return np.concatenate([corner, corner + new - 1], axis=1)


def clipped(boxes: Boxes, cut: Cut) -> Boxes:
    """What a part of the picture shows of the boxes. What would be thinner than a pixel becomes one."""
    low, high = _corners(cut)
    corner = np.clip(boxes[:, :2], low, np.maximum(high - 1, low))
    return np.concatenate([corner, np.maximum(np.clip(boxes[:, 2:], low, high), corner + 1)], axis=1)


def _corners(cut: Cut) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """First and last pixel of a part."""
    low, size = (np.array(pair, dtype=np.float64) for pair in ((cut.left, cut.top), (cut.width, cut.height)))
    return low, low + size - 1


def _whole(cut: Cut) -> Boxes:
    return clipped(np.concatenate(_corners(cut))[None], cut)
