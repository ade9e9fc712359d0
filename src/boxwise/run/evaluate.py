"""`boxwise evaluate`: COCO's twelve figures of a detector that was fine-tuned before."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from boxwise.data.targets import Category, open_labelled
from boxwise.engine.loop import device_of, dtype_of
from boxwise.interop.files import find_model, read_card, read_state
from boxwise.recipes.recipe import BuiltInDetector
from boxwise.strict import read
from boxwise.transfer.detectors.base import Detector, DetectorConfig
from boxwise.transfer.evaluate import predict
from boxwise.transfer.metrics import FIGURES, coco_figures


def evaluate(
    run: str | Path,
    data: str | Path,
    *,
    images: Path | None = None,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    batch_size: int = 8,
) -> dict[str, float]:
    """The twelve figures of the detector in `run` on the validation images of `data`, in 0..100 (-1: no such
    object), and how many images they are of."""
    detector, config, categories = load_detector(Path(run))
    test = open_labelled(data, split="val", images=images, categories=categories)
    where = device_of(device)
    found = predict(
        detector,
        test,
        config=config,
        batch_size=batch_size,
        device=where,
        precision="bf16" if dtype_of("auto", where) == torch.bfloat16 else "fp32",
    )
    return {**coco_figures(test.coco(), found), "images": len(test)}


def load_detector(run: Path) -> tuple[Detector, DetectorConfig, tuple[Category, ...]]:
    """The detector that `boxwise finetune` left in `run`, its settings, its categories in the order of labels."""
    file = find_model(run)
    card = read_card(file.parent)
    if "detector" not in card:
        raise ValueError(f"{run}: holds no detector; name a folder that boxwise finetune wrote")
    config: DetectorConfig = read(BuiltInDetector, card["detector"], at="detector")
    categories = tuple(Category.of(c) for c in card["categories"])
    detector = config.build(classes=len(categories), mean=card["mean"], std=card["std"])
    detector.load_state_dict(read_state(file))
    return detector, config, categories


def as_table(figures: Mapping[str, Any]) -> str:
    """One figure a line, as people compare them."""
    lines = [f"{name:<6} {figures[name]:6.2f}" for name in FIGURES["bbox"]]
    return "\n".join([*lines, f"on {figures['images']} images, in 0..100; -1: no object of that size"])
