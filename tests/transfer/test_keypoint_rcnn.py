"""Keypoint R-CNN on a pyramid, held to torchvision's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models.detection import keypointrcnn_resnet50_fpn

from boxwise.data.targets import open_labelled
from boxwise.transfer.detectors.keypoint_rcnn import KeypointRCNNFPN
from boxwise.transfer.detectors.precision import KeypointPredictor
from boxwise.transfer.detectors.rcnn import PyramidRCNN
from rcnns import (
    FEW,
    MEAN,
    SMALL,
    STD,
    TOLD,
    assert_same_finds,
    assert_same_training,
    block,
    pictures,
)


def small(**changes: Any) -> PyramidRCNN:
    torch.manual_seed(0)
    return KeypointRCNNFPN(**{**SMALL, "keypoint_channels": 16, **changes}).build(
        classes=2, mean=MEAN, std=STD
    )


@pytest.fixture(scope="module")
def pair() -> tuple[PyramidRCNN, nn.Module]:
    torch.manual_seed(0)
    few = {**FEW, "detections_per_image": 4}
    config = KeypointRCNNFPN(**few, roi_canonical_size=224, fpn_norm="none")
    ours = config.build(classes=4, mean=MEAN, std=STD)
    told = {**TOLD, "box_detections_per_img": 4, "num_classes": 5}
    theirs = keypointrcnn_resnet50_fpn(weights=None, weights_backbone=None, **told)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def test_losses_gradients_and_finds_equal_torchvisions(pair: tuple[PyramidRCNN, nn.Module]) -> None:
    """Breaks when leaving things without keypoints out changes a mean, or heatmaps are read at another size."""
    ours, theirs = (model.train() for model in pair)
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    assert_same_training(ours, theirs, list(zip(ours.parameters(), theirs.parameters())))
    assert_same_finds(ours, theirs, least=4)


def test_things_without_keypoints_are_not_read() -> None:
    """Breaks when boxes of things of which no keypoint is labelled cost time, or count."""
    images, targets = block(*pictures())
    model = small().train()
    heads, read = model.roi_heads, []
    pool = heads.keypoint_roi_pool.forward
    heads.keypoint_roi_pool.forward = lambda maps, boxes, sizes: (
        read.append(boxes) or pool(maps, boxes, sizes)
    )
    assert model.losses(images, targets)["keypoint"] > 0
    for boxes, target in zip(read[0], targets):
        near = (boxes[:, None] - target["boxes"][None]).abs().sum(-1).argmin(1)
        assert set(near.tolist()) == {0}, "boxes around the labelled thing alone, itself among them"


def test_images_without_keypoints_teach_none() -> None:
    """Breaks when no labelled keypoint makes the loss NaN, or parameters miss their gradient."""
    images, targets = pictures()
    for target in targets:
        target["keypoints"] = torch.zeros_like(target["keypoints"])
    targets[1] |= {name: rows[:0] for name, rows in targets[1].items()}
    model = small().train()
    losses = model.losses(*block(images, targets))
    assert losses["keypoint"] == 0 and losses["box"] > 0
    sum(losses.values()).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []  # zeros there are what is wanted


def test_heatmaps_stay_exact_in_bfloat16() -> None:
    """Breaks when many cells share a heatmap's largest value: the first of them would be the keypoint."""
    torch.manual_seed(0)
    predictor = KeypointPredictor(16, 5)
    features = torch.rand(3, 16, 14, 14).bfloat16().float()
    with torch.no_grad():
        expected = predictor(features)
        with torch.autocast("cpu", torch.bfloat16):
            found = predictor(features.bfloat16())
    assert found.shape == (3, 5, 56, 56) and torch.equal(found, expected)


def test_found_keypoints_lie_in_their_boxes() -> None:
    """Breaks when a place in a heatmap is taken for one in the image."""
    model = small(score_threshold=0.0, detections_per_image=5, keypoints=3).eval()
    images, _ = block(*pictures(3))
    with torch.no_grad():
        found = model.detect(images)
    for f in found:
        assert f["keypoints"].shape == (5, 3, 3) and f["keypoints_scores"].shape == (5, 3)
        low, high = f["boxes"][:, None, :2], f["boxes"][:, None, 2:]
        places = f["keypoints"][..., :2]
        assert ((places >= low) & (places <= torch.maximum(high, low + 1))).all()
    none = small(score_threshold=1.0).eval().detect(images)
    assert [f["keypoints"].shape for f in none] == [(0, 17, 3)] * 2


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (
            ["head", "tail"],
            r"detector.keypoints: 17, but .* name 2 \(head, tail\); set detector.keypoints: 2",
        ),
        ([], "name 0; keypoints cannot be learned from it"),
    ],
)
def test_the_number_of_keypoints_is_the_datas(names: list[str], said: str, tmp_path: Path) -> None:
    """Breaks when 17 heatmaps are taught from two points, or the error comes from deep inside a loss."""
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    category = {"id": 1, "name": "cat"} | ({"keypoints": names} if names else {})
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 2, 9, 9], "area": 81, "iscrowd": 0}
    image = {"id": 1, "file_name": "a.png", "width": 20, "height": 20}
    marks = {"keypoints": [3, 3, 2] * len(names), "num_keypoints": len(names)} if names else {}
    table = {"images": [image], "annotations": [box | marks], "categories": [category]}
    (tmp_path / "all.json").write_text(json.dumps(table))
    labelled = open_labelled(
        tmp_path / "all.json", split="train", images=tmp_path, extras=KeypointRCNNFPN().extras()
    )
    with pytest.raises(ValueError, match=said):
        KeypointRCNNFPN().classes(labelled)
    if names:
        assert KeypointRCNNFPN(keypoints=2).classes(labelled) == ("cat",)


def test_what_cannot_be_is_said() -> None:
    """Breaks when a head without outputs is built."""
    keys = {line.split(":")[0] for line in KeypointRCNNFPN(keypoints=0).problems(pretrained=False)}
    assert keys == {"detector.keypoints"}
