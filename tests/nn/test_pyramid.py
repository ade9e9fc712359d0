"""An FPN of some levels against torchvision's whole one, and the way of its weights into a detector."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.ops import FeaturePyramidNetwork

from boxwise.interop.files import load_weights, save_weights
from boxwise.interop.keys import WeightsError
from boxwise.nn.encoder import EncoderConfig, build_encoder
from boxwise.nn.pyramid import PartialPyramid
from boxwise.strict import plain

CHANNELS = (4, 6, 8, 10)


def pair(
    given: tuple[int, ...], norm: type[nn.Module] | None
) -> tuple[PartialPyramid, FeaturePyramidNetwork]:
    """Both with the weights that the partial one has."""
    torch.manual_seed(0)
    mine, theirs = (
        PartialPyramid(CHANNELS, 5, given, norm=norm),
        FeaturePyramidNetwork([*CHANNELS], 5, norm_layer=norm),
    )
    missing = theirs.load_state_dict(mine.state_dict(), strict=False)
    assert not missing.unexpected_keys and missing.missing_keys
    return mine, theirs


@pytest.mark.parametrize("norm", [None, nn.BatchNorm2d])
@pytest.mark.parametrize("given", [(1, 2), (3,), (0, 3), (2, 1)])
def test_given_levels_are_torchvisions(given: tuple[int, ...], norm: type[nn.Module] | None) -> None:
    """Breaks when the way down skips a level, a name differs, or levels come in another order."""
    mine, theirs = pair(given, norm)
    maps = {f"c{i + 2}": torch.randn(2, c, 16 >> i, 16 >> i) for i, c in enumerate(CHANNELS)}
    got, want = mine(maps), theirs(maps)
    assert [*got] == [f"c{i + 2}" for i in sorted(given)]
    for name, x in got.items():
        torch.testing.assert_close(x, want[name])


def test_nothing_is_built_that_nothing_trains() -> None:
    """Breaks when p2's or p5's convolutions come along untrained."""
    mine = PartialPyramid((256, 512, 1024, 2048), 256, (1, 2))
    sizes = {n: sum(p.numel() for p in m.parameters()) for n, m in mine.named_modules() if n.count(".") == 1}
    assert sizes == {
        "inner_blocks.1": 131_328,
        "inner_blocks.2": 262_400,
        "inner_blocks.3": 524_544,
        "layer_blocks.1": 590_080,
        "layer_blocks.2": 590_080,
    }
    assert all((p == 0).all() for n, p in mine.named_parameters() if n.endswith("bias"))


def test_encoder_gives_the_levels_that_it_names() -> None:
    """Breaks when a level is promised that does not come, or the other way round."""
    encoder = build_encoder(
        EncoderConfig(backbone="resnet18", fpn=True, fpn_channels=8, fpn_levels=("p3", "p4"))
    )
    maps = encoder(torch.zeros(1, 3, 64, 64))
    assert [*maps] == [*encoder.channels] == [*encoder.strides] == ["c2", "c3", "c4", "c5", "p3", "p4"]
    assert {n: 64 // x.shape[-1] for n, x in maps.items()} == encoder.strides
    assert {n: x.shape[1] for n, x in maps.items()} == encoder.channels
    for levels in ((), ("p4", "p3"), ("p3", "p3")):
        with pytest.raises(ValueError, match="once, finest first"):
            EncoderConfig(fpn=True, fpn_levels=levels)


def test_trap_24_what_was_trained_arrives_in_a_detectors_fpn(tmp_path: Path) -> None:
    """Breaks when the two levels of ReSim are refused by a whole FPN, or a lost one passes unnoticed."""
    config = EncoderConfig(
        backbone="resnet18", fpn=True, fpn_channels=8, fpn_norm="none", fpn_levels=("p3", "p4")
    )
    trained = build_encoder(config)
    parts = {"backbone": trained.body, "fpn": trained.fpn}
    weights = load_weights(save_weights(tmp_path / "some", parts, {"encoder": plain(config)}))
    for norm in ("none", "bn"):
        detector = build_encoder(EncoderConfig(backbone="resnet18", fpn=True, fpn_channels=8, fpn_norm=norm))
        report = weights.into({"backbone": detector.body, "fpn": detector.fpn})
        report.require()
        for name, tensor in trained.fpn.state_dict().items():
            if norm == "none" or not name.endswith("bias"):
                assert torch.equal(detector.fpn.state_dict()[name], tensor)
    wider = build_encoder(EncoderConfig(backbone="resnet18", fpn=True, fpn_channels=16))
    with pytest.raises(WeightsError, match="fpn"):
        weights.match({"backbone": wider.body, "fpn": wider.fpn}).require()
    silent = load_weights(save_weights(tmp_path / "silent", parts, {}))  # says nothing of levels: a lost part
    with pytest.raises(WeightsError, match="fpn"):
        silent.match({"backbone": detector.body, "fpn": detector.fpn}).require()
