"""The benchmark of the pipeline runs, and its arms do the same work."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from boxwise.data.loader import Item
from boxwise.data.sources import Files, open_images
from boxwise.recipes.pretrain import MOCO_VIEW
from scripts import script


@pytest.fixture(scope="module")
def pipeline() -> ModuleType:
    return script("pipeline")


@pytest.fixture
def images(tmp_path: Path) -> Files:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    for i in range(3):
        Image.fromarray(np.roll(pixels, 9 * i, axis=1)).save(tmp_path / f"{i}.jpg")
    return open_images(tmp_path)


def test_both_pipelines_make_two_normalised_views_of_every_image(pipeline: ModuleType, images: Files) -> None:
    """Breaks when an arm is compared that leaves out a view or the normalisation."""
    arms = pipeline.arms(images, MOCO_VIEW)
    items = [Item(0, i) for i in range(3)]
    classic, ours = arms[pipeline.CLASSIC](items), [v.image for v in arms["(b) all on the CPU"](items).views]
    for views in (classic, ours):
        assert [v.shape for v in views] == [(3, 3, 224, 224)] * 2
        assert all(v.dtype == torch.float32 and -2.2 < v.min() < -1 < 1 < v.max() < 2.7 for v in views)


def test_the_report_is_a_table_of_all_arms(pipeline: ModuleType, images: Files) -> None:
    seconds = pipeline.measure(images, MOCO_VIEW, rounds=1, batch=2)
    text = pipeline.report(images, seconds, rounds=1, load=0.0)
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")]
    assert rows == ["one core", *pipeline.arms(images, MOCO_VIEW)]
    assert "| 1.00 | 1.00 to 1.00 |" in text and "3 images" in text
