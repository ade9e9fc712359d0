"""The two sides of a labelled set: what is trained on, and what is measured on."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from boxwise.data.targets import Labelled, open_labelled


def labelled_splits(
    data: str | Path,
    *,
    images: Path | None = None,
    val: Path | None = None,
    max_value: int | None = None,
    extras: Collection[str] = (),
) -> tuple[Labelled, Labelled]:
    """What to train and what to measure on, with one list of categories and the fields `extras` of annotations.

    Raises ValueError for a json without another to measure on: nobody is to take its figures for a test's.
    """
    if val is None and Path(data).suffix.lower() == ".json":
        raise ValueError(
            f"{data}: pass --val FILE.json, images to measure on (the same file, to measure on what it trains on)"
        )
    options: dict[str, Any] = {"images": images, "val": val, "max_value": max_value, "extras": extras}
    train = open_labelled(data, split="train", **options)
    test = open_labelled(data, split="val", **options, categories=train.categories)
    return train, test
