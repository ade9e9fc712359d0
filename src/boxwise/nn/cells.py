"""The cells of a map as negatives for regions: ReSim's 3 x 3 means, and which of them a region touches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from boxwise.shapes import Boxes

KERNEL = 3
"""Cells a side of a mean."""


def means(key: Float[Tensor, "B C h w"]) -> Float[Tensor, "B N C"]:
    """The 3 x 3 means of a map, stride 1, without padding, row by row."""
    exact = torch.promote_types(key.dtype, torch.float32)
    return F.avg_pool2d(key.to(exact), KERNEL, stride=1).flatten(2).transpose(1, 2)


def touched(boxes: Boxes, cells: Sequence[int], view: tuple[int, int]) -> Bool[Tensor, "B R N"]:
    """Which of `means`' cells share an area with a box, each being 3 x 3 cells of a map of `cells` rows and columns."""
    along = []
    for axis in (0, 1):
        cell = view[axis] / cells[1 - axis]
        start = torch.arange(cells[1 - axis] - KERNEL + 1, device=boxes.device) * cell
        low, high = boxes[..., axis, None], boxes[..., axis + 2, None]
        along.append((start < high) & (start + KERNEL * cell > low))
    across, down = along
    return (down[..., :, None] & across[..., None, :]).flatten(2)


def own_only(overlap: Bool[Tensor, "B R N"], first: int, images: int) -> Bool[Tensor, "M K"]:
    """`overlap` among the cells of `images` images, of which the first of this batch is number `first`."""
    count = len(overlap)
    whose = torch.arange(images, device=overlap.device)
    own = whose[None] == first + torch.arange(count, device=overlap.device)[:, None]
    return (own[:, None, :, None] & overlap[:, :, None, :]).flatten(2).flatten(0, 1)
