"""Backbone and optional FPN: an image becomes a pyramid of maps named by their stride."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from boxwise.config import Count, settings
from boxwise.nn.backbones import LEVELS, build_body, last_of_stride, take_last_stage
from boxwise.nn.pyramid import PartialPyramid
from boxwise.shapes import Image

Maps = dict[str, Float[Tensor, "B _C _h _w"]]


@settings
class EncoderConfig:
    """The network that is pretrained and handed over."""

    backbone: str = "resnet50"
    """resnet18, 34, 50 or 101 of torchvision, or any timm backbone with maps at strides 4, 8, 16 and 32."""
    fpn: bool = False
    """Add a feature pyramid network: levels p2 to p5."""
    fpn_channels: Count = 256
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
        self.body, widths = build_body(config.backbone, zero_init_last=config.zero_init_last)
        self._at = last_of_stride(config.backbone, widths)
        self.last, self.last_channels = None, widths[self._at["c5"]][1]
        if config.c4:
            del self._at["c5"]
            self.last = take_last_stage(config.backbone, self.body, self._at["c4"])
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


def build_encoder(config: EncoderConfig) -> Encoder:
    """The encoder with random weights from torch's global generator.

    Raises ValueError for a backbone that is unknown, with the nearest names, or that has no maps at strides
    4 to 32. Never downloads.
    """
    return Encoder(config)


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
