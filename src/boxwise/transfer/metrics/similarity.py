"""COCO's average precision by a similarity that is given, with DensePose's rules on what is ignored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as masks
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from boxwise.transfer.metrics.coco import FIGURES, IOUS, Result

NAMES = tuple(name.removeprefix("kp_") for name in FIGURES["keypoints"])
"""As for keypoints, which are measured by a similarity too."""

MOST = 20
"""Detections that count in an image."""

SAME_BOX = 0.8
"""IoU of boxes from which on a detection that was not matched is taken to mean an object."""

AREAS = {"": (0.0, 1e10), "m": (32.0**2, 96.0**2), "l": (96.0**2, 1e10)}
"""Square pixels of all, medium and large objects."""

RECALLS = np.linspace(0, 1, 101)

Rows = Bool[NDArray[np.bool_], "T D"]


@dataclass(frozen=True)
class Scene:
    """Objects of one category in one image, and at most 20 detections, the surest first."""

    scores: Float[NDArray[np.float64], " D"]
    found_area: Float[NDArray[np.float64], " D"]
    area: Float[NDArray[np.float64], " G"]
    crowd: Bool[NDArray[np.bool_], " G"]
    ignored: Bool[NDArray[np.bool_], " G"]
    similarity: Float[NDArray[np.float64], "D G"]
    boxes: Float[NDArray[np.float64], "D G"]
    """IoU of boxes; of a crowd's, the share of the detection that lies in it."""

    @classmethod
    def surest(cls, results: Sequence[Result]) -> list[Result]:
        """The detections that count; of equal ones the earlier first."""
        return sorted(results, key=lambda r: -r["score"])[:MOST]

    @classmethod
    def of(
        cls,
        objects: Sequence[Mapping[str, Any]],
        results: Sequence[Result],
        similarity: Float[NDArray[np.float64], "D G"],
        *,
        pointed: str,
    ) -> Scene:
        """Of `results` as `surest` gives them. Objects without the key `pointed` are ignored."""
        crowd = [int(a.get("iscrowd", 0)) for a in objects]
        boxes = np.zeros(similarity.shape)
        if boxes.size:
            boxes = masks.iou([r["bbox"] for r in results], [a["bbox"] for a in objects], crowd)
        return cls(
            np.array([r["score"] for r in results], dtype=np.float64),
            np.array([r["bbox"][2] * r["bbox"][3] for r in results], dtype=np.float64),
            np.array([a["area"] for a in objects], dtype=np.float64),
            np.array(crowd, dtype=bool),
            np.array([pointed not in a for a in objects], dtype=bool),
            similarity,
            np.asarray(boxes, dtype=np.float64),
        )


def similarity_figures(scenes: Mapping[int, Sequence[Scene]]) -> dict[str, float]:
    """The ten figures in 0..100, means over categories, whose images are listed by id; -1: no such object."""
    found = dict.fromkeys(NAMES, -1.0)
    for size, limits in AREAS.items():
        of_each = [_curve([_verdicts(s, limits) for s in listed]) for listed in scenes.values()]
        measured = [one for one in of_each if one is not None]
        for name, k in (("AP", 0), ("AR", 1)) if measured else ():
            by_threshold = 100 * np.mean([one[k] for one in measured], axis=0)
            found[name + size] = float(by_threshold.mean())
            if not size:
                found |= {f"{name}50": float(by_threshold[0]), f"{name}75": float(by_threshold[5])}
    return found


@dataclass(frozen=True)
class _Verdict:
    """What one image adds to the curve of each threshold."""

    scores: Float[NDArray[np.float64], " D"]
    matched: Rows
    ignored: Rows
    objects: int


def _verdicts(scene: Scene, limits: tuple[float, float]) -> _Verdict:
    outside = (scene.area < limits[0]) | (scene.area > limits[1])
    skip = scene.ignored | outside
    order = np.argsort(skip, kind="stable").tolist()  # objects that count are tried first
    shape = len(IOUS), len(scene.scores)
    matched, ignored = np.zeros(shape, dtype=bool), np.full(shape, bool(skip.all()))
    taken: set[int] = set()
    for t, threshold in enumerate(IOUS):
        taken = set()
        for d in range(shape[1]):
            free = [g for g in order if g not in taken or scene.crowd[g]]
            best = _best(scene.similarity[d], free, skip, threshold)
            if best is not None:
                matched[t, d], ignored[t, d] = True, skip[best]
                taken.add(best)
    for d in np.flatnonzero(~matched[-1]).tolist():
        free = [g for g in order if (g not in taken or scene.crowd[g]) and scene.boxes[d, g] >= SAME_BOX]
        if free:
            meant = max(
                reversed(free), key=lambda g: scene.boxes[d, g]
            )  # of equals the last, as in the rules
            ignored[:, d] = skip[meant]
            if skip[meant]:
                matched[-1, d] = True
                taken.add(meant)
    beyond = (scene.found_area < limits[0]) | (scene.found_area > limits[1])
    return _Verdict(scene.scores, matched, ignored | (~matched & beyond), int((~skip).sum()))


def _best(
    similarity: NDArray[np.float64], free: Sequence[int], skip: NDArray[np.bool_], threshold: float
) -> int | None:
    """The most similar object that reaches `threshold`: of those that count if there is one; of equals the last."""
    for wanted in (False, True):
        near = [g for g in free if bool(skip[g]) is wanted and similarity[g] >= threshold]
        if near:
            return max(reversed(near), key=lambda g: similarity[g])
    return None


def _curve(
    verdicts: Sequence[_Verdict],
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """AP and the largest recall at each threshold, in 0..1; None without an object."""
    objects = sum(v.objects for v in verdicts)
    if not objects:
        return None
    order = np.argsort(-np.array(list(chain.from_iterable(v.scores for v in verdicts))), kind="stable")
    matched = np.concatenate([v.matched for v in verdicts], axis=1)[:, order]
    ignored = np.concatenate([v.ignored for v in verdicts], axis=1)[:, order]
    right, wrong = (np.cumsum(rows & ~ignored, axis=1) for rows in (matched, ~matched))
    aps, recalls = np.zeros(len(IOUS)), np.zeros(len(IOUS))
    for t in range(len(IOUS) if order.size else 0):
        recall = right[t] / objects
        precision = right[t] / (right[t] + wrong[t] + np.spacing(1))
        envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
        aps[t] = envelope[np.searchsorted(recall, RECALLS, side="left")].mean()
        recalls[t] = recall[-1]
    return aps, recalls
