"""Every R-CNN on a real photo, over a few steps, in half precision, and with norms that stand still."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from boxwise.data.targets import open_labelled
from boxwise.transfer.detectors.c4 import FasterRCNNC4, MaskRCNNC4
from boxwise.transfer.detectors.keypoint_rcnn import KeypointRCNNFPN
from boxwise.transfer.detectors.mask_rcnn import MaskRCNNFPN
from boxwise.transfer.detectors.rcnn import FasterRCNNFPN
from boxwise.transfer.detectors.two_stage import RCNN, TwoStage
from boxwise.transfer.samples import TrainSamples, collate
from boxwise.transfer.task import Detection
from rcnns import MEAN, STD, awake, block, pictures, silent

PHOTOS = Path(__file__).parents[3] / "shared" / "data" / "coco_sample"
SMALL: dict[str, Any] = {
    "backbone": "test_resnet",  # timm's, 0.4 million parameters
    "min_size": 96,
    "max_size": 128,
    "box_batch_size_per_image": 16,
    "rpn_pre_nms_train": 200,
    "rpn_post_nms_train": 60,
    "rpn_post_nms_test": 20,
    "detections_per_image": 6,
    "score_threshold": 0.0,
}
WIDE = {"fpn_channels": 16}
CONFIGS: dict[str, TwoStage] = {
    "faster_rcnn_fpn": FasterRCNNFPN(**SMALL, **WIDE, head_extra_norm=True),
    "mask_rcnn_fpn": MaskRCNNFPN(**SMALL, **WIDE),
    "mask_rcnn_fpn_2fc": MaskRCNNFPN(**{**SMALL, "backbone": "convnext_atto"}, **WIDE, head="2fc"),
    "keypoint_rcnn_fpn": KeypointRCNNFPN(**SMALL, **WIDE, keypoint_channels=16, box_beta=0.5),
    "faster_rcnn_c4": FasterRCNNC4(**SMALL),
    "mask_rcnn_c4": MaskRCNNC4(**SMALL, rpn_beta=0.0, box_beta=0.0),
}
TERMS = {"bbox": "classifier box objectness rpn_box", "segm": "mask", "keypoints": "keypoint"}
FIELDS = {"bbox": "boxes labels scores", "segm": "masks", "keypoints": "keypoints keypoints_scores"}


@pytest.fixture(params=[*CONFIGS])
def config(request: pytest.FixtureRequest) -> TwoStage:
    return CONFIGS[request.param]


def build(config: TwoStage, classes: int = 2) -> RCNN:
    torch.manual_seed(0)
    return config.build(classes=classes, mean=MEAN, std=STD)  # type: ignore[return-value]


def words(config: TwoStage, table: dict[str, str]) -> set[str]:
    return {word for kind in config.kinds() for word in table[kind].split()}


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="the sample of COCO is not here")
def test_a_real_photo_is_learned_from_and_searched(config: TwoStage) -> None:
    """Breaks when outlines or keypoints do not reach the losses, or a part of the network is left out of them."""
    people = open_labelled(PHOTOS, split="val", extras=config.extras())
    samples = TrainSamples(people, config, 0)
    sample = next(s for s in (samples.sample(i, 0) for i in range(len(people))) if shows(s))
    model = awake(build(config, len(people.categories)))
    module = Detection(model).train()
    losses = module(collate([sample, sample]))
    assert {*losses} == words(config, TERMS) | {"loss"}
    assert all(0 < loss < 50 for loss in losses.values())
    losses["loss"].backward()
    assert silent(model) == []
    module.eval()
    with torch.no_grad():
        (found, _) = module.detect(collate([sample, sample]))
    assert {*found} == words(config, FIELDS) and len(found["boxes"]) == 6


def shows(sample: Any) -> bool:
    """Two things at least, and where there are keypoints or masks some of them."""
    marks, masks = sample.extras.get("keypoints"), sample.extras.get("masks")
    return (
        len(sample.boxes) > 1
        and (marks is None or bool((marks[..., 2] > 0).any()))
        and (masks is None or bool(masks.any()))
    )


def test_every_term_falls_in_twenty_steps(config: TwoStage) -> None:
    """Breaks when a gradient points the wrong way, or a target moves with the prediction.

    The boxes that the heads are shown stay: proposals that improve bring harder boxes, and losses that rise.
    """
    model = awake(build(replace(config, backbone="test_resnet"))).train()
    images, targets = block(*pictures())
    near = [torch.cat([t["boxes"] + shift for shift in (-4.0, 3.0, 6.0)]) for t in targets]
    proposals = [torch.cat([boxes, boxes + 40.0]).clamp(0, 90) for boxes in near]
    model.rpn.filter_proposals = lambda *_: (proposals, [boxes[:, 0] for boxes in proposals])
    descent = torch.optim.Adam(model.parameters(), lr=0.0005)

    def losses(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        return model.losses(images, targets)

    before = mean(losses)
    for step in range(20):
        descent.zero_grad()
        sum(losses(step).values()).backward()
        descent.step()
    after = mean(losses)
    assert {n for n, loss in after.items() if not loss < 0.98 * before[n]} == set()


@torch.no_grad()
def mean(losses: Any) -> dict[str, float]:
    """Over three draws of boxes."""
    drawn = [losses(100 + k) for k in range(3)]
    return {name: sum(row[name].item() for row in drawn) / 3 for name in drawn[0]}


def test_half_precision_trains_and_finds_in_full(config: TwoStage) -> None:
    """Breaks when an operation without a bfloat16 kernel is met, or boxes are rounded."""
    model = build(config).train()
    images, targets = block(*pictures())
    found_losses = []
    for enabled in (False, True):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found_losses.append(model.losses(images, targets))
    exact, rough = found_losses
    for name, loss in exact.items():
        assert rough[name].dtype == torch.float32
        assert rough[name].item() == pytest.approx(loss.item(), rel=0.3, abs=0.05), name
    sum(rough.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = model.eval().detect(images)
    assert {f[n].dtype for f in found for n in f if n != "labels"} == {torch.float32}


@pytest.mark.parametrize("name", ["mask_rcnn_fpn", "keypoint_rcnn_fpn"])
def test_frozen_norms_are_the_backbones_alone(name: str) -> None:
    """Breaks when norms of new heads, which came with no statistics, stand still with the backbone's."""
    config = replace(CONFIGS[name], backbone="resnet18", norm="frozen", frozen_stages=2)
    model = build(config).train()
    before = {n: b.clone() for n, b in model.named_buffers() if "running" in n}
    sum(model.losses(*block(*pictures())).values()).backward()
    after = dict(model.named_buffers())
    stood = {n for n, b in before.items() if torch.equal(after[n], b)}
    assert stood == {n for n in before if n.startswith("backbone.body.")}
    fixed = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert {n.split(".")[2] for n in fixed} == {"conv1", "layer1"} and silent(model) == []
