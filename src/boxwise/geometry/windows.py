"""A fixed grid of windows on one view, and where another view shows the same content: ReSim's regions."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from boxwise.geometry.regions import Regions
from boxwise.geometry.views import View
from boxwise.shapes import Boxes


def lattice(like: Tensor, *, window: int, stride: int, width: int, height: int) -> Float[Tensor, "R 4"]:
    """Square windows from (0, 0) on, row by row, whose right and bottom edges stay short of the view's.

    In the dtype of `like`, and where it is.
    """
    starts = [
        torch.arange(_fit(side, window, stride), dtype=like.dtype, device=like.device) * stride
        for side in (height, width)
    ]
    top, left = torch.meshgrid(*starts, indexing="ij")
    corner = torch.stack([left.flatten(), top.flatten()], dim=-1)
    return torch.cat([corner, corner + window], dim=-1)


def _fit(side: int, window: int, stride: int) -> int:
    return max(0, -(-(side - window) // stride))


def carried(a: View, b: View, boxes: Boxes) -> Boxes:
    """Pixels of `a` to pixels of `b`, in one division, so that whole numbers lose nothing before it.

    `b.place(a.locate(boxes))` is the same up to rounding; here an edge that falls on a view's border falls on it
    exactly, also in float32.
    """
    straight = torch.where(a.flip[:, None, None], a.mirror(boxes), boxes)
    left, right = _along(straight[..., 0::2], a.crop[:, 0::2], b.crop[:, 0::2], a.width, b.width)
    top, bottom = _along(straight[..., 1::2], a.crop[:, 1::2], b.crop[:, 1::2], a.height, b.height)
    moved = torch.stack([left, top, right, bottom], dim=-1)
    return torch.where(b.flip[:, None, None], b.mirror(moved), moved)


def _along(
    edges: Float[Tensor, "B R 2"],
    here: Float[Tensor, "B 2"],
    there: Float[Tensor, "B 2"],
    seen: int,
    side: int,
) -> tuple[Tensor, Tensor]:
    """Edges along one axis; `here` and `there` are where each view's crop starts and ends in the source."""
    size_here, size_there = ((crop[:, 1] - crop[:, 0])[:, None, None] for crop in (here, there))
    apart = (here[:, 0] - there[:, 0])[:, None, None]
    first, last = ((apart * side + edges * size_here * (side / seen)) / size_there).unbind(-1)
    return first, last


def windows(a: View, b: View, *, window: int, stride: int) -> Regions:
    """ReSim: every window of the grid on `a`, kept where `b` shows all of it.

    The left and top edges may lie on the border of `b`, the right and bottom edges may not. No window is
    clipped, and none is too large or too small. Instead of those that are not kept, `b` gives its first pixel.
    """
    grid = lattice(a.crop, window=window, stride=stride, width=a.width, height=a.height)
    in_a = grid.expand(len(a.crop), *grid.shape)
    in_b = carried(a, b, in_a)
    left, top, right, bottom = in_b.unbind(-1)
    keep = (left >= 0) & (top >= 0) & (right < b.width) & (bottom < b.height)
    pixel = torch.zeros_like(in_b)
    pixel[..., 2:].fill_(1)
    return Regions(in_a, torch.where(keep[..., None], in_b, pixel), keep.flatten())
