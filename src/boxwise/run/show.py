"""Views as the network will see them, with their matched boxes drawn: look before you train."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor
from torchvision.utils import draw_bounding_boxes

from boxwise.data.loader import feed
from boxwise.data.objects import Proposer
from boxwise.data.paste import fewest
from boxwise.data.sources import Images, open_images
from boxwise.geometry.views import Batch
from boxwise.methods.base import Method, Pair
from boxwise.nn.encoder import build_encoder
from boxwise.recipes.recipe import Recipe
from boxwise.run.draw import framed, hue, write_picture
from boxwise.run.find import pretrain_recipe
from boxwise.run.objects import shown_proposals

TILE_GAP = 3
"""Pixels between the tiles of one view."""


def show(
    recipe: str,
    data: str | Path,
    out: Path,
    *,
    images: Path | None = None,
    config: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    proposals: Path | None = None,
    count: int = 4,
) -> Path:
    """Draws `count` images' views of `recipe`, matched boxes in one colour a pair; returns `out`."""
    if out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise ValueError(f"{out}: expected a name that ends in .png or .jpg")
    if count < 1:
        raise ValueError(f"--count {count}: expected 1 or more images to draw")
    found = pretrain_recipe(recipe, config=config, settings=settings).recipe
    source = open_images(data, images=images, max_value=found.data.max_value)
    if any(
        out.resolve() == source.path(i).resolve() for i in range(len(source)) if out.name in source.name(i)
    ):
        raise ValueError(f"{out}: is one of the images of {data}; choose another name")
    method = found.method.build(build_encoder(found.encoder))
    boxes = shown_proposals(found, source, proposals)
    write_picture(picture(found, method, source, count=min(count, len(source)), proposals=boxes), out)
    return out


def picture(
    recipe: Recipe, method: Method, images: Images, *, count: int, proposals: Proposer | None = None
) -> Tensor:
    """The first `count` images of the first epoch: one row an image, one column a view. uint8 (3, H, W)."""
    read = max(count, fewest(recipe.views))  # some may be wanted as backgrounds
    loads = feed(
        images,
        recipe.views,
        recipe.method.draws(),
        batch_size=read,
        accumulate=1,
        seed=recipe.run.seed,
        start=0,
        total=1,
        workers=0,
        bad_images="skip",
        pin=False,
        objects=recipe.method.objects,
        proposals=proposals,
    )
    batch = next(iter(loads)).ready(torch.device("cpu"))
    rows = sheet(replace(batch, views=method.seen(batch)), method.pairs(batch), recipe)
    return rows[:, : rows.shape[1] // read * count]


def sheet(batch: Batch, pairs: Sequence[Pair], recipe: Recipe) -> Tensor:
    """Views side by side, with the boxes that are compared; a view cut in tiles as a contact sheet of them."""
    columns = []
    for i, view in enumerate(batch.views):
        photo = recipe.views[i].photo
        mean, std = (torch.tensor(v)[:, None, None] for v in (photo.mean, photo.std))
        pixels = ((view.image.float() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
        for boxes, keep, hues in _drawn_in(i, pairs):
            pixels = torch.stack(
                [_drawn(p, b[k], h[k].tolist()) for p, b, k, h in zip(pixels, boxes, keep, hues, strict=True)]
            )
        columns.append(pixels if pixels.dim() == 4 else contact_sheet(pixels))
    height = max(c.shape[-2] for c in columns)
    rows = []
    for n in range(len(batch.index)):
        row = [framed(c[n], height, c.shape[-1]) for c in columns]
        rows.append(torch.cat(row, dim=2))
    return torch.cat(rows, dim=1)


def contact_sheet(tiles: UInt8[Tensor, "B P 3 H W"]) -> UInt8[Tensor, "B 3 _H _W"]:
    """An image's tiles in their order, row by row, as many a row as there are rows, white between them."""
    side = math.isqrt(tiles.shape[1])
    framed = torch.nn.functional.pad(tiles, (0, TILE_GAP, 0, TILE_GAP), value=255)
    rows = framed.unflatten(1, (side, side)).permute(0, 3, 1, 4, 2, 5)  # (B, 3, row, H, column, W)
    return rows.flatten(4, 5).flatten(2, 3)[..., :-TILE_GAP, :-TILE_GAP]


def _drawn_in(view: int, pairs: Sequence[Pair]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Boxes (B, R, 4) that lie in one of the views, which of them count, and the hue of each, both (B, R).

    Matched boxes have one hue, whichever views they lie in, and no two objects of an image share one.
    """
    total, start, hues = sum(pair.regions.a.shape[1] for pair in pairs), 0, list[Tensor]()
    for i, pair in enumerate(pairs):
        images, count = pair.regions.a.shape[:2]
        mine = (torch.arange(start, start + count) / total).repeat(images, 1)
        start += count
        for earlier, theirs in zip(pairs[:i], hues, strict=True):  # SoCo's crops may show the same objects
            if (earlier.a, theirs.shape) == (pair.a, mine.shape):
                again = (earlier.regions.a == pair.regions.a).flatten(1).all(1)
                mine[again] = theirs[again]
        hues.append(mine)
        for place, boxes in ((pair.a, pair.regions.a), (pair.b, pair.regions.b)):
            if place == view:
                yield boxes, pair.regions.keep.view(images, count), mine


def _drawn(pixels: Tensor, boxes: Tensor, hues: Sequence[float]) -> Tensor:
    """Boxes as outlines that stay inside the picture."""
    if not len(boxes):
        return pixels
    limit = boxes.new_tensor([pixels.shape[-1] - 1, pixels.shape[-2] - 1]).repeat(2)
    inside = torch.minimum(boxes.clamp(min=0), limit)
    return draw_bounding_boxes(pixels, inside, colors=[hue(share, 1) for share in hues], width=2)
