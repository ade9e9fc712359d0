"""RetinaNet and FCOS: held to torchvision's own, and fed with pretrained weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models.detection import fcos_resnet50_fpn, retinanet_resnet50_fpn, retinanet_resnet50_fpn_v2
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FrozenBatchNorm2d

from boxwise.data.targets import Labelled, open_labelled
from boxwise.interop.files import load_weights, save_weights, write_state
from boxwise.interop.keys import WeightsError
from boxwise.nn.encoder import EncoderConfig, build_encoder
from boxwise.nn.heads import box_head
from boxwise.transfer.detectors.fcos import FCOS, matches
from boxwise.transfer.detectors.one_stage import OneStage, OneStageDetector, assigned, focal
from boxwise.transfer.detectors.rcnn import FasterRCNNFPN
from boxwise.transfer.detectors.retinanet import RetinaNet
from boxwise.transfer.detectors.upper_pyramid import UpperBlocks
from boxwise.transfer.samples import DetectionBatch, TrainSamples, collate
from boxwise.transfer.task import Detection

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SMALL: dict[str, Any] = {
    "backbone": "resnet18",
    "fpn_channels": 32,
    "min_size": 64,
    "max_size": 96,
    "flip": 0.0,
}
GROUPED: dict[Any, dict[str, Any]] = {RetinaNet: {"head_norm": "gn"}, FCOS: {}}
FAMILIES = {"retinanet": RetinaNet, "fcos": FCOS}
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


@pytest.fixture(params=[*FAMILIES])
def family(request: pytest.FixtureRequest) -> type[OneStage]:
    return FAMILIES[request.param]  # type: ignore[no-any-return]


def small(family: type[OneStage], **changes: Any) -> OneStageDetector:
    torch.manual_seed(0)
    return family(**{**SMALL, **changes}).build(classes=2, mean=MEAN, std=STD)


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


def test_anchors_stand_at_their_strides(family: type[OneStage]) -> None:
    """Breaks when strides are guessed from rounded sides, as torchvision does: off by 84 px at 800 px."""
    model = small(family, min_size=800, max_size=1333)
    maps = [torch.zeros(1, 1, -(-800 // s), -(-1088 // s)) for s in (8, 16, 32, 64, 128)]
    (rows,) = model.anchor_generator(ImageList(torch.zeros(1, 3, 800, 1088), [(800, 1080)]), maps)
    each = model.anchor_generator.num_anchors_per_location()[0]
    last = rows[-each:]  # the lower right cell of p7
    centres = (last[:, :2] + last[:, 2:]) / 2
    assert torch.equal(centres, torch.tensor([[1024.0, 768.0]]).expand(each, 2))
    assert len(rows) == each * sum(m[0, 0].numel() for m in maps) and rows.dtype == torch.float32


@pytest.mark.parametrize(("size", "first"), [(800, 32), (600, 32), (400, 16), (224, 8), (64, 8)])
def test_anchors_and_ranges_follow_the_image_size(size: int, first: int) -> None:
    """Breaks when small images meet anchors larger than themselves."""
    anchors = RetinaNet(min_size=size).anchors()
    assert anchors == tuple(first << i for i in range(5))
    told = {"min_size": size, "max_size": 1333}
    with torch.device("meta"):  # settings alone: quick
        model, other = small(RetinaNet, **told), small(FCOS, **told)
    thirds = tuple((s, int(s * 2 ** (1 / 3)), int(s * 2 ** (2 / 3))) for s in anchors)
    assert model.anchor_generator.sizes == thirds
    assert other.config.limits() == tuple(2 * first << i for i in range(4))
    assert FCOS(ranges=(1, 2, 3, 4)).limits() == (1, 2, 3, 4)
    assert RetinaNet(anchor_sizes=(4, 8, 20, 40, 90)).anchors() == (4, 8, 20, 40, 90)


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


def test_p6_comes_from_c5_where_asked_though_widths_are_equal() -> None:
    """Breaks when torchvision's guess by widths wins."""
    with torch.device("meta"):
        model = small(RetinaNet, fpn_channels=512)
    assert model.backbone.fpn.extra_blocks.use_P5 is False


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


def handed_over(folder: Path, norm: str = "bn", head: bool = True, **config: Any) -> nn.Module:
    """An encoder with an FPN, saved as pretraining does."""
    torch.manual_seed(1)
    told = EncoderConfig(backbone="resnet18", fpn=True, fpn_channels=32, fpn_norm=norm, **config)  # type: ignore[arg-type]
    encoder = build_encoder(told)
    parts = {"backbone": encoder.body, "fpn": encoder.fpn} | ({"head": box_head(32)} if head else {})
    levels = {"encoder": {"fpn": True, "fpn_levels": [*told.fpn_levels]}}
    save_weights(folder, parts, levels)
    return encoder


