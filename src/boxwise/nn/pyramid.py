"""Feature pyramids of only some levels: as ReSim trains one, and as detectors have one that starts at c3."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.misc import Conv2dNormActivation

Map = Float[Tensor, "B _C _h _w"]


class PartialPyramid(nn.Module):
    """From the coarsest map down to the finest level that is given, with output convolutions where one is given.

    Names, and the start of the weights, are those of torchvision's `FeaturePyramidNetwork`, so that a detector
    takes over every convolution that is trained here; the others are not there at all.
    """

    def __init__(
        self,
        channels: Sequence[int],
        outputs: int,
        given: Sequence[int],
        *,
        norm: Callable[..., nn.Module] | None = None,
    ) -> None:
        """`channels` of every map, finest first; `given` are places among them."""
        super().__init__()
        self.given = sorted(given)
        used = range(self.given[0], len(channels))
        self.inner_blocks = nn.ModuleDict({str(i): _block(channels[i], outputs, 1, norm) for i in used})
        self.layer_blocks = nn.ModuleDict({str(i): _block(outputs, outputs, 3, norm) for i in self.given})

    def forward(self, maps: Mapping[str, Map]) -> dict[str, Map]:
        """The given levels, finest first, under the names of the maps that they lie above."""
        names, found = [*maps], {}
        above: Tensor | None = None
        for i in range(len(names) - 1, self.given[0] - 1, -1):
            here = self.inner_blocks[str(i)](maps[names[i]])
            above = here if above is None else here + F.interpolate(above, size=here.shape[-2:])  # nearest
            if i in self.given:
                found[names[i]] = self.layer_blocks[str(i)](above)
        return dict(reversed(found.items()))


class UpperLevels(nn.Module):
    """The convolutions of a pyramid above c3 to c5, under the names that they have in one above c2 to c5.

    torchvision counts from a pyramid's first map: block 0 of one that starts at c3 is block 1 of a whole one.
    Shares all weights with the pyramid it is made of, and computes nothing itself.
    """

    def __init__(self, fpn: FeaturePyramidNetwork, *, first: int = 1) -> None:
        """`first` is the place in the whole pyramid of the map that `fpn` starts at."""
        super().__init__()
        self.inner_blocks = _from(first, fpn.inner_blocks)
        self.layer_blocks = _from(first, fpn.layer_blocks)
        self.below = tuple(f"{kind}.{i}." for kind in ("inner_blocks", "layer_blocks") for i in range(first))
        """How names of the blocks begin that a whole pyramid has besides."""


def _from(first: int, blocks: nn.ModuleList) -> nn.ModuleDict:
    return nn.ModuleDict({str(i): block for i, block in enumerate(blocks, first)})


def _block(
    inputs: int, outputs: int, kernel: int, norm: Callable[..., nn.Module] | None
) -> Conv2dNormActivation:
    """A convolution with a norm, or with a bias; the convolution uniform after Kaiming with slope 1."""
    block = Conv2dNormActivation(inputs, outputs, kernel, norm_layer=norm, activation_layer=None)
    nn.init.kaiming_uniform_(block[0].weight, a=1)
    if block[0].bias is not None:
        nn.init.zeros_(block[0].bias)
    return block
