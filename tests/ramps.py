"""Views that show their own source coordinates."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import roi_align

from boxwise.geometry.views import View


def ramp_view(crop: Tensor, flip: Tensor, size: int = 96, objects: Tensor | None = None) -> View:
    """A view whose red and green channels hold each pixel's own source x and y."""
    left, top, right, bottom = crop.T[..., None]
    step = (torch.arange(size, dtype=crop.dtype) + 0.5) / size
    x, y = left + step * (right - left), top + step * (bottom - top)
    x = torch.where(flip[:, None], x.flip(-1), x)
    red, green = x[:, None, :].expand(-1, size, -1), y[:, :, None].expand(-1, -1, size)
    return View(torch.stack([red, green, torch.zeros_like(red)], dim=1), crop, flip, objects)


def shown(view: View, boxes: Tensor) -> Tensor:
    """Mean source (x, y) inside each box, read from the pixels: (B, R, 2)."""
    pooled = roi_align(view.image, list(boxes), 1, aligned=True, sampling_ratio=16)
    return pooled[:, :2, 0, 0].unflatten(0, boxes.shape[:2])
