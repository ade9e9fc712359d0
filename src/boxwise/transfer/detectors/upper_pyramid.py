"""The pyramid of detectors of one stage, from p3 to p7, and anchors on its maps."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from boxwise.nn.encoder import Encoder, EncoderConfig
from boxwise.shapes import Image
from boxwise.transfer.detectors.precision import Anchors

STRIDES = (8, 16, 32, 64, 128)
"""Pixels of the image per cell of p3 to p7."""


class UpperPyramid(Encoder):
    """An encoder as detectors of one stage want it: p3 to p5, and p6 and p7 convolved on top.

    Names are torchvision's, whose pyramid counts its blocks from c3. The map c2 is there, but nothing reads it.
    """

    fpn: Any

    def __init__(self, config: EncoderConfig, *, p6_from: Literal["c5", "p5"]) -> None:
        super().__init__(dataclasses.replace(config, fpn=False))
        below, width = [self.channels[name] for name in ("c3", "c4", "c5")], config.fpn_channels
        above = UpperBlocks(width if p6_from == "p5" else below[-1], width)
        above.use_P5 = p6_from == "p5"  # torchvision goes by the widths, which may be equal
        norm = nn.BatchNorm2d if config.fpn_norm == "bn" else None
        self.fpn = FeaturePyramidNetwork(below, width, extra_blocks=above, norm_layer=norm)
        self.out_channels = width

    def forward(self, image: Image) -> dict[str, Float[Tensor, "B C _h _w"]]:
        maps = self.trunk(image)
        found: dict[str, Tensor] = self.fpn(
            OrderedDict((str(i), maps[name]) for i, name in enumerate(("c3", "c4", "c5")))
        )
        return found


class UpperBlocks(LastLevelP6P7):  # type: ignore[misc]
    """torchvision's p6 and p7, the zeros around their maps written out.

    On a CPU in bfloat16 torch 2.15 leaves some gradients of a convolution that pads and strides unwritten where the
    map has one column, as p6 of an image of 64 px has: what lay in their memory moves the weights.
    """

    def forward(self, p: list[Tensor], c: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        p6 = _halved(self.p6, p[-1] if self.use_P5 else c[-1])
        p7 = _halved(self.p7, F.relu(p6))
        return [*p, p6, p7], [*names, "p6", "p7"]


def _halved(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    """3 x 3 cells around every second one."""
    return F.conv2d(F.pad(x, (1, 1, 1, 1)), convolution.weight, convolution.bias, stride=2)


class LevelAnchors(Anchors):
    """Anchors at multiples of the very strides of p3 to p7, from the corner of the image on.

    torchvision divides the image's side by the map's, which was rounded up: at 800 px it takes p7's stride for
    114 instead of 128. Both agree where sides are multiples of 128.
    """

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        one = feature_maps[0]
        dtype = torch.promote_types(one.dtype, torch.float32)
        self.set_cell_anchors(dtype, one.device)
        levels = self.grid_anchors([[*x.shape[-2:]] for x in feature_maps], [[step] * 2 for step in STRIDES])
        return [torch.cat(levels)] * len(image_list.image_sizes)
