"""RetinaNet and FCOS: held to torchvision's own, and their losses to formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models.detection import fcos_resnet50_fpn, retinanet_resnet50_fpn, retinanet_resnet50_fpn_v2
from torchvision.models.detection.image_list import ImageList

from boxwise.transfer.detectors.fcos import FCOS, matches
from boxwise.transfer.detectors.one_stage import OneStage, OneStageDetector, assigned, focal
from boxwise.transfer.detectors.retinanet import RetinaNet
from one_stages import GROUPED, MEAN, STD, small

PLAIN: dict[str, Any] = {
    "backbone": "resnet50",
    "fpn_norm": "none",
    "min_size": 128,
    "max_size": 256,
    "score_threshold": 0.009,
    "detections_per_image": 40,
    "candidates": 100,
}
TOLD: dict[str, Any] = {
    "weights": None,
    "weights_backbone": None,
    "num_classes": 5,
    "min_size": 128,
    "max_size": 256,
    "score_thresh": 0.009,
    "detections_per_img": 40,
    "topk_candidates": 100,
}
SIZES = (32, 64, 128, 256, 512)
TWINS: dict[str, Any] = {
    "retinanet": (
        RetinaNet(**PLAIN, p6_from="p5", smooth_l1_beta=0.0, anchor_sizes=SIZES),
        lambda: retinanet_resnet50_fpn(**TOLD),
    ),
    "retinanet_v2": (
        RetinaNet(**PLAIN, head_norm="gn", box_loss="giou", anchor_sizes=SIZES),
        lambda: retinanet_resnet50_fpn_v2(**TOLD),
    ),
    "fcos": (
        FCOS(**PLAIN, center_radius=1.5, nms_threshold=0.6, ranges=(64, 128, 256, 512)),
        lambda: fcos_resnet50_fpn(**TOLD),
    ),
}


@pytest.fixture(scope="module", params=[*TWINS])
def pair(request: pytest.FixtureRequest) -> tuple[OneStageDetector, nn.Module]:
    """Our detector and torchvision's with the same weights and settings."""
    config, build = TWINS[request.param]
    torch.manual_seed(0)
    ours, theirs = config.build(classes=4, mean=MEAN, std=STD), build()
    with torch.no_grad():
        for head in (ours.head.classification_head, ours.head.regression_head):
            for part in head.modules():  # at the start all scores are alike, and boxes nothing
                if isinstance(part, nn.Conv2d):
                    part.weight.mul_(1 if request.param == "retinanet" else 4)  # it has no norm
        ours.head.classification_head.cls_logits.bias.view(-1, 5)[
            :, 0
        ] = -30  # torchvision might find background
    for part in (*ours.modules(), *theirs.modules()):
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 1.0  # so that features are not huge, and scores not all alike, after one batch
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def pictures() -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    """Sides that 128 divides, where torchvision's strides are right; boxes that lie on no cell's border."""
    images = [*torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(1))]
    boxes = torch.tensor([[5.3, 8.2, 40.1, 60.7], [30.4, 20.9, 119.6, 110.3], [50.1, 40.2, 70.3, 59.8]])
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    return images, [
        {"boxes": boxes, "labels": torch.tensor([1, 2, 2])},
        none,
    ]


def test_names_and_shapes_are_torchvisions(pair: tuple[OneStageDetector, nn.Module]) -> None:
    """Breaks when published weights, and tools that read them, no longer fit; pyramids count from c3 there."""
    ours, theirs = ({n: t.shape for n, t in m.state_dict().items()} for m in pair)
    assert ours == theirs
    assert [n for n, _ in pair[0].named_parameters()] == [n for n, _ in pair[1].named_parameters()]


