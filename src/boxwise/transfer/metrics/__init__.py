"""What detections are measured by: the metrics of COCO, VOC, LVIS and Cityscapes under one name each."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from boxwise.transfer.metrics.coco import FIGURES, Kind, Result, by_category, coco_figures, curves

Metric = Literal["coco", "voc", "voc07", "lvis", "cityscapes"]
"""Whose rules: `voc` takes the area under the curve, `voc07` its eleven points."""

BOXES: tuple[Kind, ...] = ("bbox",)

__all__ = ["FIGURES", "Kind", "Metric", "Result", "by_category", "coco_figures", "curves", "figures"]


def figures(
    metric: Metric,
    truth: Mapping[str, Any],
    results: Sequence[Result],
    *,
    kinds: Collection[Kind] = BOXES,
) -> dict[str, float]:
    """Figures in 0..100 by name, boxes first; -1 where there is nothing to measure.

    `truth` is COCO json as a dict, and both arguments stay as they are. Masks' figures are named mask_..., those
    of keypoints kp_... .
    """
    if metric != "coco":
        raise ValueError(f"no metric is called {metric!r}: take coco")
    found: dict[str, float] = {}
    for kind in FIGURES:  # in the order of FIGURES, however they are asked for
        if kind in kinds:
            found |= coco_figures(truth, results, kind)
    return found
