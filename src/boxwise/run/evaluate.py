"""`boxwise evaluate`: the figures of a detector that was fine-tuned before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from boxwise.data.targets import Category, open_labelled
from boxwise.engine.device import device_of
from boxwise.interop.files import find_model, read_card, read_state
from boxwise.recipes.built_in import BuiltInDetector
from boxwise.strict import plain, read
from boxwise.transfer.detectors.base import Detector, DetectorConfig
from boxwise.transfer.evaluate import Measure, measured, precision_of


@dataclass(frozen=True)
class SavedDetector:
    """A detector that `boxwise finetune` trained, and how it was measured."""

    model: Detector
    config: DetectorConfig
    categories: tuple[Category, ...]
    """In the order of labels."""
    measure: Measure
    classes: tuple[str, ...]
    """What it tells apart: the categories, and with the background where that is a class."""
    precision: Literal["auto", "fp32", "bf16"]
    """What it was measured in, and is run in again: other roundings move its figures."""


def evaluate(
    run: str | Path,
    data: str | Path,
    *,
    images: Path | None = None,
    metric: str | None = None,
    geodesics: Path | None = None,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    batch_size: int = 8,
    workers: int | None = None,
) -> dict[str, float]:
    """The figures of the detector in `run` on the validation images of `data`, in 0..100 (-1: nothing to measure),
    and how many images they are of. `metric` and `geodesics` replace what the run was measured by; `workers` processes
    decode ahead of the device, as many as help unless told."""
    if batch_size < 1:
        raise ValueError(f"--batch-size {batch_size}: expected 1 or more")
    if workers is not None and workers < 0:
        raise ValueError(f"--workers {workers}: expected 0 or more")
    saved = load_detector(Path(run))
    told = {"metric": metric, "geodesics": None if geodesics is None else str(geodesics)}
    asked = {key: value for key, value in told.items() if value is not None}
    measure: Measure = read(Measure, {**plain(saved.measure), **asked}, at="measure")
    if "semantic" in saved.config.kinds() and metric not in (None, "auto"):
        raise ValueError(
            f"{run}: tells pixels apart, which is measured by mean IoU alone; leave --metric out"
        )
    extras = saved.config.extras()
    test = open_labelled(data, split="val", images=images, categories=saved.categories, extras=extras)
    where = device_of(device)
    found = measured(
        saved.model,
        test,
        config=saved.config,
        measure=measure,
        batch_size=batch_size,
        device=where,
        precision=precision_of(saved.precision, where),
        workers=workers,
    )
    return {**found.figures, "images": len(test)}


def load_detector(run: Path, *, least: float = 1.0) -> SavedDetector:
    """The detector that `boxwise finetune` left in `run`; it drops no detection of a score from `least` on."""
    if not run.exists():
        raise ValueError(f"{run}: no such folder; name one that boxwise finetune wrote")
    file = find_model(run)
    card = read_card(file.parent)
    if "detector" not in card:
        raise ValueError(f"{run}: holds no detector; name a folder that boxwise finetune wrote")
    stated = card["detector"]
    if stated.get("score_threshold", 0) > least:
        stated = {**stated, "score_threshold": least}
    config: DetectorConfig = read(BuiltInDetector, stated, at="detector")
    categories = tuple(Category.of(c) for c in card["categories"])
    classes = tuple(card.get("classes", [category.name for category in categories]))
    model = config.build(classes=len(classes), mean=card["mean"], std=card["std"])
    model.load_state_dict(read_state(file))
    if card.get("channels_last", True):
        model.to(memory_format=torch.channels_last)
    measure: Measure = read(Measure, card.get("measure", {}), at="measure")
    return SavedDetector(model, config, categories, measure, classes, card.get("precision", "auto"))


def as_table(figures: Mapping[str, Any]) -> str:
    """One figure a line, as people compare them."""
    named = {name: value for name, value in figures.items() if name not in ("images", "rows", "seconds")}
    width = max(6, *(len(name) for name in named))
    lines = [f"{name:<{width}} {value:6.2f}" for name, value in named.items()]
    nothing = "; -1: nothing of that kind or size to find" if -1 in named.values() else ""
    return "\n".join([*lines, f"on {figures['images']} images, in 0..100{nothing}"])
