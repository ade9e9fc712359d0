"""Backbone and optional FPN: an image becomes a pyramid of maps named by their stride."""

from __future__ import annotations

import copy
import difflib
from collections import OrderedDict
from typing import Any, Literal

import torchvision
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from boxwise.config import settings
from boxwise.nn.pyramid import PartialPyramid
from boxwise.shapes import Image

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101")
"""Built by torchvision, whose weights and detectors share our names; every other name is timm's."""

LEVELS = {"c2": 4, "c3": 8, "c4": 16, "c5": 32}
"""Names of a backbone's maps by their stride; p2 to p5 lie above them."""

UNFIT = frozenset(
    [
        "beit",
        "cait",
        "convit",
        "convmixer",
        "crossvit",
        "csatv2",
        "deepseek_vit",
        "deit",
        "efficientvim",
        "efficientvit_msra",
        "eva",
        "gemma4_vit",
        "inception_resnet_v2",
        "inception_v3",
        "inception_v4",
        "levit",
        "mlp_mixer",
        "naflexvit",
        "nest",
        "pit",
        "qwen3_vit",
        "sequencer",
        "shvit",
        "tnt",
        "visformer",
        "vision_transformer",
        "vision_transformer_hybrid",
        "vision_transformer_relpos",
        "vision_transformer_sam",
        "vitamin",
        "volo",
        "xception",
        "xcit",
    ]
)
"""timm's families without maps at strides 4 to 32, and four old ones whose convolutions eat the border."""

Maps = dict[str, Float[Tensor, "B _C _h _w"]]


@settings
class EncoderConfig:
    """The network that is pretrained and handed over."""

    backbone: str = "resnet50"
    """resnet18, 34, 50 or 101 of torchvision, or any timm backbone with maps at strides 4, 8, 16 and 32."""
    fpn: bool = False
    """Add a feature pyramid network: levels p2 to p5."""
    fpn_channels: int = 256
    """Channels of every level of the FPN."""
    fpn_norm: Literal["bn", "none"] = "bn"
    """After each convolution of the FPN: BatchNorm (bn), or nothing but a bias (none)."""
    fpn_levels: tuple[Literal["p2", "p3", "p4", "p5"], ...] = ("p2", "p3", "p4", "p5")
    """Levels that the FPN gives, finest first. What only the others would need is left out: ReSim has p3 and p4."""
    fpn_init: Literal["lecun", "xavier", "kaiming"] = "lecun"
    """How the FPN's convolutions start: uniform with variance 1 / inputs (torchvision) or 2 / (inputs + outputs)
    (InsLoc), or normal with variance 2 / outputs (SoCo); counts of weights that meet in a number."""
    zero_init_last: bool = False
    """Start every residual block as the identity; torchvision's ResNets only."""
    c4: bool = False
    """Stop at c4: the last stage becomes the box head, as in C4 detectors. For methods that have such a head."""

    def __post_init__(self) -> None:
        if not self.fpn_levels or [*self.fpn_levels] != sorted({*self.fpn_levels}):
            raise ValueError("fpn_levels: name each level once, finest first")
        if self.c4 and self.fpn:
            raise ValueError(
                "c4 and fpn: a pyramid is built on c5, which an encoder that stops at c4 has not"
            )


class Encoder(nn.Module):
    """Maps c2 to c5 (c4 where it stops there), and p2 to p5 where there is an FPN. Random weights; nothing is ever
    downloaded.

    `body` is a ResNet under torchvision's names without its classifier, or timm's `features_only` model.
    """

    channels: dict[str, int]
    """Channels of each level."""
    strides: dict[str, int]
    """Pixels of the image per cell of each level."""
    last: nn.Module | None
    """The last stage, where the encoder stops at c4, until a `Res5Head` takes it over."""
    last_channels: int
    """Channels of what the last stage gives."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.body, widths = _resnet(config) if config.backbone in RESNETS else _timm(config)
        self._at = _last_of_stride(config.backbone, widths)
        self.last, self.last_channels = None, widths[self._at["c5"]][1]
        if config.c4:
            del self._at["c5"]
            self.last = _take_last_stage(config.backbone, self.body, self._at["c4"])
        self._rows_last = str(getattr(self.body, "output_fmt", "")).endswith("NHWC")  # Swin and its kin
        self.channels = {name: widths[at][1] for name, at in self._at.items()}
        self.strides = {name: LEVELS[name] for name in self._at}
        self.fpn = _pyramid([*self.channels.values()], config) if config.fpn else None
        if config.fpn:
            above = {_above(name): stride for name, stride in LEVELS.items()}
            self.channels |= dict.fromkeys(config.fpn_levels, config.fpn_channels)
            self.strides |= {name: above[name] for name in config.fpn_levels}

    def forward(self, image: Image) -> Maps:
        """Every level by name. A side that a stride does not divide is rounded up."""
        maps = self.trunk(image)
        if self.fpn is None:
            return maps
        return maps | {_above(name): x for name, x in self.fpn(maps).items()}

    def trunk(self, image: Image) -> Maps:
        """The body's maps alone."""
        maps = self.body(image)
        maps = {name: maps[at] for name, at in self._at.items()}
        if self._rows_last:
            maps = {name: x.permute(0, 3, 1, 2) for name, x in maps.items()}
        return maps


