"""Precise RoI pooling: the exact mean of a bilinear surface inside a box (Jiang et al., ECCV 2018), in plain torch.

Pixel j of a map lies at coordinate j, without half-pixel shift, and everything outside the map is 0, so that the
surface falls to 0 within one cell beyond the border. With hat(t) = max(0, 1 - |t|):

    for i, j in cells:
        out += F[i, j] * integral of hat(y - i) over [y0, y1] * integral of hat(x - j) over [x0, x1]
    out /= (x1 - x0) * (y1 - y0)

The integrals have a closed form, so nothing is sampled, and features and box coordinates both get exact gradients.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from boxwise.nn.pools import BoxesAt, Crops, Map, Pool, Pyramid, boxes_at
from boxwise.shapes import Boxes


class PrecisePool(Pool):
    """Each box as the exact mean of one level: (B*R, C, 1, 1). ReSim."""

    def __init__(self, level: str) -> None:
        super().__init__()
        self.level = level

    def forward(self, pyramid: Pyramid, boxes: BoxesAt, width: int, height: int | None = None) -> Crops:
        return precise(pyramid[self.level], boxes_at(self.level, boxes), (width, height or width))


def precise(features: Map, boxes: Boxes, view: tuple[int, int]) -> Crops:
    """The mean of `features` in each of `boxes`, pixels of a view of (width, height); 0 in a box without area.

    One small matrix product spreads a box's two rows of weights over the map, a second sums the map by them.
    Maps of half precision are read as float32, whatever autocast says.
    """
    given = features.dtype
    exact = torch.promote_types(given, torch.float32)
    height, width = features.shape[-2:]
    with torch.autocast(features.device.type, enabled=False):
        left, top, right, bottom = boxes.to(exact).unbind(-1)
        x, y = width / view[0], height / view[1]
        across, down = _weights(left * x, right * x, width), _weights(top * y, bottom * y, height)
        weights = (down[..., :, None] * across[..., None, :]).flatten(2)  # (B, R, h*w)
        means = weights @ features.to(exact).flatten(2).transpose(1, 2)  # (B, R, C)
    return means.flatten(0, 1)[..., None, None].to(given)


def _weights(
    start: Float[Tensor, "B R"], end: Float[Tensor, "B R"], cells: int
) -> Float[Tensor, "B R {cells}"]:
    """What part of [start, end] each cell answers for; 0 where the end does not pass the start."""
    places = torch.arange(cells, device=start.device, dtype=start.dtype)
    length = (end - start)[..., None]
    some = length > 0
    share = (_integral(end[..., None] - places) - _integral(start[..., None] - places)) / torch.where(
        some, length, 1
    )
    return torch.where(some, share, 0)


def _integral(u: Float[Tensor, "B R cells"]) -> Float[Tensor, "B R cells"]:
    """The integral of the hat function from minus infinity to u, from 0 at -1 to 1 at 1."""
    u = u.clamp(-1, 1)
    return 0.5 + u - u * u.abs() / 2
