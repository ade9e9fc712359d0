"""Tiles of a view: a grid of cells, and in each cell a smaller square at a random place. DetCo's nine patches."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from boxwise.geometry.views import View


def tiles(view: View, noise: Float[Tensor, "B P 3"], *, grid: int, side: int, shuffle: bool = True) -> View:
    """`view` with its image as (B, P, 3, side, side), tile by tile, each image's together.

    `noise` is uniform in [0, 1): for each cell, row by row, the tile's move down and to the right, and its rank in
    the order of the tiles. Without `shuffle` tile p is of cell p.
    """
    cell = view.width // grid
    offsets = draw_offsets(noise[..., :2], room=cell - side)
    cells = noise[..., 2].argsort(dim=1) if shuffle else None
    return replace(view, image=cut_tiles(view.image, offsets, cells, grid=grid, side=side))


def draw_offsets(noise: Float[Tensor, "B P 2"], *, room: int) -> Int[Tensor, "B P 2"]:
    """Whole pixels from 0 to `room`, that too, all equally likely."""
    return (noise * (room + 1)).floor().clamp(max=room).long()


def cut_tiles(
    image: Shaped[Tensor, "B 3 H W"],
    offsets: Int[Tensor, "B P 2"],
    cells: Int[Tensor, "B P"] | None = None,
    *,
    grid: int,
    side: int,
) -> Shaped[Tensor, "B P 3 {side} {side}"]:
    """A square of `side` pixels from every cell of a grid x grid image.

    `offsets` (down, right) are given cell by cell, row by row. Tile p shows cell `cells[:, p]`, or cell p. A side that
    the grid does not divide loses its last pixels.
    """
    count = len(image)
    corner = corners(image, offsets, grid=grid)  # (B, P, 2)
    if cells is not None:
        corner = corner.gather(1, cells[..., None].expand(-1, -1, 2))
    span = torch.arange(side, device=image.device)
    y, x = (corner[..., axis, None] + span for axis in (0, 1))  # (B, P, side)
    which = torch.arange(count, device=image.device)[:, None, None, None]
    pixels = image.permute(0, 2, 3, 1)[which, y[..., :, None], x[..., None, :]]  # (B, P, side, side, 3)
    return pixels.permute(0, 1, 4, 2, 3)


def corners(
    image: Shaped[Tensor, "B 3 H W"], offsets: Int[Tensor, "B P 2"], *, grid: int
) -> Int[Tensor, "B P 2"]:
    """Row and column of the first pixel of each cell's tile, cells row by row."""
    cell = torch.arange(grid * grid, device=offsets.device)
    row, column = cell // grid * (image.shape[-2] // grid), cell % grid * (image.shape[-1] // grid)
    return offsets + torch.stack([row, column], dim=-1)
