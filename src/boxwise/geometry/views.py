"""A view remembers where it was cut from, so boxes are computed, never transformed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from boxwise.shapes import Boxes, Index


@dataclass(frozen=True, slots=True)
class View:
    """One view of every image in the batch."""

    image: Shaped[Tensor, "B *tiles 3 H W"]
    """uint8 as cut by a worker, normalised float once augmented; `tiles` is for DetCo's patches."""
    crop: Float[Tensor, "B 4"]
    """Source pixels: the rectangle this view shows."""
    flip: Bool[Tensor, " B"]
    """Mirrored left-right after cropping."""
    objects: Float[Tensor, "B N 4"] | None = None
    """Source pixels: boxes known before training."""
    ids: Int[Tensor, "B N"] | None = None
    """One for each of `objects`: rows of an image's views that bear the same id show one object."""

    @property
    def width(self) -> int:
        return self.image.shape[-1]

    @property
    def height(self) -> int:
        return self.image.shape[-2]

    def place(self, boxes: Boxes) -> Boxes:
        """Source pixels to view pixels. Boxes outside the crop come back outside the view."""
        origin, scale = self._frame()
        placed = (boxes - origin) * scale
        return torch.where(self.flip[:, None, None], self.mirror(placed), placed)

    def locate(self, boxes: Boxes) -> Boxes:
        """View pixels to source pixels: the inverse of `place`."""
        origin, scale = self._frame()
        straight = torch.where(self.flip[:, None, None], self.mirror(boxes), boxes)
        return straight / scale + origin

    def mirror(self, boxes: Boxes) -> Boxes:
        """View pixels of the same boxes once the view is flipped left-right."""
        left, top, right, bottom = boxes.unbind(-1)
        return torch.stack([self.width - right, top, self.width - left, bottom], dim=-1)

    def magnification(self) -> Float[Tensor, "B 2"]:
        """View pixels per source pixel, along x and along y."""
        size = self.crop[:, 2:] - self.crop[:, :2]
        return torch.stack([self.width / size[:, 0], self.height / size[:, 1]], dim=-1)

    def whole(self) -> Float[Tensor, " 4"]:
        """The box around all of the view, in view pixels; made on the device, so that nothing waits."""
        edges = self.crop.new_zeros(4)
        edges[2].fill_(self.width)
        edges[3].fill_(self.height)
        return edges

    def to(self, device: torch.device | str) -> View:
        """The same view on `device`; copies from pinned memory do not wait."""
        image, crop, flip = (x.to(device, non_blocking=True) for x in (self.image, self.crop, self.flip))
        listed = (None if x is None else x.to(device, non_blocking=True) for x in (self.objects, self.ids))
        return View(image, crop, flip, *listed)

    def _frame(self) -> tuple[Float[Tensor, "B 1 4"], Float[Tensor, "B 1 4"]]:
        return self.crop[:, :2].repeat(1, 2)[:, None], self.magnification().repeat(1, 2)[:, None]


@dataclass(frozen=True, slots=True)
class Batch:
    """What the data floor hands to a method: views, and the random numbers that belong to their images."""

    views: tuple[View, ...]
    index: Index
    """Row of each image in its image set."""
    draws: Mapping[str, Float[Tensor, "B ..."]]
    """Uniform numbers in [0, 1), named by their use; a function of (seed, epoch, image)."""

    def to(self, device: torch.device | str) -> Batch:
        return replace(
            self,
            views=tuple(view.to(device) for view in self.views),
            index=self.index.to(device, non_blocking=True),
            draws={name: draw.to(device, non_blocking=True) for name, draw in self.draws.items()},
        )


def join(a: View, b: View) -> View:
    """Two views as one of 2B rows, `a` first: what shares BatchNorm statistics is one batch.

    Raises ValueError for views of two sizes.
    """
    if a.image.shape[1:] != b.image.shape[1:]:
        sizes = " and ".join(f"{v.width} x {v.height}" for v in (a, b))
        raise ValueError(f"views of {sizes} pixels cannot be one batch; cut both to one size")
    objects = None if a.objects is None or b.objects is None else torch.cat([a.objects, b.objects])
    ids = None if a.ids is None or b.ids is None else torch.cat([a.ids, b.ids])
    crop, flip = torch.cat([a.crop, b.crop]), torch.cat([a.flip, b.flip])
    return View(torch.cat([a.image, b.image]), crop, flip, objects, ids)
