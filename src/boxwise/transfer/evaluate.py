"""What a detector finds on labelled images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import torch
from torch.utils.data import DataLoader

from boxwise.config import settings
from boxwise.data.targets import Labelled
from boxwise.transfer.detectors.base import Detector, DetectorConfig, Targets
from boxwise.transfer.metrics import Metric
from boxwise.transfer.results import Result, results
from boxwise.transfer.samples import DetectionBatch, TestSamples, collate
from boxwise.transfer.task import Detection


@settings
class Measure:
    """How a detector is measured."""

    metric: Literal["auto", "coco", "voc", "voc07", "lvis", "cityscapes"] = "auto"
    """Whose rules: voc takes the area under the curve, voc07 its eleven points; auto: LVIS's and Cityscapes' own
    on such data, else COCO's."""
    precise_bn: int = 0
    """Batches of training images that BatchNorm's statistics are measured on anew before."""


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
    loader: DataLoader[DetectionBatch] = DataLoader(
        TestSamples(labelled, config),  # type: ignore[arg-type]
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=torch.device(device).type == "cuda",
    )
    listed: list[Result] = []
    for found, batch in detections(model, loader, device=device, precision=precision):
        images = [labelled.image_id(index) for index in batch.index]
        listed += results(found, batch, images=images, categories=labelled.categories)
    return listed


def detections(
    model: Detector,
    batches: Iterable[DetectionBatch],
    *,
    device: torch.device | str = "cpu",
    precision: Literal["fp32", "bf16"] = "fp32",
) -> Iterator[tuple[Targets, DetectionBatch]]:
    """What is found in each batch, on the device and in the batch's pixels, beside the batch.

    Leaves the model on `device`, and in the mode it was in.
    """
    device = torch.device(device)
    was_training = model.training
    module = Detection(model).to(device).eval()
    try:
        for batch in batches:
            with (
                torch.no_grad(),
                torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"),
            ):
                found = module.detect(batch.to(device))
            yield found, batch
    finally:
        model.train(was_training)


def metric_of(measure: Measure, labelled: Labelled) -> Metric:
    """The rules that figures of `labelled` follow."""
    if measure.metric != "auto":
        return measure.metric
    return {"lvis": "lvis", "cityscapes": "cityscapes"}.get(labelled.format, "coco")  # type: ignore[return-value]
