"""Labelled images for detectors, from every accepted layout, in upright pixels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64, UInt8
from torch import Tensor

from boxwise.data.coco import Annotated, Category, Format, annotated, extra
from boxwise.data.coco_files import Json
from boxwise.data.decode import decode_oriented, read_header
from boxwise.data.densepose import DENSE
from boxwise.data.formats import cityscapes
from boxwise.data.formats.layouts import find_source
from boxwise.data.ground_truth import ground_truth, turn_of, upright
from boxwise.data.names import count_of, draw
from boxwise.data.orientation import upright_boxes, upright_mask, upright_size
from boxwise.data.outlines import rasterise
from boxwise.data.sources import fingerprint, refuse_unreadable
from boxwise.shapes import Picture

__all__ = ["Category", "Labelled", "Labels", "choose", "open_labelled"]

IGNORED = cityscapes.IGNORED


@dataclass(frozen=True, slots=True)
class Labels:
    """What is known of one picture."""

    boxes: Float[Tensor, "N 4"]
    """xyxy in pixels of the upright picture, inside it, never empty."""
    labels: Int[Tensor, " N"]
    """1 and up; label k is categories[k - 1]."""
    area: Float[Tensor, " N"]
    """Of the outline where the json states it, else of the box."""
    crowd: Bool[Tensor, " N"]
    """One box around many things: to be ignored, neither learned nor counted."""
    extras: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    """Of each field that was asked for, the value that each box has in the json, upright; none where it has none."""


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """Pictures with boxes, all or some of one json. Cheap to send to worker processes."""

    table: Annotated
    index: Int64[np.ndarray, " n"]
    """Rows of `table` in this set."""
    max_value: int | None = None
    """The white of 16-bit images."""

    @property
    def categories(self) -> tuple[Category, ...]:
        """By id; the label of categories[k] is k + 1."""
        return self.table.categories

    @property
    def format(self) -> Format:
        """The layout that was found."""
        return self.table.format

    def __len__(self) -> int:
        return len(self.index)

    def read(self, index: int) -> tuple[Picture, Labels]:
        """Raises BadImage where the file gives no picture, or one that is not of the json's size."""
        path, found = self.path(index), self._rows(index)
        picture, orientation = self.decoded(index)
        stored = upright_size(picture.shape[2], picture.shape[1], orientation)
        width, height = self._said(index)
        turn = turn_of(path, (width, height), stored, orientation)
        placed = upright_boxes(self.table.boxes[found], turn, width=width, height=height)
        arrays = placed, self.table.labels[found], self.table.areas[found], self.table.crowd[found]
        boxes, labels, area, crowd = (torch.from_numpy(np.array(a)) for a in arrays)
        extras = self._extras(found, turn, width=width, height=height)
        return picture, Labels(boxes, labels, area, crowd, extras)

    def _extras(self, found: slice, turn: int, *, width: int, height: int) -> dict[str, tuple[Any, ...]]:
        """Of the annotations `found`, the fields that were asked for, freed of `turn`."""
        held: list[Json] = []
        for k in range(found.start, found.stop):
            values = {name: json.loads(texts[k]) for name, texts in self.table.extras.items()}
            values |= values.pop(DENSE, None) or {}
            held.append(values if turn == 1 else upright(values, turn, width=width, height=height))
        return {name: tuple(extra(values, name) for values in held) for name in self.table.extras}

    def decoded(self, index: int) -> tuple[Picture, int]:
        """The upright picture, and the orientation that was undone."""
        return decode_oriented(self.path(index), max_value=self.max_value)

    def turn(self, index: int) -> int:
        """The orientation that labels must be freed of, by the head of the file. Raises BadImage as `read` does."""
        path, header = self.path(index), read_header(self.path(index))
        return turn_of(path, self._said(index), (header.width, header.height), header.orientation)

    def semantic(self, index: int) -> UInt8[Tensor, "H W"]:
        """The class of each pixel of the upright picture, 255 where none counts: row k of `semantic_names` is k.

        Cityscapes states them. Elsewhere they are painted from outlines, the large first and the small on top,
        crowds as 255: "segmentation" must be among the extras. Raises BadImage as `read` does.
        """
        assert len(self.semantic_names) <= IGNORED, "numbers of classes fit into bytes"
        (width, height), turn = self._said(index), self.turn(index)
        if self.format == "cityscapes":
            stated = cityscapes.train_ids(self.table.folder, self.name(index))
            return torch.from_numpy(upright_mask(stated, turn))
        assert "segmentation" in self.table.extras, (
            "classes of pixels come from outlines, which were not kept"
        )
        found, size = self._rows(index), upright_size(width, height, turn)[::-1]
        outlines = self._extras(found, turn, width=width, height=height)["segmentation"]
        labels = np.where(self.table.crowd[found], IGNORED, self.table.labels[found]).tolist()
        painted = torch.zeros(size, dtype=torch.uint8)
        for k in np.argsort(-self.table.areas[found], kind="stable"):
            painted[rasterise(outlines[k], source=size, size=size).bool()] = labels[k]
        return painted

    @property
    def semantic_names(self) -> tuple[str, ...]:
        """What `semantic` tells apart."""
        if self.format == "cityscapes":
            return cityscapes.SEMANTIC
        return ("background", *(category.name for category in self.categories))

    def _said(self, index: int) -> tuple[int, int]:
        """Width and height that the labels of an image refer to."""
        width, height = self.table.sizes[self.index[index]].tolist()
        return width, height

    def _rows(self, index: int) -> slice:
        """The annotations of an image."""
        row = self.index[index]
        return slice(int(self.table.first[row]), int(self.table.first[row + 1]))

    def name(self, index: int) -> str:
        """As in the json, relative to the folder of images."""
        return self.table.names[int(self.index[index])]

    def path(self, index: int) -> Path:
        return self.table.folder / self.name(index)

    def image_id(self, index: int) -> int:
        """The json's own."""
        return int(self.table.ids[self.index[index]])

    def coco(self) -> Json:
        """Ground truth of these images as a COCO json for evaluators, outlines and keypoints included.

        Reads the json again, and the head of every image. Raises ValueError if the json has changed since.
        """
        return ground_truth(self.table, self.index)

    def fingerprint(self) -> str:
        """Changes with the json, with the choice of images, and with names and sizes of files."""
        digest = hashlib.blake2b(self.table.digest.encode(), digest_size=16)
        digest.update(self.index.tobytes())
        digest.update(fingerprint(self.table.folder, self.table.names).encode())
        return digest.hexdigest()

    def subset(self, indices: Sequence[int] | Int64[np.ndarray, " k"]) -> Labelled:
        """The images at these places of this set, in this order."""
        return replace(self, index=self.index[np.asarray(indices, dtype=np.int64)])


