"""A COCO json as arrays, each annotation checked: boxes in xyxy, categories as labels 1..C."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeGuard

import numpy as np
from jaxtyping import Bool, Float32, Int64
from numpy.typing import NDArray

from boxwise.data.coco_boxes import areas_and_crowds, usable_boxes
from boxwise.data.coco_files import Json, check_names, entries
from boxwise.data.decode import BadImage, read_header
from boxwise.data.densepose import DENSE
from boxwise.data.names import Names
from boxwise.data.orientation import upright_size
from boxwise.data.problems import Problems

UNKNOWN = 2**31
"""Sides of an image whose size nobody knows, which is told: no box of it is outside as well."""

Format = Literal["coco", "voc", "lvis", "cityscapes", "yolo"]
Reader = Callable[[], tuple[Json, str]]
"""Gives the labels of one split as a COCO json has them, and a digest of all that they were read from."""


@dataclass(frozen=True, slots=True)
class Category:
    """One kind of thing; `id` is the json's own."""

    id: int
    name: str
    keypoints: tuple[str, ...] = ()
    """Names of the points that are marked on each, in their order."""
    skeleton: tuple[tuple[int, int], ...] = ()
    """Pairs of keypoints that a line joins, counted from 1 as COCO does."""

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Category:
        """What a json, COCO's or one that was written from a Category, says of it."""
        skeleton = tuple((int(a), int(b)) for a, b in entry.get("skeleton", ()))
        return cls(entry["id"], entry["name"], tuple(entry.get("keypoints", ())), skeleton)


def stated_categories(reader: Reader, file: Path) -> list[Category]:
    """Those of a json, by id, whatever else is wrong with it. Raises ValueError where the list itself is."""
    own = [Category.of(c) for c in entries(reader()[0], file, "categories", id=int, name=str)]
    return _by_id(own)


@dataclass(frozen=True, slots=True, eq=False)
class Annotated:
    """All images and boxes of one json. Annotations are grouped by image, in the json's order within each."""

    file: Path
    digest: str
    folder: Path
    categories: tuple[Category, ...]
    """By id; the label of categories[k] is k + 1."""
    names: Names
    ids: Int64[np.ndarray, " n"]
    sizes: Int64[np.ndarray, "n 2"]
    """Width and height that boxes refer to: the json's."""
    first: Int64[np.ndarray, " n_and_1"]
    """Annotations first[i] to first[i + 1] are those of image i."""
    boxes: Float32[np.ndarray, "m 4"]
    """Clipped to their images."""
    labels: Int64[np.ndarray, " m"]
    areas: Float32[np.ndarray, " m"]
    crowd: Bool[np.ndarray, " m"]
    rows: Int64[np.ndarray, " m"]
    """Place of each annotation in the json's list."""
    reader: Reader
    """Gives the json again; can be sent to other processes."""
    extras: Mapping[str, Names] = field(default_factory=dict)
    """By field of an annotation, the value that each has, as JSON text; "null" where it has none."""
    format: Format = "coco"


def annotated(
    reader: Reader,
    *,
    file: Path,
    folder: Path,
    categories: Sequence[Category] | None = None,
    extras: Collection[str] = (),
    format: Format = "coco",
) -> Annotated:
    """Checks what `reader` gives; `file` is what messages name, and images lie below `folder`.

    With `categories`, labels follow them instead of the json's own, which must then be among them. Of the
    fields `extras` the values are kept. Raises one ValueError that lists everything wrong: entries that lack
    values, file names that lead out, missing files, doubled ids, annotations of unknown images or categories,
    and boxes that are empty, inverted or outside.
    """
    raw, digest = reader()
    images = entries(raw, file, "images", id=int, file_name=str)
    annotations = entries(raw, file, "annotations", image_id=int, category_id=int, bbox=list)
    own = [Category.of(c) for c in entries(raw, file, "categories", id=int, name=str)]
    if format == "coco" and images and "neg_category_ids" in images[0]:
        format = "lvis"  # under another name
    if not images or not annotations or not own:
        lacking = "images" if not images else "annotations" if not annotations else "categories"
        raise ValueError(f'{file}: "{lacking}" is empty; a detector needs images with boxes and categories')
    problems = Problems(file)
    _check_unique("images", [image["id"] for image in images], problems)
    _check_unique("categories", [c.id for c in own], problems)
    known = _agreed(own, categories, problems)
    names = [image["file_name"] for image in images]
    lost = check_names(names, folder, problems)
    sizes = np.array([_size(image, folder, lost, problems) for image in images], dtype=np.int64)
    image_of, label_of = _linked(raw, own, known, problems)
    rows, boxes = usable_boxes(raw, image_of, sizes, problems, layout=format)
    problems.check()
    order = rows[np.argsort(image_of[rows], kind="stable")]
    areas, crowd = areas_and_crowds(annotations, order, boxes)
    return Annotated(
        file=file,
        digest=digest,
        folder=folder,
        categories=tuple(known),
        names=Names.of(names),
        ids=np.array([image["id"] for image in images], dtype=np.int64),
        sizes=sizes,
        first=np.concatenate([[0], np.cumsum(np.bincount(image_of[order], minlength=len(images)))]),
        boxes=boxes[order],
        labels=label_of[order],
        areas=areas,
        crowd=crowd,
        rows=order,
        reader=reader,
        extras={name: _packed(annotations, order, name) for name in extras},
        format=format,
    )


