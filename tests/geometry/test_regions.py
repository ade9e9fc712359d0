"""Matched boxes are right when both views show the same thing inside them: ramps of coordinates prove it."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from boxwise.geometry.boxes import iou
from boxwise.geometry.regions import (
    Regions,
    first_apart,
    grid_boxes,
    matched,
    overlap,
    random_in_overlap,
    uniform_boxes,
    work_area,
)
from boxwise.geometry.views import View
from ramps import ramp_view, shown

SOURCES: dict[str, dict[str, Any]] = {
    "grid": {"generator": "grid"},
    "uniform": {"generator": "uniform"},
    "grid, boxes may overlap": {"generator": "grid", "max_iou": None},
    "uniform, boxes may overlap": {"generator": "uniform", "max_iou": None},
    "grid, large boxes": {"generator": "grid", "min_size": 15},
    "uniform, few overlaps": {"generator": "uniform", "max_iou": 0.1},
}
MIN = 8


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def views(flip_a: bool, flip_b: bool, objects: Tensor | None = None) -> tuple[View, View]:
    """Five images: overlapping, one inside the other, squeezed, hardly touching, disjoint."""
    a = [[10, 20, 210, 180], [0, 0, 100, 100], [5, 5, 45, 205], [0, 0, 50, 50], [0, 0, 50, 50]]
    b = [[60, 0, 260, 150], [20, 10, 90, 80], [0, 90, 160, 150], [46, 0, 96, 50], [60, 60, 99, 99]]
    crops = [torch.tensor(c, dtype=torch.float64) for c in (a, b)]
    flips = [torch.full((5,), f) for f in (flip_a, flip_b)]
    return ramp_view(crops[0], flips[0], objects=objects), ramp_view(crops[1], flips[1], 64, objects=objects)


def draw(a: View, b: View, *, boxes: int = 6, tries: int = 20, seed: int = 0, **options: Any) -> Regions:
    options = {"min_size": MIN} | options
    return random_in_overlap(a, b, noise(len(a.crop), boxes, tries, 8, seed=seed), **options)


@pytest.mark.parametrize("flips", list(itertools.product([False, True], repeat=2)), ids=str)
@pytest.mark.parametrize("source", SOURCES)
def test_matched_boxes_show_the_same_source_pixels(source: str, flips: tuple[bool, bool]) -> None:
    """Breaks when a flip swaps one edge only, when a scale is the other view's, or padding counts."""
    a, b = views(*flips)
    regions = draw(a, b, **SOURCES[source])
    keep = regions.keep.unflatten(0, (5, 6))
    assert (
        keep.tolist() == [[True] * 6] * 3 + [[False] * 6] * 2
    )  # too thin an overlap, and none, keep nothing
    # A view's pixels are up to 3.3 source pixels wide, and a box's centre is read far more finely than that.
    torch.testing.assert_close(shown(a, regions.a)[keep], shown(b, regions.b)[keep], atol=0.35, rtol=0)
    torch.testing.assert_close(a.locate(regions.a)[keep], b.locate(regions.b)[keep], atol=0.5, rtol=0)
    assert torch.isfinite(shown(a, regions.a)).all() and torch.isfinite(shown(b, regions.b)).all()


def test_padding_shows_the_whole_views() -> None:
    """Breaks when rows that weigh nothing bring empty boxes, or those of a disjoint overlap."""
    a, b = views(False, True)
    regions = draw(a, b)
    assert regions.a[3:].unique(dim=0).tolist() == [[[0, 0, 96, 96]] * 6]
    assert regions.b[3:].unique(dim=0).tolist() == [[[0, 0, 64, 64]] * 6]


def test_matched_replaces_only_what_is_not_kept() -> None:
    """Breaks when `keep` is read in another order than the boxes."""
    a, b = views(False, False)
    in_a = torch.arange(40, dtype=torch.float64).view(5, 2, 4)
    keep = torch.tensor([[True, False], [False, True], [True, True], [False, False], [True, False]])
    regions = matched(a, b, in_a, in_a + 100, keep)
    assert regions.keep.tolist() == keep.flatten().tolist()
    assert torch.equal(regions.a[keep], in_a[keep]) and torch.equal(regions.b[keep], in_a[keep] + 100)
    assert (regions.a[~keep] == torch.tensor([0, 0, 96, 96])).all()


def test_overlap_by_hand_and_from_both_sides() -> None:
    """Breaks when the union is taken, or an axis of the disjoint pair is clamped before it is looked at."""
    a, b = views(True, False)
    want = [[60, 20, 210, 150], [20, 10, 90, 80], [5, 90, 45, 150], [46, 0, 50, 50], [60, 60, 50, 50]]
    assert overlap(a, b)[:, 0].tolist() == want == overlap(b, a)[:, 0].tolist()