def test_losses_gradients_and_predictions_equal_torchvisions(
    pair: tuple[OneStageDetector, nn.Module],
) -> None:
    """Breaks when a default, an anchor, a match, a divisor or a threshold differs; one image has no box."""
    images, targets = pictures()
    losses, grads = [], []
    for model in pair:
        model.train().zero_grad()
        out = model(images, targets)
        sum(out.values()).backward()
        losses.append(out)
        grads.append([p.grad for p in model.parameters()])
    assert losses[0].keys() == losses[1].keys()
    for name, loss in losses[0].items():
        assert loss > 0.01, name
        torch.testing.assert_close(loss, losses[1][name], atol=1e-5, rtol=1e-5)
    norm = torch.stack([g.norm() for g in grads[1]]).norm()
    difference = torch.stack([(a - b).norm() for a, b in zip(*grads)]).norm()
    assert difference < 1e-4 * norm
    model = pair[0].eval()
    with torch.no_grad():
        expected = pair[1].eval()(images)
        resized, _ = model.transform(images)
        found = model.detect(resized)
    assert [len(f["scores"]) for f in expected] == [40] * 2
    for one, other in zip(found, expected):
        torch.testing.assert_close(one["boxes"], other["boxes"], atol=1e-3, rtol=0)
        torch.testing.assert_close(one["scores"], other["scores"], atol=1e-5, rtol=0)
        assert torch.equal(one["labels"], other["labels"]) and (one["labels"] > 0).all()


def test_losses_have_our_names_and_are_what_the_model_gives(family: type[OneStage]) -> None:
    """Breaks when the short way round torchvision's transform gives other losses than its own forward."""
    model = small(family, min_size=128, max_size=256).train()
    images, targets = pictures()
    theirs = model(images, targets)
    resized, _ = model.transform(images)
    ours = model.losses(resized, targets)
    names = {"classification": "classifier", "bbox_regression": "box", "bbox_ctrness": "centerness"}
    assert ours.keys() == {names[n] for n in theirs} and len(ours) == (3 if family is FCOS else 2)
    for name, loss in theirs.items():
        torch.testing.assert_close(ours[names[name]], loss)


def test_the_background_is_never_found(family: type[OneStage]) -> None:
    """Breaks when class 0, which torchvision's heads have a column for, comes out as the last category."""
    model = small(family, score_threshold=0.0).eval()
    nn.init.constant_(model.head.classification_head.cls_logits.bias, 3.0)
    with torch.no_grad():
        model.head.classification_head.cls_logits.bias.view(-1, 3)[:, 0] = 9.0
        found = model.detect(ImageList(torch.rand(2, 3, 64, 64), [(64, 64)] * 2))
    assert all(len(f["labels"]) and set(f["labels"].tolist()) <= {1, 2} for f in found)


def test_settings_reach_the_model(family: type[OneStage]) -> None:
    """Breaks when a setting is dropped on the way: nothing would tell."""
    model = small(
        family,
        score_threshold=0.19,
        nms_threshold=0.21,
        candidates=33,
        detections_per_image=22,
        prior=0.2,
        fpn_norm="none",
        p6_from="c5",
    )
    assert (model.score_thresh, model.nms_thresh) == (0.19, 0.21)
    assert (model.topk_candidates, model.detections_per_img) == (33, 22)
    first = model.head.classification_head.cls_logits.bias
    assert first.tolist() == pytest.approx([math.log(0.25)] * len(first))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.backbone.fpn.modules())
    assert (
        model.backbone.fpn.extra_blocks.p6.in_channels == 512 and not model.backbone.fpn.extra_blocks.use_P5
    )
    assert small(family, p6_from="p5").backbone.fpn.extra_blocks.p6.in_channels == 32
    assert (model.mean, model.std) == (MEAN, STD)
    groups = [m.num_groups for m in small(family, **GROUPED[family]).modules() if isinstance(m, nn.GroupNorm)]
    assert groups == [32] * 8


def test_settings_of_one_family_reach_it() -> None:
    """Breaks when thresholds of matching or the radius are dropped."""
    with torch.device("meta"):
        model = small(RetinaNet, positive_iou=0.65, negative_iou=0.35)
        others = [small(FCOS, **told) for told in ({"center_radius": 2.5}, {})]
    assert (model.proposal_matcher.high_threshold, model.proposal_matcher.low_threshold) == (0.65, 0.35)
    assert [other.center_sampling_radius for other in others] == [2.5, math.inf]


