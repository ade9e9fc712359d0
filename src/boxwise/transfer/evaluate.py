"""What a detector finds on labelled images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from boxwise.data.targets import Labelled
from boxwise.transfer.detectors.base import Detector, DetectorConfig
from boxwise.transfer.samples import DetectionBatch, TestSamples, collate
from boxwise.transfer.task import Detection

Result = dict[str, Any]
"""A detection as COCO writes it: image_id, category_id, bbox as xywh in source pixels, score."""


def predict(
    model: Detector,
    labelled: Labelled,
    *,
    config: DetectorConfig,
    batch_size: int = 8,
    device: torch.device | str = "cpu",
    precision: Literal["fp32", "bf16"] = "fp32",
    workers: int = 0,
) -> list[Result]:
    """Detections on every image of `labelled`, image after image, the surest first.

    Leaves the model on `device`, and in the mode it was in. Images of one batch are padded to one size, which
    moves their detections a little: compare figures at one `batch_size`. Raises BadImage at an image that cannot
    be read.
    """
    device = torch.device(device)
    was_training = model.training
    module = Detection(model).to(device).eval()
    loader: DataLoader[DetectionBatch] = DataLoader(
        TestSamples(labelled, config),  # type: ignore[arg-type]
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=device.type == "cuda",
    )
    results: list[Result] = []
    try:
        for batch in loader:
            with (
                torch.no_grad(),
                torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"),
            ):
                found = module.detect(batch.to(device))
            results += _results(found, batch, labelled)
    finally:
        model.train(was_training)
    return results


def _results(
    found: Sequence[Mapping[str, Tensor]], batch: DetectionBatch, labelled: Labelled
) -> Iterator[Result]:
    """Detections of a batch in COCO's format; one copy from the device."""
    counts = [len(f["scores"]) for f in found]
    rows = torch.cat([torch.cat([f["boxes"], f["scores"][:, None], f["labels"][:, None]], 1) for f in found])
    for i, part in enumerate(rows.cpu().double().split(counts)):
        (height, width), (tall, wide) = batch.sources[i], batch.sizes[i]
        scale = part.new_tensor([width / wide, height / tall]).repeat(2)
        limit = part.new_tensor([width, height]).repeat(2)
        boxes = torch.minimum((part[:, :4] * scale).clamp(min=0), limit)
        boxes[:, 2:] -= boxes[:, :2]
        image = labelled.image_id(batch.index[i])
        for box, score, label in zip(boxes.tolist(), part[:, 4].tolist(), part[:, 5].tolist(), strict=True):
            category = labelled.categories[int(label) - 1].id
            yield {"image_id": image, "category_id": category, "bbox": box, "score": score}
