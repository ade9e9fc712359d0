"""How a camera held its sensor (EXIF tag 0x0112), undone for pixels, points and boxes by one table.

"Stored" is the frame of the file, "upright" the frame in which the picture is looked at.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

UPRIGHT = {
    1: (False, False, False),
    2: (False, True, False),
    3: (False, True, True),
    4: (False, False, True),
    5: (True, False, False),
    6: (True, True, False),
    7: (True, True, True),
    8: (True, False, True),
}
"""Orientation to (swap x and y, then mirror left-right, then mirror top-bottom)."""


def upright_size(width: int, height: int, orientation: int) -> tuple[int, int]:
    """Width and height of the upright picture of a stored one."""
    return (height, width) if UPRIGHT[orientation][0] else (width, height)


def upright_pixels(stored: UInt8[Tensor, "h w 3"], orientation: int) -> UInt8[Tensor, "H W 3"]:
    """The upright picture, contiguous; `stored` itself where nothing is to be done."""
    swap, mirror_x, mirror_y = UPRIGHT[orientation]
    turned = stored.transpose(0, 1) if swap else stored
    mirrored = [dim for dim, mirror in ((1, mirror_x), (0, mirror_y)) if mirror]
    return (torch.flip(turned, mirrored) if mirrored else turned).contiguous()


def upright_points(
    points: Float[np.ndarray, "*n 2"], orientation: int, *, width: int, height: int
) -> Float[np.ndarray, "*n 2"]:
    """x and y of points of a stored picture of `width` by `height`, in the upright one."""
    swap, mirror_x, mirror_y = UPRIGHT[orientation]
    width, height = upright_size(width, height, orientation)
    x, y = (points[..., 1], points[..., 0]) if swap else (points[..., 0], points[..., 1])
    return np.stack([width - x if mirror_x else x, height - y if mirror_y else y], axis=-1)


def upright_boxes(
    boxes: Float[np.ndarray, "*n 4"], orientation: int, *, width: int, height: int
) -> Float[np.ndarray, "*n 4"]:
    """xyxy boxes of a stored picture of `width` by `height`, in the upright one."""
    first = upright_points(boxes[..., :2], orientation, width=width, height=height)
    second = upright_points(boxes[..., 2:], orientation, width=width, height=height)
    return np.concatenate([np.minimum(first, second), np.maximum(first, second)], axis=-1)


def upright_mask(stored: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """A mask (h, w) of a stored picture, upright."""
    swap, mirror_x, mirror_y = UPRIGHT[orientation]
    turned = stored.T if swap else stored
    return np.ascontiguousarray(turned[:: -1 if mirror_y else 1, :: -1 if mirror_x else 1])
