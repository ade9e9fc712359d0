"""VOC's average precision at ten thresholds of overlap, as the five papers' evaluator computes it.

They report detectron2's figures on VOC 2007 test: AP is the mean over IoU .5:.05:.95 of VOC's own AP, which for 2007
is the mean precision at eleven recalls ("voc07"), for later years the area under the curve ("voc").

    for each category, for its detections, the surest first:
        best = the object of the category in that image that overlaps most, taken or not
        if overlap <= threshold:      wrong
        elif best is difficult:       neither right nor wrong
        elif best is taken already:   wrong
        else:                         right, and best is taken
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from boxwise.transfer.metrics.coco import IOUS, Result

Points = Literal["area", "eleven"]
"""How a curve becomes one number: the area below it made monotone, or its mean at the recalls 0, .1, ..., 1."""

VOC_FIGURES = ("AP", "AP50", "AP75")

SCORE_DIGITS, EDGE_DIGITS = 3, 1
"""That evaluator judges what it has printed: scores to 0.001, so that many are tied, and edges to 0.1 pixel."""

RECALLS = np.arange(0.0, 1.1, 0.1)
"""Some lie a rounding above n/10, so that a recall of 3 in 10 does not reach the fourth: kept as the papers had it."""


def voc_figures(truth: Mapping[str, Any], results: Sequence[Result], *, points: Points) -> dict[str, float]:
    """AP, AP50 and AP75 of boxes in 0..100, means over the categories that the truth has; -1 where it has none.

    Objects count as difficult by their key `difficult` (0 or 1), and so do crowds. Boxes are compared as VOC
    writes them, 1-based and with both edges inside. Ties of score go by the order of `results`.
    """
    found = np.array(list(voc_aps(truth, results, points=points).values()))  # category, threshold
    if not found.size:
        return dict.fromkeys(VOC_FIGURES, -1.0)
    at = 100 * found.mean(axis=0)
    return {"AP": float(at.mean()), "AP50": float(at[0]), "AP75": float(at[5])}


def voc_over_iou(truth: Mapping[str, Any], results: Sequence[Result], *, points: Points) -> list[float]:
    """AP in 0..100 at each of the ten thresholds; -1 throughout where the truth has no object."""
    aps = list(voc_aps(truth, results, points=points).values())
    return [100 * float(ap) for ap in np.mean(aps, axis=0)] if aps else [-1.0] * len(IOUS)


def voc_aps(truth: Mapping[str, Any], results: Sequence[Result], *, points: Points) -> dict[int, list[float]]:
    """AP in 0..1 at each of the ten thresholds, by id of category; categories without an object are left out."""
    objects: dict[tuple[int, int], list[Mapping[str, Any]]] = defaultdict(list)
    for annotation in truth["annotations"]:
        objects[annotation["category_id"], annotation["image_id"]].append(annotation)
    detections: dict[int, list[Result]] = defaultdict(list)
    for result in results:
        detections[result["category_id"]].append(result)
    aps: dict[int, list[float]] = {}
    for category in (c["id"] for c in truth["categories"]):
        here = {image: part for (c, image), part in objects.items() if c == category}
        if any(not _difficult(a) for part in here.values() for a in part):
            aps[category] = _category(here, detections[category], points)
    return aps


def _category(
    objects: Mapping[int, Sequence[Mapping[str, Any]]], results: Sequence[Result], points: Points
) -> list[float]:
    """Of the objects and detections of one category, the objects by image."""
    scores = np.array([round(r["score"], SCORE_DIGITS) for r in results])
    order = np.argsort(-scores, kind="stable")
    images = list(objects)
    starts = np.cumsum([0] + [len(objects[i]) for i in images])
    overlap, best = np.zeros(len(results)), np.full(len(results), -1)
    of_image: dict[int, list[int]] = defaultdict(list)
    for place, row in enumerate(order.tolist()):
        of_image[results[row]["image_id"]].append(place)
    for image, start in zip(images, starts[:-1].tolist(), strict=True):
        if places := of_image[image]:
            edges = _edges([results[order[p]]["bbox"] for p in places])
            printed = np.array([[round(e, EDGE_DIGITS) for e in box] for box in edges.tolist()])
            table = _overlaps(printed, _edges([a["bbox"] for a in objects[image]]))
            overlap[places], best[places] = table.max(axis=1), start + table.argmax(axis=1)
    difficult = np.array([_difficult(a) for i in images for a in objects[i]])
    return [_ap(*_verdicts(overlap > iou, best, difficult), int((~difficult).sum()), points) for iou in IOUS]


def _verdicts(hit: np.ndarray, best: np.ndarray, difficult: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which detections, the surest first, are right and which are wrong."""
    candidates = np.flatnonzero(hit)
    _, first = np.unique(best[candidates], return_index=True)
    right = np.zeros(len(hit), dtype=bool)
    right[candidates[first]] = True
    neither = np.zeros(len(hit), dtype=bool)
    neither[candidates] = difficult[best[candidates]]
    return right & ~neither, ~right & ~neither


def _ap(right: np.ndarray, wrong: np.ndarray, objects: int, points: Points) -> float:
    hits = np.cumsum(right)
    recall, precision = hits / objects, hits / np.maximum(hits + np.cumsum(wrong), 1)
    if points == "eleven":
        reached = [precision[recall >= r] for r in RECALLS]
        return float(sum(p.max() for p in reached if p.size) / len(RECALLS))
    return area(recall, precision)


def area(recall: np.ndarray, precision: np.ndarray) -> float:
    """Below a curve, its recalls rising, whose precision at each recall is the best at that one or above."""
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall, prepend=0.0) * envelope).sum())


def _difficult(annotation: Mapping[str, Any]) -> bool:
    return bool(annotation.get("difficult") or annotation.get("iscrowd"))


def _edges(boxes: Sequence[Sequence[float]]) -> np.ndarray:
    """COCO's xywh as VOC's left, top, right, bottom: the first pixel is 1, the last one is inside."""
    xywh = np.array(boxes, dtype=np.float64)
    return np.concatenate([xywh[:, :2] + 1, xywh[:, :2] + xywh[:, 2:]], axis=1)


def _overlaps(found: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """IoU of each pair, a row for each found box; a box is as wide as the pixels that it counts."""
    low = np.maximum(found[:, None, :2], objects[None, :, :2])
    high = np.minimum(found[:, None, 2:], objects[None, :, 2:])
    shared = np.maximum(high - low + 1, 0).prod(axis=2)
    areas = [(b[:, 2:] - b[:, :2] + 1).prod(axis=1) for b in (found, objects)]
    return shared / (areas[0][:, None] + areas[1][None, :] - shared)
