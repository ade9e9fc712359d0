"""Pictures of what a method compares."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from tiny import photos, settings

from boxwise.run.show import show


@pytest.mark.parametrize("count", [1, 4])
def test_composites_are_drawn_with_their_boxes(count: int, tmp_path: Path) -> None:
    """Breaks when one image alone has no background to be drawn with, or shows the ones it was given."""
    images = photos(tmp_path / "images", 6)
    out = show("insloc", images, tmp_path / "views.png", settings=settings("insloc"), count=count)
    with Image.open(out) as picture:
        assert picture.size == (2 * (64 + 6), count * (64 + 6))
        outlined = {pixel for _, pixel in picture.convert("RGB").getcolors(1 << 16)}
    assert (255, 38, 38) in outlined and (38, 255, 255) in outlined  # the true box, and p5's
