"""A look at a file of proposals: does it fit the images, what are its boxes like, do they find what is labelled?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from boxwise.data.coco_files import coco_split, is_coco_root
from boxwise.data.decode import BadImage
from boxwise.data.proposals import Table
from boxwise.data.propose import CocoBoxes, coco_boxes
from boxwise.data.sources import Files, open_images
from boxwise.geometry.boxes import iou

SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)
SHOWN = 5
OVERLAPS = (0.5, 0.7)
"""Intersections over union that count as found."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What `check` found."""

    text: str
    fits: bool
    """Whether every image has its entry, and is the file that the entry was made for."""


@dataclass(frozen=True, slots=True)
class Recall:
    """Labelled boxes that a proposal overlaps enough."""

    labels: int
    images: int
    found: tuple[float, ...]
    """The share, for each of OVERLAPS."""
    best: float
    """The mean over labels of the overlap of the best proposal."""


def check(file: Path, data: str | Path, *, images: Path | None = None) -> Checked:
    """Compares `file` with the images of `data`, every one by its content, and with its labels where it has any."""
    table, source = Table(file), open_images(data, images=images)
    rows = table.rows(source)
    missing = [source.name(i) for i in np.flatnonzero(rows < 0).tolist()]
    changed = [
        source.name(i)
        for i in np.flatnonzero(rows >= 0).tolist()
        if not table.holds(int(rows[i]), source.path(i))
    ]
    here = rows[rows >= 0]
    settings = ", ".join(f"{key} {value}" for key, value in table.generator.items() if key != "name")
    lines = [
        f"{file}: {table.generator['name']}{f' ({settings})' if settings else ''}",
        f"images      {len(table)} in the file, {len(source)} in the data",
        f"missing     {_some(missing)}",
        f"changed     {_some(changed)}",
        f"unreadable  {_some([f'{name} ({reason})' for name, reason in table.bad.items()])}",
        *_shapes(table, np.unique(here)),
    ]
    labels = _labels(Path(data))
    if labels is not None and len(here):
        lines.append(_told(recall(table, source, rows, labels)))
    return Checked("\n".join(lines), not missing and not changed)


def recall(table: Table, images: Files, rows: NDArray[np.int64], labels: CocoBoxes) -> Recall:
    """How well the proposals cover `labels`. Without proposals the whole image is the only one."""
    best: list[NDArray[np.float64]] = []
    seen = 0
    for index, row in enumerate(rows):
        name = images.name(index)
        if row < 0 or name not in labels.boxes or not table.pixels[row].all():
            continue
        width, height = table.pixels[row].tolist()
        try:
            truth = labels.turned(name, images.path(index), width, height).boxes[name]
        except BadImage:  # nobody knows where its boxes lie
            continue
        boxes = np.asarray(table.boxes[table.first[row] : table.first[row + 1]], dtype=np.float64)
        if not len(boxes):
            boxes = np.array([[0, 0, *table.pixels[row]]], dtype=np.float64)
        best.append(iou(torch.from_numpy(truth), torch.from_numpy(boxes)).amax(dim=1).numpy())
        seen += 1
    every = np.concatenate(best) if best else np.zeros(0)
    found = tuple(float((every >= least).mean()) if len(every) else 0.0 for least in OVERLAPS)
    return Recall(len(every), seen, found, float(every.mean()) if len(every) else 0.0)


def _labels(data: Path) -> CocoBoxes | None:
    """Boxes, where `data` is a COCO root or json with annotations."""
    file = data if data.suffix.lower() == ".json" else None
    if data.is_dir() and is_coco_root(data):
        file = coco_split(data, "train").file
    if file is None:
        return None
    try:
        labels = coco_boxes(file)
    except ValueError:  # a json of images alone
        return None
    return labels if labels.boxes else None


def _shapes(table: Table, rows: NDArray[np.int64]) -> list[str]:
    """Counts, sides, shapes and shares of the boxes of `rows`, as quantiles."""
    counts = np.diff(table.first)[rows]
    readable = table.pixels[rows].all(axis=1)
    if not readable.any():
        return []
    whole = int((counts[readable] == 0).sum())
    shares = "".join(f"{f'{q:.0%}':>9}" for q in SHARES)
    lines = [
        f"whole image {whole} of {int(readable.sum())} images have no box of their own",
        f"{'':<20}{shares}",
    ]
    lines.append(_quantiles("boxes per image", counts[readable]))
    row_of_box = np.repeat(rows, counts)
    boxes = np.concatenate([table.boxes[table.first[row] : table.first[row + 1]] for row in rows])
    if len(boxes):
        sides = (boxes[:, 2:].astype(np.int64) - boxes[:, :2]).astype(np.float64)
        frame = table.pixels[row_of_box].astype(np.float64)
        lines += [
            _quantiles("width, pixels", sides[:, 0]),
            _quantiles("height, pixels", sides[:, 1]),
            _quantiles("width / height", sides[:, 0] / np.maximum(sides[:, 1], 1)),
            _quantiles("share of image", np.sqrt(sides.prod(axis=1) / frame.prod(axis=1))),
        ]
    return lines


def _quantiles(what: str, values: NDArray[np.float64] | NDArray[np.int64]) -> str:
    return f"{what:<20}" + "".join(f"{v:>9.4g}" for v in np.quantile(values, SHARES))


def _told(found: Recall) -> str:
    shares = ", ".join(f"{s:.1%} at IoU {o}" for o, s in zip(OVERLAPS, found.found, strict=True))
    return f"recall      {shares}; mean best IoU {found.best:.3f}, of {found.labels} labels in {found.images} images"


def _some(names: list[str]) -> str:
    if not names:
        return "0"
    return f"{len(names)}: {', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}"
