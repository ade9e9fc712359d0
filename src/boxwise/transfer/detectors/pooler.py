"""RoIAlign over a feature pyramid with every convention said aloud."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from boxwise.nn.align import roi_align
from boxwise.shapes import Rows


class RoIPooler(nn.Module):
    """Stands where torchvision's MultiScaleRoIAlign stands, and equals it at `aligned=False`.

    That one has no `aligned`, and guesses the strides from the first batch it meets.
    """

    def __init__(
        self,
        strides: Mapping[str, int],
        *,
        output_size: int,
        sampling_ratio: int,
        aligned: bool,
        canonical_size: float = 224.0,
        canonical_level: int = 4,
    ) -> None:
        """`strides` names the feature maps, finest first, each twice the one before.

        `sampling_ratio` points a side are averaged in each cell (0: as many as the box has pixels). A box of
        `canonical_size` pixels belongs to the map of stride 2 ** `canonical_level`.
        """
        super().__init__()
        steps = list(strides.values())
        if any(b != 2 * a for a, b in itertools.pairwise(steps)):
            raise ValueError(f"strides must double from level to level, got {steps}")
        self.strides = dict(strides)
        self.output_size = (output_size, output_size)
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned
        self.canonical_size = canonical_size
        self.canonical_level = canonical_level

    def forward(
        self,
        x: Mapping[str, Float[Tensor, "B C _h _w"]],
        boxes: Sequence[Float[Tensor, "_n 4"]],
        image_shapes: Sequence[tuple[int, int]],
    ) -> Float[Tensor, "M C s s"]:
        """Pooled rows in the order of `boxes`, one entry an image, in input pixels.

        Maps of half precision are read as float32. `image_shapes` is there for the interface alone.
        """
        rows = _rows(boxes)
        level = self.levels(rows[:, 1:])
        order = level.argsort(stable=True)
        counts = level.bincount(minlength=len(self.strides)).tolist()
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        parts = [
            self._pool(x[name], 1 / stride, part)
            for (name, stride), part in zip(self.strides.items(), rows[order].split(counts), strict=True)
        ]
        return torch.cat(parts)[back]

    def levels(self, boxes: Float[Tensor, "M 4"]) -> Int[Tensor, " M"]:
        """Index of each box's map: Lin et al., Feature Pyramid Networks, eq. 1."""
        size = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).sqrt()
        finest = next(iter(self.strides.values())).bit_length() - 1
        level = torch.floor(self.canonical_level + torch.log2(size / self.canonical_size) + 1e-6)
        return (level - finest).clamp(0, len(self.strides) - 1).long()

    def _pool(self, features: Tensor, scale: float, rows: Rows) -> Tensor:
        points, aligned = self.sampling_ratio, self.aligned
        return roi_align(
            features, rows, self.output_size[0], scale=scale, sampling_ratio=points, aligned=aligned
        )


def _rows(boxes: Sequence[Tensor]) -> Rows:
    """Boxes of all images with the image's index in front."""
    index = torch.cat([b.new_full((len(b), 1), i) for i, b in enumerate(boxes)])
    return torch.cat([index, torch.cat([*boxes])], dim=1)
