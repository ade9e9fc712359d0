"""R-CNNs on c4, held to torchvision's put together by hand of the same parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

from boxwise.interop.files import load_weights, save_weights, write_state
from boxwise.methods import insloc
from boxwise.nn.encoder import EncoderConfig, build_encoder
from boxwise.transfer.detectors.c4 import C4RCNN, FasterRCNNC4, MaskRCNNC4, OnC4
from rcnns import (
    FEW,
    MEAN,
    STD,
    TOLD,
    assert_same_finds,
    assert_same_training,
    awake,
    block,
    pictures,
    silent,
)

SMALL: dict[str, Any] = {
    "backbone": "resnet18",
    "min_size": 64,
    "max_size": 96,
    "box_batch_size_per_image": 8,
    "rpn_pre_nms_train": 300,
    "rpn_post_nms_train": 40,
}


def small(kind: type[OnC4] = FasterRCNNC4, **changes: Any) -> C4RCNN:
    torch.manual_seed(0)
    return kind(**{**SMALL, **changes}).build(classes=2, mean=MEAN, std=STD)


def by_hand(extra_norm: bool, *, masks: bool) -> tuple[nn.Module, nn.Module]:
    """torchvision's detector with a ResNet-18 cut behind layer3, and the ResNet."""
    whole = torchvision.models.resnet18(weights=None)
    last = [whole.layer4, *([nn.BatchNorm2d(512)] if extra_norm else [])]
    backbone = IntermediateLayerGetter(whole, {"layer3": "0"})
    backbone.out_channels = 256
    options: dict[str, Any] = {
        "rpn_anchor_generator": AnchorGenerator(((32, 64, 128, 256, 512),), ((0.5, 1.0, 2.0),)),
        "box_roi_pool": MultiScaleRoIAlign(["0"], 14, 2),
        "box_head": nn.Sequential(*last, nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        "box_predictor": FastRCNNPredictor(512, 5),
        **TOLD,
    }
    if not masks:
        return FasterRCNN(backbone, **options), whole
    options |= {
        "mask_roi_pool": MultiScaleRoIAlign(["0"], 14, 2),
        "mask_head": nn.Sequential(*last),
        "mask_predictor": MaskRCNNPredictor(512, 256, 5),
    }
    return MaskRCNN(backbone, **options), whole


def same_names(ours: C4RCNN, theirs: nn.Module, whole: nn.Module) -> list[tuple[str, str]]:
    """Names of ours and of theirs for each parameter and statistic; theirs has the last stage in the head."""
    pairs = []
    for name in ours.state_dict():
        if name.startswith("roi_heads.box_head.last.layer4."):
            pairs.append((name, name.replace("last.layer4", "0")))
        elif name.startswith("roi_heads.box_head.norm."):
            pairs.append((name, name.replace("norm", "1")))
        else:
            pairs.append((name, name.replace("backbone.body.", "backbone.")))
    return pairs


@pytest.mark.parametrize(
    ("kind", "extra_norm"), [(FasterRCNNC4, True), (FasterRCNNC4, False), (MaskRCNNC4, True)]
)
def test_trap_24_losses_gradients_and_finds_equal_torchvisions(kind: type[OnC4], extra_norm: bool) -> None:
    """Breaks when anchors, crops, the norm behind res5 or its mean differ; masks there run res5 a second time, which
    is the same while norms stand still."""
    torch.manual_seed(0)
    ours = kind(backbone="resnet18", head_extra_norm=extra_norm, **FEW).build(classes=4, mean=MEAN, std=STD)
    masks = kind is MaskRCNNC4
    theirs, whole = by_hand(extra_norm, masks=masks)
    pairs = same_names(ours, theirs, whole)
    given, taken = ours.state_dict(), theirs.state_dict()
    for a, b in pairs:
        taken[b].copy_(given[a])
    for model in (ours, theirs):
        model.train()
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d) and masks:
                norm.eval()
    mine, them = dict(ours.named_parameters()), dict(theirs.named_parameters())
    assert_same_training(ours, theirs, [(mine[a], them[b]) for a, b in pairs if a in mine])
    assert_same_finds(ours, theirs)


