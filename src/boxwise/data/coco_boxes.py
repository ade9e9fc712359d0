"""The boxes of a COCO json as arrays: which of them can be used, clipped to their images, with areas and crowds."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boxwise.data.coco_files import Json
from boxwise.data.problems import Problems

FEW = 1000
"""Empty boxes are left out while fewer than one annotation in so many has one: COCO's train2017 holds two."""
ORIGIN = "origin"
"""The key under which readers of other layouts leave where an annotation stands in the user's own files."""
MEANT: Mapping[str, str] = {
    "voc": "xmin, ymin, xmax, ymax count pixels from 1 and are not beyond <size>",
    "yolo": "cx cy width height, or x y of each point, are shares of the image from 0 to 1",
}
"""What the numbers of a box mean, by layout; elsewhere as COCO has it."""
XYWH = "a bbox is [x, y, width, height] in pixels"
SLACK = 1.0
"""Pixels that a box may reach over the edge, by rounding, before its being clipped is worth a warning."""


def usable_boxes(
    raw: Json, image_of: NDArray[np.int64], sizes: NDArray[np.int64], problems: Problems, *, layout: str
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Rows whose boxes can be used, and xyxy boxes of all rows clipped to their images.

    What is wrong is told in the words of `layout`, with the places and numbers that the user wrote.
    """
    meant = MEANT.get(layout)

    def tell(row: np.intp) -> str:
        annotation, image = raw["annotations"][row], raw["images"][image_of[row]]
        if meant:
            return str(annotation[ORIGIN])
        return f"annotation {annotation.get('id', row)} of {image['file_name']} {annotation['bbox']}"

    x, y, w, h = _numbers([a["bbox"] for a in raw["annotations"]]).T
    boxes = np.stack([x, y, x + w, y + h], axis=1).astype(np.float32)
    clipped = np.clip(boxes, 0, np.tile(sizes[image_of], 2).astype(np.float32))
    wrong = ~np.isfinite(boxes).all(axis=1)
    inverted = (w < 0) | (h < 0)
    empty = ~wrong & ~inverted & _flat(boxes)
    outside = ~wrong & ~inverted & ~empty & (image_of >= 0) & _flat(clipped)
    fine = ~(wrong | inverted | empty | outside | (image_of < 0))
    few = empty.sum() * FEW <= len(boxes)
    for what, where, mend in (
        ("boxes that are not four numbers", wrong, meant or XYWH),
        ("inverted boxes (negative width or height)", inverted, meant or XYWH),
        ("empty boxes (no width or no height)", empty & ~few, "remove or redraw them"),
        ("boxes outside their image", outside, meant or f"{XYWH} of an image as large as the json says"),
    ):
        for row in np.flatnonzero(where):
            problems.add(what, tell(row), mend=mend)
    over = fine & (np.abs(boxes - clipped).max(axis=1) > SLACK)
    for done, where in (("left out as empty", empty & few), ("clipped, they reach over the edge", over)):
        if where.any():
            some = f"{where.sum()} of {len(boxes)} boxes, the first: {tell(np.flatnonzero(where)[0])}"
            warnings.warn(f"{problems.path}: {done}: {some}", stacklevel=3)
    return np.flatnonzero(~empty), clipped


def _flat(boxes: NDArray[np.float32]) -> NDArray[np.bool_]:
    return np.asarray((boxes[:, 2] <= boxes[:, 0]) | (boxes[:, 3] <= boxes[:, 1]))


def _numbers(listed: list[list[Any]]) -> NDArray[np.float64]:
    """(m, 4), a row of NaN for whatever is not four numbers."""
    try:
        array = np.array(listed)
    except ValueError:  # lists of unlike lengths
        array = np.empty(0)
    if array.shape == (len(listed), 4) and array.dtype.kind in "iuf":
        return array.astype(np.float64)
    good = [len(b) == 4 and all(type(value) in (int, float) for value in b) for b in listed]
    rows = [b if ok else [math.nan] * 4 for b, ok in zip(listed, good, strict=True)]
    return np.array(rows, dtype=np.float64)


def areas_and_crowds(
    annotations: list[Json], rows: NDArray[np.int64], boxes: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """A stated area is that of the outline; where none is stated, the box's counts."""
    own = (boxes[rows, 2:] - boxes[rows, :2]).prod(axis=1)
    stated = [annotations[row].get("area") for row in rows]
    areas = [area if type(area) in (int, float) else box for area, box in zip(stated, own, strict=True)]
    crowd = [bool(annotations[row].get("iscrowd")) for row in rows]
    return np.array(areas, dtype=np.float32), np.array(crowd, dtype=np.bool_)
