"""Encoders: names, strides and widths of their maps, and words for what cannot be built."""

from __future__ import annotations

import socket

import pytest
import torch
import torchvision
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from boxwise.nn.backbones import RESNETS, backbones, rejoined
from boxwise.nn.encoder import EncoderConfig, build_encoder


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("an encoder asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize(
    "backbone",
    ["resnet18", "resnet50", "convnext_atto", "mobilenetv3_small_050", "swin_tiny_patch4_window7_224"],
)
def test_every_level_has_the_stride_and_width_it_states(backbone: str) -> None:
    """Breaks when a level is read from the wrong stage, or comes out rows by columns by channels."""
    encoder = build_encoder(EncoderConfig(backbone=backbone, fpn=True, fpn_channels=16))
    size = 224 if "swin" in backbone else 64
    with torch.no_grad():
        maps = encoder(torch.randn(2, 3, size, size))
    assert list(maps) == ["c2", "c3", "c4", "c5", "p2", "p3", "p4", "p5"]
    for name, level in maps.items():
        cells = size // encoder.strides[name]
        assert level.shape == (2, encoder.channels[name], cells, cells), name
    assert encoder.strides["c5"] == encoder.strides["p5"] == 32 and encoder.channels["p2"] == 16


def test_levels_are_the_outputs_of_the_layers_of_torchvision() -> None:
    """Breaks when a layer is skipped or a map is taken before its ReLU."""
    encoder = build_encoder(EncoderConfig(backbone="resnet18")).eval()
    whole = torchvision.models.resnet18(weights=None).eval()
    missing, unexpected = whole.load_state_dict(encoder.body.state_dict(), strict=False)
    assert missing == ["fc.weight", "fc.bias"] and not unexpected
    x = torch.randn(1, 3, 64, 64)
    y = whole.maxpool(whole.relu(whole.bn1(whole.conv1(x))))
    maps = encoder(x)
    for name, layer in zip(
        ("c2", "c3", "c4", "c5"), (whole.layer1, whole.layer2, whole.layer3, whole.layer4)
    ):
        y = layer(y)
        assert torch.equal(maps[name], y), name


def test_names_are_those_of_torchvisions_detectors() -> None:
    """Breaks the hand-over: body and FPN are loaded by name."""
    with torch.device("meta"):
        theirs = resnet_fpn_backbone(
            backbone_name="resnet50", weights=None, norm_layer=torch.nn.BatchNorm2d, trainable_layers=5
        )
        encoder = build_encoder(EncoderConfig(backbone="resnet50", fpn=True, fpn_norm="none"))
    ours = {name: v.shape for name, v in encoder.state_dict().items()}
    assert ours == {name: v.shape for name, v in theirs.state_dict().items()}


def test_fpn_norm_puts_batchnorm_after_every_convolution() -> None:
    """Breaks when the FPN with norms keeps its biases or loses a norm."""
    with torch.device("meta"):
        fpn = build_encoder(EncoderConfig(backbone="resnet18", fpn=True)).fpn
    assert fpn is not None
    names = {name.split(".", 2)[2] for name, _ in fpn.named_parameters()}
    assert names == {"0.weight", "1.weight", "1.bias"}
    assert sum(isinstance(m, torch.nn.BatchNorm2d) for m in fpn.modules()) == 8


@pytest.mark.parametrize("zero", [False, True])
def test_zero_init_last_silences_the_last_norm_of_every_block(zero: bool) -> None:
    """Breaks when the switch is ignored."""
    body = build_encoder(EncoderConfig(backbone="resnet18", zero_init_last=zero)).body
    last = [
        p for name, p in body.named_parameters() if name.startswith("layer") and name.endswith("bn2.weight")
    ]
    assert len(last) == 8 and all((p == (0 if zero else 1)).all() for p in last)


def test_gradients_reach_every_parameter_through_the_top_alone() -> None:
    """Breaks when a classifier or an unused stage stays behind: training refuses what has no gradient."""
    encoder = build_encoder(EncoderConfig(backbone="mobilenetv3_small_050"))
    encoder(torch.randn(2, 3, 64, 64))["c5"].sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())


@pytest.mark.parametrize(
    ("backbone", "word"),
    [
        ("resnet5", "resnet50"),
        ("convnxt_tiny", "convnext_tiny"),
        ("vit_tiny_patch16_224", "none at 4, 8, 32"),
        ("hf_hub:someone/something", "unknown backbone"),
    ],
)
def test_a_backbone_that_cannot_be_is_named_with_what_can(backbone: str, word: str) -> None:
    """Breaks when a typing error ends in a traceback of another library, or in a download."""
    with pytest.raises(ValueError, match=word):
        build_encoder(EncoderConfig(backbone=backbone))