def test_anchors_and_proposals_are_detectron2s() -> None:
    """Breaks when the one level has anchors of one size, or keeps as few proposals as a level of a pyramid."""
    config = FasterRCNNC4()
    with torch.device("meta"):
        model = config.build(classes=20, mean=MEAN, std=STD)
    assert model.rpn.anchor_generator.num_anchors_per_location() == [15]
    assert model.rpn.anchor_generator.sizes == ((32, 64, 128, 256, 512),)
    assert model.rpn._pre_nms_top_n == {"training": 12_000, "testing": 6000}
    assert model.rpn._post_nms_top_n == {"training": 2000, "testing": 1000}
    assert model.roi_heads.box_roi_pool.output_size == (14, 14)
    assert model.roi_heads.box_roi_pool.aligned and model.roi_heads.box_head.norm.num_features == 2048
    assert model.backbone.out_channels == 1024
    assert MaskRCNNC4(min_size=400).anchors() == (16, 32, 64, 128, 256)


def weights_of(start: str, folder: Any) -> None:
    """Weights as three kinds of pretraining leave them."""
    torch.manual_seed(7)
    if start == "insloc_c4":
        config = insloc.Config(levels=("c4",), augmented=(True,), pool_size=14, hidden=16, width=8, queue=12)
        encoder = EncoderConfig(backbone="resnet18", c4=True)
        save_weights(folder, config.build(build_encoder(encoder)).handed_over(), {"encoder": {"c4": True}})
    elif start == "resim_fpn":
        encoder = EncoderConfig(backbone="resnet18", fpn=True, fpn_channels=16, fpn_levels=("p3", "p4"))
        built = build_encoder(encoder)
        card = {"encoder": {"fpn": True, "fpn_levels": ["p3", "p4"]}}
        save_weights(folder, {"backbone": built.body, "fpn": built.fpn}, card)
    else:
        write_state(folder, torchvision.models.resnet18(weights=None).state_dict(), {})


@pytest.mark.parametrize("start", ["plain", "insloc_c4", "resim_fpn"])
@pytest.mark.parametrize("frozen", [{}, {"norm": "frozen"}, {"frozen_stages": 4}])
def test_trap_24_the_whole_backbone_arrives(start: str, frozen: dict[str, Any], tmp_path: Any) -> None:
    """Breaks when the last stage, or a frozen norm of the stem, starts from random weights in silence."""
    weights_of(start, tmp_path)
    weights = load_weights(tmp_path)
    model = small(**frozen)
    report = weights.into(model.parts())
    report.require(["backbone"])
    assert report.parts["backbone"].share == 1
    found, seen = model.state_dict(), 0
    for name, tensor in weights.state.items():
        name = name.replace("backbone.body.layer4", "roi_heads.box_head.last.layer4")
        if not name.startswith("backbone.fpn") and not name.endswith("num_batches_tracked"):
            assert torch.equal(found[name], tensor), name
            seen += 1
    assert seen == len([n for n in found if ".body." in n or ".last." in n]) - sum(
        n.endswith("num_batches_tracked") and (".body." in n or ".last." in n) for n in found
    )


