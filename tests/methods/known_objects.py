"""Batches whose views know objects, for the tests of SoCo and InsLoc."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from boxwise.data.objects import BLOCK, Objects
from boxwise.geometry.views import Batch, View


def with_objects(
    batch: Batch, objects: Objects, generator: torch.Generator, *, own: bool = False, apart: object = ()
) -> Batch:
    """Two views that know boxes around what both show, and a third of half the size: the second's part, or `own`.

    The second image lists one of its boxes twice. Objects of the images `apart` have no partner.
    """
    one, two = batch.views
    half = torch.nn.functional.avg_pool2d(two.image, 2)
    three = View(half, one.crop if own else two.crop, ~two.flip)
    sets = [boxes_in(one, objects.count, generator) for _ in range(1 + own)]
    ids = torch.arange(1, objects.count + 1).repeat(len(one.crop), 1)
    if objects.count > 1:
        ids[1, 1] = 1
        for boxes in sets:
            boxes[1, 1] = boxes[1, 0]
    every = torch.cat([ids + BLOCK * i for i in range(len(sets))], dim=1)
    listed = [replace(one, objects=torch.cat(sets, dim=1), ids=every)]
    for i, view in enumerate((two, three)):
        mine = ids + BLOCK * (i * own)
        mine[list(apart)] += BLOCK // 2
        low, high = view.crop[:, None, :2], view.crop[:, None, 2:] - 1
        inside = [part.clamp(low, high) for part in sets[i * own].split(2, dim=-1)]
        listed.append(replace(view, objects=torch.cat(inside, dim=-1), ids=mine))
    return replace(batch, views=tuple(listed))


def boxes_in(view: View, count: int, generator: torch.Generator) -> Tensor:
    """Boxes of 1/8 to 7/8 of the view's side, anywhere in it."""
    noise = torch.rand(len(view.crop), count, 2, 2, generator=generator, dtype=view.crop.dtype)
    corner, side = view.crop[:, None, :2], (view.crop[:, 2:] - view.crop[:, :2])[:, None]
    size = side * (1 + 6 * noise[..., 0, :]) / 8
    start = corner + (side - size) * noise[..., 1, :]
    return torch.cat([start, start + size - 1], dim=-1)


def composites(batch: Batch, generator: torch.Generator) -> Batch:
    """Every view is a canvas of its own, on which an image was pasted."""
    views = []
    for view in batch.views:
        crop = torch.tensor([0.0, 0, view.width, view.height], dtype=view.crop.dtype)
        view = replace(view, crop=crop.expand(len(view.crop), 4).contiguous())
        views.append(replace(view, objects=boxes_in(view, 1, generator).round()))
    return replace(batch, views=tuple(views))
