"""What reads boxes on a pyramid: 2fc, InsLoc's norm, the depth of the RPN, turning points of losses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn

from boxwise.interop.files import load_weights, save_weights
from boxwise.nn.encoder import EncoderConfig, build_encoder
from boxwise.nn.heads import box_head
from boxwise.transfer.detectors.mask_rcnn import MaskRCNNFPN
from boxwise.transfer.detectors.rcnn import FasterRCNNFPN, PyramidRCNN
from rcnns import FEW, MEAN, SMALL, STD, TOLD, assert_same_finds, assert_same_training, block, pictures


def small(**changes: Any) -> PyramidRCNN:
    torch.manual_seed(0)
    return FasterRCNNFPN(**{**SMALL, **changes}).build(classes=2, mean=MEAN, std=STD)


@pytest.fixture(scope="module")
def pair() -> tuple[PyramidRCNN, nn.Module]:
    """The layers of torchvision's first version, and its own model with the same weights."""
    torch.manual_seed(0)
    config = FasterRCNNFPN(**FEW, roi_canonical_size=224, head="2fc", fpn_norm="none")
    ours = config.build(classes=4, mean=MEAN, std=STD)
    theirs = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=5, **TOLD)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def test_2fc_without_norms_has_the_names_of_torchvisions_first_version(
    pair: tuple[PyramidRCNN, nn.Module],
) -> None:
    """Breaks when its published weights no longer fit, or the RPN has the second version's two convolutions."""
    ours, theirs = ({n: t.shape for n, t in m.state_dict().items()} for m in pair)
    assert ours == theirs


def test_2fc_equals_torchvisions_first_version(pair: tuple[PyramidRCNN, nn.Module]) -> None:
    """Breaks when a head reads other crops, or a default of the two stages is another."""
    ours, theirs = (model.train() for model in pair)
    assert_same_training(ours, theirs, list(zip(ours.parameters(), theirs.parameters())))
    assert_same_finds(ours, theirs)


@pytest.mark.parametrize(
    ("given", "convs"),
    [({}, 2), ({"head": "2fc"}, 1), ({"rpn_convs": 1}, 1), ({"head": "2fc", "rpn_convs": 3}, 3)],
)
def test_convolutions_of_the_rpn(given: dict[str, Any], convs: int) -> None:
    """Breaks when detectron2's one convolution cannot be had beside 4conv1fc, or the default follows no head."""
    names = {n.split(".")[3] for n in small(**given).state_dict() if n.startswith("rpn.head.conv")}
    assert names == {str(k) for k in range(convs)}


def test_the_extra_norm_reads_what_the_head_gives() -> None:
    """Breaks when InsLoc's norm stands before fc1's ReLU, or draws that follow it change the start of a detector."""
    with_it, without = small(head_extra_norm=True), small()
    state = without.state_dict()
    more = {n: t for n, t in with_it.state_dict().items() if n not in state}
    assert {n.rpartition(".")[0] for n in more} == {"roi_heads.box_head.7"}
    assert all(torch.equal(t, with_it.state_dict()[n]) for n, t in state.items())
    crops = torch.randn(12, 16, 7, 7)
    rows = without.roi_heads.box_head.train()(crops)
    assert (rows >= 0).all()
    expected = F.batch_norm(rows, None, None, training=True, eps=1e-5)
    torch.testing.assert_close(with_it.roi_heads.box_head.train()(crops), expected)


def test_trap_24_a_pretrained_head_arrives_before_the_extra_norm_and_not_in_2fc(tmp_path) -> None:
    """Breaks when a norm that no pretraining has counts as lost, or 2fc waits for weights that nobody trains."""
    torch.manual_seed(1)
    encoder = build_encoder(EncoderConfig(backbone="resnet18", fpn=True, fpn_channels=16))
    head = box_head(16)
    save_weights(tmp_path, {"backbone": encoder.body, "fpn": encoder.fpn, "head": head}, {})
    weights = load_weights(tmp_path)
    model = small(head_extra_norm=True)
    report = weights.into(model.parts())
    report.require()
    assert report.share == 1
    found = model.state_dict()
    assert all(torch.equal(found[f"roi_heads.box_head.{n}"], t) for n, t in head.state_dict().items())
    plain = small(head="2fc")
    assert set(plain.parts()) == {"backbone", "fpn"}
    weights.into(plain.parts()).require(["backbone", "fpn"])


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_losses_of_corners_turn_where_they_are_told(beta: float) -> None:
    """Breaks when a turning point reaches the wrong stage, or none; checked by the stages' own inputs."""
    images, targets = block(*pictures())
    default, changed = small(), small(rpn_beta=beta, box_beta=2 * beta)
    losses = []
    for model in (default, changed):
        torch.manual_seed(5)
        losses.append(model.train().losses(images, targets))
    for name in ("objectness", "classifier"):
        assert torch.equal(losses[0][name], losses[1][name])
    deltas, wanted = torch.randn(6, 4), torch.randn(6, 4)
    rpn = changed.rpn
    rpn.fg_bg_sampler = lambda labels: ([torch.ones(6)], [torch.zeros(6)])
    _, found = rpn.compute_loss(torch.zeros(6, 1), deltas, [torch.ones(6)], [wanted])
    size = (deltas - wanted).abs()
    expected = size if beta == 0 else torch.where(size < beta, size**2 / (2 * beta), size - beta / 2)
    torch.testing.assert_close(found, expected.sum() / 6)
    assert changed.roi_heads.beta == 2 * beta and default.roi_heads.beta == pytest.approx(1 / 9)
    assert not torch.equal(losses[0]["rpn_box"], losses[1]["rpn_box"])
    assert not torch.equal(losses[0]["box"], losses[1]["box"])


def test_what_cannot_be_is_said() -> None:
    """Breaks when a norm is dropped in silence where the head has no place for it."""
    bad = FasterRCNNFPN(head="2fc", head_extra_norm=True, rpn_convs=0, box_beta=-1.0)
    keys = {line.split(":")[0] for line in bad.problems(pretrained=False)}
    assert keys == {
        "detector.head_extra_norm",
        "detector.rpn_convs",
        "detector.rpn_beta, detector.box_beta",
    }
    assert not [*MaskRCNNFPN(head="2fc", mask_norm="none").problems(pretrained=False)]
