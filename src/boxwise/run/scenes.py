"""The built-in data set on disk, in COCO layout."""

from __future__ import annotations

from pathlib import Path

from boxwise.data.scenes import write_scenes


def scenes(
    out: Path,
    *,
    count: int,
    val: int = 100,
    unlabelled: int = 0,
    size: int = 128,
    seed: int = 0,
    overwrite: bool = False,
) -> Path:
    """Writes `count` labelled training scenes, `val` to measure on and `unlabelled` to pretrain on; returns `out`."""
    counts = {"train": count, "val": val, "unlabelled": unlabelled}
    for name, number in counts.items():
        if number < 0:
            raise ValueError(f"{name}: a number of scenes cannot be {number}")
    write_scenes(out, counts=counts, size=size, seed=seed, overwrite=overwrite)
    return out
