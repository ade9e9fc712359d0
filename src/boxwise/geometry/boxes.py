"""Arithmetic of xyxy boxes."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from boxwise.shapes import Boxes, Rows


def area(boxes: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch"]:
    """Square pixels; 0 for a box whose right or bottom edge does not pass its left or top."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)


def iou(a: Float[Tensor, "*batch M 4"], b: Float[Tensor, "*batch N 4"]) -> Float[Tensor, "*batch M N"]:
    """Intersection over union of every box of `a` with every box of `b`; 0 where both are empty."""
    low = torch.maximum(a[..., :, None, :2], b[..., None, :, :2])
    high = torch.minimum(a[..., :, None, 2:], b[..., None, :, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    union = area(a)[..., :, None] + area(b)[..., None, :] - shared
    return torch.where(union > 0, shared / union, 0)


def clip(boxes: Float[Tensor, "*batch 4"], width: float, height: float) -> Float[Tensor, "*batch 4"]:
    """The part inside a frame that starts at (0, 0); a box outside becomes an empty one on the edge."""
    left, top, right, bottom = boxes.unbind(-1)
    x, y = (left.clamp(0, width), right.clamp(0, width)), (top.clamp(0, height), bottom.clamp(0, height))
    return torch.stack([x[0], y[0], x[1], y[1]], dim=-1)


def jitter(
    boxes: Float[Tensor, "*batch 4"], noise: Float[Tensor, "*batch 4"], *, amount: float
) -> Float[Tensor, "*batch 4"]:
    """Moves each corner by up to `amount` of the box and scales each side by 1 - `amount` to 1 + `amount`.

    `noise` is uniform in [0, 1): for left and top the move, for width and height the scale. SCRL, appendix.
    """
    size = boxes[..., 2:] - boxes[..., :2]
    swing = amount * (2 * noise - 1)
    corner = boxes[..., :2] + swing[..., :2] * size
    return torch.cat([corner, corner + size * (1 + swing[..., 2:])], dim=-1)


def rows(boxes: Boxes) -> Rows:
    """(B*R, 5), image by image: the image's index in front of its box."""
    index = torch.arange(len(boxes), device=boxes.device, dtype=boxes.dtype)
    return torch.cat([index[:, None, None].expand(-1, boxes.shape[1], 1), boxes], dim=-1).flatten(0, 1)
