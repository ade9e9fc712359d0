"""A look at images without labels before a pretraining: how many, of what kind and size, and which cannot be read."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from boxwise.data.decode import BadImage, decode
from boxwise.data.formats.layouts import LABELLED
from boxwise.data.sources import Files, open_images
from boxwise.run.bad_images import LIMIT
from boxwise.run.preflight import some

SAMPLE = 100
"""Pictures that are decoded unless all are asked for."""
WIDTH = 14
"""Of the column of words."""
SMALL = 96
"""Pixels: where half of all shorter sides are below, views of the published sizes are blown up."""


@dataclass(slots=True)
class Findings:
    """What is printed: lines, then problems (what a run would stop at, each with its mend) and notes."""

    lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check_images(data: Path, *, every: bool) -> Findings:
    """Reads the pixels of `SAMPLE` images or, with `every`, of all."""
    found = Findings()
    try:
        images = open_images(data)
    except (ValueError, OSError) as error:
        found.problems.append(str(error))
        return found
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        tried, sizes, bad = _read(images, every=every)
    found.notes += [str(one.message) for one in told if issubclass(one.category, UserWarning)]
    kinds = Counter(PurePosixPath(images.name(i)).suffix.lower() or "none" for i in range(len(images)))
    folders = len({PurePosixPath(images.name(i)).parent for i in range(len(images))})
    more = "" if tried == len(images) else "; --all reads all"
    found.lines += [
        line("images", f"{data}, without labels", at=""),
        line("images", f"{len(images)} in {folders} folder{'s' if folders != 1 else ''}"),
        line("formats", ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())),
        line("sizes", _sizes(sizes)),
        line("bad files", f"{len(bad)} (pixels of {tried} read{more})"),
        line("pretrain", f"trains on {len(images)} image{'s' if len(images) != 1 else ''}", at=""),
        line("finetune", f"needs labels, and finds none here: {LABELLED}", at=""),
    ]
    _judge(data, found, sizes, bad, tried)
    return found


def _read(images: Files, *, every: bool) -> tuple[int, list[tuple[int, int]], list[str]]:
    """How many were tried, widths and heights of those that can be read, and what is wrong with the others."""
    sizes, bad, rows = [], [], sampled(len(images), every=every)
    for index in rows:
        try:
            height, width = decode(images.path(index), max_value=images.max_value).shape[1:]
            sizes.append((width, height))
        except BadImage as error:
            bad.append(str(error))
    return len(rows), sizes, bad


def _sizes(sizes: Sequence[tuple[int, int]]) -> str:
    if not sizes:
        return "none"
    shorter = np.minimum(*np.array(sizes).T)
    least, most = (pick(sizes, key=lambda size: size[0] * size[1]) for pick in (min, max))
    ends = f"{least[0]} x {least[1]} to {most[0]} x {most[1]}"
    return f"{ends}; median of the shorter sides: {np.median(shorter):.0f}"


def _judge(data: Path, found: Findings, sizes: Sequence[tuple[int, int]], bad: list[str], tried: int) -> None:
    if bad:
        text = f"{data}: {len(bad)} of {tried} images cannot be read: {some(bad)}"
        if len(bad) > LIMIT * tried:
            found.problems.append(f"{text}; remove them: a run stops above {LIMIT:.0%}")
        else:
            found.notes.append(f"{text}; a run leaves them out")
    if sizes and (half := float(np.median([min(size) for size in sizes]))) < SMALL:
        found.notes.append(
            f"{data}: half of the images are less than {half + 1:.0f} pixels on their shorter side: pass --image-size, "
            "the views' side in pixels, and look at boxwise show"
        )


def sampled(total: int, *, every: bool) -> list[int]:
    """Which of so many are looked at, spread evenly."""
    count = total if every else min(SAMPLE, total)
    return sorted({k * total // count for k in range(count)}) if count else []


def line(what: str, told: Any, *, at: str = "  ") -> str:
    """A word, and what is told of it."""
    return f"{at}{what:<{WIDTH - len(at)}}{told}"
