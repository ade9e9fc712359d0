"""People of paper in DensePose-COCO's layout: two parts side by side, whose colour says part, u and v."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as masks

LEFT, RIGHT = 3, 20
"""Parts of the left and the right half of every person."""
COARSE = {LEFT: 4, RIGHT: 14}
"""The coarse parts that they are of."""
GROUND = 0.25
"""Share of a person's box, at its top, that is not body."""


def write_people(root: Path, *, count: int = 3, val: int = 2, size: int = 64) -> Path:
    """A COCO root: densepose_train2014.json and densepose_minival2014.json with their images."""
    (root / "annotations").mkdir(parents=True)
    for split, name, many in (("train", "train2014", count), ("minival", "val2014", val)):
        (root / name).mkdir()
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for i in range(many):
            pixels = np.full((size, size, 3), 30, dtype=np.uint8)
            for box, annotated in (((4 + 3 * i, 6, 24, 40), True), ((36, 16 + 2 * i, 20, 36), i != 1)):
                paint(pixels, box)
                annotations.append(annotation(len(annotations) + 1, i + 1, box, annotated=annotated))
            Image.fromarray(pixels).save(root / name / f"{i}.png")
            images.append({"id": i + 1, "file_name": f"{i}.png", "height": size, "width": size})
        table = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": 1, "name": "person", "keypoints": [], "skeleton": []}],
        }
        (root / "annotations" / f"densepose_{split}2014.json").write_text(json.dumps(table))
    return root


def annotation(number: int, image: int, box: tuple[int, int, int, int], *, annotated: bool) -> dict[str, Any]:
    x, y, width, height = box
    top = y + GROUND * height
    entry = {
        "id": number,
        "image_id": image,
        "category_id": 1,
        "iscrowd": 0,
        "bbox": [float(v) for v in box],
        "area": width * height * (1 - GROUND),
        "segmentation": [[x, top, x + width, top, x + width, y + height, x, y + height]],
    }
    return entry | (points() | {"dp_masks": coarse()} if annotated else {})


def points() -> dict[str, list[float]]:
    """A grid over the body; u runs to the right in each half, v down the body."""
    held: dict[str, list[float]] = {f"dp_{name}": [] for name in "xyIUV"}
    for x in (30.0, 60.0, 90.0, 150.0, 180.0, 210.0):
        for y in (90.0, 130.0, 170.0, 210.0):
            part, u, v = surface(x / 255, y / 255)
            for name, value in zip("xyIUV", (x, y, float(part), u, v)):
                held[f"dp_{name}"].append(value)
    return held


def surface(across: float, down: float) -> tuple[int, float, float]:
    """Part, u and v at a place of the body, as shares of its box."""
    return (LEFT if across < 0.5 else RIGHT), 2 * across % 1, (down - GROUND) / (1 - GROUND)


def coarse() -> list[Any]:
    """Fourteen masks of 256 x 256, empty but for two."""
    held: list[Any] = [[] for _ in range(14)]
    for part, columns in ((LEFT, slice(0, 128)), (RIGHT, slice(128, 256))):
        mask = np.zeros((256, 256), dtype=np.uint8)
        mask[int(256 * GROUND) :, columns] = 1
        rle = masks.encode(np.asfortranarray(mask))
        held[COARSE[part] - 1] = {"size": [256, 256], "counts": rle["counts"].decode("ascii")}
    return held


def paint(pixels: np.ndarray, box: tuple[int, int, int, int]) -> None:
    x, y, width, height = box
    for row in range(int(y + GROUND * height), y + height):
        for column in range(x, x + width):
            part, u, v = surface((column + 0.5 - x) / width, (row + 0.5 - y) / height)
            pixels[row, column] = (200 if part == LEFT else 90, 60 + 180 * u, 60 + 180 * v)


def write_mesh(file: Path) -> Path:
    """One sample a part, all a metre apart: a point counts where its part is right, and nowhere else."""
    pairs = 24 * 23 // 2
    np.savez(
        file,
        distances=np.ones(pairs, dtype=np.float32),
        part=np.arange(1, 25),
        uv=np.full((24, 2), 0.5),
        vertex=np.arange(24),
    )
    return file
