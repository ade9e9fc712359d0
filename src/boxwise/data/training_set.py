"""Which of the labelled images are trained on, and how often: what papers' data loaders do before any draw."""

from __future__ import annotations

import json
from bisect import bisect_right
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Bool, Float64, Int64

from boxwise.config import TransferData
from boxwise.data.coco import Annotated
from boxwise.data.names import Names
from boxwise.data.order import REPEAT, Item, Sampler, numbers
from boxwise.data.targets import Labelled

DIFFICULT = "difficult"


def training_set(labelled: Labelled, data: TransferData) -> Labelled:
    """The images of `labelled` that the settings leave, in their order. Raises ValueError where they leave none.

    For `difficult` and `min_keypoints` the set must have been opened with the extras that `needed` names.
    """
    found = labelled if data.difficult else _kept(labelled, ~flagged(labelled.table, DIFFICULT))
    if data.drop_empty:
        crowds = found.table.crowd.astype(np.int64)
        found = found.subset(np.flatnonzero(_per_image(found, 1 - crowds) > 0))
    if data.min_keypoints:
        found = found.subset(np.flatnonzero(_per_image(found, _marked(found.table)) >= data.min_keypoints))
    if len(labelled) and not len(found):
        raise ValueError(
            f"{labelled.table.file}: none of {len(labelled)} images is left to train on; see data.drop_empty, "
            "data.difficult and data.min_keypoints"
        )
    return found


def needed(data: TransferData) -> tuple[str, ...]:
    """Fields of annotations that the settings look at."""
    return (*(() if data.difficult else (DIFFICULT,)), *(("keypoints",) if data.min_keypoints else ()))


def repeat_factors(labelled: Labelled, threshold: float) -> Float64[np.ndarray, " n"]:
    """How often each image is to be read in a pass, by its rarest category (Gupta et al., LVIS, 2019).

    With f the share of the images that show a category, a category asks for max(1, sqrt(threshold / f)), and an
    image gets the most that any of its categories asks for; 1 without boxes.
    """
    table = labelled.table
    sets = [np.unique(table.labels[table.first[row] : table.first[row + 1]]) for row in labelled.index]
    shown = np.bincount(np.concatenate([*sets, []]).astype(np.int64), minlength=len(table.categories) + 1)
    share = np.maximum(shown, 1) / max(1, len(labelled))
    asked = np.maximum(1.0, np.sqrt(threshold / share))
    return np.array([asked[labels].max(initial=1.0) for labels in sets], dtype=np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class Repeated(Sampler):
    """A stream whose passes hold each image as often as its factor says.

    The part of a factor beyond a whole number is the chance, drawn anew for each pass, of one more. Copies of an
    image in one pass have draws of their own.
    """

    factors: Float64[np.ndarray, " n"] = field(kw_only=True)
    _ends: list[int] = field(default_factory=list, init=False, repr=False)
    """Items until the end of each pass, as far as they were asked for."""

    def order(self, epoch: int) -> Int64[np.ndarray, " k"]:
        """A permutation of all copies."""
        times = self._times(epoch)
        copy = np.concatenate([np.arange(n) for n in times]) if len(times) else np.zeros(0, dtype=np.int64)
        codes = np.repeat(np.arange(self.count), times) + self.count * copy
        return codes[self.shuffled(epoch, len(codes))]

    def _times(self, epoch: int) -> Int64[np.ndarray, " n"]:
        whole = np.floor(self.factors)
        more = numbers(self.seed, REPEAT, Item(epoch, 0)).random(self.count) < self.factors - whole
        return whole.astype(np.int64) + more

    def _place(self, step: int, row: int) -> tuple[int, int]:
        at = step * self.batch_size + row
        while not self._ends or self._ends[-1] <= at:
            last = self._ends[-1] if self._ends else 0
            self._ends.append(last + int(self._times(len(self._ends)).sum()))
        epoch = bisect_right(self._ends, at)
        return epoch, at - (self._ends[epoch - 1] if epoch else 0)


def flagged(table: Annotated, name: str) -> Bool[np.ndarray, " m"]:
    """Which annotations have the field `name`, and not as 0, false or nothing; it must be among the extras."""
    texts = table.extras[name]
    return np.array([bool(json.loads(text)) for text in texts], dtype=np.bool_)


def _marked(table: Annotated) -> Int64[np.ndarray, " m"]:
    """Keypoints of each annotation that are labelled, hidden ones included."""
    held = (json.loads(text) or [] for text in table.extras["keypoints"])
    return np.array([sum(seen > 0 for seen in marks[2::3]) for marks in held], dtype=np.int64)


def _per_image(labelled: Labelled, values: Int64[np.ndarray, " m"]) -> Int64[np.ndarray, " n"]:
    """Sums over the annotations of each image."""
    total = np.concatenate([[0], np.cumsum(values)])
    first = labelled.table.first
    return (total[first[1:]] - total[first[:-1]])[labelled.index]


def _kept(labelled: Labelled, keep: Bool[np.ndarray, " m"]) -> Labelled:
    """The same images with some of their annotations."""
    table = labelled.table
    first = np.concatenate([[0], np.cumsum(keep)])[table.first]
    rows = np.flatnonzero(keep)
    kept = replace(
        table,
        first=first,
        boxes=table.boxes[rows],
        labels=table.labels[rows],
        areas=table.areas[rows],
        crowd=table.crowd[rows],
        rows=table.rows[rows],
        extras={name: Names.of(texts[int(k)] for k in rows) for name, texts in table.extras.items()},
    )
    return replace(labelled, table=kept)