def test_losses_follow_their_settings() -> None:
    """Breaks when alpha, gamma or beta stay torchvision's own."""
    images, targets = pictures()
    terms = {}
    for key, value in (("none", None), ("focal_gamma", 0.0), ("focal_alpha", 0.9), ("smooth_l1_beta", 1.0)):
        told = {} if value is None else {key: value}
        model = small(RetinaNet, min_size=128, max_size=256, anchor_sizes=SIZES, **told).train()
        resized, _ = model.transform(images)
        terms[key] = {name: float(loss.detach()) for name, loss in model.losses(resized, targets).items()}
    assert terms["focal_gamma"]["classifier"] > 2 * terms["none"]["classifier"]
    assert terms["focal_alpha"]["classifier"] != pytest.approx(terms["none"]["classifier"], rel=0.05)
    assert terms["smooth_l1_beta"]["box"] < 0.9 * terms["none"]["box"]
    assert terms["focal_gamma"]["box"] == terms["none"]["box"]


def test_the_focal_loss_is_its_formula() -> None:
    """Breaks when the class of an anchor is off by one, or alpha weighs the wrong side."""
    logits = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(0))
    labels, alpha, gamma = torch.tensor([[0, 3, 1]]), 0.3, 1.5
    expected = torch.zeros(3)
    for a in range(3):
        for k in range(4):
            p = torch.sigmoid(logits[0, a, k])
            thing = k == int(labels[0, a]) and k > 0
            right = p if thing else 1 - p
            expected[a] -= (alpha if thing else 1 - alpha) * (1 - right) ** gamma * right.log()
    torch.testing.assert_close(focal(logits, labels, alpha=alpha, gamma=gamma)[0], expected)


def test_places_answer_for_the_smallest_box_in_range() -> None:
    """Breaks when ranges leave a gap, the larger of two boxes wins, or a place outside answers."""
    places = torch.tensor([[x - 4.0, 12, x + 4, 20] for x in (16, 40, 8)])  # centres (x, 16)
    boxes = torch.tensor([[0.0, 0, 64, 64], [10, 10, 30, 30]])
    least, most = torch.zeros(3), torch.tensor([64.0, 64, 64])
    assert matches(places, boxes, least, most, radius=math.inf).tolist() == [1, 0, 0]
    near = matches(places, boxes, least, most, radius=1.0)
    assert near.tolist() == [1, -1, -1]
    at_limit = torch.full((3,), 48.0)  # the first place is just 48 px from the far side of the large box
    assert matches(places, boxes[:1], least, at_limit, radius=math.inf).tolist() == [0, 0, -1]
    assert matches(places, boxes[:1], at_limit, torch.full((3,), 96.0), radius=math.inf).tolist() == [
        -1,
        -1,
        0,
    ]
    assert matches(places, boxes[:0], least, most, radius=math.inf).tolist() == [-1] * 3


def test_anchors_of_nothing_have_label_0_and_themselves() -> None:
    """Breaks when rows of images are mixed up, or an image without boxes is read."""
    anchors = torch.arange(24.0).view(2, 3, 4)
    targets = [
        {"boxes": torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]]), "labels": torch.tensor([2, 1])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    ]
    labels, boxes = assigned(targets, anchors, torch.tensor([[1, -1, 0], [-1, -2, -1]]))
    assert labels.tolist() == [[1, 0, 2], [0, 0, 0]]
    assert boxes[0].tolist() == [[5, 6, 7, 8], [4, 5, 6, 7], [1, 2, 3, 4]]
    assert torch.equal(boxes[1], anchors[1])


def test_problems_are_named() -> None:
    """Breaks when a bad setting is only met deep inside torchvision."""
    bad = RetinaNet(
        prior=0.9, focal_gamma=-1, candidates=0, positive_iou=0.3, fpn_channels=48, head_norm="gn"
    )
    keys = {line.split(":")[0] for line in bad.problems(pretrained=True)}
    assert keys == {
        f"detector.{k}" for k in ("prior", "focal_gamma", "candidates", "positive_iou", "fpn_channels")
    }
    bad = FCOS(ranges=(64, 32, 128, 256), center_radius=-1, fpn_channels=16)
    keys = {line.split(":")[0] for line in bad.problems(pretrained=True)}
    assert keys == {f"detector.{k}" for k in ("ranges", "center_radius", "fpn_channels")}
    assert list(RetinaNet().problems(pretrained=False)) == list(FCOS().problems(pretrained=False)) == []
