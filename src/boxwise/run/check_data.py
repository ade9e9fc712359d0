"""A look at images before a run: what was found, what is bad, what will be used, and how to mend the rest."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from boxwise.data.coco import Category, stated_categories
from boxwise.data.decode import BadImage, decode
from boxwise.data.densepose import DENSE
from boxwise.data.formats.layouts import find_source, holds_labels
from boxwise.data.targets import Labelled, open_labelled
from boxwise.run.check_images import WIDTH, Findings, check_images, line, sampled
from boxwise.run.check_labels import counted, doubled, outlined
from boxwise.run.preflight import counts, doubts, misplaced, some
from boxwise.transfer.readable import check_readable

SPLITS: tuple[Literal["train", "val"], ...] = ("train", "val")
NAMES = {
    "coco": "COCO",
    "voc": "PASCAL VOC",
    "lvis": "LVIS",
    "cityscapes": "Cityscapes",
    "yolo": "YOLO",
}
POINTS = {"keypoints": "keypoints", "densepose": DENSE}
SMALL, LARGE = 32.0**2, 96.0**2
"""COCO's bounds of areas, in square pixels."""
CATEGORIES = 20
"""Categories that are listed; of more, the most and the least frequent."""
UNUSABLE = "labels that cannot be used, see below"


@dataclass(frozen=True, slots=True)
class Checked:
    """What `check` found."""

    text: str
    problems: tuple[str, ...]
    """What a run would stop at or be spoilt by, each with its mend."""


def check(
    data: str | Path, *, images: Path | None = None, val: Path | None = None, every: bool = False
) -> Checked:
    """Reads labels and heads of all files, and pixels of some files a split or, with `every`, of all.

    A folder or a list of images without labels is looked at as what a pretraining would read.
    """
    data, found, opened = Path(data), Findings(), dict[str, Labelled]()
    if images is None and val is None and data.exists() and not holds_labels(data):
        return _checked(check_images(data, every=every))
    categories: Sequence[Category] | None = None
    alone = data.suffix.lower() == ".json" and val is None
    for split in SPLITS[:1] if alone else SPLITS:
        given: dict[str, Any] = {"split": split, "images": images, "val": val}
        labelled = _open(data, found, **given, categories=categories, extras=_at_once(data, given))
        if labelled is None:
            categories = categories or _categories(data, given)  # val's are held to them all the same
            continue
        opened[split], categories = labelled, labelled.categories
        title = f"{split:<{WIDTH}}{labelled.table.file}, {NAMES[labelled.format]}, images in {labelled.table.folder}"
        found.lines += [title, *_told(labelled), *_extras(data, labelled, given, found)]
        found.lines += _files(labelled, every, found)
        found.problems += misplaced(labelled)
        found.notes += doubled(labelled)
    if len(opened) == len(SPLITS):
        found.notes += doubts(opened["train"], opened["val"])
    found.lines += _used(opened, alone=alone)
    return _checked(found)


def _checked(found: Findings) -> Checked:
    return Checked("\n".join([*found.lines, *_closing(found)]), tuple(dict.fromkeys(found.problems)))


def _at_once(data: Path, given: dict[str, Any]) -> tuple[str, ...]:
    """Fields that are read with the boxes; COCO keeps points of people in files of their own."""
    try:
        file = find_source(data, **given).file
        points = (n for n in POINTS.values() if find_source(data, **given, extras=(n,)).file == file)
        return ("segmentation", "difficult", *points)
    except ValueError:  # said when the split is opened
        return ()