@pytest.mark.parametrize("norm", ["bn", "none"])
def test_pretrained_levels_arrive_one_block_lower(norm: str, family: type[OneStage], tmp_path: Path) -> None:
    """Breaks when p3's block goes into p4's: shapes fit in the 3x3 convolutions, and nothing would tell."""
    encoder = handed_over(tmp_path, norm)
    model = small(family, fpn_norm=norm)
    weights = load_weights(tmp_path)
    report = weights.into(model.parts())
    report.require(part for part in weights.parts if part in model.parts())
    assert report.parts["fpn"].complete and report.parts["fpn"].share == 1 == report.parts["backbone"].share
    ours, theirs = model.backbone.fpn.state_dict(), encoder.fpn.state_dict()
    for kind in ("inner_blocks", "layer_blocks"):
        for level in range(3):
            here = {n: t for n, t in ours.items() if n.startswith(f"{kind}.{level}.")}
            assert here
            for name, tensor in here.items():
                assert torch.equal(tensor, theirs[name.replace(f".{level}.", f".{level + 1}.", 1)]), name
    said = str(report).splitlines()
    below = next(
        line for line in said if line.startswith("fpn, not used, there is no such level: inner_blocks.0")
    )
    assert "unexpected:" not in below and report.parts["fpn"].unexpected == ()
    kinds = {n.split(".")[0] + "." + n.split(".")[1] for n in report.parts["fpn"].unused}
    assert kinds == {"inner_blocks.0", "layer_blocks.0"}
    assert any(line.startswith("head") and "not used, there is no such part" in line for line in said)


def test_a_torn_pyramid_is_refused(family: type[OneStage], tmp_path: Path) -> None:
    """Breaks when the tolerance for p2 hides the loss of a level that the detector has."""
    handed_over(tmp_path / "whole", head=False)
    whole = load_weights(tmp_path / "whole")
    torn = {n: t for n, t in whole.state.items() if "layer_blocks.1." not in n}
    write_state(tmp_path / "torn", torn, whole.config)
    weights = load_weights(tmp_path / "torn")
    with pytest.raises(WeightsError, match=r"fpn did not arrive(?s:.)*missing: layer_blocks\.1"):
        weights.into(small(family).parts()).require(weights.parts)


def test_a_pyramid_of_two_levels_arrives(family: type[OneStage], tmp_path: Path) -> None:
    """ReSim trains p3 and p4 alone. Breaks when they are refused, or land on other levels."""
    encoder = handed_over(tmp_path, "none", head=False, fpn_levels=("p3", "p4"))
    model, weights = small(family, fpn_norm="none"), load_weights(tmp_path)
    report = weights.into(model.parts())
    report.require(weights.parts)
    assert report.parts["fpn"].missing == ("layer_blocks.3.0.weight", "layer_blocks.3.0.bias")
    ours, theirs = model.backbone.fpn.state_dict(), encoder.fpn.state_dict()
    for a, b in (
        ("inner_blocks.0", "inner_blocks.1"),
        ("inner_blocks.2", "inner_blocks.3"),
        ("layer_blocks.1", "layer_blocks.2"),
    ):
        assert torch.equal(ours[f"{a}.0.weight"], theirs[f"{b}.0.weight"])


def test_its_own_weights_go_into_others(family: type[OneStage], tmp_path: Path) -> None:
    """Breaks when a pyramid that starts at c3 fills one that starts at c2 as if both began at the same map."""
    model = small(family)
    write_state(tmp_path, model.state_dict(), {})
    weights = load_weights(tmp_path)
    assert weights.parts == ("backbone", "fpn") and weights.partial == ("fpn",)
    other = FasterRCNNFPN(**{k: v for k, v in SMALL.items()}).build(classes=2, mean=MEAN, std=STD)
    weights.into(other.parts()).require(weights.parts)
    ours, theirs = model.backbone.fpn.state_dict(), other.backbone.fpn.state_dict()
    assert torch.equal(ours["inner_blocks.2.0.weight"], theirs["inner_blocks.3.0.weight"])
    assert torch.equal(ours["layer_blocks.0.0.weight"], theirs["layer_blocks.1.0.weight"])
    again = small(FCOS if family is RetinaNet else RetinaNet)
    weights.into(again.parts()).require(weights.parts)
    assert torch.equal(
        ours["layer_blocks.2.1.bias"], again.backbone.fpn.state_dict()["layer_blocks.2.1.bias"]
    )


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


@pytest.mark.parametrize("side", [1, 2])
def test_gradients_of_the_upper_levels_are_written_to_the_last(side: int) -> None:
    """Breaks when p6 and p7 of small images learn from uninitialised memory: on CPUs with bfloat16 the norm of their
    gradients was infinite in some steps, and merely wrong in others."""
    torch.manual_seed(0)
    above, c5 = UpperBlocks(16, 16), torch.randn(2, 16, side, side)
    found: list[list[torch.Tensor]] = []
    for enabled in (False, *[True] * 6):
        above.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            levels, names = above([c5], [c5], ["p5"])
        torch.full((9 * 16 * 16 * 4,), math.nan)  # what the next tensor finds in memory
        sum(level.float().sum() for level in levels).backward()
        found.append([p.grad.clone() for p in above.parameters()])
    assert names == ["p5", "p6", "p7"]
    for grads in found[1:]:
        torch.testing.assert_close(grads, found[0], rtol=0.05, atol=0.05)


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