def test_work_area_by_hand() -> None:
    """Breaks when the larger of two scales is taken, or one for both axes; halves are rounded to even."""
    a, b = views(False, False)
    area = work_area(a, b)
    # Second image: .96 in view 1, 64 / 70 in view 2, of 70 source pixels. Third: x 64 / 160, y 96 / 200.
    torch.testing.assert_close(
        area.scale[1:3], torch.tensor([[64 / 70] * 2, [0.4, 0.48]], dtype=torch.float64)
    )
    assert area.size.tolist() == [[48, 55], [64, 64], [16, 29], [5, 64], [0, 0]]
    assert area.corner.tolist()[2] == [5, 90]
    halves = [torch.tensor([[0.0, 0, 192, 192]]), torch.tensor([[0.0, 0, 5, 7]])]
    views_of_halves = [ramp_view(crop, torch.tensor([False])) for crop in halves]
    assert work_area(*views_of_halves).size.tolist() == [[2, 4]]  # 2.5 and 3.5


@pytest.mark.parametrize("seed", range(3))
def test_grid_boxes_is_the_loop(seed: int) -> None:
    """Breaks on any other bound, order of draws or rounding of the official grid generator."""
    sizes = torch.tensor([[33, 224], [96, 95], [64, 127], [200, 32]], dtype=torch.float64)
    u = noise(4, 3, 40, 8, seed=seed)
    got = grid_boxes(u, sizes, min_size=32)
    for i, r, t in itertools.product(range(4), range(3), range(40)):
        corner, far = [0.0, 0.0], [0.0, 0.0]
        for axis in (0, 1):
            size = int(sizes[i, axis])
            cells_u, cell_u, side_u, place_u = u[i, r, t, axis::2].tolist()
            cells = 1 + math.floor(cells_u * (size // 32))  # 1 .. size // 32
            cell = math.floor(cell_u * cells)  # 0 .. cells - 1
            room = math.floor(size / cells)
            side = 32 + math.floor(side_u * (room - 32 + 1))  # 32 .. room
            corner[axis] = math.floor(cell * (size / cells)) + math.floor(place_u * (room - side + 1))
            far[axis] = corner[axis] + side
        assert got[i, r, t].tolist() == [*corner, *far]


@pytest.mark.parametrize("seed", range(3))
def test_uniform_boxes_is_the_loop(seed: int) -> None:
    """Breaks on any other bound of the paper's equation 1: the last row and column are never reached."""
    sizes = torch.tensor([[33, 224], [96, 95], [64, 127], [40, 36]], dtype=torch.float64)
    u = noise(4, 3, 40, 8, seed=seed)
    got = uniform_boxes(u, sizes, min_size=32)
    for i, r, t in itertools.product(range(4), range(3), range(40)):
        for axis in (0, 1):
            size = int(sizes[i, axis])
            side_u, place_u = u[i, r, t, 4 + axis :: 2].tolist()
            side = 32 + math.floor(side_u * (size - 32))  # 32 .. size - 1
            corner = math.floor(place_u * (size - side))  # 0 .. size - side - 1
            assert got[i, r, t, axis::2].tolist() == [corner, corner + side]


@pytest.mark.parametrize("generator", [grid_boxes, uniform_boxes])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_draws_stay_inside(generator: Any, dtype: torch.dtype) -> None:
    """Breaks when a draw just under 1 rounds up to its bound, which puts a box outside the overlap."""
    sizes = torch.arange(33, 225, dtype=dtype)[:, None].expand(-1, 2)
    last = torch.nextafter(torch.ones(1), torch.zeros(1)).to(dtype)
    u = torch.tensor(list(itertools.product([0.0, float(last), 1.0], repeat=4)), dtype=dtype)
    u = u.repeat_interleave(2, dim=-1)[None, None].expand(len(sizes), 1, -1, -1)
    boxes = generator(u, sizes, min_size=32)
    assert (boxes == boxes.round()).all() and (boxes >= 0).all()
    assert (boxes[..., 2:] <= sizes[:, None, None]).all()
    assert (boxes[..., 2:] - boxes[..., :2] >= 32).all()


def slow_choice(seen: Tensor, size: float, max_iou: float) -> list[int]:
    """One image's choices, box by box and try by try."""
    chosen: list[int] = []
    taken: list[Tensor] = []
    for candidates in seen:
        for t, box in enumerate(candidates):  # noqa: B007
            if all(float(iou(box[None], other[None])) < max_iou for other in taken):
                break
        chosen.append(t)
        taken.append(candidates[t].clamp(0, size))
    return chosen


@pytest.mark.parametrize("tries", [1, 3, 30])
def test_trap_20_last_candidate_is_kept_when_all_tries_overlap(tries: int) -> None:
    """Breaks when boxes are compared over images, in the wrong view, or an exhausted box is dropped."""
    a, b = views(True, False)
    area = work_area(a, b)
    work = uniform_boxes(noise(5, 7, tries, 8), area.size, min_size=MIN)
    source = area.to_source(work.flatten(1, 2)).view_as(work)
    seen = a.place(source.flatten(1, 2)).view_as(source)
    got = first_apart(a, source, 0.3)
    want = [slow_choice(seen[i], 96, 0.3) for i in range(5)]
    assert got.tolist() == want
    assert any(choice == tries - 1 for row in want for choice in row)
    assert first_apart(a, source, None).unique().tolist() == [0]


def test_boxes_of_an_image_keep_apart() -> None:
    """Breaks when rejection looks at unflipped or foreign boxes; enough tries leave no two alike."""
    a, b = views(False, True)
    regions = draw(a, b, boxes=5, tries=200, generator="grid")
    for i in (0, 1):
        pairs = iou(regions.a[i], regions.a[i]).fill_diagonal_(0)
        assert pairs.max() < 0.5


def test_trap_20_shortest_side_is_of_the_smaller_view() -> None:
    """Breaks when `min_size` counts source pixels, or pixels of the view that magnifies more."""
    a, b = views(False, True)
    area = work_area(a, b)
    regions = draw(a, b, boxes=40, generator="grid", max_iou=None)
    for view, boxes in ((a, regions.a), (b, regions.b)):
        ratio = view.magnification()[:3, None] / area.scale[:3, None]
        sides = (boxes[:3, :, 2:] - boxes[:3, :, :2]) / ratio  # work pixels
        inside = (boxes[:3] > 0).all(-1) & (boxes[:3, :, 2:] < view.width).all(-1)  # not clipped
        assert sides[inside].min() >= MIN - 1e-9
        assert sides[inside].min() < MIN + 1  # and the bound is met


def test_trap_20_all_skipped_batch_is_finite() -> None:
    """Breaks when a batch without any overlap divides by nothing."""
    a, b = (View(v.image[3:], v.crop[3:], v.flip[3:]) for v in views(False, True))
    regions = draw(a, b)
    assert not regions.keep.any()
    assert torch.isfinite(regions.a).all() and torch.isfinite(regions.b).all()


def test_trap_20_an_overlap_of_just_the_shortest_side_is_skipped() -> None:
    """Breaks when the test is not strict: no uniform box fits there."""
    a, b = views(False, False)  # the third image's work area is 16 wide
    kept = [draw(a, b, min_size=size).keep.unflatten(0, (5, 6))[2].all().item() for size in (15, 16, 17)]
    assert kept == [True, False, False]


def test_only_the_second_view_is_jittered() -> None:
    """Breaks when both boxes move (matching stays perfect) or the draw of the wrong box is used."""
    a, b = views(True, True)
    u = torch.full((5, 6, 4), 0.5, dtype=torch.float64)
    still = draw(a, b)
    unmoved = draw(a, b, jitter=0.2, jitter_noise=u)
    torch.testing.assert_close(unmoved.b, still.b)
    u[1, 2] = torch.tensor([1.0, 0.5, 0.5, 0.0])  # a fifth to the right and a fifth shorter
    moved = draw(a, b, jitter=0.2, jitter_noise=u)
    assert torch.equal(moved.a, still.a)
    changed = (moved.b - still.b).abs().amax(-1) > 1e-6
    assert changed.nonzero().tolist() == [[1, 2]]
    left, top, right, bottom = still.b[1, 2].tolist()
    width, height = right - left, bottom - top
    want = [left + 0.2 * width, top, min(64, left + 1.2 * width), top + 0.8 * height]
    torch.testing.assert_close(moved.b[1, 2], torch.tensor(want, dtype=torch.float64))


def test_every_image_draws_for_itself() -> None:
    """Breaks when a row of the batch changes with its neighbours: runs would then depend on the batch."""
    a, b = views(False, True)
    u = noise(5, 6, 20, 8)
    whole = random_in_overlap(a, b, u, min_size=MIN)
    for i in range(5):
        one = [View(v.image[i : i + 1], v.crop[i : i + 1], v.flip[i : i + 1]) for v in (a, b)]
        alone = random_in_overlap(one[0], one[1], u[i : i + 1], min_size=MIN)
        assert torch.equal(alone.a[0], whole.a[i]) and torch.equal(alone.b[0], whole.b[i])


def test_float32_geometry_finds_the_same_boxes() -> None:
    """Breaks when whole-number draws are made where single precision cannot hold them."""
    a, b = views(True, False)
    exact = draw(a, b)
    single = [View(v.image.float(), v.crop.float(), v.flip) for v in (a, b)]
    rough = random_in_overlap(single[0], single[1], noise(5, 6, 20, 8).float(), min_size=MIN)
    torch.testing.assert_close(rough.a.double(), exact.a, atol=1e-4, rtol=0)
    torch.testing.assert_close(rough.b.double(), exact.b, atol=1e-4, rtol=0)
