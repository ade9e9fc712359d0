"""Cityscapes' average precision of instance masks, equal to that of the set's own scripts.

It differs from COCO's in what is ignored and in the sum. Truth is the picture of instance ids: an object is what bears
one id of 1000 or more, a group (ids below) and an object below 100 pixels are neither to be found nor wrong, and pixels
of classes that nobody is measured on are void.

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
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as masks
from PIL import Image

from boxwise.transfer.metrics.coco import PREFIX, Result

LABELS: Mapping[str, int] = {
    "person": 24,
    "rider": 25,
    "car": 26,
    "truck": 27,
    "bus": 28,
    "train": 31,
    "motorcycle": 32,
    "bicycle": 33,
}
"""The classes of instances, by the ids of Cityscapes."""

VOID = (-1, 0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30)
"""Ids of classes that nobody is measured on."""

SMALL = 100
"""Objects of fewer pixels need not be found."""

OVERLAPS = np.arange(0.5, 1.0, 0.05)
"""As the scripts have them, a rounding off the tenths here and there."""

CITYSCAPES_FIGURES = (PREFIX["segm"] + "AP", PREFIX["segm"] + "AP50")


@dataclass(frozen=True)
class _Found:
    """One detection against the objects of its class in its image."""

    score: float
    pixels: int
    void: int
    shared: dict[int, int]
    """Pixels in common with each object that it touches, by instance id."""


@dataclass(frozen=True)
class _Frame:
    """One class in one image."""

    objects: dict[int, int]
    """Pixels of each, by instance id; groups bear ids below 1000."""
    found: list[_Found]


def cityscapes_figures(truth: Mapping[str, Any], results: Sequence[Result]) -> dict[str, float]:
    """mask_AP and mask_AP50 in 0..100, means over the classes that the truth has; -1 where it has none.

    Each image of `truth` names the file of its instance ids in `instance_ids`, each category is called as
    Cityscapes calls it.
    """
    by_overlap = cityscapes_over_iou(truth, results)
    figures = (float(np.mean(by_overlap)), by_overlap[0])
    return dict(zip(CITYSCAPES_FIGURES, figures, strict=True))


def cityscapes_over_iou(truth: Mapping[str, Any], results: Sequence[Result]) -> list[float]:
    """AP in 0..100 at each of the ten thresholds; -1 throughout where the truth has no object to find."""
    frames: dict[int, list[_Frame]] = defaultdict(list)
    found: dict[int, list[Result]] = defaultdict(list)
    for result in results:
        found[result["image_id"]].append(result)
    labels = {c["id"]: _label(c["name"]) for c in truth["categories"]}
    for image in truth["images"]:
        for label, frame in _frames(image, found[image["id"]], labels):
            frames[label].append(frame)
    classes = [
        [_ap(of_class, float(t)) for t in OVERLAPS]
        for of_class in frames.values()
        if any(_counts(i, n) for frame in of_class for i, n in frame.objects.items())
    ]
    return [100 * float(ap) for ap in np.mean(classes, axis=0)] if classes else [-1.0] * len(OVERLAPS)


def _label(name: str) -> int:
    if name not in LABELS:
        raise ValueError(
            f"category {name} is none of Cityscapes' instances ({', '.join(LABELS)}): measure by coco"
        )
    return LABELS[name]


def _frames(
    image: Mapping[str, Any], results: Sequence[Result], labels: Mapping[int, int]
) -> Iterator[tuple[int, _Frame]]:
    """Each class of one image. Detections without a pixel are dropped, as nobody could place them."""
    if "instance_ids" not in image:
        raise ValueError(
            f"image {image['id']} names no file of instance ids: take Cityscapes with its gtFine pictures, or measure "
            "by coco"
        )
    with Image.open(Path(image["instance_ids"])) as picture:
        ids, place, pixels = np.unique(np.asarray(picture), return_inverse=True, return_counts=True)
    place = place.reshape(image["height"], image["width"])
    void = np.isin(ids, VOID)
    of_label = {
        label: [k for k, i in enumerate(ids.tolist()) if _class_of(i) == label] for label in labels.values()
    }
    found: dict[int, list[_Found]] = defaultdict(list)
    for result in results:
        if result.get("segmentation") is None:
            raise ValueError(
                f"a detection on image {image['id']} has no segmentation: Cityscapes measures masks"
            )
        label = labels[result["category_id"]]
        covered = np.bincount(place[masks.decode(result["segmentation"]).astype(bool)], minlength=len(ids))
        if covered.any():
            shared = {int(ids[k]): int(covered[k]) for k in of_label[label] if covered[k]}
            found[label].append(_Found(result["score"], int(covered.sum()), int(covered[void].sum()), shared))
    for label, rows in of_label.items():
        yield label, _Frame({int(ids[k]): int(pixels[k]) for k in rows}, found[label])


def _class_of(instance: int) -> int:
    return instance if instance < 1000 else instance // 1000


def _counts(instance: int, pixels: int) -> bool:
    """Whether the object is to be found."""
    return instance >= 1000 and pixels >= SMALL


def _ap(frames: Sequence[_Frame], overlap: float) -> float:
    right: list[float] = []
    wrong: list[float] = []
    objects = 0
    for frame in frames:
        hits: dict[int, list[float]] = defaultdict(list)
        for found in frame.found:
            hit = [i for i in found.shared if _iou(found, frame, i) > overlap]
            for instance in hit:
                hits[instance].append(found.score)
            if not hit and _ignorable(found, frame) / found.pixels <= overlap:
                wrong.append(found.score)
        for instance, pixels in frame.objects.items():
            if _counts(instance, pixels):
                objects += 1
                scores = sorted(hits[instance])
                right += scores[-1:]
                wrong += scores[:-1]
    return _area(np.sort(right), np.sort(wrong), objects)


def _iou(found: _Found, frame: _Frame, instance: int) -> float:
    shared = found.shared[instance]
    return shared / (frame.objects[instance] + found.pixels - shared)


def _ignorable(found: _Found, frame: _Frame) -> int:
    """Pixels on void, groups and small objects; a small group counts as both, as the scripts have it."""
    groups = sum(n for i, n in found.shared.items() if i < 1000)
    return found.void + groups + sum(n for i, n in found.shared.items() if frame.objects[i] < SMALL)


def _area(right: np.ndarray, wrong: np.ndarray, objects: int) -> float:
    """Under precision over recall, from the sorted scores of both."""
    scores = np.unique(np.concatenate([right, wrong]))
    hits = right.size - np.searchsorted(right, scores)
    misses = wrong.size - np.searchsorted(wrong, scores)
    recall = np.append(hits / objects, 0.0)
    precision = np.append(hits / (hits + misses), 1.0)
    around = np.concatenate([recall[:1], recall, [0.0]])
    return float((precision * (around[:-2] - around[2:])).sum() / 2)
