"""ReSim's windows: where they lie, and where the other view shows them."""

from __future__ import annotations

import torch
from torch import Tensor

from boxwise.geometry.views import View
from boxwise.geometry.windows import carried, lattice, windows
from ramps import ramp_view, shown

ONE = torch.tensor([[10.0, 20, 150, 130], [0, 0, 96, 96], [5, 5, 100, 120], [0, 0, 60, 60]])
TWO = torch.tensor([[4.0, 5, 160, 145], [12, 8, 120, 110], [2, 1, 130, 140], [80, 80, 140, 150]])
FLIPS = torch.tensor([[False, True, False, True], [True, True, False, False]])


def test_windows_of_both_views_show_the_same_pixels() -> None:
    """Breaks when a view is mirrored before it is cut, x and y swap, or boxes of images are crossed."""
    one, two = ramp_view(ONE, FLIPS[0]), ramp_view(TWO, FLIPS[1])
    found = windows(one, two, window=24, stride=20)
    keep = found.keep.view(4, -1)
    assert keep.sum(1).tolist() == [16, 9, 16, 0]
    places = [shown(v, b)[keep] for v, b in ((one, found.a), (two, found.b))]
    torch.testing.assert_close(*places, atol=0.6, rtol=0)


def test_carried_is_place_of_locate() -> None:
    """Breaks when the exact way and the general way part."""
    a = View(torch.zeros(4, 3, 64, 80), ONE, FLIPS[0])
    b = View(torch.zeros(4, 3, 48, 96), TWO, FLIPS[1])
    boxes = torch.tensor([[0.0, 0, 80, 64], [3, 5, 20, 30]]).expand(4, 2, 4)
    torch.testing.assert_close(carried(a, b, boxes), b.place(a.locate(boxes)), atol=1e-4, rtol=1e-5)


def test_lattice_stays_short_of_the_far_edges() -> None:
    """Breaks when a window ends on the border, or a last one is lost."""

    def ends(width: int, height: int) -> list[list[float]]:
        return lattice(torch.zeros(0), window=4, stride=3, width=width, height=height)[:, 2:].tolist()

    assert ends(8, 7) == [[4.0, 4.0], [7.0, 4.0]]  # 7 of 7 rows is too far
    assert ends(7, 8) == [[4.0, 4.0], [4.0, 7.0]]
    assert ends(4, 99) == []


def kept(left: float, top: float, size: float, *, flip: bool) -> Tensor:
    """Of a window that covers (0, 0, 8, 8) of a view that shows source (0, 0, 16, 16), by another view's crop."""
    flips = torch.tensor([flip])
    a = View(torch.zeros(1, 3, 16, 16), torch.tensor([[0.0, 0, 16, 16]]), flips)
    b = View(torch.zeros(1, 3, 16, 16), torch.tensor([[left, top, left + size, top + size]]).float(), flips)
    return windows(a, b, window=8, stride=8).keep


def test_edges_may_lie_on_the_near_border_and_not_on_the_far_one() -> None:
    """Breaks when an inequality is turned strict, or loose; windows of mirrored views start at the right."""
    assert kept(0, 0, 9, flip=False).tolist() == [True]
    assert kept(0, 0, 8, flip=False).tolist() == [False]
    assert kept(1, 0, 9, flip=False).tolist() == [False]
    assert kept(0, 1, 9, flip=False).tolist() == [False]
    assert kept(7, 0, 9, flip=True).tolist() == [True]
    assert kept(8, 0, 8, flip=True).tolist() == [False]
    assert kept(0, 0, 15, flip=True).tolist() == [False]


def test_what_is_not_kept_is_a_pixel_and_costs_no_gradient_of_nothing() -> None:
    """Breaks when padding is empty, or lies where no pixel is."""
    one, two = ramp_view(ONE, FLIPS[0]), ramp_view(TWO, FLIPS[1])
    found = windows(one, two, window=24, stride=20)
    assert (found.b[3] == torch.tensor([0.0, 0, 1, 1])).all()
    assert torch.equal(found.a[0], found.a[3])
