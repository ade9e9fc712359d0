"""Encoders for tests: one that is small, and one that shows the image itself."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d
from torchvision.ops import FeaturePyramidNetwork

from boxwise.nn.backbones import LEVELS
from boxwise.nn.encoder import Encoder
from boxwise.nn.pyramid import PartialPyramid


class TinyBody(nn.Module):
    """Five strided convolutions with BatchNorm; the maps of the last four."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(inputs, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
            for inputs in (3, width, width, width, width)
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        maps = [image]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[2:]


class TinyEncoder(Encoder):
    """c2 to c5 and, with `fpn`, p2 to p5 or those that it names, all of `width` channels; with `c4`, c2 to c4."""

    def __init__(self, width: int = 8, *, fpn: bool | Sequence[str] = False, c4: bool = False) -> None:
        nn.Module.__init__(self)
        self.body, self.last, self.last_channels = TinyBody(width), None, width
        above = {f"p{n}": 2**n for n in range(2, 6)}
        given = [i for i, name in enumerate(above) if fpn is True or (fpn and name in fpn)]
        self.fpn = None
        if fpn is True:
            self.fpn = FeaturePyramidNetwork([width] * 4, width, norm_layer=nn.BatchNorm2d)
        elif fpn:
            self.fpn = PartialPyramid([width] * 4, width, given)
        self.strides = LEVELS | {name: above[name] for i, name in enumerate(above) if i in given}
        if c4:
            self.last = nn.Sequential(OrderedDict(stage=self.body.stages.pop(4)))
            del self.strides["c5"]
        self.channels = dict.fromkeys(self.strides, width)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        maps = dict(zip(LEVELS, self.body(image)))
        above = {} if self.fpn is None else self.fpn(maps)
        return maps | {name.replace("c", "p"): x for name, x in above.items()}


class SeeThrough(Encoder):
    """Maps that are the image itself, every level coarser by one: a pooled box reads its own source x and y.

    Pixel j is the source at j + 1/2 for pools that are aligned, and at j for those that are not.
    """

    def __init__(self, levels: Sequence[str], *, aligned: bool) -> None:
        nn.Module.__init__(self)
        self.body, self.fpn, self.last, self.aligned = nn.Identity(), None, None, aligned
        self.strides = {level: i for i, level in enumerate(levels, start=1)}
        self.channels = dict.fromkeys(self.strides, 3)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        if not self.aligned:
            right, down = image[..., :1, 1:2] - image[..., :1, :1], image[..., 1:2, :1] - image[..., :1, :1]
            image = image - (right + down) / 2
        image = image + torch.tensor([0.0, 0, 50])[:, None, None]  # a length that the loss cannot scale away
        return {name: avg_pool2d(image, stride) for name, stride in self.strides.items()}