def open_labelled(
    data: Path | str,
    *,
    split: Literal["train", "val"],
    images: Path | str | None = None,
    val: Path | str | None = None,
    categories: Sequence[Category] | None = None,
    max_value: int | None = None,
    extras: Collection[str] = (),
) -> Labelled:
    """One split of a data set of any accepted layout; or the json `data` with its `images`, for the val split
    `val` if it is given.

    Without `images` the files lie where COCO keeps them, or beside the json. With `categories` (a detector's
    own) labels follow them, and a json that knows others is refused. `extras` names fields of annotations that
    `Labelled.read` is to give beside boxes: "segmentation", "keypoints", and "dp" for all of DensePose's. A
    root's person_keypoints_*.json or densepose_*.json stands for its instances where they are asked for. Raises
    ValueError that lists all that is wrong, each with its mend.
    """
    data = Path(data)
    found = find_source(data, split, images=images, val=val, extras=extras)
    table = annotated(
        found.reader,
        file=found.file,
        folder=found.folder,
        format=found.format,
        categories=categories,
        extras=extras,
    )
    labelled = Labelled(table, np.arange(len(table.names), dtype=np.int64), max_value)
    refuse_unreadable(found.file, len(labelled), labelled.path, max_value=max_value)
    return labelled


def choose(labelled: Labelled, labels: float | int | None, *, seed: int) -> Labelled:
    """A share (a float up to 1.0) or a count (an int) of the images, drawn by `seed`; None: all.

    Taken are the images with the least sha256 of "SEED:NAME", NAME as `Labelled.name` has it: a function of the
    seed and the names alone, on any machine, in whatever order they are listed. A smaller choice of one seed lies
    within every larger one. The images keep their order. Raises ValueError for more than there are, for less than
    one, and where no image drawn has a box.
    """
    if labels is None:
        return labelled
    total = len(labelled)
    count = count_of(labels, total)
    chosen = labelled.subset(draw([labelled.name(i) for i in range(total)], count, seed=seed))
    if not np.diff(labelled.table.first)[chosen.index].any():
        raise ValueError(
            f"labels is {labels}; none of the {count} images drawn has a box: choose more of them"
        )
    return chosen
