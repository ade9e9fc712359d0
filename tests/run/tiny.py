"""Data and settings so small that whole runs take seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SMALL: dict[str, dict[str, Any]] = {
    "scrl": {
        "method.hidden": 16,
        "method.width": 8,
        "method.boxes": 3,
        "method.tries": 4,
        "method.min_box": 8,
    },
    "mocov2": {"method.hidden": 16, "method.width": 8, "method.queue": 12},
    "byol": {"method.hidden": 16, "method.width": 8},
    "simsiam": {"method.hidden": 16, "method.width": 8},
    "insloc": {"method.hidden": 16, "method.width": 8, "method.queue": 12, "encoder.fpn_channels": 16},
    "soco": {"method.hidden": 16, "method.width": 8, "encoder.fpn_channels": 16},
    "detco": {"method.hidden": 16, "method.width": 8, "method.queue": 12},
    "resim": {"method.hidden": 16, "method.width": 8, "method.queue": 12},
    "resim_simsiam": {"method.hidden": 16, "method.width": 8},
}
"""Each method's heads, narrow."""
RUN: dict[str, Any] = {
    "backbone": "test_resnet",  # timm's, 0.4 million parameters
    "image_size": 64,
    "batch_size": 4,
    "steps": 2,
    "workers": 0,
    "device": "cpu",
    "precision": "fp32",
    "run.log_every": 1,
    "run.threads": 1,
}
PYRAMID: dict[str, Any] = {"encoder.fpn_channels": 16}


def method_of(recipe: str) -> str:
    """scrl_r50_200ep, scrl_fpn and scrl are all scrl."""
    return max((name for name in SMALL if recipe.startswith(name)), key=len)


def settings(recipe: str, **more: Any) -> dict[str, Any]:
    """Flags that make `recipe` tiny."""
    pyramid = PYRAMID if "fpn" in recipe else {}
    return {**RUN, **SMALL[method_of(recipe)], **pyramid, **more}


def flags(settings: dict[str, Any]) -> list[str]:
    """As they are typed."""
    return [word for key, value in settings.items() for word in (f"--{key.replace('_', '-')}", str(value))]


def photos(folder: Path, count: int, *, size: int = 48) -> Path:
    """`count` coloured noise pictures, half of them in a folder below."""
    for i in range(count):
        path = folder / ("deeper" if i % 2 else ".") / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(i).integers(0, 256, (size // 8, size // 8, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((size, size)).save(path)
    return folder


def colours(root: Path, *, train: int, val: int) -> Path:
    """Two classes that any network tells apart, in train/ and val/ with a folder for each."""
    for split, count in (("train", train), ("val", val)):
        for colour, rgb in (("blue", (20, 30, 220)), ("red", (230, 40, 20))):
            folder = root / split / colour
            folder.mkdir(parents=True)
            for i in range(count):
                noise = np.random.default_rng(i).integers(-20, 21, (40, 50, 3))
                Image.fromarray((np.array(rgb) + noise).astype(np.uint8)).save(folder / f"{i:02d}.png")
    return root


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def facts(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "run.json").read_text())
    return found


DETECTOR: dict[str, Any] = {**RUN, "detector.fpn_channels": 16}
"""Flags that make a detector tiny."""
