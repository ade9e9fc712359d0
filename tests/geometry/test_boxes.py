"""Boxes against loops over plain numbers."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from boxwise.geometry.boxes import area, clip, iou, jitter, rows

COORDINATE = st.integers(-400, 400).map(lambda n: n / 4)  # exact in float64, with ties


def boxes(count: int) -> st.SearchStrategy[Tensor]:
    """`count` boxes with sides of 0 or more."""
    side = st.integers(0, 400).map(lambda n: n / 4)
    box = st.tuples(COORDINATE, COORDINATE, side, side).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))
    return st.lists(box, min_size=count, max_size=count).map(lambda b: torch.tensor(b, dtype=torch.float64))


def slow_iou(a: list[float], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    both = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return width * height / (both - width * height) if both > width * height else 0.0


def test_area_of_known_boxes() -> None:
    """Breaks when an inverted box gets the area of its mirror image, or a negative one."""
    known = torch.tensor([[1.0, 2, 4, 8], [4, 2, 1, 8], [4, 8, 1, 2], [3, 3, 3, 9]])
    assert area(known).tolist() == [18, 0, 0, 0]


@given(boxes(3), boxes(4))
def test_iou_is_the_loop_over_pairs(a: Tensor, b: Tensor) -> None:
    """Breaks when touching boxes overlap, when an axis is swapped, or when two empty boxes divide 0 by 0."""
    want = torch.tensor([[slow_iou(x, y) for y in b.tolist()] for x in a.tolist()], dtype=torch.float64)
    torch.testing.assert_close(iou(a, b), want, rtol=1e-12, atol=0)


@given(boxes(4))
def test_iou_does_not_depend_on_order_place_and_scale(a: Tensor) -> None:
    """Breaks when one side of the pair is treated unlike the other, or a pixel is added to a side."""
    whole = iou(a, a)
    torch.testing.assert_close(whole, whole.T, rtol=0, atol=0)
    torch.testing.assert_close(iou(a * 8 + 64, a * 8 + 64), whole, rtol=1e-12, atol=0)
    assert (whole.diagonal() == (area(a) > 0)).all()
    assert ((whole >= 0) & (whole <= 1)).all()


def test_iou_keeps_images_apart() -> None:
    """Breaks when boxes of one image meet those of another."""
    a = torch.tensor([[[0.0, 0, 2, 2]], [[0, 0, 4, 4]]])
    b = torch.tensor([[[0.0, 0, 2, 1], [9, 9, 10, 10]], [[0, 0, 2, 2], [0, 0, 4, 4]]])
    assert iou(a, b).tolist() == [[[0.5, 0.0]], [[0.25, 1.0]]]


@given(boxes(5), st.integers(1, 60), st.integers(1, 60))
def test_clip_is_the_part_inside(a: Tensor, width: int, height: int) -> None:
    """Breaks when x is held to the height or when a box outside turns inside out."""
    frame = torch.tensor([[0.0, 0, width, height]], dtype=torch.float64)
    inside = clip(a, width, height)
    assert (inside[:, ::2] >= 0).all() and (inside[:, ::2] <= width).all()
    assert (inside[:, 1::2] >= 0).all() and (inside[:, 1::2] <= height).all()
    assert (inside[:, 2:] >= inside[:, :2]).all()
    shared = iou(a, frame) * (area(a)[:, None] + area(frame)) / (1 + iou(a, frame))  # area of the meeting
    torch.testing.assert_close(area(inside), shared[:, 0], rtol=1e-9, atol=1e-9)
    assert torch.equal(clip(inside, width, height), inside)


def test_jitter_by_hand() -> None:
    """Breaks when the move is not in units of the side, or when the side grows from the centre."""
    box = torch.tensor([[10.0, 20, 30, 60]])
    still = jitter(box, torch.full((1, 4), 0.5), amount=0.2)
    assert still.tolist() == box.tolist()
    moved = jitter(box, torch.tensor([[0.75, 0.0, 0.25, 1.0]]), amount=0.2)
    # left 10 + .1 * 20, top 20 - .2 * 40, width 20 * .9, height 40 * 1.2
    torch.testing.assert_close(moved, torch.tensor([[12.0, 12, 30, 60]]))


@given(boxes(6), st.floats(0, 1))
def test_jitter_stays_within_its_amount(a: Tensor, amount: float) -> None:
    """Breaks when the amplitude doubles, or when sides shrink below 1 - amount."""
    noise = torch.rand(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    size, shaken = a[:, 2:] - a[:, :2], jitter(a, noise, amount=amount)
    assert ((shaken[:, :2] - a[:, :2]).abs() <= amount * size + 1e-9).all()
    assert (((shaken[:, 2:] - shaken[:, :2]) - size).abs() <= amount * size + 1e-9).all()


def test_rows_number_the_images() -> None:
    """Breaks when rows run box by box instead of image by image."""
    two_images = torch.arange(24.0).view(2, 3, 4)
    want = [[i, *two_images[i, r].tolist()] for i in range(2) for r in range(3)]
    assert rows(two_images).tolist() == want
