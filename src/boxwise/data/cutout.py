"""Squares cut out of a view's boxes, on the device and after normalisation, so that they show the mean colour."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from boxwise.config import Share, Span, settings
from boxwise.geometry.views import View

HOLES = 4
"""Uniform numbers that the hole of one box is made of."""


@settings
class Cutout:
    """A square cut out of some of a view's boxes. SoCo's code has it in some of its runs, its paper does not."""

    share: Share = 0.0
    """Share of the boxes that lose a square; 0: none."""
    area: Span = (0.1, 0.3)
    """Smallest and largest square, as a share of the area of its box; its centre lies anywhere in the box."""


def cut_out(view: View, noise: Float[Tensor, "B N 4"], cutout: Cutout) -> View:
    """`view` with its holes: `noise` says of each box whether, how large, and where along x and y."""
    if not cutout.share:
        return view
    assert view.objects is not None, "holes lie in known boxes"
    corner, end = view.place(view.objects).split(2, dim=-1)
    drawn, area, place = noise.split([1, 1, 2], dim=-1)
    size = (end - corner).clamp(min=0)
    share = cutout.area[0] + area * (cutout.area[1] - cutout.area[0])
    half = (share * size.prod(-1, keepdim=True)).sqrt() / 2 * (drawn < cutout.share)
    centre = corner + place * size
    low, high = centre - half, centre + half  # (B, N, 2)
    across, down = (torch.arange(n, device=noise.device) + 0.5 for n in (view.width, view.height))
    hole = torch.zeros_like(view.image[:, 0], dtype=torch.bool)  # (B, H, W)
    for n in range(noise.shape[1]):
        x, y = (
            (pixels >= low[:, n, i, None]) & (pixels < high[:, n, i, None])
            for i, pixels in enumerate((across, down))
        )
        hole |= y[:, :, None] & x[:, None, :]
    return replace(view, image=view.image.masked_fill(hole[:, None], 0))
