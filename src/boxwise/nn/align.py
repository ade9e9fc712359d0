"""RoIAlign (He et al., Mask R-CNN, ICCV 2017) with torchvision's numbers, in the faster of two ways.

A box reads its bins as means of bilinear samples on a grid of rows and columns, so that what it reads is two small
matrix products, weights of rows @ map @ weights of columns. On small maps a CPU does these faster than it gathers
samples and scatters their gradients, and adds those up in a fixed order. On large maps, where a box sees but a small
part, and on other devices torchvision's kernel is used.
"""

from __future__ import annotations

from functools import partial

import torch
import torchvision.ops
from jaxtyping import Float
from torch import Tensor

from boxwise.shapes import Rows

MOST_CELLS = 64 * 64
"""Of a map that is read by matrix products."""


def roi_align(
    features: Float[Tensor, "B C h w"],
    boxes: Rows,
    size: int,
    *,
    scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Float[Tensor, "M C {size} {size}"]:
    """Each of `boxes`, pixels with the image's index in front, in `size` x `size` bins of a map of stride 1 / `scale`.

    `sampling_ratio` points a side are averaged in each bin (0: as many as the bin has cells); `aligned` puts the
    centre of the first cell at half a cell. No gradient reaches the boxes. Half precision is read as float32.
    """
    exact = torch.promote_types(features.dtype, torch.float32)
    boxes = boxes.detach().to(exact)
    if features.device.type != "cpu" or features[0, 0].numel() > MOST_CELLS:
        features = features.to(exact, memory_format=torch.contiguous_format)  # one copy, not two
        return torchvision.ops.roi_align(
            features, boxes, size, spatial_scale=scale, sampling_ratio=sampling_ratio, aligned=aligned
        )
    with torch.autocast("cpu", enabled=False):
        maps = features.to(exact).permute(0, 2, 3, 1)  # (B, h, w, C)
        image = boxes[:, 0].long()
        order = image.argsort(stable=True)
        x0, y0, x1, y1 = (boxes[order, 1:] * scale).unbind(1)
        weights = partial(_weights, bins=size, points=sampling_ratio, aligned=aligned)
        down, across = weights(y0, y1, cells=maps.shape[1]), weights(x0, x1, cells=maps.shape[2])
        counts = image.bincount(minlength=len(maps)).tolist()
        crops = [
            wx[:, None] @ (wy.flatten(0, 1) @ x.flatten(1)).view(*wy.shape[:2], *x.shape[1:])  # (m, y, x, C)
            for x, wy, wx in zip(maps, down.split(counts), across.split(counts), strict=True)
        ]
        return torch.cat(crops)[order.argsort()].permute(0, 3, 1, 2)


@torch.no_grad()
def _weights(
    start: Float[Tensor, " M"], end: Float[Tensor, " M"], *, bins: int, points: int, aligned: bool, cells: int
) -> Float[Tensor, "M {bins} {cells}"]:
    """What each cell of a line weighs in the mean of each bin between `start` and `end`, in cells.

    Points up to one cell beyond the line read its nearest cell, and those further out nothing.
    """
    start, length = start - aligned / 2, end - start
    if not aligned:
        length = length.clamp(min=1)
    each = length / bins
    count = torch.full_like(length, points) if points else each.ceil()
    most = max(1, int(count.max())) if len(count) else 1
    step, place = (torch.arange(n, dtype=start.dtype) for n in (most, bins))
    inside = step < count[:, None]  # (M, S)
    first = start[:, None] + place * each[:, None]  # (M, bins)
    within = (step + 0.5) * each[:, None] / count.clamp(min=1)[:, None]  # rounded as in torchvision
    at = first[..., None] + within[:, None]  # (M, bins, S)
    counts = inside[:, None] & (at >= -1) & (at <= cells)
    share = counts / count.clamp(min=1)[:, None, None]
    at = at.clamp(0, cells - 1)
    low = at.floor()
    above = at - low
    weights = start.new_zeros(len(start), bins, cells)
    weights.scatter_add_(2, low.long(), (1 - above) * share)
    return weights.scatter_add_(2, (low.long() + 1).clamp(max=cells - 1), above * share)
