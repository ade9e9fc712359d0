"""Tiles of a view."""

from __future__ import annotations

import torch

from boxwise.geometry.tiles import cut_tiles, draw_offsets, tiles
from boxwise.geometry.views import View


def picture(count: int = 2, side: int = 31) -> View:
    """Every pixel of every image has a number of its own; 31 pixels are 3 cells of 10, and one is left over."""
    image = torch.arange(float(count * 3 * side * side)).view(count, 3, side, side)
    crop = torch.tensor([[0.0, 0, side, side]]).expand(count, 4)
    return View(image, crop, torch.zeros(count, dtype=torch.bool))


def test_trap_08_tiles_are_image_major_and_row_by_row() -> None:
    """Breaks when tiles are cut patch-major, cells run down first, or offsets swap their axes."""
    view = picture()
    noise = torch.rand(2, 9, 3, generator=torch.Generator().manual_seed(0))
    got = tiles(view, noise, grid=3, side=6, shuffle=False)
    assert got.image.shape == (2, 9, 3, 6, 6) and got.crop is view.crop
    for n in range(2):
        for cell in range(9):
            down, right = (int(u * 5) for u in noise[n, cell, :2])  # room for 0 to 4
            top, left = cell // 3 * 10 + down, cell % 3 * 10 + right
            assert torch.equal(got.image[n, cell], view.image[n, :, top : top + 6, left : left + 6])


def test_every_image_has_an_order_of_its_own() -> None:
    """Breaks when one order serves the batch, or the same noise moves and orders."""
    noise = torch.rand(2, 9, 3, generator=torch.Generator().manual_seed(1))
    straight, shuffled = (tiles(picture(), noise, grid=3, side=6, shuffle=s).image for s in (False, True))
    orders = noise[..., 2].argsort(1)
    assert orders[0].tolist() != orders[1].tolist()
    for n in range(2):
        assert torch.equal(shuffled[n], straight[n, orders[n]])


def test_offsets_reach_both_ends() -> None:
    """Breaks when the last place is never drawn, or one beyond it is."""
    noise = torch.tensor([[[0.0, 0.99999994], [0.5, 0.2499]]])
    assert draw_offsets(noise, room=21).tolist() == [[[0, 21], [11, 5]]]
    assert draw_offsets(noise, room=0).max() == 0


def test_bytes_stay_bytes() -> None:
    """Breaks when cutting converts."""
    image = torch.randint(0, 255, (1, 3, 12, 12)).byte()
    got = cut_tiles(image, torch.zeros(1, 9, 2, dtype=torch.long), grid=3, side=4)
    assert got.dtype == torch.uint8 and torch.equal(got[0, 8], image[0, :, 8:, 8:])
