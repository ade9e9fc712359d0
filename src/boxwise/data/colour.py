"""Colour operations on pixels in [0, 1], in place, every image with its own factor.

Semantics are those of torchvision's float operations (luma .2989 .587 .114, results clamped to [0, 1]); tests
hold each image to them. Factors have shape (N, 1, 1, 1).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from boxwise.shapes import Image

LUMA = (0.2989, 0.587, 0.114)
SOLARIZE_FROM = (128 - 1e-3) / 255
"""Grey level 128, less what a division by 255 may lose on one device and not on another."""
Factor = Float[Tensor, "B 1 1 1"]


def luma(image: Image) -> Float[Tensor, "B 1 H W"]:
    """The grey picture."""
    red, green, blue = image.split(1, dim=1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def brightness_(image: Image, factor: Factor) -> None:
    """Blends with black."""
    image.mul_(factor).clamp_(0, 1)


def contrast_(image: Image, factor: Factor, part: Float[Tensor, "B 1 H W"] | None = None) -> None:
    """Blends with the mean luma of the whole image, or of the pixels for which `part` is 1 and not 0."""
    grey = luma(image)
    if part is None:
        mean = grey.mean(dim=(1, 2, 3), keepdim=True)
    else:
        mean = (grey * part).sum((1, 2, 3), keepdim=True) / part.sum((1, 2, 3), keepdim=True)
    image.mul_(factor).add_((1 - factor) * mean).clamp_(0, 1)


def saturation_(image: Image, factor: Factor) -> None:
    """Blends every pixel with its own luma."""
    grey = luma(image).mul_(1 - factor)
    image.mul_(factor).add_(grey).clamp_(0, 1)


def hue_(image: Image, factor: Factor) -> None:
    """Turns every hue by `factor` parts of the circle, with HSV's value and saturation unchanged.

    No detour over HSV: with h the hue in sixths of the circle, V the largest colour and C the spread,
    a colour is V - C * clamp(2 - d, 0, 1), d being how far h is from its opposite (red 3, green 5, blue 1).
    """
    red, green, blue = image.unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    spread = torch.minimum(torch.minimum(red, green), blue).neg_().add_(value)
    inverse = spread.clamp(min=1e-12).reciprocal_()  # without colour the differences below are 0
    # Where two colours are largest both sixths agree, so the order of the two choices does not matter.
    hue = (red - green).mul_(inverse).add_(4)
    hue.lerp_((blue - red).mul_(inverse).add_(2), _equal(green, value))
    hue.lerp_((green - blue).mul_(inverse), _equal(red, value)).add_(factor[:, 0], alpha=6)
    for colour, opposite in ((red, 3), (green, 5), (blue, 1)):
        away = hue - opposite
        away.sub_(torch.round(away / 6), alpha=6).abs_()  # distance on a circle of length 6, at most 3
        colour.copy_(away.neg_().add_(2).clamp_(0, 1).mul_(spread).neg_().add_(value))


def gray_(image: Image) -> None:
    """Three times the luma."""
    image.copy_(luma(image).expand_as(image))


def solarize_(image: Image) -> None:
    """Inverts everything from grey level 128 up."""
    torch.where(image >= SOLARIZE_FROM, 1 - image, image, out=image)


def _equal(colour: Float[Tensor, "B H W"], value: Float[Tensor, "B H W"]) -> Float[Tensor, "B H W"]:
    """1 where a colour is the largest, else 0. In floats: a CPU selects ten times slower than it adds."""
    return (colour - value).mul_(1e30).add_(1).clamp_(min=0)
