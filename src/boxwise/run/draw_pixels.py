"""Classes of pixels, true and found, one picture above the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor
from torchvision.transforms.v2 import functional as T

from boxwise.data.targets import Labelled
from boxwise.run.draw import GAP, SHEET_SIDE, framed, overlaid

BACKGROUND = "background"
"""What painting outlines leaves."""


def pixels_sheet(labelled: Labelled, found: Sequence[UInt8[Tensor, "_H _W"]]) -> UInt8[Tensor, "3 _h _w"]:
    """The first images, as many as `found` tells of: truth above, what was found below, each class in its colour."""
    names = labelled.semantic_names
    columns = []
    for i, classes in enumerate(found):
        pixels, _ = labelled.read(i)
        scale = min(1.0, SHEET_SIDE / max(pixels.shape[1:]))
        size = [max(1, round(side * scale)) for side in pixels.shape[1:]]
        small = T.resize(pixels, size, antialias=True)
        pair = [
            overlaid(
                small,
                F.interpolate(one[None, None], size, mode="nearest-exact")[0, 0],
                count=len(names),
                background=background(names),
            )
            for one in (labelled.semantic(i), classes)
        ]
        columns.append(torch.cat([framed(p, size[0], size[1]) for p in pair], dim=1))
    height = max(c.shape[1] for c in columns)
    return torch.cat([framed(c, height - GAP, c.shape[2] - GAP) for c in columns], dim=2)


def background(names: Sequence[str]) -> int | None:
    """The class that is drawn as the picture itself, where there is one."""
    return 0 if names[0] == BACKGROUND else None
