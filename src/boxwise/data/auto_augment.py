"""AutoAugment's rules for ImageNet (Cubuk et al., CVPR 2019), drawn by the numbers of a view."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import UInt8
from torch import Tensor
from torchvision.transforms.v2 import functional as F

Step = tuple[str, float, int]
"""An operation, how likely it is, and its strength from 0 to 9; 0 too where it has none."""

RULES: tuple[tuple[Step, Step], ...] = (
    (("posterize", 0.4, 8), ("rotate", 0.6, 9)),
    (("solarize", 0.6, 5), ("autocontrast", 0.6, 0)),
    (("equalize", 0.8, 0), ("equalize", 0.6, 0)),
    (("posterize", 0.6, 7), ("posterize", 0.6, 6)),
    (("equalize", 0.4, 0), ("solarize", 0.2, 4)),
    (("equalize", 0.4, 0), ("rotate", 0.8, 8)),
    (("solarize", 0.6, 3), ("equalize", 0.6, 0)),
    (("posterize", 0.8, 5), ("equalize", 1.0, 0)),
    (("rotate", 0.2, 3), ("solarize", 0.6, 8)),
    (("equalize", 0.6, 0), ("posterize", 0.4, 6)),
    (("rotate", 0.8, 8), ("color", 0.4, 0)),
    (("rotate", 0.4, 9), ("equalize", 0.6, 0)),
    (("equalize", 0.0, 0), ("equalize", 0.8, 0)),
    (("invert", 0.6, 0), ("equalize", 1.0, 0)),
    (("color", 0.6, 4), ("contrast", 1.0, 8)),
    (("rotate", 0.8, 8), ("color", 1.0, 2)),
    (("color", 0.8, 8), ("solarize", 0.8, 7)),
    (("sharpness", 0.4, 7), ("invert", 0.6, 0)),
    (("shear", 0.6, 5), ("equalize", 1.0, 0)),
    (("color", 0.4, 0), ("equalize", 0.6, 0)),
    (("equalize", 0.4, 0), ("solarize", 0.2, 4)),
    (("solarize", 0.6, 5), ("autocontrast", 0.6, 0)),
    (("invert", 0.6, 0), ("equalize", 1.0, 0)),
    (("color", 0.6, 4), ("contrast", 1.0, 8)),
    (("equalize", 0.8, 0), ("equalize", 0.6, 0)),
)
"""25 rules, some of them twice, as published: each is two steps."""
STRENGTHS = 10
NUMBERS = 5
"""Uniform numbers that one picture takes: which rule, and for both steps whether it is done and to which side."""


def auto_augmented(picture: UInt8[Tensor, "3 H W"], rng: np.random.Generator) -> UInt8[Tensor, "3 H W"]:
    """`picture` after one rule; what a turn or a shear brings in is black."""
    which, *noise = rng.random(NUMBERS)
    for i, (name, share, strength) in enumerate(RULES[int(which * len(RULES))]):
        if noise[2 * i] < share:
            picture = changed(picture, name, strength, sign=-1 if noise[2 * i + 1] < 0.5 else 1)
    return picture


def changed(
    picture: UInt8[Tensor, "3 H W"], name: str, strength: int, *, sign: int
) -> UInt8[Tensor, "3 H W"]:
    """One operation; `sign` decides between left and right, and between more and less."""
    amount = strength / (STRENGTHS - 1)
    match name:
        case "shear":
            degrees = math.degrees(math.atan(sign * 0.3 * amount))
            done = F.affine(picture, 0.0, [0, 0], 1.0, [degrees, 0.0], fill=[0.0] * 3, center=[0, 0])
        case "rotate":
            done = F.rotate(picture, sign * 30 * amount, fill=[0.0] * 3)
        case "color":
            done = F.adjust_saturation(picture, 1 + sign * 0.9 * amount)
        case "contrast":
            done = F.adjust_contrast(picture, 1 + sign * 0.9 * amount)
        case "sharpness":
            done = F.adjust_sharpness(picture, 1 + sign * 0.9 * amount)
        case "posterize":
            done = F.posterize(picture, 8 - round(4 * amount))
        case "solarize":
            done = F.solarize(picture, 255 * (1 - amount))
        case "autocontrast":
            done = F.autocontrast(picture)
        case "equalize":
            done = F.equalize(picture)
        case "invert":
            done = F.invert(picture)
        case _:
            raise AssertionError(f"no operation {name}")
    return done
