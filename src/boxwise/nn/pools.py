"""Ways to read regions out of a feature pyramid. All give (rows, C, s, s) for a head, image by image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from boxwise.geometry.boxes import rows
from boxwise.nn.align import roi_align
from boxwise.shapes import Boxes, Rows

Map = Float[Tensor, "_rows _C _h _w"]  # rows are B, or B*P for patches
Pyramid = Mapping[str, Map]
LevelBoxes = Mapping[str, Float[Tensor, "B _R 4"]]  # _R: as many as each level has
BoxesAt = Boxes | LevelBoxes | None  # view pixels; a mapping gives each level its own
Crops = Float[Tensor, "M C s s"]


@dataclass(frozen=True, slots=True)
class Align:
    """RoIAlign with every convention said aloud."""

    size: int
    """Bins a side."""
    aligned: bool
    """The centre of the first cell lies at half a cell (InsLoc, SoCo), else at 0 (SCRL)."""
    sampling_ratio: int = 0
    """Points a side averaged in each bin; 0: as many as the bin has cells."""

    def __call__(self, features: Map, boxes: Rows, view: tuple[int, int]) -> Crops:
        """One call for the whole batch. `boxes` are pixels of a view of (width, height).

        The stride is measured, not assumed: a 112-pixel view has 4 cells of 28 pixels on p5. Maps of half
        precision are read as float32, since box coordinates and RoIAlign need it.
        """
        x, y = features.shape[-1] / view[0], features.shape[-2] / view[1]
        if x != y:
            boxes = torch.stack([c * y / x if i in (2, 4) else c for i, c in enumerate(boxes.unbind(1))], 1)
        points, aligned = self.sampling_ratio, self.aligned
        return roi_align(features, boxes, self.size, scale=x, sampling_ratio=points, aligned=aligned).to(
            features.dtype
        )


class Pool(nn.Module, ABC):
    """Reads one or more levels. `width` and `height` are the view's pixels; without height it is square."""

    @abstractmethod
    def forward(self, pyramid: Pyramid, boxes: BoxesAt, width: int, height: int | None = None) -> Crops: ...


class Level(Pool):
    """A level as it is, for heads that turn maps into maps."""

    def __init__(self, level: str) -> None:
        super().__init__()
        self.level = level

    def forward(
        self, pyramid: Pyramid, boxes: BoxesAt = None, width: int = 0, height: int | None = None
    ) -> Map:
        return pyramid[self.level]


class Whole(Pool):
    """The mean of the whole map: one row per image."""

    def __init__(self, level: str) -> None:
        super().__init__()
        self.level = level

    def forward(
        self, pyramid: Pyramid, boxes: BoxesAt = None, width: int = 0, height: int | None = None
    ) -> Crops:
        return pyramid[self.level].mean((-2, -1), keepdim=True)


class Together(Pool):
    """The means of an image's tiles, one after the other: one row of tiles * C channels per image. DetCo.

    The maps' rows run image by image, tile by tile.
    """

    def __init__(self, level: str, tiles: int) -> None:
        super().__init__()
        self.level, self.tiles = level, tiles

    def forward(
        self, pyramid: Pyramid, boxes: BoxesAt = None, width: int = 0, height: int | None = None
    ) -> Crops:
        means = pyramid[self.level].mean((-2, -1), keepdim=True)
        return means.unflatten(0, (-1, self.tiles)).flatten(1, 2)


class RegionPool(Pool):
    """Each box in `size` x `size` bins of one level."""

    def __init__(self, level: str, size: int, *, aligned: bool, sampling_ratio: int = 0) -> None:
        super().__init__()
        self.level, self.align = level, Align(size, aligned, sampling_ratio)

    def forward(self, pyramid: Pyramid, boxes: BoxesAt, width: int, height: int | None = None) -> Crops:
        return self.align(pyramid[self.level], rows(boxes_at(self.level, boxes)), (width, height or width))


class EveryLevel(Pool):
    """Each box on every level, so that one head (and its BatchNorm) sees all of them: InsLoc.

    Rows run image by image, box by box, level by level.
    """

    def __init__(self, levels: Sequence[str], size: int, *, aligned: bool, sampling_ratio: int = 0) -> None:
        super().__init__()
        self.levels, self.align = tuple(levels), Align(size, aligned, sampling_ratio)

    def forward(self, pyramid: Pyramid, boxes: BoxesAt, width: int, height: int | None = None) -> Crops:
        view = width, height or width
        crops = [self.align(pyramid[level], rows(boxes_at(level, boxes)), view) for level in self.levels]
        return torch.stack(crops, dim=1).flatten(0, 1)


class LevelBySize(Pool):
    """Each box on the first level whose limit its size sqrt(w*h) does not exceed, else on the last: SoCo."""

    edges: Float[Tensor, " L"]

    def __init__(
        self, limits: Mapping[str, float], size: int, *, aligned: bool, sampling_ratio: int = 0
    ) -> None:
        """`limits` names the levels, finest first, each with its largest size in view pixels."""
        super().__init__()
        if list(limits.values()) != sorted(limits.values()):
            raise ValueError(f"limits must rise from level to level, got {dict(limits)}")
        self.names, self.align = tuple(limits), Align(size, aligned, sampling_ratio)
        edges = torch.tensor([*limits.values()][:-1], dtype=torch.float32)
        self.register_buffer("edges", edges, persistent=False)

    def forward(self, pyramid: Pyramid, boxes: BoxesAt, width: int, height: int | None = None) -> Crops:
        assert isinstance(boxes, Tensor), "which level a box is read from is decided here"
        level, maps = self.levels(boxes), [pyramid[name] for name in self.names]
        read = _sorted if boxes.device.type == "cpu" else _masked
        return read(self.align, maps, rows(boxes), level, (width, height or width))

    def levels(self, boxes: Boxes) -> Int[Tensor, " M"]:
        """Index of each box's level."""
        sides = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
        return torch.bucketize(sides.prod(-1).sqrt().flatten(), self.edges.to(boxes.dtype))


def _sorted(
    align: Align, maps: Sequence[Map], boxes: Rows, level: Int[Tensor, " M"], view: tuple[int, int]
) -> Crops:
    """Each row on its own level alone. Reads counts, which is free on a CPU and makes a GPU wait."""
    order = level.argsort(stable=True)
    counts = level.bincount(minlength=len(maps)).tolist()
    crops = [align(x, part, view) for x, part in zip(maps, boxes[order].split(counts), strict=True)]
    return torch.cat(crops)[order.argsort()]


def _masked(
    align: Align, maps: Sequence[Map], boxes: Rows, level: Int[Tensor, " M"], view: tuple[int, int]
) -> Crops:
    """Each row on every level, shrunk to a point where it does not belong, which costs next to nothing."""
    total: Tensor | None = None
    for i, x in enumerate(maps):
        here = (level == i)[:, None]
        crops = align(x, torch.cat([boxes[:, :1], boxes[:, 1:] * here], dim=1), view) * here[..., None, None]
        total = crops if total is None else total + crops
    assert total is not None
    return total


def boxes_at(level: str, boxes: BoxesAt) -> Boxes:
    """The boxes to be read from `level`."""
    here = boxes[level] if isinstance(boxes, Mapping) else boxes
    if here is None:
        raise ValueError(f"pooling regions of {level} needs boxes")
    return here
