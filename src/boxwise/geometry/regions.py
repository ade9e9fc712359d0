"""Where two views show the same thing: one source of matched boxes per paper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from boxwise.geometry.boxes import clip, iou
from boxwise.geometry.boxes import jitter as jittered
from boxwise.geometry.views import View
from boxwise.shapes import Boxes, Keep

Generator = Literal["grid", "uniform"]


@dataclass(frozen=True, slots=True)
class Regions:
    """Box r of `a` and box r of `b` cover the same content, in each view's own pixels."""

    a: Boxes
    b: Boxes
    keep: Keep
    """Row by row, image by image. False rows are padding: they show real pixels and weigh nothing."""


def matched(a: View, b: View, in_a: Boxes, in_b: Boxes, keep: Bool[Tensor, "B R"]) -> Regions:
    """Replaces every pair that is not kept by the whole views, so shapes stay fixed and pixels are real."""
    shown = keep[..., None]
    return Regions(torch.where(shown, in_a, a.whole()), torch.where(shown, in_b, b.whole()), keep.flatten())


def same_objects(a: View, b: View) -> Regions:
    """SoCo: every object of `b`, and the first row of `a` that shows the same one."""
    assert a.objects is not None and b.objects is not None, "views know no objects"
    assert a.ids is not None and b.ids is not None, "objects have no ids"
    same = b.ids[:, :, None] == a.ids[:, None]  # (B, N of b, N of a)
    first = same.int().argmax(2)[..., None].expand(-1, -1, 4)
    return matched(a, b, a.place(a.objects.gather(1, first)), b.place(b.objects), same.any(2))


def overlap(a: View, b: View) -> Float[Tensor, "B 1 4"]:
    """The rectangle both views show, in source pixels; empty when right <= left or bottom <= top."""
    low = torch.maximum(a.crop[:, :2], b.crop[:, :2])
    high = torch.minimum(a.crop[:, 2:], b.crop[:, 2:])
    return torch.cat([low, high], dim=-1)[:, None]


@dataclass(frozen=True, slots=True)
class WorkArea:
    """The overlap at the scale of the view that magnifies it less: SCRL draws its boxes on this grid."""

    corner: Float[Tensor, "B 2"]
    """Source pixels: left and top of the overlap."""
    scale: Float[Tensor, "B 2"]
    """Work pixels per source pixel, along x and along y."""
    size: Float[Tensor, "B 2"]
    """Whole work pixels, halves rounded to even; 0 along an axis on which the views are disjoint."""

    def to_source(self, boxes: Boxes) -> Boxes:
        """Work pixels to source pixels."""
        return boxes / self.scale.repeat(1, 2)[:, None] + self.corner.repeat(1, 2)[:, None]


def work_area(a: View, b: View) -> WorkArea:
    """The overlap of two views, sized as the less magnified one shows it, axis by axis."""
    shared = overlap(a, b)[:, 0]
    scale = torch.minimum(a.magnification(), b.magnification())
    size = ((shared[:, 2:] - shared[:, :2]).clamp(min=0) * scale).round()
    return WorkArea(shared[:, :2], scale, size)


def random_in_overlap(
    a: View,
    b: View,
    noise: Float[Tensor, "B R T 8"],
    *,
    min_size: int,
    generator: Generator = "grid",
    max_iou: float | None = 0.5,
    jitter: float = 0.0,
    jitter_noise: Float[Tensor, "B R 4"] | None = None,
) -> Regions:
    """SCRL: R random boxes an image inside the overlap, each the first of T candidates that fits.

    `noise` is uniform in [0, 1). A side has at least `min_size` pixels in the view that magnifies the overlap
    less; an image whose overlap is not larger than that, along x or y, keeps nothing. A candidate fits when
    its IoU with every box taken before it, in pixels of `a`, is below `max_iou`; when none of T does, the
    last is taken. `jitter` is the share of a box by which boxes of `b` alone are moved and scaled, drawn
    from `jitter_noise`. Boxes are clipped to their view.
    """
    area = work_area(a, b)
    work = DRAWN_BY[generator](noise.to(area.size.dtype), area.size, min_size=min_size)  # (B, R, T, 4)
    source = area.to_source(work.flatten(1, 2)).view_as(work)
    choice = first_apart(a, source, max_iou)[..., None, None].expand(-1, -1, 1, 4)
    boxes = source.gather(2, choice)[:, :, 0]  # (B, R, 4)
    in_b = b.place(boxes)
    if jitter:
        assert jitter_noise is not None, "jittered boxes need draws of their own"
        in_b = jittered(in_b, jitter_noise.to(in_b.dtype), amount=jitter)
    keep = (area.size > min_size).all(-1, keepdim=True).expand(-1, boxes.shape[1])
    in_a, in_b = clip(a.place(boxes), a.width, a.height), clip(in_b, b.width, b.height)
    return matched(a, b, in_a, in_b, keep)


