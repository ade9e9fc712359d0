"""Heads against the layers that the papers' code has."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn_v2

from boxwise.nn import heads
from boxwise.nn.encoder import EncoderConfig, build_encoder
from boxwise.nn.row_norm import only_kept


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_projectors_have_the_published_numbers_of_parameters() -> None:
    """Breaks when a bias or a norm appears or goes: reference figures of SCRL and SoCo."""
    assert count(heads.projector(2048, 4096, 256, last_bias=False)) == 9_449_472
    assert count(heads.projector(256, 4096, 256, last_bias=False)) == 2_109_440
    assert count(heads.projector(1024, 4096, 256, last_bias=True)) == 5_255_424
    assert count(heads.projector(256, 4096, 256, last_bias=True)) == 2_109_696


def test_projector_is_linear_norm_relu_linear() -> None:
    """Breaks when the norm or the ReLU moves."""
    head = heads.projector(8, 6, 3, last_bias=False)
    x = torch.randn(5, 2, 2, 2)
    hidden = x.flatten(1) @ head.get_parameter("1.weight").T + head.get_parameter("1.bias")
    hidden = (hidden - hidden.mean(0)) / (hidden.var(0, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(head(x), hidden.relu() @ head.get_parameter("4.weight").T)


def test_moco_projector_has_no_norm() -> None:
    """Breaks when rows of a batch see each other in MoCo's head."""
    head, x = heads.moco_projector(8, 6, 3), torch.randn(5, 8)
    torch.testing.assert_close(head(x)[:2], head(x[:2]))
    assert count(head) == 8 * 6 + 6 + 6 * 3 + 3


def test_simsiam_heads_follow_the_official_layers() -> None:
    """Breaks when the projector loses a layer, ends in a ReLU, or scales its output norm."""
    head, x = heads.simsiam_projector(8, 6, 4), torch.randn(64, 8)
    out = head(x)
    torch.testing.assert_close(out.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.var(0, correction=0), torch.ones(4), atol=1e-2, rtol=0)
    assert out.min() < 0
    assert count(head) == 8 * 6 + 2 * 6 + 6 * 6 + 2 * 6 + 6 * 4
    predictor = heads.simsiam_predictor(4, 3)
    assert count(predictor) == 4 * 3 + 2 * 3 + 3 * 4 + 4
    assert predictor(out).shape == out.shape


def test_box_head_is_the_detectors_own() -> None:
    """Breaks the hand-over: every name and shape must be those of torchvision's v2 detector."""
    with torch.device("meta"):
        theirs = fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None).roi_heads.box_head
        ours = heads.box_head(256, size=7)
    shapes = {name: value.shape for name, value in ours.state_dict().items()}
    assert shapes == {name: value.shape for name, value in theirs.state_dict().items()}
    assert shapes["0.0.weight"] == (256, 256, 3, 3) and shapes["5.weight"] == (heads.BOX_HEAD_WIDTH, 12544)


@pytest.mark.parametrize("masked", [False, True])
def test_centred_projector_ends_in_a_norm_without_scale_and_shift(masked: bool) -> None:
    """Breaks when the targets of short runs keep their mean, or padding moves it."""
    torch.manual_seed(0)
    head = heads.projector(6, 16, 4, last_bias=True, centred=True)
    keep = torch.tensor([True, False, True, True, True, True, False, True])
    rows = torch.randn(8, 6)
    with only_kept(keep if masked else torch.ones(8, dtype=torch.bool), head):
        out = head(rows)[keep if masked else slice(None)]
    torch.testing.assert_close(out.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.var(0, unbiased=False), torch.ones(4), atol=1e-3, rtol=0)
    assert len(list(head[-1].parameters())) == 0


def test_res5_head_is_the_last_stage_then_the_mean() -> None:
    """Breaks when crops skip the stage, keep its cells, or the encoder trains a second copy of it."""
    torch.manual_seed(0)
    encoder = build_encoder(EncoderConfig(backbone="resnet50", c4=True)).eval()
    stage = encoder.last
    head = heads.Res5Head(encoder).eval()
    assert stage is not None and encoder.last is None and head.width == 2048
    assert not any(name.startswith(("last", "body.layer4")) for name, _ in encoder.named_parameters())
    crops = torch.randn(2, 1024, 14, 14)
    with torch.no_grad():
        cells = stage(crops)
        assert cells.shape == (2, 2048, 7, 7)
        torch.testing.assert_close(head(crops), cells.flatten(2).sum(2) / 49)


def test_res5_head_needs_an_encoder_that_stops_at_c4() -> None:
    """Breaks when the mend is not named."""
    with pytest.raises(ValueError, match=r"encoder.c4: true"):
        heads.Res5Head(build_encoder(EncoderConfig(backbone="test_resnet")))