def test_zero_init_is_refused_where_it_would_be_ignored() -> None:
    """Breaks when a setting that does nothing is accepted."""
    with pytest.raises(ValueError, match="zero_init_last"):
        build_encoder(EncoderConfig(backbone="convnext_atto", zero_init_last=True))


def test_backbones_lists_torchvisions_first_each_once_and_none_that_is_refused() -> None:
    """Breaks when `boxwise list backbones` loses timm, repeats a name or offers a plain transformer."""
    names = backbones()
    assert names[:4] == RESNETS and len(set(names)) == len(names)
    assert {"convnext_tiny", "mobilenetv3_large_100", "swin_tiny_patch4_window7_224"} <= set(names)
    assert {"vit_tiny_patch16_224", "mixer_s16_224", "levit_128"}.isdisjoint(names)


C4_BACKBONES = ["resnet18", "test_resnet", "convnext_atto"]


@pytest.mark.parametrize("backbone", C4_BACKBONES)
def test_an_encoder_that_stops_at_c4_gives_the_maps_of_the_whole_one(backbone: str) -> None:
    """Breaks when the last stage still runs, goes missing, or takes part of the one before with it."""
    torch.manual_seed(0)
    whole = build_encoder(EncoderConfig(backbone=backbone)).eval()
    torch.manual_seed(0)
    short = build_encoder(EncoderConfig(backbone=backbone, c4=True)).eval()
    assert list(short.channels) == list(short.strides) == ["c2", "c3", "c4"]
    assert short.last is not None and short.last_channels == whole.channels["c5"]
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        want, maps = whole(x), short(x)
        assert list(maps) == ["c2", "c3", "c4"]
        assert all(torch.equal(maps[name], want[name]) for name in maps)
        assert torch.equal(short.last.eval()(maps["c4"]), want["c5"])


@pytest.mark.parametrize("backbone", C4_BACKBONES)
def test_a_body_and_its_last_stage_rejoin_under_the_usual_names(backbone: str) -> None:
    """Breaks the hand-over of C4 runs: a stage under another name would stay behind, a copy would not be trained."""
    whole = build_encoder(EncoderConfig(backbone=backbone)).body.eval()
    short = build_encoder(EncoderConfig(backbone=backbone, c4=True)).eval()
    assert short.last is not None
    joint = rejoined(short.body, short.last.eval())
    joint.load_state_dict(whole.state_dict(), strict=True)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(joint(x), whole(x), strict=True))
        c4 = short(x)["c4"]
        assert torch.equal(c4, whole(x)[-2]) and torch.equal(short.last(c4), whole(x)[-1])


@pytest.mark.parametrize("backbone", ["mobilenetv3_small_050", "swin_tiny_patch4_window7_224"])
def test_a_backbone_whose_last_stage_does_not_come_off_is_named(backbone: str) -> None:
    """Breaks when a backbone read through hooks, or rows by columns by channels, fails later with another error."""
    with pytest.raises(ValueError, match=rf"encoder.c4: .*{backbone} .*resnet50"):
        build_encoder(EncoderConfig(backbone=backbone, c4=True))


def test_stopping_at_c4_excludes_a_pyramid() -> None:
    """Breaks when an FPN is built on a level that is not there."""
    with pytest.raises(ValueError, match="c4 and fpn"):
        EncoderConfig(c4=True, fpn=True)


@pytest.mark.parametrize(
    ("start", "variance"), [("lecun", 1 / 512), ("xavier", 2 / 576), ("kaiming", 2 / 64)]
)
def test_pyramids_start_as_asked(start: str, variance: float) -> None:
    """Breaks when one method's FPN starts as another's: SoCo's, InsLoc's and torchvision's differ by twice and more."""
    torch.manual_seed(0)
    config = EncoderConfig(backbone="resnet18", fpn=True, fpn_channels=64, fpn_init=start)
    weight = build_encoder(config).fpn.inner_blocks[3][0].weight  # 512 to 64 channels, 1 by 1
    assert weight.detach().var() == pytest.approx(variance, rel=0.05)
    uniform = weight.detach().abs().max() < 2 * variance**0.5
    assert bool(uniform) == (start != "kaiming")


def test_trap_24_blocks_stride_in_their_3x3() -> None:
    """Breaks when a stage halves its maps in the 1x1, as Caffe.s supervised weights do: they would load."""
    with torch.device("meta"):
        body = build_encoder(EncoderConfig(backbone="resnet50")).body
    for stage in (body.layer2, body.layer3, body.layer4):
        assert (stage[0].conv1.stride, stage[0].conv2.stride) == ((1, 1), (2, 2))