@pytest.mark.parametrize(
    ("given", "fixed", "still"),
    [
        ({}, "", ""),
        ({"frozen_stages": 4}, "stem layer1 layer2 layer3", "stem layer1 layer2 layer3"),
        ({"frozen_stages": 5}, "stem layer1 layer2 layer3 layer4", "stem layer1 layer2 layer3 layer4"),
        ({"norm": "frozen"}, "", "stem layer1 layer2 layer3 layer4"),
        ({"norm": "frozen", "frozen_stages": 1}, "stem", "stem layer1 layer2 layer3 layer4"),
    ],
)
def test_frozen_parts_stand_and_all_others_train(given: dict[str, Any], fixed: str, still: str) -> None:
    """Breaks when ReSim's frozen backbone moves, statistics included, or its head or RPN stands still; and when a
    norm is replaced in a copy of the backbone alone."""
    model = small(**given).train()
    before = {n: b.clone() for n, b in model.named_buffers() if "running" in n}
    sum(model.losses(*block(*pictures())).values()).backward()
    assert silent(model) == []

    def stage(name: str) -> str:
        return next((s for s in name.split(".") if s.startswith("layer")), "stem")

    backbone = [n for n, _ in model.named_parameters() if ".body." in n or ".last." in n]
    convolutions = {n for n in backbone if "conv" in n or "downsample.0" in n}
    parameters = dict(model.named_parameters())
    assert {stage(n) for n in convolutions if not parameters[n].requires_grad} == set(fixed.split())
    assert {stage(n) for n in convolutions if parameters[n].requires_grad}.isdisjoint(fixed.split())
    after = dict(model.named_buffers())
    stood = {n for n, b in before.items() if torch.equal(after[n], b)}
    assert {stage(n) for n in stood} == set(still.split())
    moved = {n for n in before if n not in stood}
    assert {n for n in moved if stage(n) in still.split() and "box_head.norm" not in n} == set()
    assert "roi_heads.box_head.norm.running_mean" in moved
    frozen = [n for n, m in model.named_modules() if isinstance(m, FrozenBatchNorm2d)]
    assert {stage(n) for n in frozen} == set(still.split())
    assert all(p.requires_grad for n, p in parameters.items() if n.startswith("rpn.") or "predictor" in n)


def test_masks_are_learned_from_the_very_maps_of_boxes() -> None:
    """Breaks when res5 runs a second time in training, with other statistics, or masks of other rows are read."""
    model = small(MaskRCNNC4).train()
    heads, made, read = model.roi_heads, [], []
    heads.box_head.register_forward_hook(lambda *_: pytest.fail("crops are mapped, not averaged, first"))
    maps, predict = heads.box_head.maps, heads.mask_predictor.forward
    heads.box_head.maps = lambda crops: made.append(maps(crops)) or made[-1]
    heads.mask_predictor.forward = lambda crops: read.append(crops) or predict(crops)
    losses = model.losses(*block(*pictures()))
    assert len(made) == 1 and len(read) == 1 and losses["mask"] > 0
    assert len(made[0]) == 16 and 4 <= len(read[0]) < 16
    rows = [(made[0] == crop).flatten(1).all(1).nonzero()[:, 0].tolist() for crop in read[0]]
    assert all(len(row) == 1 for row in rows) and rows == sorted(rows)
    assert read[0].requires_grad


@pytest.mark.parametrize("backbone", ["resnet26", "convnext_atto"])
def test_timm_backbones_whose_last_stage_comes_off_train(backbone: str) -> None:
    """Breaks when stages of another library are named or counted otherwise: stages_3 is res5."""
    model = small(MaskRCNNC4, backbone=backbone, frozen_stages=4)
    awake(model).train()
    sum(model.losses(*block(*pictures())).values()).backward()
    assert silent(model) == []
    fixed = {n.split(".")[2] for n, p in model.named_parameters() if not p.requires_grad}
    last = {
        n.split(".")[3] for n, p in model.named_parameters() if ".box_head.last." in n and p.requires_grad
    }
    assert last == {"stages_3" if backbone == "convnext_atto" else "layer4"}
    assert fixed.isdisjoint(last) and len(fixed) >= 4
    assert not any(p.requires_grad for p in model.backbone.parameters())


def test_a_backbone_that_cannot_be_cut_is_refused() -> None:
    """Breaks when a transformer's windows are cut in the middle."""
    with pytest.raises(ValueError, match=r"the last stage of swin_tiny.* cannot be taken off as a box head"):
        small(backbone="swin_tiny_patch4_window7_224")


def test_what_cannot_be_is_said() -> None:
    """Breaks when anchors of no size are built."""
    bad = MaskRCNNC4(anchor_sizes=(0, 1, 2, 3, 4), rpn_convs=0)
    keys = {line.split(":")[0] for line in bad.problems(pretrained=False)}
    assert keys == {"detector.anchor_sizes", "detector.rpn_convs"}
    assert not [*FasterRCNNC4(frozen_stages=4).problems(pretrained=True)]
