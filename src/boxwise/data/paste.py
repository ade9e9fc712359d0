"""Composites, as InsLoc's: a part of one picture pasted on another picture of the same micro-batch.

Nothing is decoded for a background alone: each picture is squeezed to a canvas while it is at hand, and the parts
are put on the canvases of others when the last picture of the micro-batch has been read. What lies behind an image
is therefore a function of its draw and of the company that it is read in: of seed and step, and of how many ranks and
parts share a step. All resizing is antialiased; the official code's bilinear is not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor

from boxwise.data.cut import Cut, Paste, ViewSpec, resized
from boxwise.shapes import Picture


class Pasting:
    """What the composites of one micro-batch of `count` images are made of, gathered picture by picture."""

    def __init__(self, specs: Sequence[ViewSpec], count: int) -> None:
        self.specs = {i: spec for i, spec in enumerate(specs) if spec.paste is not None}
        self.boxes = {i: np.empty((count, 1, 4), dtype=np.float32) for i in self.specs}
        """Of each view that is a composite, where the parts lie: xyxy pixels, not mirrored."""
        self._rolls = {i: np.empty(count) for i in self.specs}
        self._parts: dict[int, list[Tensor]] = {i: [] for i in self.specs}
        self._canvases: dict[int, list[Tensor]] = {s.crop.size: [] for s in self.specs.values()}

    def add(
        self, row: int, picture: Picture, cuts: Sequence[Cut], rngs: Sequence[np.random.Generator]
    ) -> None:
        """Takes picture number `row`; `cuts` and `rngs` are those of all its views."""
        for side, canvases in self._canvases.items():
            canvases.append(resized(picture, (side, side)))
        for i, spec in self.specs.items():
            cut, side = cuts[i], spec.crop.size
            assert spec.paste is not None
            width, height = draw_size(rngs[i], spec.paste, cut, side)
            left, top = (int(rngs[i].integers(max(1, room))) for room in rooms((width, height), side))
            self._rolls[i][row] = rngs[i].random()
            self.boxes[i][row] = (left, top, left + width, top + height)
            part = picture[:, cut.top : cut.top + cut.height, cut.left : cut.left + cut.width]
            self._parts[i].append(resized(part, (height, width), spec.crop.interpolation))

    def compose(self, pixels: Sequence[UInt8[Tensor, "B 3 _S _S"]], source: NDArray[np.int64]) -> None:
        """Writes the composites of every such view into its `pixels`. `source` names the picture of each row."""
        taken: list[list[int]] = [[] for _ in source]
        for i, spec in self.specs.items():
            assert spec.paste is not None
            apart, canvases = spec.paste.backgrounds == "apart", self._canvases[spec.crop.size]
            for row, part in enumerate(self._parts[i]):
                behind = background(row, self._rolls[i][row], source, taken[row] if apart else None)
                taken[row].append(behind)
                left, top, right, bottom = self.boxes[i][row, 0].astype(int).tolist()
                pixels[i][row] = canvases[behind]
                pixels[i][row, :, top:bottom, left:right] = part


def fewest(specs: Sequence[ViewSpec]) -> int:
    """Images that a micro-batch needs, so that each has backgrounds that are neither itself nor each other."""
    return 1 + sum(spec.paste is not None and spec.paste.backgrounds == "apart" for spec in specs)


def refuse_too_few(specs: Sequence[ViewSpec], micro_batch: int, parts: int) -> None:
    """Raises ValueError where a micro-batch, one of `parts` of a step, holds too few images for backgrounds."""
    if micro_batch < fewest(specs):
        raise ValueError(
            f"{micro_batch} images at a time are too few to paste each on others: a view's background is another "
            f"image, and not that of an earlier view; pass --batch-size {fewest(specs) * parts} or more"
        )


def background(row: int, roll: float, source: NDArray[np.int64], taken: Sequence[int] | None) -> int:
    """Which row's picture lies behind that of `row`; `roll` is a uniform number.

    `taken` are the backgrounds that earlier views of it have: neither they nor `row` itself are drawn; None draws
    from all. Where unreadable images have been replaced, a micro-batch may hold a picture twice: rows that show
    the very same picture are avoided as long as there are others.
    """
    rows = [*range(len(source))]
    if taken is not None:
        barred = {row, *taken}
        rows = [r for r in rows if r not in barred]
        shown = {int(source[r]) for r in barred}
        rows = [r for r in rows if int(source[r]) not in shown] or rows
    return rows[int(roll * len(rows))]


def draw_size(rng: np.random.Generator, paste: Paste, cut: Cut, side: int) -> tuple[int, int]:
    """Width and height of a part on a canvas of `side` pixels.

    frame: two sides from half the canvas on, ending two pixels below all of it (128 to 254 of 256), between which
    the part is fitted. sides: from half the canvas to all of it, and the part is squeezed to them.
    """
    if paste.paste_size == "sides":
        width, height = rng.integers(side // 2, side + 1, size=2).tolist()
        return width, height
    one, two = rng.integers(side // 2, side - 1, size=2).tolist()
    return fitted_size(cut.width, cut.height, (one, two))


def fitted_size(width: int, height: int, frame: tuple[int, int]) -> tuple[int, int]:
    """The largest size in proportion whose longer side is at most the frame's longer, and the shorter its shorter."""
    factor = min(max(frame) / max(width, height), min(frame) / min(width, height))
    return int(width * factor + 0.5), int(height * factor + 0.5)


def rooms(size: tuple[int, int], side: int) -> tuple[int, int]:
    """How many columns and rows a part's upper left corner is drawn from, as in the code one less than would fit."""
    return side - size[0], side - size[1]
