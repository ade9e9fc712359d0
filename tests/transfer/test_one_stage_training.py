"""RetinaNet and FCOS in training: on drawings, on nothing, in part, in bfloat16 and on a photo."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FrozenBatchNorm2d

from boxwise.data.targets import Labelled, open_labelled
from boxwise.transfer.detectors.one_stage import OneStage
from boxwise.transfer.detectors.retinanet import RetinaNet
from boxwise.transfer.samples import DetectionBatch, TrainSamples, collate
from boxwise.transfer.task import Detection
from one_stages import GROUPED, MEAN, SMALL, STD, small


@pytest.fixture(scope="module")
def batch(drawn: Labelled) -> DetectionBatch:
    """Four images, one without boxes."""
    samples = TrainSamples(drawn, RetinaNet(**SMALL), seed=0)
    return collate([samples.sample(i, 0) for i in (0, 2, 3, 1)])


def test_every_loss_term_falls(family: type[OneStage], drawn: Labelled) -> None:
    """Breaks when targets are swapped, labels off by one or boxes in the wrong frame: the terms stay."""
    samples = TrainSamples(drawn, RetinaNet(**{**SMALL, "max_size": 64}), seed=0)
    batch = collate([samples.sample(i, 0) for i in (3, 1)])
    module = Detection(small(family, **GROUPED[family])).train()
    optimiser = torch.optim.SGD(module.parameters(), lr=0.02, momentum=0.9)
    rows = []
    for _ in range(20):
        losses = module(batch)
        optimiser.zero_grad()
        losses["loss"].backward()
        optimiser.step()
        rows.append({name: float(loss.detach()) for name, loss in losses.items()})
    for name in rows[0]:
        first, last = (sum(row[name] for row in part) / 3 for part in (rows[:3], rows[-3:]))
        assert last < 0.9 * first, (name, first, last)


@pytest.mark.parametrize("backbone", ["resnet18", "convnext_atto"])
def test_gradients_are_everywhere(backbone: str, family: type[OneStage], batch: DetectionBatch) -> None:
    """Breaks when a level of the pyramid or a branch of the head is read by nothing."""
    module = Detection(small(family, backbone=backbone)).train()
    module(batch)["loss"].backward()
    assert [n for n, p in module.named_parameters() if p.grad is None] == []
    if backbone == "resnet18":  # timm's start blocks as the identity
        silent = {n for n, p in module.named_parameters() if not p.grad.abs().sum() > 0}
        # a GroupNorm over one cell of one channel is blind: p7 has such at this size
        blind = {f"detector.backbone.fpn.extra_blocks.p7.{kind}" for kind in ("weight", "bias")}
        assert silent == (set() if family is RetinaNet else blind)


def test_images_without_any_box_train(family: type[OneStage], drawn: Labelled) -> None:
    """Breaks when a batch of background alone divides by nothing."""
    samples = TrainSamples(drawn, RetinaNet(**SMALL), seed=0)
    module = Detection(small(family)).train()
    losses = module(collate([samples.sample(2, 0)] * 2))
    losses["loss"].backward()
    assert losses["box"] == 0 and losses["classifier"] > 0
    assert all(p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize(("norm", "stages"), [("frozen", 0), ("bn", 2), ("bn", 5)])
def test_what_is_frozen_gets_no_gradient(
    norm: str, stages: int, family: type[OneStage], batch: DetectionBatch
) -> None:
    """Breaks when a frozen part trains, or a part above it no longer does."""
    model = small(family, norm=norm, frozen_stages=stages).train()
    frozen = {n for n, m in model.named_modules() if isinstance(m, FrozenBatchNorm2d)}
    assert frozen and all(n.startswith("backbone.body.") for n in frozen)
    Detection(model).train()(batch)["loss"].backward()
    still = {n.split(".")[2] for n, p in model.named_parameters() if not p.requires_grad}
    assert (
        still
        == {0: set(), 2: {"conv1", "layer1"}, 5: {"conv1", "layer1", "layer2", "layer3", "layer4"}}[stages]
    )
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())


def test_bfloat16_trains_and_boxes_stay_exact(family: type[OneStage], batch: DetectionBatch) -> None:
    """Breaks when boxes are decoded in bfloat16, which beyond 256 px knows only every second pixel."""
    found = []
    for enabled in (False, True):
        module = Detection(small(family)).train()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found.append(module(batch))
    assert all(loss.dtype == torch.float32 for loss in found[1].values())
    torch.testing.assert_close(found[1]["loss"], found[0]["loss"], atol=0.1, rtol=0.1)
    found[1]["loss"].backward()
    model = small(family, fpn_channels=32, min_size=350, max_size=384, score_threshold=0.0).eval()
    images = ImageList(torch.rand(1, 3, 352, 384), [(350, 384)])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        maps = [*model.backbone(images.tensors).values()]
        outputs, (anchors,), _ = model.read(images)
        (one,) = model.detect(images)
    assert maps[0].dtype == torch.bfloat16 and {t.dtype for t in outputs.values()} == {torch.float32}
    assert torch.equal(anchors, model.anchor_generator(images, [m.float() for m in maps])[0])
    assert (one["boxes"].dtype, one["scores"].dtype) == (torch.float32, torch.float32)


PHOTOS = Path(__file__).parents[3] / "shared" / "data" / "coco_sample"


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="no sample of COCO here")
def test_a_real_photo(family: type[OneStage]) -> None:
    """Breaks on what drawings do not have: crowds, many boxes, 80 categories with gaps in their ids."""
    labelled = open_labelled(PHOTOS, split="train")
    config = family(**{**SMALL, "min_size": 96, "max_size": 160, "score_threshold": 0.0})
    samples = TrainSamples(labelled, config, seed=0)
    block = collate([samples.sample(i, 0) for i in range(2)])
    assert sum(block.counts) > 2
    model = config.build(classes=len(labelled.categories), mean=MEAN, std=STD)
    module = Detection(model).train()
    losses = module(block)
    losses["loss"].backward()
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())
    assert all(p.grad.isfinite().all() for p in module.parameters())
    with torch.no_grad():
        found = module.eval().detect(block)
    for one, (height, width) in zip(found, block.sizes, strict=True):
        assert len(one["scores"]) == 100 and (one["scores"].diff() <= 0).all()
        assert (one["boxes"][:, 2] <= width).all() and (one["boxes"][:, 3] <= height).all()
