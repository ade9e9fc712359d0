"""Cityscapes' average precision of instance masks, equal to that of the set's own scripts.

It differs from COCO's in what is ignored and in the sum. Groups of things (crowds) and objects below 100 pixels are
neither to be found nor wrong, and pixels of classes that nobody is measured on are void.

    for each threshold t of IoU, for each class:
        an object is found by any detection with IoU > t; the surest is right, every other is wrong
        a detection that finds nothing, neither group nor small object, is wrong,
            unless more than a share t of it lies on void, groups and small objects
        AP = the sum over scores of precision there times half the distance between the recalls before and after
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as masks
from jaxtyping import Int64
from numpy.typing import NDArray

from boxwise.transfer.metrics.coco import PREFIX, Result

SMALL = 100
"""Objects of fewer pixels need not be found."""

OVERLAPS = np.arange(0.5, 1.0, 0.05)
"""As the scripts have them, a rounding off the tenths here and there."""

CITYSCAPES_FIGURES = (PREFIX["segm"] + "AP", PREFIX["segm"] + "AP50")


@dataclass(frozen=True)
class _Object:
    pixels: int
    group: bool

    @property
    def counts(self) -> bool:
        """Whether it is to be found."""
        return not self.group and self.pixels >= SMALL


@dataclass(frozen=True)
class _Found:
    """One detection against the objects of its class in its image."""

    score: float
    pixels: int
    void: int
    shared: dict[int, int]
    """Pixels in common with each object that it touches."""


@dataclass(frozen=True)
class _Frame:
    """One class in one image."""

    objects: dict[int, _Object]
    found: list[_Found]


def cityscapes_figures(truth: Mapping[str, Any], results: Sequence[Result]) -> dict[str, float]:
    """mask_AP and mask_AP50 in 0..100, means over the classes that the truth has; -1 where it has none.

    `truth` is COCO json as a dict, its masks apart from each other, its groups crowds; each image holds as run
    lengths under `void` the pixels of no class.
    """
    by_overlap = cityscapes_over_iou(truth, results)
    figures = (float(np.mean(by_overlap)), by_overlap[0])
    return dict(zip(CITYSCAPES_FIGURES, figures, strict=True))


def cityscapes_over_iou(truth: Mapping[str, Any], results: Sequence[Result]) -> list[float]:
    """AP in 0..100 at each of the ten thresholds; -1 throughout where the truth has no object to find."""
    check_void(truth)
    objects: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for annotation in truth["annotations"]:
        objects[annotation["image_id"]].append(annotation)
    found: dict[int, list[Result]] = defaultdict(list)
    for result in results:
        found[result["image_id"]].append(result)
    frames: dict[int, list[_Frame]] = defaultdict(list)
    for image in truth["images"]:
        for category, frame in _frames(image, objects[image["id"]], found[image["id"]]):
            frames[category].append(frame)
    classes = [
        [_ap(of_class, float(t)) for t in OVERLAPS]
        for of_class in frames.values()
        if any(o.counts for frame in of_class for o in frame.objects.values())
    ]
    return [100 * float(ap) for ap in np.mean(classes, axis=0)] if classes else [-1.0] * len(OVERLAPS)


def check_void(truth: Mapping[str, Any]) -> None:
    """Raises ValueError for images that do not say where they are void."""
    for image in truth["images"]:
        if "void" not in image:
            raise ValueError(
                f"image {image['id']} does not say where it is void: take Cityscapes' own folders, or measure by coco"
            )


def _frames(
    image: Mapping[str, Any], annotations: Sequence[Mapping[str, Any]], results: Sequence[Result]
) -> Iterator[tuple[int, _Frame]]:
    """Each class of one image. Detections without a pixel are dropped."""
    for result in results:
        if result.get("segmentation") is None:
            raise ValueError(
                f"a detection on image {image['id']} has no segmentation: Cityscapes measures masks"
            )
    pixels = masks.area([a["segmentation"] for a in annotations])
    frames: dict[int, _Frame] = defaultdict(lambda: _Frame({}, []))
    for k, annotation in enumerate(annotations):
        one = _Object(int(pixels[k]), bool(annotation.get("iscrowd")))
        frames[annotation["category_id"]].objects[k] = one
    covered = masks.area([r["segmentation"] for r in results])
    seen = [r for r, count in zip(results, covered, strict=True) if count]
    shared = _shared(seen, [*(a["segmentation"] for a in annotations), image["void"]])
    for result, count, row in zip(seen, covered[covered > 0].tolist(), shared.tolist(), strict=True):
        frame = frames[result["category_id"]]
        touched = {k: row[k] for k in frame.objects if row[k]}
        frame.found.append(_Found(result["score"], count, row[-1], touched))
    yield from frames.items()


def _shared(
    results: Sequence[Result], outlines: Sequence[Mapping[str, Any]]
) -> Int64[NDArray[np.int64], "found outlines"]:
    """Pixels in common. The overlap with a crowd is the share of the detection in it, from run lengths alone."""
    if not results:
        return np.zeros((0, len(outlines)), dtype=np.int64)
    found = [r["segmentation"] for r in results]
    shares = masks.iou(found, list(outlines), [1] * len(outlines))
    return np.rint(shares * masks.area(found)[:, None]).astype(np.int64)


def _ap(frames: Sequence[_Frame], overlap: float) -> float:
    right: list[float] = []
    wrong: list[float] = []
    objects = 0
    for frame in frames:
        hits: dict[int, list[float]] = defaultdict(list)
        for found in frame.found:
            hit = [k for k in found.shared if _iou(found, frame, k) > overlap]
            for k in hit:
                hits[k].append(found.score)
            if not hit and _ignorable(found, frame) / found.pixels <= overlap:
                wrong.append(found.score)
        for k, one in frame.objects.items():
            if one.counts:
                objects += 1
                scores = sorted(hits[k])
                right += scores[-1:]
                wrong += scores[:-1]
    return _area(np.sort(right), np.sort(wrong), objects)


def _iou(found: _Found, frame: _Frame, k: int) -> float:
    return found.shared[k] / (frame.objects[k].pixels + found.pixels - found.shared[k])


def _ignorable(found: _Found, frame: _Frame) -> int:
    """Pixels on void, groups and small objects; a small group counts as both, as the scripts have it."""
    times = {k: one.group + (one.pixels < SMALL) for k, one in frame.objects.items()}
    return found.void + sum(times[k] * shared for k, shared in found.shared.items())


def _area(right: np.ndarray, wrong: np.ndarray, objects: int) -> float:
    """Under precision over recall, from the sorted scores of both."""
    scores = np.unique(np.concatenate([right, wrong]))
    hits = right.size - np.searchsorted(right, scores)
    misses = wrong.size - np.searchsorted(wrong, scores)
    recall = np.append(hits / objects, 0.0)
    precision = np.append(hits / (hits + misses), 1.0)
    around = np.concatenate([recall[:1], recall, [0.0]])
    return float((precision * (around[:-2] - around[2:])).sum() / 2)
