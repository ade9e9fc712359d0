"""What detections are measured by: the metrics of COCO, VOC, LVIS and Cityscapes under one name each."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from boxwise.transfer.metrics.cityscapes import (
    check_void,
    cityscapes_figures,
    cityscapes_over_iou,
)
from boxwise.transfer.metrics.coco import (
    FIGURES,
    IOUS,
    Kind,
    Result,
    by_category,
    check_objects,
    coco_figures,
    judged,
    over_iou,
)
from boxwise.transfer.metrics.lvis import LVIS_FIGURES, check_federated, lvis_figures, lvis_judged
from boxwise.transfer.metrics.semantic import Confusion, class_ious, mean_iou, semantic_figures
from boxwise.transfer.metrics.voc import Points, voc_figures, voc_over_iou

Metric = Literal["coco", "voc", "voc07", "lvis", "cityscapes"]
"""Whose rules: `voc` takes the area under the curve, `voc07` its eleven points, as for VOC 2007's test images."""

Truth = Mapping[str, Any]
"""COCO json as a dict."""


@dataclass(frozen=True, slots=True)
class Rules:
    """How one metric measures one kind."""

    figures: Callable[[Truth, Sequence[Result]], dict[str, float]]
    over_iou: Callable[[Truth, Sequence[Result]], list[float]]
    """AP in 0..100 at each of IOUS; -1: nothing to measure."""
    check: Callable[[Truth], None]
    """Raises ValueError for what the truth lacks."""


def _coco(kind: Kind) -> Rules:
    return Rules(
        partial(coco_figures, kind=kind),
        lambda truth, results: over_iou(judged(truth, results, kind)),
        partial(check_objects, kind=kind),
    )


def _voc(points: Points) -> Rules:
    return Rules(
        partial(voc_figures, points=points),
        partial(voc_over_iou, points=points),
        partial(check_objects, kind="bbox"),
    )


def _lvis(kind: Kind) -> Rules:
    return Rules(
        partial(lvis_figures, kind=kind),
        lambda truth, results: over_iou(lvis_judged(truth, results, kind)),
        partial(check_federated, kind=kind),
    )


RULES: Mapping[Metric, Mapping[Kind, Rules]] = {
    "coco": {kind: _coco(kind) for kind in FIGURES},
    "voc": {"bbox": _voc("area")},
    "voc07": {"bbox": _voc("eleven")},
    "lvis": {kind: _lvis(kind) for kind in LVIS_FIGURES},
    "cityscapes": {"bbox": _coco("bbox"), "segm": Rules(cityscapes_figures, cityscapes_over_iou, check_void)},
}
"""What each metric can compare, in the order of its figures. Cityscapes has no rules for boxes: COCO's."""

BOXES: tuple[Kind, ...] = ("bbox",)

__all__ = [
    "FIGURES",
    "Confusion",
    "Kind",
    "Metric",
    "Result",
    "by_category",
    "check_truth",
    "class_ious",
    "coco_figures",
    "curves",
    "figures",
    "mean_iou",
    "semantic_figures",
]


def check_truth(metric: Metric, truth: Truth, kinds: Collection[Kind]) -> None:
    """Raises ValueError for a kind that the metric does not compare, and for what the truth lacks to be compared
    with: to be called before hours of training."""
    for kind in kinds:
        _rules(metric, kind).check(truth)


def figures(
    metric: Metric, truth: Truth, results: Sequence[Result], *, kinds: Collection[Kind] = BOXES
) -> dict[str, float]:
    """Figures in 0..100 by name, boxes first; -1 where there is nothing to measure.

    Both arguments stay as they are. Masks' figures are named mask_..., those of keypoints kp_... . Raises ValueError
    as `check_truth` does.
    """
    found: dict[str, float] = {}
    for kind in sorted(kinds, key=[*FIGURES].index):
        found |= _rules(metric, kind).figures(truth, results)
    return found


def curves(
    truth: Truth, results: Sequence[Result], kind: Kind = "bbox", *, metric: Metric = "coco"
) -> dict[str, list[float]]:
    """AP in 0..100 at each of the ten thresholds of IoU, as parallel lists `iou` and `AP`; -1: nothing to measure."""
    return {"iou": list(IOUS), "AP": _rules(metric, kind).over_iou(truth, results)}


def _rules(metric: Metric, kind: Kind) -> Rules:
    rules = RULES[metric]
    if kind not in rules:
        raise ValueError(f"{metric} measures {' and '.join(rules)}, not {kind}: take another metric")
    return rules[kind]
