"""The pyramid of RetinaNet and FCOS: its anchors, its upper levels, and pretrained levels in their places."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models.detection.image_list import ImageList

from boxwise.interop.files import load_weights, save_weights, write_state
from boxwise.interop.keys import WeightsError
from boxwise.nn.encoder import EncoderConfig, build_encoder
from boxwise.nn.heads import box_head
from boxwise.transfer.detectors.fcos import FCOS
from boxwise.transfer.detectors.one_stage import OneStage
from boxwise.transfer.detectors.rcnn import FasterRCNNFPN
from boxwise.transfer.detectors.retinanet import RetinaNet
from boxwise.transfer.detectors.upper_pyramid import UpperBlocks
from one_stages import MEAN, SMALL, STD, small


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


@pytest.mark.parametrize(("size", "first"), [(800, 32), (600, 32), (400, 16), (224, 16), (64, 16)])
def test_anchors_and_ranges_follow_the_image_size(size: int, first: int) -> None:
    """Breaks when things of small images are smaller than all anchors, or fall between the cells of coarse maps."""
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


def test_p6_comes_from_c5_where_asked_though_widths_are_equal() -> None:
    """Breaks when torchvision's guess by widths wins."""
    with torch.device("meta"):
        model = small(RetinaNet, fpn_channels=512)
    assert model.backbone.fpn.extra_blocks.use_P5 is False


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
def test_trap_24_pretrained_levels_arrive_one_block_lower(
    norm: str, family: type[OneStage], tmp_path: Path
) -> None:
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
