"""Milliseconds of one core for the boxes of a photo of 470 x 400 pixels, by part, beside the package `selectivesearch`.

    python benchmarks/proposals.py [FOLDER] [--photos 24] [--rounds 3] [--out]

Both arms take the same photos as floats in [0, 1], in turns within each round, and both use scikit-image's
segmentation and the allocator settings of our workers; ours is checked to give the same boxes. What counts is the
processor time of this process, so that other jobs on the machine disturb less; a figure is the median over photos of
the least over rounds.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import skimage
from numpy.typing import NDArray
from PIL import Image

from boxwise.data import selective_search as ours
from boxwise.data.proposal_pool import keep_heap
from boxwise.data.propose import fitting
from result import RESULTS, machine, save, system_load

HERE = Path(__file__).parent
PHOTOS = HERE.parents[1] / "shared" / "data" / "coco_sample" / "train2017"
WIDTH, HEIGHT = 470, 400
SEGMENTS, PACKAGE, WHOLE = "segmentation (scikit-image)", "package selectivesearch", "all of it"
AIMS = {WHOLE: 250.0, "ours, beyond the segmentation": 70.0}


class Clock:
    """Processor milliseconds by name."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}

    def __call__(self, name: str, work: Callable[[], Any]) -> Any:
        start = time.process_time()
        made = work()
        self.spent[name] = self.spent.get(name, 0.0) + (time.process_time() - start) * 1e3
        return made


def by_part(pixels: NDArray[np.uint8]) -> tuple[dict[str, float], NDArray[np.int64]]:
    """The search in its parts; also checks that the parts make the whole."""
    clock = Clock()
    unit = clock("to floats", lambda: pixels * (1 / 255))
    segments = clock(SEGMENTS, lambda: ours.segment(unit, scale=300.0, sigma=0.9, min_size=100))
    box, size = clock("boxes and sizes", lambda: (ours.corners(segments), np.bincount(segments.ravel())))
    texture = clock("texture", lambda: ours.first_codes(unit, segments) / size[:, None])
    colour = np.full((len(size), 1), 3.0)
    found = clock("merging", lambda: ours.merge_all(box, size, colour, texture, segments.size))
    rects = np.concatenate([found[:, :2], found[:, 2:] - found[:, :2]], axis=1)
    clock("SoCo's filters", lambda: fitting(rects, WIDTH, HEIGHT))
    spent = clock.spent
    beyond = sum(spent.values()) - spent[SEGMENTS]
    return spent | {"ours, beyond the segmentation": beyond, WHOLE: beyond + spent[SEGMENTS]}, rects


def package(pixels: NDArray[np.uint8]) -> tuple[float, NDArray[np.int64]]:
    import selectivesearch

    clock, unit = Clock(), pixels * (1 / 255)
    _, found = clock(
        PACKAGE, lambda: selectivesearch.selective_search(unit, scale=300, sigma=0.9, min_size=100)
    )
    return clock.spent[PACKAGE], np.array([one["rect"] for one in found], dtype=np.int64)


def measure(pictures: list[NDArray[np.uint8]], *, rounds: int) -> tuple[dict[str, float], int]:
    """Milliseconds by part, and on how many photos the package gave the same boxes."""
    least: list[dict[str, float]] = [{} for _ in pictures]
    beside, same = importlib.util.find_spec("selectivesearch") is not None, 0
    for n in range(rounds):
        for best, pixels in zip(least, pictures, strict=True):
            spent, rects = by_part(pixels)
            if beside:
                spent[PACKAGE], theirs = package(pixels)
                same += n == 0 and np.array_equal(rects, theirs)
            best |= {name: min(ms, best.get(name, ms)) for name, ms in spent.items()}
    return {name: statistics.median(best[name] for best in least) for name in least[0]}, same


def report(spent: dict[str, float], *, photos: int, rounds: int, same: int, load: float) -> str:
    rows = "\n".join(f"| {name} | {ms:.1f} | {AIMS.get(name, '')} |" for name, ms in spent.items())
    versions = ", ".join(f"{module.__name__} {module.__version__}" for module in (np, skimage, scipy))
    equal = f"The package gave the same boxes on {same} of {photos} photos.\n" if PACKAGE in spent else ""
    return f"""# Selective search, one core

{datetime.date.today()}, {machine()}, {os.cpu_count()} cores, load {load:.1f} before the start.
{versions}, Python {platform.python_version()}.
{photos} photos of {WIDTH} x {HEIGHT} pixels, {rounds} rounds; processor time, median over photos of the least
over rounds.

| part | ms/photo | aim |
|---|---:|---:|
{rows}

{equal}With a load above 1 other jobs share caches and memory, which slows every row:
then read the rows against one another.
Made by `python benchmarks/proposals.py`.
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, default=PHOTOS)
    parser.add_argument("--photos", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", nargs="?", type=Path, const=RESULTS, help="a folder for the dated result")
    given = parser.parse_args()
    keep_heap()
    warnings.simplefilter("ignore")  # scikit-image's, on every photo of the package's arm
    load = system_load()
    pictures = []
    for path in sorted(given.folder.glob("*.jpg"))[: given.photos]:
        with Image.open(path) as file:
            pictures.append(np.asarray(file.convert("RGB").resize((WIDTH, HEIGHT))))
    spent, same = measure(pictures, rounds=given.rounds)
    text = report(spent, photos=len(pictures), rounds=given.rounds, same=same, load=load)
    print(text)
    if given.out is not None:
        save(text, "proposals", given.out)


if __name__ == "__main__":
    main()
