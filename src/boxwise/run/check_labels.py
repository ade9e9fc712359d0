"""Counts over annotations, for a look at a data set."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np

from boxwise.data.densepose import DENSE
from boxwise.data.targets import Labelled
from boxwise.run.preflight import some

NONE = "null"


def outlined(texts: Iterable[str]) -> int:
    """Annotations with an outline."""
    return sum(text != NONE for text in texts)


def counted(texts: Iterable[str], name: str) -> tuple[int, int]:
    """Annotations with at least one labelled point, and all points of `name`, keypoints or DensePose's."""
    held = points = 0
    for text in texts:
        if text == NONE:
            continue
        value = json.loads(text)
        own = len(value.get("dp_x", ())) if name == DENSE else sum(seen > 0 for seen in value[2::3])
        held, points = held + (own > 0), points + own
    return held, points


def doubled(labelled: Labelled) -> Iterator[str]:
    """The same box twice in an image, under one category; and images that are listed twice."""
    table = labelled.table
    row = np.repeat(np.arange(len(table.names)), np.diff(table.first))
    keys = np.concatenate([np.stack([row, table.labels], axis=1), np.round(table.boxes, 2)], axis=1)
    _, first, times = np.unique(keys, axis=0, return_index=True, return_counts=True)
    if (times > 1).any():
        again = [table.names[int(row[k])] for k in np.sort(first[times > 1])]
        places = [*dict.fromkeys(again)]
        yield (
            f"{table.file}: {int((times - 1).sum())} boxes are there twice, in {some(places)}; each copy is "
            "missed in measurements: remove them"
        )
    listed = Counter(table.names)
    if twice := [name for name, count in listed.items() if count > 1]:
        yield f"{table.file}: {len(twice)} images are listed twice: {some(twice)}; join their annotations"
