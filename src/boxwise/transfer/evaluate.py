"""What a detector finds on labelled images."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from boxwise.config import settings
from boxwise.data.loader import Each
from boxwise.data.one_pass import OnePass
from boxwise.data.targets import Labelled
from boxwise.data.workers import Ahead, default_workers
from boxwise.engine.device import dtype_of
from boxwise.transfer.detectors.base import Detector, DetectorConfig, Targets
from boxwise.transfer.metrics import Confusion, Metric, check_truth, figures, semantic_figures
from boxwise.transfer.metrics.densepose import check_surfaces, densepose_figures
from boxwise.transfer.metrics.geodesics import load_geodesics
from boxwise.transfer.readable import check_readable
from boxwise.transfer.results import Result, results
from boxwise.transfer.samples import DetectionBatch, TestSamples, collate
from boxwise.transfer.task import Detection

SHOWN = 6
"""Images whose classes of pixels are kept, to be drawn."""
BOXES_ALONE = (
    "surfaces were found and not measured: GPS and GPSm need --geodesics FILE, distances along the body"
)


@settings
class Measure:
    """How a detector is measured."""

    metric: Literal["auto", "coco", "voc", "voc07", "lvis", "cityscapes"] = "auto"
    """Whose rules: voc takes the area under the curve, voc07 its eleven points; auto: LVIS's and Cityscapes' own
    on such data, else COCO's."""
    precise_bn: int = 0
    """Batches of training images that BatchNorm's statistics are measured on anew before."""
    geodesics: str | None = None
    """The .npz of distances along the body's surface that DensePose's figures need; none: boxes alone are measured."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What a detector was found to be worth, and what it found."""

    figures: dict[str, float]
    """In 0..100; -1: nothing to measure."""
    results: list[Result]
    """Detections; none from a detector that tells pixels apart."""
    pixels: tuple[UInt8[Tensor, "_h _w"], ...] = ()
    """Of the first images, the class found of each pixel, where a detector tells pixels apart."""


def measurable(labelled: Labelled, *, config: DetectorConfig, measure: Measure) -> None:
    """Raises ValueError for all that could keep `measured` from its figures, however good the detector: to be called
    before hours of training."""
    if "semantic" in config.kinds():
        _check_outlines(labelled)
    else:
        judge_of(labelled, config=config, measure=measure)


def measured(
    model: Detector,
    labelled: Labelled,
    *,
    config: DetectorConfig,
    measure: Measure,
    batch_size: int = 8,
    device: torch.device | str = "cpu",
    precision: Literal["fp32", "bf16"] = "fp32",
    workers: int | None = 0,
) -> Measured:
    """What `predict` finds on `labelled`, by the rules of `measure`: mean IoU of pixels for a detector that tells
    those apart, else the figures of what it finds. `workers` processes decode ahead; none: as many as help.

    Raises what `measurable` raises before anything is looked for.
    """
    if "semantic" in config.kinds():
        _check_outlines(labelled)
        batches = _batches(labelled, config, batch_size, device, workers)
        return _by_pixel(labelled, detections(model, batches, device=device, precision=precision))
    judge = judge_of(labelled, config=config, measure=measure)
    found = predict(
        model,
        labelled,
        config=config,
        batch_size=batch_size,
        device=device,
        precision=precision,
        workers=workers,
    )
    return Measured(judge(found), found)


def judge_of(
    labelled: Labelled, *, config: DetectorConfig, measure: Measure
) -> Callable[[Sequence[Result]], dict[str, float]]:
    """What gives detections on `labelled` their figures. All that it needs is read, and checked, here."""
    check_readable(labelled)
    truth, metric, kinds = labelled.coco(), metric_of(measure, labelled), config.measured()
    check_truth(metric, truth, kinds)
    mesh = None
    if "densepose" in config.kinds():
        if measure.geodesics is None:
            warnings.warn(BOXES_ALONE, stacklevel=3)
        else:
            mesh = load_geodesics(Path(measure.geodesics))
            check_surfaces(truth)

    def judge(found: Sequence[Result]) -> dict[str, float]:
        known = figures(metric, truth, found, kinds=kinds)
        return known if mesh is None else known | densepose_figures(truth, found, mesh)

    return judge


