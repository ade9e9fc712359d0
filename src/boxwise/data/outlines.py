"""Outlines as COCO writes them, polygons and run lengths, to masks of the size that is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

Outline = Sequence[Sequence[float]] | dict[str, Any]
"""COCO's segmentation: polygons of x, y, x, y ..., or run lengths with their size, packed or not."""
CORNERS = 6
"""Numbers that the least polygon has: three points."""


def rasterise(
    segmentation: Outline | None, *, source: tuple[int, int], size: tuple[int, int], flip: bool = False
) -> UInt8[Tensor, "h w"]:
    """1 inside the outline, 0 elsewhere, in a picture of `source` (height, width) that was resized to `size`.

    Polygons are scaled and then filled, so that their edges stay sharp. Of run lengths, the pixels are averaged,
    and are inside from a half on. With `flip` the resized picture was mirrored left-right. No outline, no pixel.
    """
    height, width = size
    if not segmentation:
        return torch.zeros(size, dtype=torch.uint8)
    if isinstance(segmentation, dict):
        return _resized(unpacked(segmentation), size, flip)
    scale = np.array([width / source[1], height / source[0]])
    polygons = []
    for polygon in segmentation:
        if len(polygon) >= CORNERS:
            points = np.asarray(polygon, dtype=np.float64).reshape(-1, 2) * scale
            if flip:
                points[:, 0] = width - points[:, 0]
            polygons.append(points.ravel().tolist())
    return torch.from_numpy(_filled(polygons, height, width))


def rle(mask: NDArray[np.bool_] | NDArray[np.uint8]) -> dict[str, Any]:
    """A mask (h, w) as COCO's packed run lengths, which fit into a json."""
    from faster_coco_eval.core import mask as masks  # slow to import, and seldom needed

    packed = masks.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in mask.shape], "counts": packed["counts"].decode("ascii")}


def packed(runs: dict[str, Any]) -> dict[str, Any]:
    """Plain run lengths as COCO's packed ones."""
    from faster_coco_eval.core import mask as masks

    found = masks.frPyObjects(runs, *runs["size"])
    return {"size": runs["size"], "counts": found["counts"].decode("ascii")}


def _filled(polygons: list[list[float]], height: int, width: int) -> NDArray[np.uint8]:
    from faster_coco_eval.core import mask as masks

    if not polygons:
        return np.zeros((height, width), dtype=np.uint8)
    merged = masks.merge(masks.frPyObjects(polygons, height, width))
    return np.ascontiguousarray(masks.decode(merged), dtype=np.uint8)


def unpacked(runs: dict[str, Any]) -> NDArray[np.uint8]:
    """The mask (h, w) that run lengths, packed or not, stand for."""
    from faster_coco_eval.core import mask as masks

    height, width = runs["size"]
    packed = masks.frPyObjects(runs, height, width) if isinstance(runs["counts"], list) else runs
    return np.ascontiguousarray(masks.decode(packed), dtype=np.uint8)


def _resized(mask: NDArray[np.uint8], size: tuple[int, int], flip: bool) -> UInt8[Tensor, "h w"]:
    found = torch.from_numpy(mask)
    if found.shape != size:
        share = F.interpolate(found[None, None].float(), size, mode="area")[0, 0]
        found = (share >= 0.5).to(torch.uint8)
    return found.flip(1) if flip else found
