"""Shuffled BatchNorm: which images a key is normalised with, over ranks and on one device."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from boxwise.geometry.views import View
from boxwise.nn.pools import BoxesAt
from boxwise.nn.ranks import gather, rank, world

GROUPS = 8
"""Most groups on one device; MoCo's published runs had eight ranks."""
GROUP = 4
"""Fewest images in a group."""


@dataclass(frozen=True, slots=True)
class Shuffle:
    """Shuffled BatchNorm: keys are normalised in other company than their queries.

    With statistics in common, a network would tell the matching key from the queue by those alone (He et al.,
    Momentum Contrast, CVPR 2020, section 3.3). Over several ranks, each embeds as many images as it has,
    dealt from all ranks in equal shares. On one device the images are dealt into up to 8 groups of 4 or more,
    each embedded on its own. Of two or more groups, none is a part of the batch as it lies. Fewer than 8
    images on one device make a single group, which hides nothing.
    """

    noise: Float[Tensor, " B"]
    """Uniform numbers in [0, 1) drawn on the host, one an image: the deal is a function of them."""

    def __call__(
        self, embed: Callable[[View, BoxesAt], Mapping[str, Tensor]], view: View, boxes: BoxesAt = None
    ) -> dict[str, Tensor]:
        """What `embed` (a teacher) gives for `view` and its boxes, in the order of `view`, without gradient.

        Rows may be vectors or maps, and several an image: regions, levels, patches.
        """
        order = self.order()
        everyone = _each(gather, view, boxes)
        mine = order.view(world(), -1)[rank()]
        dealt = mine.tensor_split(groups(len(mine)))
        parts = [embed(*_each(operator.itemgetter(rows), *everyone)) for rows in dealt]
        return {name: self._restored(torch.cat([p[name] for p in parts]), order) for name in parts[0]}

    def order(self) -> Int[Tensor, " N"]:
        """Images of all ranks in the order in which they are embedded.

        Every rank's (or block's) images are shuffled, then dealt in turn like the cards of as many players.
        """
        noise = gather(self.noise)
        parts = world() if world() > 1 else groups(len(noise))
        size = -(-len(noise) // parts)
        place = torch.arange(len(noise), device=noise.device)
        shuffled = (place // size + noise).argsort(stable=True)
        return shuffled[(place % size * parts + place // size).argsort()]

    def _restored(self, rows: Tensor, order: Int[Tensor, " N"]) -> Tensor:
        images = len(self.noise)
        per_image = gather(rows.unflatten(0, (images, -1)))
        return per_image[order.argsort().view(world(), -1)[rank()]].flatten(0, 1)


def groups(images: int) -> int:
    """Equal parts of a batch that stand for ranks on one device; over several ranks each is one."""
    return 1 if world() > 1 else max(1, min(GROUPS, images // GROUP))


AnyBoxes = Tensor | Mapping[str, Tensor] | None  # of as many images as `change` leaves


def _each(change: Callable[[Tensor], Tensor], view: View, boxes: AnyBoxes) -> tuple[View, AnyBoxes]:
    """`change` of every tensor of a view and its boxes."""
    objects, ids = (None if x is None else change(x) for x in (view.objects, view.ids))
    view = View(change(view.image), change(view.crop), change(view.flip), objects, ids)
    if isinstance(boxes, Mapping):
        return view, {level: change(at) for level, at in boxes.items()}
    return view, None if boxes is None else change(boxes)
