"""benchmarks/finetune_speed.py at tiny size."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from boxwise.data.scenes import write_scenes
from scripts import script


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return script("finetune_speed")


@pytest.fixture(scope="module")
def setting(bench: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    place = write_scenes(tmp_path_factory.mktemp("scenes") / "coco", counts={"train": 6, "val": 1}, size=64)
    flags = {"data": place, "full": False, "backbone": "resnet18", "image_size": 64, "batch": 2}
    flags |= {"device": "cpu", "precision": "fp32", "workers": 0, "steps": 1}
    found = bench.settled(argparse.Namespace(**flags))
    small = {
        "detector.fpn_channels": 32,
        "detector.box_batch_size_per_image": 8,
        "detector.rpn_post_nms_train": 20,
    }
    return replace(found, recipe=found.recipe.changed(small))


def test_both_arms_train_the_same_network(bench: ModuleType, setting: Any) -> None:
    """Breaks when one arm has fewer layers, other anchors or counts, and is faster by that."""
    ours = setting.recipe.detector.build(classes=8, mean=bench.MEAN, std=bench.STD)
    theirs = bench.reference_model(setting.recipe, 8)
    count = [sum(p.numel() for p in model.parameters() if p.requires_grad) for model in (ours, theirs)]
    assert count[0] == count[1]
    shapes = [sorted(tuple(p.shape) for p in model.parameters()) for model in (ours, theirs)]
    assert shapes[0] == shapes[1]
    for name in ("_pre_nms_top_n", "_post_nms_top_n"):
        assert getattr(ours.rpn, name)["training"] == getattr(theirs.rpn, name)["training"]
    for model in (ours, theirs):
        assert model.roi_heads.fg_bg_sampler.batch_size_per_image == 8
    assert ours.rpn.anchor_generator.sizes == theirs.rpn.anchor_generator.sizes


def test_both_arms_read_the_same_images(bench: ModuleType, setting: Any, tmp_path: Path) -> None:
    """Breaks when one arm gets smaller pictures, fewer boxes, or crowds to learn from."""
    plain = replace(setting, recipe=setting.recipe.changed({"detector.flip": 0.0}))
    ours, reference = bench.Ours(plain, tmp_path / "run"), bench.Reference(plain)
    for _ in range(4):
        batch, (images, targets) = next(ours.loads), next(reference.loads)
        for i, target in enumerate(batch.targets()):
            assert torch.equal((images[i] * 255).round().byte(), batch.images[i])
            assert torch.equal(target["boxes"], targets[i]["boxes"])
            assert torch.equal(target["labels"], targets[i]["labels"])


def test_a_mirrored_picture_takes_its_boxes_along(bench: ModuleType, setting: Any) -> None:
    plain, mirrored = (bench.Photos(setting.images, flip=flip)[0] for flip in (0.0, 1.0))
    assert torch.equal(plain[0].flip(-1), mirrored[0])
    x0, y0, x1, y1 = plain[1]["boxes"].unbind(1)
    assert torch.equal(torch.stack([64 - x1, y0, 64 - x0, y1], 1), mirrored[1]["boxes"])


def test_rounds_become_a_page(bench: ModuleType, setting: Any) -> None:
    """Breaks when the ratio is one of medians instead of the median of ratios, or a turn counts no time."""
    rounds = bench.measure(setting, rounds=1)
    assert len(rounds) == 1 and all(0 < rate < 10_000 for rate in rounds[0])
    text = bench.page(setting, [(10.0, 5.0), (30.0, 10.0), (4.0, 4.0)], load=0.0)
    assert "| ours | 10.00 |" in text and "| torchvision's reference | 5.00 |" in text
    assert "| ratio | 2.00 (1.00 to 3.00) |" in text