def extra(annotation: Json, name: str) -> Any:
    """The value of a field, for `DENSE` a dict of all of DensePose's; none where it is absent or empty."""
    if name == DENSE:
        return {key: value for key, value in annotation.items() if key.startswith("dp_")} or None
    value = annotation.get(name)
    return None if isinstance(value, list | dict | str) and not value else value


def _packed(annotations: list[Json], rows: NDArray[np.int64], name: str) -> Names:
    text = json.JSONEncoder(separators=(",", ":")).encode
    return Names.of(text(extra(annotations[row], name)) for row in rows)


def _check_unique(key: str, ids: list[int], problems: Problems) -> None:
    seen: set[int] = set()
    for number in ids:
        if number in seen:
            problems.add(f'ids used twice in "{key}"', str(number), mend="number them anew")
        seen.add(number)


def _by_id(own: list[Category]) -> list[Category]:
    return sorted(own, key=lambda category: category.id)


def _agreed(own: list[Category], wanted: Sequence[Category] | None, problems: Problems) -> list[Category]:
    if wanted is None:
        return _by_id(own)
    named = {(category.id, category.name) for category in wanted}
    for category in own:
        if (category.id, category.name) not in named:
            mend = "use one list of categories in all jsons of a data set"
            problems.add("categories unknown to the detector", f"{category.id} {category.name}", mend=mend)
    return list(wanted)


def _size(image: Json, folder: Path, lost: Collection[str], problems: Problems) -> tuple[int, int]:
    """What the json says; where it says nothing, the upright size of the file, unless its name is `lost`."""
    width, height = image.get("width"), image.get("height")
    if _is_length(width) and _is_length(height):
        return int(width), int(height)
    if image["file_name"] in lost:
        return UNKNOWN, UNKNOWN
    try:
        header = read_header(folder / image["file_name"])
    except BadImage as bad:
        mend = 'mend the files, or state "width" and "height"'
        problems.add("images of unknown size", str(bad), mend=mend)
        return UNKNOWN, UNKNOWN
    return upright_size(header.width, header.height, header.orientation)


def _is_length(value: Any) -> TypeGuard[float]:
    return type(value) in (int, float) and value >= 1 and value == math.floor(value)


def _linked(
    raw: Json, own: list[Category], known: list[Category], problems: Problems
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Image row and label of each annotation, -1 and 0 where there is none."""
    image_row = {image["id"]: row for row, image in enumerate(raw["images"])}
    stated = {category.id for category in own}
    label = {category.id: k for k, category in enumerate(known, start=1) if category.id in stated}
    image_of = [image_row.get(a["image_id"], -1) for a in raw["annotations"]]
    label_of = [label.get(a["category_id"], 0) for a in raw["annotations"]]
    some = ", ".join(f"{category.id} {category.name}" for category in known[:5])
    add = f'add it to "categories" (known: {some}{", ..." if len(known) > 5 else ""})'
    for row, (image, category) in enumerate(zip(image_of, label_of, strict=True)):
        annotation = raw["annotations"][row]
        if image < 0:
            example = f"annotation {annotation.get('id', row)} is of image {annotation['image_id']}"
            problems.add('annotations of images not in "images"', example, mend="add or remove them")
        if category == 0:
            example = f"annotation {annotation.get('id', row)} is of category {annotation['category_id']}"
            problems.add('annotations of categories not in "categories"', example, mend=add)
    return np.array(image_of, dtype=np.int64), np.array(label_of, dtype=np.int64)