def predict(
    model: Detector,
    labelled: Labelled,
    *,
    config: DetectorConfig,
    batch_size: int = 8,
    device: torch.device | str = "cpu",
    precision: Literal["fp32", "bf16"] = "fp32",
    workers: int | None = 0,
) -> list[Result]:
    """Detections on every image of `labelled`, image after image, the surest first.

    Leaves the model on `device`, and in the mode it was in. Images of one batch are padded to one size, which
    moves their detections a little: compare figures at one `batch_size`. Raises BadImage at an image that cannot
    be read.
    """
    batches = _batches(labelled, config, batch_size, device, workers)
    listed: list[Result] = []
    for found, batch in detections(model, batches, device=device, precision=precision):
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


def precision_of(asked: str, device: torch.device) -> Literal["fp32", "bf16"]:
    """What a detector is run in after it was trained in `asked`: bfloat16 where training used it, else float32."""
    return "bf16" if dtype_of(asked, device) == torch.bfloat16 else "fp32"


def pixel_classes_in(scores: Float[Tensor, "K h w"], source: tuple[int, int]) -> UInt8[Tensor, "_H _W"]:
    """The best class of each pixel of a source picture of height and width `source`."""
    if scores.shape[1:] != source:
        scores = F.interpolate(scores[None], source, mode="bilinear", align_corners=False)[0]
    return scores.argmax(0).to(torch.uint8)


def _by_pixel(labelled: Labelled, found: Iterable[tuple[Targets, DetectionBatch]]) -> Measured:
    """Pixels of all images counted in one table, at the size of their sources."""
    names = labelled.semantic_names
    confusion: Confusion | None = None
    shown: list[Tensor] = []
    for maps, batch in found:
        for one, index, source in zip(maps, batch.index, batch.sources, strict=True):
            classes = pixel_classes_in(one["semantic"], source)
            confusion = confusion or Confusion(len(names), classes.device)
            confusion.add(labelled.semantic(index).to(classes.device), classes)
            if len(shown) < SHOWN:
                shown.append(classes.cpu())
    assert confusion is not None, "a labelled set holds images"
    counts = confusion.counts()
    known = int(counts.sum())
    found_figures = semantic_figures(confusion, names)
    accuracy = 100 * int(counts.diagonal().sum()) / known if known else -1.0
    ordered = {"mIoU": found_figures["mIoU"], "accuracy": accuracy, **found_figures}
    return Measured(ordered, [], tuple(shown))


def _check_outlines(labelled: Labelled) -> None:
    """Raises ValueError where classes of pixels are neither stated nor drawn, or cannot be read."""
    check_readable(labelled)
    outlines = labelled.table.extras.get("segmentation", ())
    if labelled.format != "cityscapes" and all(text == "null" for text in outlines):
        raise ValueError(
            f"{labelled.table.file}: none of its annotations has an outline: classes of pixels cannot be measured"
        )


def _batches(
    labelled: Labelled,
    config: DetectorConfig,
    batch_size: int,
    device: torch.device | str,
    workers: int | None,
) -> Iterable[DetectionBatch]:
    """Every image once, in its order."""
    samples, on_gpu = TestSamples(labelled, config), torch.device(device).type == "cuda"
    return Ahead(
        Each(samples.sample, collate),
        OnePass(len(samples), batch_size),
        workers=default_workers(on_gpu) if workers is None else workers,
        pin=on_gpu,
    )


def metric_of(measure: Measure, labelled: Labelled) -> Metric:
    """The rules that figures of `labelled` follow."""
    if measure.metric != "auto":
        return measure.metric
    return {"lvis": "lvis", "cityscapes": "cityscapes"}.get(labelled.format, "coco")  # type: ignore[return-value]
