"""What a detector found, as COCO writes it: in pixels of the source image, boxes as xywh, masks as RLE."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

from boxwise.data.targets import Labelled
from boxwise.transfer.annotations import CENTRE
from boxwise.transfer.detectors.base import Targets
from boxwise.transfer.samples import DetectionBatch

Result = dict[str, Any]
"""image_id, category_id, bbox, score; with masks segmentation, with keypoints keypoints."""
INSIDE = 0.5
"""Probability from which on a pixel is of the thing."""


def results(found: Targets, batch: DetectionBatch, labelled: Labelled) -> Iterator[Result]:
    """Detections of a batch, image after image; boxes, scores and labels in one copy from the device."""
    counts = [len(f["scores"]) for f in found]
    rows = torch.cat([torch.cat([f["boxes"], f["scores"][:, None], f["labels"][:, None]], 1) for f in found])
    for i, part in enumerate(rows.cpu().double().split(counts)):
        (height, width), (tall, wide) = batch.sources[i], batch.sizes[i]
        scale = part.new_tensor([width / wide, height / tall])
        boxes = torch.minimum(
            (part[:, :4] * scale.repeat(2)).clamp(min=0), part.new_tensor([width, height] * 2)
        )
        more = _masks(found[i], boxes, (height, width)) | _keypoints(found[i], scale)
        boxes[:, 2:] -= boxes[:, :2]
        image = labelled.image_id(batch.index[i])
        listed = zip(boxes.tolist(), part[:, 4].tolist(), part[:, 5].tolist(), strict=True)
        for k, (box, score, label) in enumerate(listed):
            category = labelled.categories[int(label) - 1].id
            known = {name: values[k] for name, values in more.items()}
            yield {"image_id": image, "category_id": category, "bbox": box, "score": score, **known}


def _masks(found: dict[str, Tensor], boxes: Tensor, size: tuple[int, int]) -> dict[str, Sequence[Any]]:
    """Probabilities of small squares, stretched over their boxes in the source image and cut at a half."""
    if "masks" not in found:
        return {}
    from faster_coco_eval.core import mask as coder  # slow to import

    rles = []
    for square, box in zip(
        found["masks"].cpu().float(), boxes.float(), strict=True
    ):  # one at a time: they are large
        whole = paste_masks_in_image(square[None], box[None], size)[0, 0] > INSIDE
        rle = coder.encode(np.asfortranarray(whole.numpy().astype(np.uint8)))
        rles.append({"size": [*size], "counts": rle["counts"].decode("ascii")})
    return {"segmentation": rles}


def _keypoints(found: dict[str, Tensor], scale: Tensor) -> dict[str, Sequence[Any]]:
    """x, y and 1 of each, named by the pixel that holds it."""
    if "keypoints" not in found:
        return {}
    marks = found["keypoints"].cpu().double()
    marks[..., :2] = marks[..., :2] * scale - CENTRE
    return {"keypoints": marks.flatten(1).tolist()}