class ResNetBody(nn.Module):
    """The trunk of a torchvision ResNet: same names, no classifier, the outputs of all four layers."""

    def __init__(self, whole: torchvision.models.ResNet) -> None:
        super().__init__()
        self.return_layers = ("layer1", "layer2", "layer3", "layer4")
        for name, part in whole.named_children():
            if name not in ("avgpool", "fc"):
                self.add_module(name, part)

    def forward(self, image: Image) -> list[Float[Tensor, "B _C _h _w"]]:
        x, maps = image, []
        for name, part in self.named_children():
            x = part(x)
            if name in self.return_layers:
                maps.append(x)
        return maps


def build_encoder(config: EncoderConfig) -> Encoder:
    """The encoder with random weights from torch's global generator.

    Raises ValueError for a backbone that is unknown, with the nearest names, or that has no maps at strides
    4 to 32. Never downloads.
    """
    return Encoder(config)


def backbones() -> tuple[str, ...]:
    """All names that may be asked for: torchvision's ResNets, then timm's families that have a pyramid."""
    import timm  # takes half a second, and most runs need none of it

    refused = {name for family in UNFIT for name in timm.list_models(module=family)} | {*RESNETS}
    return (*RESNETS, *(name for name in timm.list_models() if name not in refused))


Widths = list[tuple[int, int]]  # stride and channels of each map that a body gives


def _resnet(config: EncoderConfig) -> tuple[nn.Module, Widths]:
    build = getattr(torchvision.models, config.backbone)
    whole = build(weights=None, zero_init_residual=config.zero_init_last)
    top = whole.fc.in_features
    return ResNetBody(whole), [(4 << i, top >> (3 - i)) for i in range(4)]


def _timm(config: EncoderConfig) -> tuple[nn.Module, Widths]:
    import timm

    name = config.backbone
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, backbones(), n=3, cutoff=0.5)
        known = f"nearest: {', '.join(near)}" if near else "`boxwise list backbones` names them all"
        raise ValueError(f"encoder.backbone: unknown backbone {name!r}; {known}")
    if config.zero_init_last:
        raise ValueError(f"encoder.zero_init_last: works for {', '.join(RESNETS)}, not for {name}")
    try:
        body = timm.create_model(name, pretrained=False, features_only=True)
    except (RuntimeError, AttributeError, AssertionError) as error:
        raise ValueError(f"encoder.backbone: timm gives no feature maps of {name} ({error})") from error
    info: Any = body.feature_info
    return body, list(zip(info.reduction(), info.channels(), strict=True))


def _last_of_stride(name: str, widths: Widths) -> dict[str, int]:
    """Where, among a body's maps, the deepest one of each stride is."""
    at = {stride: i for i, (stride, _) in enumerate(widths)}
    missing = [str(stride) for stride in LEVELS.values() if stride not in at]
    if missing:
        has = ", ".join(str(stride) for stride in at)
        raise ValueError(
            f"encoder.backbone: {name} has maps at strides {has} and none at {', '.join(missing)}; take a "
            "backbone with a pyramid, as resnet50, convnext_tiny or mobilenetv3_large_100"
        )
    return {level: at[stride] for level, stride in LEVELS.items()}


def _take_last_stage(name: str, body: nn.Module, c4: int) -> nn.Sequential:
    """Removes from `body` all that comes after its map number `c4`.

    Raises ValueError where the body is no row of parts, one called after the other.
    """
    row = name in RESNETS or type(body).__name__ == "FeatureListNet"  # timm's others read through hooks
    if not row or str(getattr(body, "output_fmt", "")).endswith("NHWC"):
        raise ValueError(
            f"encoder.c4: the last stage of {name} cannot be taken off as a box head; set encoder.c4: false, or "
            "take a backbone of separate stages, as resnet50 or convnext_tiny"
        )
    layers: Any = body.return_layers
    parts = dict(body.named_children())
    names = [*parts]
    after = names[names.index([*layers][c4]) + 1 :]
    for part in after:
        delattr(body, part)
    return nn.Sequential(OrderedDict((part, parts[part]) for part in after))


def rejoined(body: nn.Module, last: nn.Module) -> nn.Module:
    """The whole backbone under its usual names, of the very parts of `body` and the last stage taken off it."""
    whole = copy.copy(body)
    whole._modules = {**body._modules, **last._modules}
    return whole


def _pyramid(channels: list[int], config: EncoderConfig) -> nn.Module:
    norm = nn.BatchNorm2d if config.fpn_norm == "bn" else None
    given = [i for i, name in enumerate(LEVELS) if _above(name) in config.fpn_levels]
    fpn: nn.Module = FeaturePyramidNetwork(channels, config.fpn_channels, norm_layer=norm)
    if len(given) < len(LEVELS):
        fpn = PartialPyramid(channels, config.fpn_channels, given, norm=norm)
    for part in fpn.modules():
        if isinstance(part, nn.Conv2d) and config.fpn_init == "xavier":
            nn.init.xavier_uniform_(part.weight)
        elif isinstance(part, nn.Conv2d) and config.fpn_init == "kaiming":
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
    return fpn


def _above(level: str) -> str:
    return level.replace("c", "p")
