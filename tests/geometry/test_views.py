"""Where a box of the source lies in a view, and back."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from boxwise.geometry.views import Batch, View, join
from ramps import ramp_view, shown


def view_of(crop: list[float], *, flip: bool, width: int = 50, height: int = 40) -> View:
    image = torch.zeros(1, 3, height, width)
    return View(image, torch.tensor([crop], dtype=torch.float64), torch.tensor([flip]))


def test_place_by_hand() -> None:
    """Breaks when x is scaled by the height, when the corner is added, or when only one edge is mirrored."""
    box = torch.tensor([[[30.0, 60, 70, 90]]], dtype=torch.float64)
    crop = [20.0, 40, 120, 120]  # 100 x 80 source pixels in 50 x 40
    assert view_of(crop, flip=False).place(box).tolist() == [[[5, 10, 25, 25]]]
    assert view_of(crop, flip=True).place(box).tolist() == [[[25, 10, 45, 25]]]
    assert view_of([0.0, 0, 100, 20], flip=False).magnification().tolist() == [[0.5, 2.0]]


@given(st.lists(st.floats(-500, 500), min_size=4, max_size=4), st.booleans())
def test_locate_inverts_place(numbers: list[float], flip: bool) -> None:
    """Breaks when the flip of the way back is left out or comes at the wrong end."""
    view = view_of([13.0, 7, 113, 81], flip=flip)
    box = torch.tensor([[numbers]], dtype=torch.float64)
    torch.testing.assert_close(view.locate(view.place(box)), box, rtol=1e-10, atol=1e-9)
    torch.testing.assert_close(view.place(view.locate(box)), box, rtol=1e-10, atol=1e-9)
    torch.testing.assert_close(view.mirror(view.mirror(box)), box, rtol=1e-10, atol=1e-9)


def test_placed_box_shows_what_it_should() -> None:
    """Breaks when geometry and pixels disagree about which side a flipped view starts at."""
    crops = torch.tensor([[10.0, 20, 210, 180], [0, 0, 96, 96]])
    view = ramp_view(crops, torch.tensor([True, False]))
    boxes = torch.tensor([[[50.0, 60, 90, 100], [120, 50, 180, 160]], [[8, 8, 20, 80], [30, 40, 35, 45]]])
    centres = (boxes[..., :2] + boxes[..., 2:]) / 2
    torch.testing.assert_close(shown(view, view.place(boxes)), centres, rtol=0, atol=1e-3)


def test_join_puts_the_first_view_first() -> None:
    """Breaks when crops and images of a joined view are in different orders."""
    a = ramp_view(torch.tensor([[0.0, 0, 96, 96], [10, 10, 58, 58]]), torch.tensor([False, True]))
    b = ramp_view(torch.tensor([[5.0, 5, 53, 53], [1, 1, 97, 97]]), torch.tensor([True, False]))
    both = join(a, b)
    assert torch.equal(both.image, torch.cat([a.image, b.image])) and both.objects is None
    assert both.crop.tolist() == [*a.crop.tolist(), *b.crop.tolist()]
    assert both.flip.tolist() == [False, True, True, False]
    ids = torch.tensor([[1], [2]])
    listed = join(
        *(View(v.image, v.crop, v.flip, v.crop[:, None] + i, ids + i) for i, v in enumerate((a, b)))
    )
    assert listed.objects is not None and torch.equal(listed.objects[2:], b.crop[:, None] + 1)
    assert listed.ids is not None and listed.ids.tolist() == [[1], [2], [2], [3]]


def test_join_refuses_two_sizes() -> None:
    """Breaks when a recipe with unlike views ends in a message about tensors."""
    a, b = (ramp_view(torch.tensor([[0.0, 0, 9, 9]]), torch.tensor([False]), size) for size in (96, 64))
    with pytest.raises(ValueError, match="96 x 96 and 64 x 64"):
        join(a, b)


def test_batch_moves_whole() -> None:
    """Breaks when a part of the batch stays behind on the host."""
    crop = torch.tensor([[0.0, 0, 96, 96]])
    view = ramp_view(crop, torch.tensor([True]), objects=crop[:, None])
    view = replace(view, ids=torch.tensor([[7]]))
    moved = Batch((view,), torch.tensor([3]), {"boxes": torch.rand(1, 2)}).to("meta")
    objects, ids = moved.views[0].objects, moved.views[0].ids
    assert objects is not None and ids is not None
    parts = [moved.views[0].image, moved.views[0].crop, moved.views[0].flip, objects, ids, moved.index]
    assert {p.device.type for p in [*parts, *moved.draws.values()]} == {"meta"}


def test_wrong_box_width_is_rejected() -> None:
    """Breaks when shape annotations are no longer checked in tests."""
    with pytest.raises(Exception, match=r"4"):
        view_of([0.0, 0, 9, 9], flip=False).place(torch.rand(1, 5, 5))
