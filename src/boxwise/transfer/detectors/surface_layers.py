"""The layers of DensePose R-CNN that no other detector has: pyramid to one map, convolutions, maps of the surface."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from boxwise.data.densepose import PARTS
from boxwise.transfer.detectors.precision import exact
from boxwise.transfer.detectors.rcnn import LEVELS
from boxwise.transfer.detectors.stages import Features
from boxwise.transfer.detectors.surface_losses import Surfaces

CONVS = 8


class Decoder(nn.Module):
    """The pyramid as one map of its finest stride: convolutions and doublings of each level, added up.

    Kirillov et al., Panoptic Feature Pyramid Networks, CVPR 2019, https://arxiv.org/abs/1901.02446
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.levels = nn.ModuleDict()
        for doublings, level in enumerate(LEVELS.values()):
            layers: list[nn.Module] = []
            for _ in range(max(1, doublings)):
                layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(inplace=True)]
                if doublings:
                    layers.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
            self.levels[level] = nn.Sequential(*layers)
        self.last = nn.Conv2d(channels, channels, 1)
        _start(self)

    def forward(self, maps: Features) -> Float[Tensor, "B C _h _w"]:
        return self.last(torch.stack([level(maps[name]) for name, level in self.levels.items()]).sum(0))


class SurfacePredictor(nn.Module):
    """Four maps of four times as many cells a side: transposed convolutions, then a bilinear stretch."""

    def __init__(self, channels: int, body: int) -> None:
        super().__init__()
        widths = {"body": body, "part": PARTS + 1, "u": PARTS + 1, "v": PARTS + 1}
        self.maps = nn.ModuleDict(
            {
                name: nn.ConvTranspose2d(channels, width, 4, stride=2, padding=1)
                for name, width in widths.items()
            }
        )
        _start(self)

    def forward(self, x: Float[Tensor, "M C s s"]) -> Surfaces:
        read = {name: exact(layer(x)) for name, layer in self.maps.items()}
        size = 2 * read["part"].shape[-1]
        return Surfaces(**{name: F.interpolate(t, (size, size), mode="bilinear") for name, t in read.items()})


def surface_head(channels: int, width: int) -> nn.Sequential:
    """Eight convolutions that keep their cells."""
    layers: list[nn.Module] = []
    for inputs in (channels, *[width] * (CONVS - 1)):
        layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU(inplace=True)]
    head = nn.Sequential(*layers)
    _start(head)
    return head


def _start(module: nn.Module) -> None:
    """He's normal start by outputs, and no bias."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            assert part.bias is not None
            nn.init.zeros_(part.bias)
