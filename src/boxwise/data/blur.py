"""Three blurs that pretraining papers use, in place on pixels in [0, 1], every image with its own strength.

`gauss23_` (BYOL, SCRL's paper) is a filter on floats. `pil_` (MoCo, InsLoc, SoCo, ReSim) and `resize_`
(SCRL's code) are the image library's, which rounds to whole grey levels after every pass; so do these.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from boxwise.shapes import Image

GAUSS_REACH = 11
"""Taps on either side of the centre of `gauss23_`."""
SHRINKS = (1.1, 1.2, 1.5)
"""What `resize_` divides the size by: one of these, drawn evenly."""
PART = 2**12
"""The image library's box weights count 2**24ths; they are used as two halves of 12 bits."""
TILE = 32
"""Rows of a banded matrix multiplied at a time on a CPU: the fastest of 16, 32, 56 and 112 at 224 px."""
Strength = Float[Tensor, " B"]
Weights = Float[Tensor, "B K 1 1 1"]
Operator = Float[Tensor, "B S S"]


def gauss23_(image: Image, sigma: Strength) -> None:
    """A Gaussian of 23 taps, mirrored at the edges without repeating the edge pixel.

    `sigma` in pixels, on the host. Each side must be longer than 11 pixels. One matrix product along rows and
    one along columns, for all images at once.
    """
    taps = torch.arange(-GAUSS_REACH, GAUSS_REACH + 1) / sigma[:, None]
    weight = torch.softmax(-0.5 * taps**2, dim=1).to(image.device, non_blocking=True)
    down, across = (_mirroring(weight, side) for side in image.shape[-2:])
    rows = torch.empty_like(image)
    for tile, near in _tiles(across):
        rows.flatten(1, 2)[..., tile] = image.flatten(1, 2)[..., near] @ across[:, tile, near].mT
    for tile, near in _tiles(down):
        image[:, :, tile] = down[:, None, tile, near] @ rows[:, :, near]


def pil_(image: Image, sigma: Strength) -> None:
    """The image library's GaussianBlur(radius=sigma): three box blurs with fractional ends, edges repeated.

    `sigma` in pixels, on the host. Pixels are rounded to whole levels first; on those it equals the library,
    bit for bit up to sigma 7.
    """
    weight = _box_weights(sigma)[..., None, None, None]
    coarse, fine = (w.float().to(image.device, non_blocking=True) for w in (weight // PART, weight % PART))
    levels = (image * 255).add_(0.5).floor_()
    for dim in (3, 3, 3, 2, 2, 2):
        levels = _box(levels, coarse, fine, dim)
    torch.div(levels, 255, out=image)


def resize_(image: Image, shrink: float) -> None:
    """Bicubic down to floor(side / shrink) and back up, as the image library does it."""
    height, width = image.shape[-2:]
    h, w = math.floor(height / shrink), math.floor(width / shrink)
    levels = image * 255
    for size in ((height, w), (h, w), (h, width), (height, width)):  # along rows, then along columns
        levels = F.interpolate(levels, size=size, mode="bicubic", antialias=True, align_corners=False)
        levels = levels.add_(0.5).floor_().clamp_(0, 255)
    torch.div(levels, 255, out=image)


def _box_weights(sigma: Strength) -> Int[Tensor, "B K"]:
    """Weights of the distances 0, 1, ... in parts of 2**24, in the library's own mixture of arithmetics.

    Its float32 matters: for sigma .5, 1 or 2 many sums lie half-way between two levels.
    """
    variance = sigma.float() ** 2 / 3  # of one box
    half = (((12 * variance.double() + 1).sqrt().float() - 1) / 2).floor()
    part = (2 * half + 1) * (half * (half + 1) - 3 * variance) / (6 * (variance - (half + 1) ** 2))
    inner = (2**24 / (2 * (half + part) + 1)).long()
    outer = (2**24 - (2 * half.long() + 1) * inner) // 2
    away = torch.arange(int(half.max()) + 2) - half[:, None]
    return inner[:, None] * (away <= 0) + outer[:, None] * (away == 1)


def _box(levels: Image, coarse: Weights, fine: Weights, dim: int) -> Image:
    """One pass along `dim`, rounded to whole levels.

    A sum of levels times 24-bit weights does not fit a float32; its upper and lower 12 bits apart do.
    """
    side, reach = levels.shape[dim], coarse.shape[1] - 1
    wide = F.pad(levels, (reach, reach, 0, 0) if dim == 3 else (0, 0, reach, reach), mode="replicate")
    upper, lower = levels * coarse[:, 0], levels * fine[:, 0]
    for k in range(1, reach + 1):
        pair = wide.narrow(dim, reach - k, side) + wide.narrow(dim, reach + k, side)
        upper.addcmul_(pair, coarse[:, k])
        lower.addcmul_(pair, fine[:, k])
    carried = lower.mul_(1 / PART).floor_()
    return upper.add_(carried).add_(PART / 2).mul_(1 / PART).floor_()


def _mirroring(weight: Float[Tensor, "B K"], side: int) -> Operator:
    """The matrix that filters a line of `side` pixels with a symmetric kernel of 2 * GAUSS_REACH + 1 taps."""
    reach = GAUSS_REACH
    # Row i of a Toeplitz matrix is a window of the padded kernel that moves one step a row.
    wide = F.pad(weight, (side - 1, side - 1)).unfold(1, side + 2 * reach, 1).flip(1)
    left, inside, right = wide.split([reach, side, reach], dim=2)
    inside[..., 1 : reach + 1] += left.flip(2)
    inside[..., side - 1 - reach : side - 1] += right.flip(2)
    return inside


def _tiles(operator: Operator) -> Iterator[tuple[slice, slice]]:
    """Rows to compute, and the columns where they can differ from 0. A GPU takes the matrix whole."""
    side = operator.shape[-1]
    step = TILE if operator.device.type == "cpu" else side
    for start in range(0, side, step):
        stop = min(start + step, side)
        yield slice(start, stop), slice(max(0, start - GAUSS_REACH), min(side, stop + GAUSS_REACH))