def _open(data: Path, found: Findings, *, extras: tuple[str, ...], **given: Any) -> Labelled | None:
    """One split; what is wrong goes to problems, what is mended on the way to notes."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            labelled = open_labelled(data, extras=extras, **given)
        except (ValueError, OSError) as error:
            found.problems.append(str(error))
            return None
    found.notes += [str(one.message) for one in told if issubclass(one.category, UserWarning)]
    return labelled


def _categories(data: Path, given: dict[str, Any]) -> list[Category] | None:
    try:
        found = find_source(data, **given)
        return stated_categories(found.reader, found.file)
    except (ValueError, OSError):  # said when the split was opened
        return None


def _told(labelled: Labelled) -> Iterator[str]:
    """Images, boxes, sizes and categories."""
    table = labelled.table
    held = np.diff(table.first)
    yield line("images", f"{len(labelled)}, {int((held == 0).sum())} without boxes")
    difficult = sum(text == "1" for text in table.extras.get("difficult", ()))
    yield line("boxes", f"{len(table.boxes)}, {int(table.crowd.sum())} crowds, {difficult} difficult")
    bins = np.digitize(table.areas[~table.crowd], [SMALL, LARGE])
    small, medium, large = np.bincount(bins, minlength=3).tolist()
    yield line("sizes", f"{small} small (below 32 x 32), {medium} medium, {large} large (from 96 x 96)")
    boxes = counts(labelled)
    empty = int((boxes == 0).sum())
    yield line("categories", f"{len(boxes)}, {empty} without a box")
    yield from _listed(labelled.categories, boxes)


def _listed(categories: tuple[Category, ...], boxes: NDArray[np.int64]) -> Iterator[str]:
    order = np.argsort(-boxes, kind="stable").tolist()
    half = CATEGORIES // 2
    shown = order if len(order) <= CATEGORIES else [*order[:half], -1, *order[-half:]]
    for k in shown:
        if k < 0:
            yield f"{'':<{WIDTH}}... {len(order) - CATEGORIES} more"
        else:
            yield f"{'':<{WIDTH}}{boxes[k]:>8}  {categories[k].id} {categories[k].name}"


def _extras(data: Path, labelled: Labelled, given: dict[str, Any], found: Findings) -> Iterator[str]:
    """What there is beside boxes: masks, keypoints, DensePose, classes of pixels."""
    table = labelled.table
    masks = outlined(table.extras["segmentation"])
    drawn = f"{masks} of {len(table.boxes)} boxes" if masks else "none"
    yield line("masks", drawn if _readable(labelled, "segmentation", found) else UNUSABLE)
    for what, name in POINTS.items():
        other = labelled if name in table.extras else _open(data, found, **given, extras=(name,))
        if other is None or not _readable(other, name, found):
            yield line(what, UNUSABLE)
            continue
        held, points = counted(other.table.extras[name], name)
        where = "" if other.table.file == table.file else f", in {other.table.file.name}"
        yield line(
            what, f"{held} of {len(other.table.boxes)} boxes, {points} points{where}" if held else "none"
        )
    stated = labelled.format == "cityscapes"
    pixels = "stated" if stated else "from masks" if masks else "none"
    yield line("semantic", f"{pixels}, {len(labelled.semantic_names)} classes" if stated or masks else pixels)


def _readable(labelled: Labelled, name: str, found: Findings) -> bool:
    """Whether a training that reads the field `name` would start."""
    try:
        check_readable(labelled, (name,))
    except ValueError as error:
        found.problems.append(str(error))
        return False
    return True


def _files(labelled: Labelled, every: bool, found: Findings) -> Iterator[str]:
    """Heads of all files, and pixels of some or all."""
    bad: dict[str, str] = {}
    for index in range(len(labelled)):
        try:
            labelled.turn(index)
        except BadImage as error:
            bad[labelled.name(index)] = str(error)
    total, rows = len(labelled), sampled(len(labelled), every=every)
    for index in rows:
        try:
            decode(labelled.path(index), max_value=labelled.max_value)
        except BadImage as error:
            bad.setdefault(labelled.name(index), str(error))
    more = "" if len(rows) == total else "; --all reads all"
    tried = f"heads of {total} and pixels of {len(rows)} read{more}"
    yield line("bad files", f"{len(bad)} ({tried})")
    if bad:
        found.problems.append(
            f"{labelled.table.file}: {len(bad)} bad image files: {some([*bad.values()])}; mend or remove them, or "
            "train with --bad-images skip"
        )


def _used(opened: dict[str, Labelled], *, alone: bool) -> Iterator[str]:
    """What `boxwise finetune` would do with it."""
    if alone and opened:
        yield line("finetune", "needs --val FILE.json, images to measure on", at="")
    elif len(opened) == len(SPLITS):
        train, val = opened["train"], opened["val"]
        rules = {"lvis": "LVIS's", "cityscapes": "Cityscapes'"}.get(train.format, "COCO's")
        more = "; VOC's rules with --measure.metric voc" if train.format == "voc" else ""
        text = f"trains on {len(train)} images, measures on {len(val)} by {rules} rules{more}"
        yield line("finetune", text, at="")


def _closing(found: Findings) -> Iterator[str]:
    for what, told in (("notes", found.notes), ("problems", found.problems)):
        once = [*dict.fromkeys(told)]
        yield line(what, str(len(once)) if once else "none", at="")
        for one in once:
            yield "  - " + one.replace("\n", "\n    ")
