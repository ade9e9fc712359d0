"""What a detector found, as COCO writes it: in pixels of the source image, boxes as xywh, masks as RLE."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

from boxwise.data.coco import Category
from boxwise.data.densepose import PARTS
from boxwise.data.outlines import rle
from boxwise.transfer.annotations import CENTRE
from boxwise.transfer.detectors.base import Targets
from boxwise.transfer.metrics.densepose import packed
from boxwise.transfer.samples import DetectionBatch

Result = dict[str, Any]
"""image_id, category_id, bbox, score; with masks segmentation, with keypoints keypoints, with surfaces uv_shape and
uv_data."""
KEPT = ("densepose",)
"""Too large to be fetched as it is: it stays on its device until each box has its pixels."""
INSIDE = 0.5
"""Probability from which on a pixel is of the thing."""


def results(
    found: Targets,
    batch: DetectionBatch,
    *,
    images: Sequence[int],
    categories: Sequence[Category],
    sure: float | None = None,
) -> Iterator[Result]:
    """Detections of a batch, image after image, with a score of at least `sure`; all of them, unless told.

    `images` are the ids of the batch's images. What was found comes from the device in one copy for each kind:
    boxes with scores and labels, masks, keypoints.
    """
    for i, one in enumerate(_fetched(found)):
        one |= {name: found[i][name] for name in KEPT if name in found[i]}
        if sure is not None:
            keep = one["rows"][:, 4] >= sure
            one = {name: rows[keep.to(rows.device)] for name, rows in one.items()}
        part = one["rows"]
        (height, width), (tall, wide) = batch.sources[i], batch.sizes[i]
        scale = part.new_tensor([width / wide, height / tall])
        boxes = torch.minimum(
            (part[:, :4] * scale.repeat(2)).clamp(min=0), part.new_tensor([width, height] * 2)
        )
        more = _masks(one, boxes, (height, width)) | _keypoints(one, scale)
        boxes[:, 2:] -= boxes[:, :2]
        more |= _surfaces(one, boxes)
        listed = zip(boxes.tolist(), part[:, 4].tolist(), part[:, 5].tolist(), strict=True)
        for k, (box, score, label) in enumerate(listed):
            category = categories[int(label) - 1].id
            known = {name: values[k] for name, values in more.items()}
            yield {"image_id": images[i], "category_id": category, "bbox": box, "score": score, **known}


def _fetched(found: Targets) -> Iterator[dict[str, Tensor]]:
    """Of each image, on the host: "rows" of box, score and label in float64, and what else was found of each."""
    counts = [len(one["scores"]) for one in found]
    rows = torch.cat([torch.cat([f["boxes"], f["scores"][:, None], f["labels"][:, None]], 1) for f in found])
    kinds = {"rows": rows.cpu().double()}
    for name in ("masks", "keypoints"):
        if name in found[0]:
            kinds[name] = torch.cat([one[name] for one in found]).cpu()
    split = {name: whole.split(counts) for name, whole in kinds.items()}
    yield from ({name: parts[i] for name, parts in split.items()} for i in range(len(found)))


def _masks(found: dict[str, Tensor], boxes: Tensor, size: tuple[int, int]) -> dict[str, Sequence[Any]]:
    """Probabilities of small squares, stretched over their boxes in the source image and cut at a half."""
    if "masks" not in found:
        return {}
    squares = zip(found["masks"].float(), boxes.float(), strict=True)
    # One at a time: stretched, they are large.
    wholes = (paste_masks_in_image(square[None], box[None], size)[0, 0] > INSIDE for square, box in squares)
    return {"segmentation": [rle(whole.numpy()) for whole in wholes]}


def _keypoints(found: dict[str, Tensor], scale: Tensor) -> dict[str, Sequence[Any]]:
    """x, y and 1 of each, named by the pixel that holds it."""
    if "keypoints" not in found:
        return {}
    marks = found["keypoints"].double()
    marks[..., :2] = marks[..., :2] * scale - CENTRE
    return {"keypoints": marks.flatten(1).tolist()}


def _surfaces(found: dict[str, Tensor], boxes: Tensor) -> dict[str, Sequence[Any]]:
    """Part, u and v of each pixel of each box (xywh), as DensePose's results hold them."""
    if "densepose" not in found:
        return {}
    held = [
        packed(surface_of(maps, (max(int(height), 1), max(int(width), 1))).cpu().numpy())
        for maps, (_, _, width, height) in zip(found["densepose"], boxes.tolist(), strict=True)
    ]
    return {name: [one[name] for one in held] for name in ("uv_shape", "uv_data")}


def surface_of(maps: Float[Tensor, "K S S"], size: tuple[int, int]) -> UInt8[Tensor, "3 _h _w"]:
    """Part (0 where there is no body), and u and v in 255ths, once the maps are stretched over a box."""
    charts = PARTS + 1
    whole = F.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]
    body, part, u, v = whole.split([len(maps) - 3 * charts, charts, charts, charts])
    label = part.argmax(0) * (body.argmax(0) > 0)
    places = torch.stack([chart.gather(0, label[None])[0] for chart in (u, v)]).clamp(0, 1)
    held = torch.where(label > 0, (255 * places), 0.0)
    return torch.cat([label[None], held.long()]).to(torch.uint8)
