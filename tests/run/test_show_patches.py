"""What `boxwise show` draws for DetCo and ReSim."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import photos, settings

from boxwise.data.loader import feed
from boxwise.data.sources import open_images
from boxwise.run.find import pretrain_recipe
from boxwise.run.pretrain import build
from boxwise.run.show import TILE_GAP, contact_sheet, picture


def test_tiles_are_laid_out_row_by_row() -> None:
    """Breaks when tiles run down first, images are crossed, or a gap eats pixels."""
    tiles = torch.randint(1, 200, (2, 9, 3, 4, 5), generator=torch.Generator().manual_seed(0)).byte()
    sheets = contact_sheet(tiles)
    assert sheets.shape == (2, 3, 3 * 4 + 2 * TILE_GAP, 3 * 5 + 2 * TILE_GAP)
    for n in range(2):
        for p in range(9):
            top, left = p // 3 * (4 + TILE_GAP), p % 3 * (5 + TILE_GAP)
            assert torch.equal(sheets[n, :, top : top + 4, left : left + 5], tiles[n, p])
    assert (sheets[:, :, 4 : 4 + TILE_GAP] == 255).all()


@pytest.mark.parametrize("name", ["detco", "resim", "resim_simsiam_r50_c4_in100_500ep"])
def test_views_are_drawn_as_they_are_compared(name: str, tmp_path: Path) -> None:
    """Breaks when patches are shown as the view they were cut from, or windows are not drawn."""
    images = open_images(photos(tmp_path / "photos", 4, size=96))
    recipe = pretrain_recipe(name, settings=settings(name)).recipe
    method = build(recipe)
    drawn = picture(recipe, method, images, count=2)
    loads = feed(
        images,
        recipe.views,
        recipe.method.draws(),
        batch_size=2,
        seed=recipe.run.seed,
        start=0,
        total=1,
        workers=0,
    )
    batch = next(iter(loads)).ready("cpu")
    seen, photo = method.seen(batch), recipe.views[0].photo
    mean, std = (torch.tensor(v)[:, None, None] for v in (photo.mean, photo.std))
    first = ((seen[0].image[0] * std + mean) * 255).round().clamp(0, 255).byte()
    shown = drawn[:, :64, :64]
    if name == "detco":
        assert torch.equal(shown, first)
        left = 2 * (64 + 6)
        patch = ((seen[2].image[0, 4] * std + mean) * 255).round().clamp(0, 255).byte()
        start = patch.shape[-1] + TILE_GAP
        assert torch.equal(drawn[:, start:, left + start :][:, : patch.shape[1], : patch.shape[2]], patch)
    else:
        kept = sum(int(pair.regions.keep.view(2, -1)[0].sum()) for pair in method.pairs(batch))
        assert (kept > 0) == (not torch.equal(shown, first))