def random_in_view(
    view: View,
    noise: Float[Tensor, "B R T 8"],
    *,
    min_size: int,
    generator: Generator = "grid",
    max_iou: float | None = 0.5,
) -> Boxes:
    """R random boxes an image anywhere in one view, drawn and kept apart as `random_in_overlap` does; view pixels."""
    size = view.whole()[2:].expand(len(view.crop), 2)
    boxes = DRAWN_BY[generator](noise.to(size.dtype), size, min_size=min_size)  # (B, R, T, 4)
    source = view.locate(boxes.flatten(1, 2)).view_as(boxes)
    choice = first_apart(view, source, max_iou)[..., None, None].expand(-1, -1, 1, 4)
    return boxes.gather(2, choice)[:, :, 0]


def grid_boxes(
    noise: Float[Tensor, "B R T 8"], size: Float[Tensor, "B 2"], *, min_size: int
) -> Float[Tensor, "B R T 4"]:
    """SCRL's code: split each axis in up to size // min_size cells, pick one, draw side and place inside it.

    `noise` holds, in pairs for x and y: number of cells, cell, side, place. Work pixels, all whole numbers.
    """
    size = size[:, None, None]
    cells_u, cell_u, side_u, place_u = noise.split(2, dim=-1)
    cells = 1 + _integer(cells_u, (size / min_size).floor())
    cell = _integer(cell_u, cells)
    room = (size / cells).floor()
    side = min_size + _integer(side_u, room - min_size + 1)
    corner = (cell * size / cells).floor() + _integer(place_u, room - side + 1)
    return torch.cat([corner, corner + side], dim=-1)


def uniform_boxes(
    noise: Float[Tensor, "B R T 8"], size: Float[Tensor, "B 2"], *, min_size: int
) -> Float[Tensor, "B R T 4"]:
    """SCRL's equation 1: side from min_size to size - 1, then place from 0 to size - side - 1.

    Reads the last four numbers of `noise`: side and place, in pairs for x and y. Work pixels, whole numbers.
    """
    size = size[:, None, None]
    side_u, place_u = noise[..., 4:].split(2, dim=-1)
    side = min_size + _integer(side_u, size - min_size)
    corner = _integer(place_u, size - side)
    return torch.cat([corner, corner + side], dim=-1)


DRAWN_BY = {"grid": grid_boxes, "uniform": uniform_boxes}


def first_apart(a: View, candidates: Float[Tensor, "B R T 4"], max_iou: float | None) -> Int[Tensor, "B R"]:
    """Which try each box takes: the first whose IoU with the boxes taken before stays below `max_iou`.

    The last try when none does; the first when `max_iou` is none. Candidates are in source pixels. Taken
    boxes are clipped to `a` before they are compared, candidates are not, as in the official code.
    """
    boxes, tries = candidates.shape[1:3]
    if max_iou is None:
        return candidates.new_zeros(candidates.shape[:2], dtype=torch.long)
    seen = a.place(candidates.flatten(1, 2)).view_as(candidates)
    choices = [torch.zeros_like(a.flip, dtype=torch.long)]
    taken = clip(seen[:, :1, 0], a.width, a.height)  # (B, r, 4)
    for r in range(1, boxes):
        fits = iou(seen[:, r], taken).amax(-1) < max_iou  # (B, T)
        first = torch.where(fits.any(-1), fits.int().argmax(-1), tries - 1)
        box = seen[:, r].gather(1, first[:, None, None].expand(-1, 1, 4))
        choices.append(first)
        taken = torch.cat([taken, clip(box, a.width, a.height)], dim=1)
    return torch.stack(choices, dim=1)


def _integer(noise: Float[Tensor, "*batch 2"], count: Float[Tensor, "*count 2"]) -> Float[Tensor, "*batch 2"]:
    """Uniform numbers in [0, 1) to integers in [0, count); 0 where count < 1, which only padding meets."""
    return (noise * count).floor().minimum(count - 1).clamp(min=0)
