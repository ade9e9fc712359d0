"""LVIS v1's figures of boxes and masks: COCO's, with the rules of a set where not every class is annotated everywhere.

An image counts for a category only if it shows one or is known to show none (`neg_category_ids`); what is found beyond
that is neither right nor wrong. So is an unmatched detection of a category that is not annotated to the last object
there (`not_exhaustive_category_ids`). The 300 surest detections of an image count, of all categories together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from faster_coco_eval import COCOeval_faster

from boxwise.transfer.metrics.coco import (
    FEDERATED_DETECTIONS,
    PREFIX,
    Kind,
    Result,
    check_objects,
    judged,
    percent,
)

_NAMES: Mapping[str, str] = {
    "AP": "AP_all",
    "AP50": "AP_50",
    "AP75": "AP_75",
    "APs": "AP_small",
    "APm": "AP_medium",
    "APl": "AP_large",
    "APr": "APr",
    "APc": "APc",
    "APf": "APf",
    "AR300": "AR_all",
    "ARs": "AR_small",
    "ARm": "AR_medium",
    "ARl": "AR_large",
}
"""Ours to faster-coco-eval's."""

LVIS_FIGURES: Mapping[Kind, tuple[str, ...]] = {
    "bbox": tuple(_NAMES),
    "segm": tuple(PREFIX["segm"] + name for name in _NAMES),
}
"""In LVIS's own order. APr, APc and APf are of the categories that few, some and many training images show."""


def lvis_figures(
    truth: Mapping[str, Any], results: Sequence[Result], kind: Kind = "bbox"
) -> dict[str, float]:
    """In 0..100, by name; -1 where the truth has no such object.

    `truth` is LVIS json as a dict. Raises ValueError as `check_federated` does.
    """
    stats = lvis_judged(truth, results, kind).stats_as_dict
    return {PREFIX[kind] + ours: percent(float(stats[theirs])) for ours, theirs in _NAMES.items()}


def lvis_judged(truth: Mapping[str, Any], results: Sequence[Result], kind: Kind) -> COCOeval_faster:
    """The evaluator after its work."""
    check_federated(truth, kind)
    return judged(truth, _countable(truth, _surest(results)), kind, federated=True)


def check_federated(truth: Mapping[str, Any], kind: Kind) -> None:
    """Raises ValueError where images lack their two lists of categories, categories their frequency, or objects what
    `kind` compares."""
    for image in truth["images"]:
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            if key not in image:
                raise ValueError(f"image {image['id']} has no {key}: take LVIS v1 json, or measure by coco")
    for category in truth["categories"]:
        if category.get("frequency") not in ("r", "c", "f"):
            raise ValueError(
                f"category {category['id']} {category['name']} has no frequency of r, c or f: take LVIS v1 json, or "
                "measure by coco"
            )
    check_objects(truth, kind)


def _countable(truth: Mapping[str, Any], results: Sequence[Result]) -> list[Result]:
    """What was found of categories that the image is known to show or not to show.

    faster-coco-eval leaves out the rest too, but stumbles over their masks in images without any object.
    """
    known = {(i["id"], c) for i in truth["images"] for c in i["neg_category_ids"]}
    known |= {(a["image_id"], a["category_id"]) for a in truth["annotations"]}
    return [r for r in results if (r["image_id"], r["category_id"]) in known]


def _surest(results: Sequence[Result]) -> list[Result]:
    """At most 300 of each image, in the order of images' first appearance."""
    images: dict[int, list[Result]] = defaultdict(list)
    for result in results:
        images[result["image_id"]].append(result)
    for image, found in images.items():
        if len(found) > FEDERATED_DETECTIONS:
            images[image] = sorted(found, key=lambda r: -r["score"])[:FEDERATED_DETECTIONS]
    return list(chain.from_iterable(images.values()))
