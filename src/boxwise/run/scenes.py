"""The built-in data set on disk, in COCO layout."""

from __future__ import annotations

from pathlib import Path

from boxwise.data.scenes import write_scenes
from boxwise.strict import SettingsError


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
    least = {"count": (count, 1), "val": (val, 0), "unlabelled": (unlabelled, 0)}
    if wrong := [f"--{name}: expected {low} or more, got {n}" for name, (n, low) in least.items() if n < low]:
        raise SettingsError(wrong)
    counts = {"train": count, "val": val, "unlabelled": unlabelled}
    write_scenes(out, counts=counts, size=size, seed=seed, overwrite=overwrite)
    return out
