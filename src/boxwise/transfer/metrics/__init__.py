"""What detections are measured by: the metrics of COCO, VOC, LVIS and Cityscapes under one name each."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from boxwise.transfer.metrics.cityscapes import (
    CITYSCAPES_FIGURES,
    cityscapes_figures,
    cityscapes_over_iou,
)
from boxwise.transfer.metrics.coco import (
    FIGURES,
    IOUS,
    Kind,
    Result,
    by_category,
    coco_figures,
    judged,
    over_iou,
)
from boxwise.transfer.metrics.lvis import LVIS_FIGURES, lvis_figures, lvis_judged
from boxwise.transfer.metrics.semantic import Confusion, class_ious, mean_iou, semantic_figures
from boxwise.transfer.metrics.voc import VOC_FIGURES, Points, voc_aps, voc_figures

Metric = Literal["coco", "voc", "voc07", "lvis", "cityscapes"]
"""Whose rules: `voc` takes the area under the curve, `voc07` its eleven points, as for VOC 2007's test images."""

MEASURED: Mapping[Metric, Mapping[Kind, tuple[str, ...]]] = {
    "coco": FIGURES,
    "voc": {"bbox": VOC_FIGURES},
    "voc07": {"bbox": VOC_FIGURES},
    "lvis": LVIS_FIGURES,
    "cityscapes": {"bbox": FIGURES["bbox"], "segm": CITYSCAPES_FIGURES},
}
"""The figures that each metric gives of what it can compare, in order. Cityscapes has no rules for boxes: COCO's."""

BOXES: tuple[Kind, ...] = ("bbox",)

_POINTS: Mapping[str, Points] = {"voc": "area", "voc07": "eleven"}

__all__ = [
    "FIGURES",
    "MEASURED",
    "Confusion",
    "Kind",
    "Metric",
    "Result",
    "by_category",
    "check_kinds",
    "class_ious",
    "coco_figures",
    "curves",
    "figures",
    "mean_iou",
    "semantic_figures",
]


def check_kinds(metric: Metric, kinds: Collection[Kind]) -> None:
    """Raises ValueError for a kind that the metric does not compare: to be called before hours of training."""
    for kind in kinds:
        if kind not in MEASURED[metric]:
            raise ValueError(
                f"{metric} measures {' and '.join(MEASURED[metric])}, not {kind}: take another metric"
            )


def figures(
    metric: Metric,
    truth: Mapping[str, Any],
    results: Sequence[Result],
    *,
    kinds: Collection[Kind] = BOXES,
) -> dict[str, float]:
    """Figures in 0..100 by name, boxes first; -1 where there is nothing to measure.

    `truth` is COCO json as a dict, and both arguments stay as they are. Masks' figures are named mask_..., those
    of keypoints kp_... . Raises ValueError for a kind that the metric does not compare.
    """
    check_kinds(metric, kinds)
    found: dict[str, float] = {}
    for kind in MEASURED[metric]:
        if kind in kinds:
            found |= _figures(metric, truth, results, kind)
    return found


def curves(
    truth: Mapping[str, Any], results: Sequence[Result], kind: Kind = "bbox", *, metric: Metric = "coco"
) -> dict[str, list[float]]:
    """AP in 0..100 at each of the ten thresholds of IoU, as parallel lists `iou` and `AP`; -1: nothing to measure."""
    check_kinds(metric, (kind,))
    if metric in _POINTS:
        aps = list(voc_aps(truth, results, points=_POINTS[metric]).values())
        found = [100 * float(ap) for ap in np.mean(aps, axis=0)] if aps else [-1.0] * len(IOUS)
    elif metric == "lvis":
        found = over_iou(lvis_judged(truth, results, kind))
    elif metric == "cityscapes" and kind == "segm":
        found = cityscapes_over_iou(truth, results)
    else:
        found = over_iou(judged(truth, results, kind))
    return {"iou": list(IOUS), "AP": found}


def _figures(
    metric: Metric, truth: Mapping[str, Any], results: Sequence[Result], kind: Kind
) -> dict[str, float]:
    if metric in _POINTS:
        return voc_figures(truth, results, points=_POINTS[metric])
    if metric == "lvis":
        return lvis_figures(truth, results, kind)
    if metric == "cityscapes" and kind == "segm":
        return cityscapes_figures(truth, results)
    return coco_figures(truth, results, kind)
