"""What detectors learn from beside boxes: annotations of a source image, in the pixels that the detector sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from boxwise.data.densepose import BODY_SIDE, DENSE, DENSE_SIDE
from boxwise.data.outlines import rasterise, unpacked
from boxwise.data.targets import Category
from boxwise.transfer.detectors.base import Kind

CENTRE = 0.5
"""COCO's keypoints name whole pixels, whose middle this is."""
SIDES = ("left", "right")
"""What a mirror exchanges in names of keypoints."""


@dataclass(frozen=True, slots=True)
class Frame:
    """How a picture was resized, and then mirrored or not."""

    source: tuple[int, int]
    """Height and width of the decoded picture."""
    size: tuple[int, int]
    """Height and width that it was resized to."""
    flip: bool = False
    window: tuple[int, int, int, int] | None = None
    """Top, left, height and width of what was cut out once it was resized, before the mirror; none: all of it."""

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width that the detector sees."""
        return self.size if self.window is None else self.window[2:]

    def points(self, xy: Float[Tensor, "*n 2"]) -> Float[Tensor, "*n 2"]:
        """Points of the source in the detector's pixels; with a window, some lie outside."""
        (height, width), (tall, wide) = self.source, self.size
        x, y = (xy * xy.new_tensor([wide / width, tall / height])).unbind(-1)
        if self.window is not None:
            x, y = x - self.window[1], y - self.window[0]
        return torch.stack([self.shape[1] - x if self.flip else x, y], dim=-1)

    def cut(self, pixels: UInt8[Tensor, "*c H W"]) -> UInt8[Tensor, "*c _h _w"]:
        """What the detector sees of pixels that were resized."""
        if self.window is not None:
            top, left, height, width = self.window
            pixels = pixels[..., top : top + height, left : left + width]
        return pixels.flip(-1) if self.flip else pixels

    def boxes(self, boxes: Float[Tensor, "N 4"]) -> Float[Tensor, "N 4"]:
        """Boxes of the source in the detector's pixels, inside the picture."""
        x, y = self.points(boxes.view(-1, 2, 2)).unbind(-1)
        x, y = x.sort(dim=1).values.clamp(0, self.shape[1]), y.clamp(0, self.shape[0])
        return torch.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], dim=1)


def learned(
    kinds: Sequence[Kind], annotated: Mapping[str, Sequence[Any]], frame: Frame, *, keypoints: Sequence[str]
) -> dict[str, Tensor]:
    """By torchvision's names, what a detector of `kinds` is to find, one row an annotation.

    `annotated` holds COCO's fields, one value an annotation; `keypoints` are their names in order.
    """
    found: dict[str, Tensor] = {}
    if "segm" in kinds:
        found["masks"] = masks(annotated["segmentation"], frame)
    if "keypoints" in kinds:
        found["keypoints"] = marks(annotated["keypoints"], frame, keypoints)
    if "densepose" in kinds:
        found |= surfaces(annotated[DENSE], annotated["bbox"], frame)
    return found


def masks(outlines: Sequence[Any], frame: Frame) -> UInt8[Tensor, "N h w"]:
    """Polygons and RLE as pixels; nothing where an annotation has no outline."""
    rows = np.zeros((len(outlines), *frame.shape), dtype=np.uint8)
    whole = frame.window is None
    for row, outline in zip(rows, outlines, strict=True):
        if outline:
            drawn = rasterise(outline, source=frame.source, size=frame.size, flip=frame.flip and whole)
            row[:] = drawn if whole else frame.cut(drawn)
    return torch.from_numpy(rows)


def pixel_classes(classes: UInt8[Tensor, "H W"], frame: Frame) -> UInt8[Tensor, "h w"]:
    """The class of each pixel of the source as the detector sees it: that of the nearest one."""
    resized = F.interpolate(classes[None, None], frame.size, mode="nearest-exact")[0, 0]
    return frame.cut(resized)


def marks(values: Sequence[Any], frame: Frame, names: Sequence[str]) -> Float[Tensor, "N K 3"]:
    """x, y and visibility (0: not labelled, 1: hidden, 2: seen); left and right change places in a mirror."""
    rows = [value or [0.0] * 3 * len(names) for value in values]
    found = torch.tensor(rows, dtype=torch.float32).view(len(rows), len(names), 3)
    shown = found[..., 2:] > 0
    placed = torch.cat([frame.points(found[..., :2] + CENTRE), found[..., 2:]], dim=-1) * shown
    return placed[:, mirrored(names)] if frame.flip else placed


def mirrored(names: Sequence[str]) -> list[int]:
    """Places of the keypoints once left and right have changed."""
    twin: dict[str, str] = {}
    for a, b in (SIDES, SIDES[::-1]):
        twin |= {name: name.replace(a, b, 1) for name in names if name.startswith(a)}
    place = {name: i for i, name in enumerate(names)}
    return [place.get(twin.get(name, name), i) for i, name in enumerate(names)]


def surfaces(values: Sequence[Any], boxes: Sequence[Sequence[float]], frame: Frame) -> dict[str, Tensor]:
    """DensePose's points and coarse parts, in pictures that are not mirrored.

    "dp_points" (p, 6): row of the annotation, x, y, part, u and v of each point of all of them. "dp_boxes" (N, 4):
    what its squares are stretched over, empty where nothing is annotated. "dp_body" (N, 256, 256): coarse parts.
    """
    assert not frame.flip, "a mirror needs tables of the surface"
    points, frames = [torch.zeros(0, 6)], torch.zeros(len(values), 4)
    body = torch.zeros((len(values), BODY_SIDE, BODY_SIDE), dtype=torch.uint8)
    for row, (value, (x, y, width, height)) in enumerate(zip(values, boxes, strict=True)):
        if not value:
            continue
        corners = frame.points(torch.tensor([[x, y], [x + width, y + height]], dtype=torch.float32))
        frames[row] = corners.flatten()
        listed = torch.tensor([value.get(f"dp_{name}") or [] for name in "xyIUV"], dtype=torch.float32).T
        placed = corners[0] + listed[:, :2] / DENSE_SIDE * (corners[1] - corners[0])
        points.append(torch.cat([torch.full((len(listed), 1), float(row)), placed, listed[:, 2:]], dim=1))
        for part, mask in enumerate(value.get("dp_masks") or [], start=1):
            if mask:
                body[row][torch.from_numpy(unpacked(mask)) > 0] = part
    return {"dp_points": torch.cat(points), "dp_boxes": frames, "dp_body": body}


def keypoint_names(categories: Sequence[Category]) -> tuple[str, ...]:
    """Of the first category that has keypoints."""
    return next((c.keypoints for c in categories if c.keypoints), ())
