"""Outlines, keypoints and points on surfaces that cannot be read, named before a worker meets them in a long run."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from boxwise.data.densepose import BODY_SIDE, DENSE, PARTS
from boxwise.data.problems import Problems
from boxwise.data.targets import Labelled
from boxwise.transfer.annotations import keypoint_names

DENSE_LISTS: Mapping[str, tuple[float, float]] = {
    "dp_x": (0, 256),
    "dp_y": (0, 256),
    "dp_I": (0, PARTS),
    "dp_U": (-0.01, 1.01),
    "dp_V": (-0.01, 1.01),
}
"""What an annotation lists of its points, and the range of each, with room for rounding."""


def check_readable(labelled: Labelled, names: Collection[str] | None = None) -> None:
    """Raises ValueError that lists, with file and places, the values that cannot be read of the fields `names`, or of
    all that were asked for; objects without one are none."""
    table, problems = labelled.table, Problems(labelled.table.file)
    image_of = np.repeat(np.arange(len(table.names)), np.diff(table.first))
    held = np.flatnonzero(np.isin(image_of, labelled.index)).tolist()
    marks = len(keypoint_names(labelled.categories))
    for name, texts in table.extras.items():
        if name not in FIELDS or (names is not None and name not in names):
            continue
        wrong, mend = FIELDS[name]
        for row in held:
            value = json.loads(texts[row])
            if value is None:
                continue
            width, height = table.sizes[image_of[row]].tolist()
            if said := wrong(value, Known(marks, [height, width])):
                place = f"annotation {table.rows[row]} in the order of the json, {said}"
                problems.add(f"{name} that cannot be read", place, mend=mend)
    problems.check()


@dataclass(frozen=True, slots=True)
class Known:
    """What values are held to."""

    keypoints: int
    """Names of keypoints in the categories."""
    size: list[int]
    """Height and width that the image is said to have."""


def _outline(value: Any, known: Known) -> str:
    if isinstance(value, dict):
        if not {"size", "counts"} <= value.keys():
            return "run lengths without size or counts"
        same = value["size"] == known.size
        return "" if same else f"run lengths of size {value['size']} in an image of {known.size}"
    if not isinstance(value, list) or not all(isinstance(polygon, list) for polygon in value):
        return "neither polygons nor run lengths"
    odd = next((f"{len(polygon)} numbers in a polygon" for polygon in value if len(polygon) % 2), "")
    return odd or _no_number(itertools.chain(*value))


def _keypoints(value: Any, known: Known) -> str:
    names = known.keypoints
    if not isinstance(value, list):
        return "no list"
    if len(value) % 3 or (names and len(value) != 3 * names):
        wanted = f"not {3 * names} for {names} names" if names else "not 3 for each"
        return f"{len(value)} numbers, {wanted}"
    return _no_number(value)


def _surface(value: dict[str, Any], known: Known) -> str:
    lists = {name: value.get(name) or [] for name in DENSE_LISTS}
    for name, values in lists.items():
        if said := "no list" if not isinstance(values, list) else _no_number(values):
            return f"{name}: {said}"
    if len({len(values) for values in lists.values()}) > 1:
        return "lists of unlike lengths, " + ", ".join(f"{k} {len(v)}" for k, v in lists.items())
    for name, values in lists.items():
        low, high = DENSE_LISTS[name]
        if off := [v for v in values if not low <= v <= high]:
            return f"{name} holds {off[0]}"
    for mask in value.get("dp_masks") or []:
        if mask and mask.get("size") != [BODY_SIDE, BODY_SIDE]:
            return f"a mask of size {mask.get('size')}"
    return ""


def _no_number(values: Iterable[Any]) -> str:
    return next((f"{v!r} is no number" for v in values if type(v) not in (int, float) or v != v), "")


FIELDS: Mapping[str, tuple[Callable[[Any, Known], str], str]] = {
    "segmentation": (
        _outline,
        "take polygons of x, y, x, y ..., or run lengths as a dict of counts and size, the image's height and width",
    ),
    "keypoints": (_keypoints, "give x, y and 0, 1 or 2 of every name that the categories list"),
    DENSE: (
        _surface,
        "give dp_x and dp_y from 0 to 255 across the box, dp_I from 1 to 24 (0: ground), dp_U and dp_V from 0 to 1, "
        "one of each a point, and dp_masks, RLE of 256 x 256 or [] of 14 parts",
    ),
}
"""What says how a value is wrong, and the mend."""
