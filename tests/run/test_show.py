"""Pictures of what a method compares."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny import photos, settings

from boxwise.geometry.regions import Regions
from boxwise.methods.base import Pair
from boxwise.run.show import _drawn_in, show


@pytest.mark.parametrize("count", [1, 4])
def test_composites_are_drawn_with_their_boxes(count: int, tmp_path: Path) -> None:
    """Breaks when one image alone has no background to be drawn with, or shows the ones it was given."""
    images = photos(tmp_path / "images", 6)
    out = show("insloc", images, tmp_path / "views.png", settings=settings("insloc"), count=count)
    with Image.open(out) as picture:
        assert picture.size == (2 * (64 + 6), count * (64 + 6))
        outlined = {pixel for _, pixel in picture.convert("RGB").getcolors(1 << 16)}
    assert (255, 38, 38) in outlined and (38, 255, 255) in outlined  # the true box, and p5's


def test_an_object_has_one_colour_in_every_view_that_shows_it() -> None:
    """Breaks when a later pair of views is drawn over the first in other colours, or objects share one."""
    boxes = 60 * torch.rand(2, 3, 4)
    keep = torch.ones(6, dtype=torch.bool)
    moved = boxes.clone()
    moved[1] += 1  # of the second image, the third view shows other objects
    pairs = [Pair(0, 1, Regions(boxes, boxes, keep)), Pair(0, 2, Regions(moved, boxes, keep))]
    ((_, _, second),), ((_, _, third),) = (tuple(_drawn_in(view, pairs)) for view in (1, 2))
    assert torch.equal(second[0], third[0]) and not set(second[1].tolist()) & set(third[1].tolist())
    assert len(set(second[0].tolist())) == 3


def test_a_picture_is_never_drawn_over_an_image_of_the_data(tmp_path: Path) -> None:
    """Breaks when `--out` that names a photo of `--data` replaces it, or a count of none ends in a traceback."""
    images = photos(tmp_path / "images", 4)
    before = (images / "000.png").read_bytes()
    with pytest.raises(ValueError, match="is one of the images"):
        show("scrl", images, images / "000.png", settings=settings("scrl"))
    assert (images / "000.png").read_bytes() == before
    with pytest.raises(ValueError, match="--count 0: expected 1 or more"):
        show("scrl", images, tmp_path / "views.png", settings=settings("scrl"), count=0)
