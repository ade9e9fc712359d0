"""What can be known to fail, or to mislead, before the first step; and whom to suspect when nothing was learned."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boxwise.data.decode import BadImage
from boxwise.data.targets import Labelled
from boxwise.recipes.recipe import TransferRecipe
from boxwise.run.fit import rate
from boxwise.run.verdict import JUDGED, LEARNT

TRIED = 64
"""Files whose sizes are compared with what their labels say."""
PIXEL = 1.5
"""A set whose boxes all end before this has shares of the image for pixels."""
PASSES = 5.0
"""Fewer passes over the images teach a detector little."""
SHOWN = 5


def preflight(train: Labelled, test: Labelled, *, extras: Collection[str]) -> None:
    """Raises ValueError, all at once, for what cannot be meant."""
    wrong = [*unlabelled(train, extras), *misplaced(train), *misplaced(test)]
    if wrong:
        raise ValueError("\n".join(dict.fromkeys(wrong)))


def unlabelled(train: Labelled, extras: Collection[str]) -> Iterator[str]:
    """What a detector is to learn and no annotation has."""
    for name in extras:
        texts = train.table.extras.get(name)
        if texts is not None and all(text == "null" for text in texts):
            yield (
                f"{train.table.file}: none of {len(texts)} annotations has {name}, which this detector learns "
                "from; pass labels that have it, or train a detector of boxes (faster_rcnn_fpn)"
            )


def misplaced(labelled: Labelled) -> Iterator[str]:
    """Boxes that are no pixels, and images of other sizes than their labels say."""
    table = labelled.table
    if len(table.boxes) and table.boxes.max() <= PIXEL and table.sizes.max() > 2:
        yield (
            f"{table.file}: all {len(table.boxes)} boxes end within {table.boxes.max():.3g} pixels; they look like "
            "shares of the image: multiply them by its width and height"
        )
    tried = sorted({k * len(labelled) // TRIED for k in range(TRIED)}) if len(labelled) else []
    misfits = []
    for index in tried:
        try:
            labelled.turn(index)
        except BadImage as bad:
            misfits.append(bad)
    if 2 * len(misfits) > len(tried):
        yield f"{table.file}: {len(misfits)} of {len(tried)} images tried do not fit; the first: {misfits[0]}"


def doubts(train: Labelled, test: Labelled) -> Iterator[str]:
    """What may be meant, but seldom is."""
    learned, measured = counts(train), counts(test)
    names = [category.name for category in train.categories]
    if unmet := [name for name, a, b in zip(names, learned, measured, strict=True) if b and not a]:
        yield (
            f"{train.table.file}: no training box of categories that are measured, {some(unmet)}: they will not be "
            "found"
        )
    trained = {train.path(i) for i in range(len(train))}
    if both := [test.name(i) for i in range(len(test)) if test.path(i) in trained]:
        yield (
            f"{test.table.file}: {len(both)} of {len(test)} images to measure on are trained on too "
            f"({some(both)}); figures will be too good"
        )


def suspects(
    recipe: TransferRecipe, train: Labelled, test: Labelled, results: Mapping[str, Any]
) -> str | None:
    """What to look at when a main figure is next to nothing after training, likeliest first; none where none is."""
    low = [f"{name} is {results[name]:.2f}" for name in JUDGED if 0 <= _learned(results, name) < LEARNT]
    if not low:
        return None
    learned, measured = counts(train), counts(test)
    steps = recipe.steps(len(train))
    passes = steps * recipe.run.batch_size / max(1, len(train))
    shared = sum(bool(a and b) for a, b in zip(learned, measured, strict=True))
    first = train.categories[0]
    short = ", which is few" if passes < PASSES else ""
    folders = " and ".join(dict.fromkeys(str(one.table.folder) for one in (train, test)))
    lines = [
        f"{', '.join(low)} at the end of training: next to nothing was learned. Suspects:",
        f"too few steps: {steps} are {passes:.1f} passes over {len(train)} images{short}",
        f"the learning rate: {rate(recipe):.3g} at the end of warm-up; try a tenth, or look at train.log for losses "
        "that do not fall",
        f"labels that begin at the wrong number: the first category is {first.id} {first.name}; {shared} of "
        f"{len(train.categories)} have boxes in both splits",
        f"the wrong folder of images: {folders}; look at figures/detections.png and at `boxwise data check`",
    ]
    return "\n  ".join(lines)


def _learned(results: Mapping[str, Any], name: str) -> float:
    """A main figure; a mean IoU without its best class, which is all that pictures of one class alone get right."""
    ious = sorted(value for key, value in results.items() if key.startswith("IoU ") and value >= 0)
    if name == "mIoU" and len(ious) > 1:
        return sum(ious[:-1]) / (len(ious) - 1)
    return float(results.get(name, -1))


def counts(labelled: Labelled) -> NDArray[np.int64]:
    """Boxes of each category, crowds left out."""
    table = labelled.table
    held = np.zeros(len(table.names), dtype=np.bool_)
    held[labelled.index] = True
    here = np.repeat(held, np.diff(table.first)) & ~table.crowd
    return np.bincount(table.labels[here] - 1, minlength=len(table.categories))


def some(names: list[str]) -> str:
    """The first few."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
