"""What a detector finds on labelled images."""

from __future__ import annotations

from typing import Literal

import torch
from torch.utils.data import DataLoader

from boxwise.config import settings
from boxwise.data.targets import Labelled
from boxwise.transfer.detectors.base import Detector, DetectorConfig
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
    listed: list[Result] = []
    try:
        for batch in loader:
            with (
                torch.no_grad(),
                torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"),
            ):
                found = module.detect(batch.to(device))
            listed += results(found, batch, labelled)
    finally:
        model.train(was_training)
    return listed


def metric_of(measure: Measure, labelled: Labelled) -> Metric:
    """The rules that figures of `labelled` follow."""
    if measure.metric != "auto":
        return measure.metric
    return {"lvis": "lvis", "cityscapes": "cityscapes"}.get(labelled.format, "coco")  # type: ignore[return-value]
