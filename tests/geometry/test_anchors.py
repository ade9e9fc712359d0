"""InsLoc's anchors: which stand in for a box, and how one of them is drawn."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import nms

from boxwise.geometry.anchors import (
    ANCHORS,
    MOST,
    NEAR,
    anchor_grid,
    candidates,
    near_pairs,
    nearby,
    survivors,
)
from boxwise.geometry.boxes import iou

SIDE = 256


def grid() -> Tensor:
    return anchor_grid() * SIDE


def some_boxes(count: int, *, seed: int = 0, least: int = 64) -> Tensor:
    dice = torch.Generator().manual_seed(seed)
    size = torch.randint(least, 255, (count, 2), generator=dice).float()
    corner = (torch.rand(count, 2, generator=dice) * (SIDE - size)).floor()
    return torch.cat([corner, corner + size], dim=-1)[:, None]


def noise(count: int, *, seed: int = 1) -> Tensor:
    return torch.rand(count, ANCHORS + 1, generator=torch.Generator().manual_seed(seed))


def drawn(boxes: Tensor, draws: Tensor, *, apart: bool) -> list[int]:
    """Which anchor each box got."""
    got = nearby(boxes, grid(), draws, pairs=near_pairs() if apart else None)
    return (got == grid()).all(-1).int().argmax(-1).tolist()


def test_trap_03_anchors_sit_on_corners_of_cells_and_leave_the_view() -> None:
    """Breaks when anchors are centred in their cells, clipped, or ordered another way."""
    boxes = grid()
    assert boxes.shape == (5120, 4) == (ANCHORS, 4)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    torch.testing.assert_close(centres[20], torch.tensor([16.0, 0]))
    torch.testing.assert_close(centres[20 * 16], torch.tensor([0.0, 16]))
    assert boxes.min() < -100 and boxes.max() > SIDE + 100
    sides = (boxes[:20, 2:] - boxes[:20, :2]).prod(-1).sqrt().view(5, 4)
    torch.testing.assert_close(sides, torch.tensor([32.0, 64, 128, 256]).expand(5, 4))
    torch.testing.assert_close(
        (boxes[:20, 3] - boxes[:20, 1]) / (boxes[:20, 2] - boxes[:20, 0]),
        torch.tensor([0.5, 0.75, 1, 1.5, 2]).repeat_interleave(4),
    )


def test_trap_03_candidates_overlap_by_more_than_half_strictly() -> None:
    """Breaks when a half counts, or candidates outside the view are dropped."""
    square = torch.tensor([[[64.0, 64, 192, 192]]])
    half = torch.tensor([[64.0, 64, 192, 128], [64.0, 64, 192, 129]])  # IoU .5 and a little more
    assert candidates(square, half).tolist() == [[False, True]]
    found = candidates(some_boxes(200, least=180), grid())
    inside = ((grid() >= 0) & (grid() <= SIDE)).all(-1)
    outside = (found & ~inside).sum() / found.sum()
    assert outside > 0.5
    assert torch.equal(found, iou(some_boxes(200, least=180)[:, 0], grid()) > 0.5)


def test_no_box_has_more_candidates_than_are_looked_at() -> None:
    """Breaks when boxes could lose candidates to the fixed number that is looked at."""
    assert int(candidates(some_boxes(500, seed=3, least=128), grid()).sum(-1).max()) <= MOST


def test_a_box_without_candidates_takes_the_nearest_anchors() -> None:
    """Breaks when a box that no anchor is near has no candidates, or such as are not the nearest."""
    sliver = torch.tensor([[[100.0, 20, 106, 220]]])
    found = candidates(sliver, grid())
    overlap = iou(sliver[:, 0], grid())
    assert not (overlap > 0.5).any() and found.sum() == 4000
    assert overlap[found].min() >= overlap[~found].max()


def test_a_box_without_candidates_draws_from_all_survivors_of_the_nearest() -> None:
    """Breaks when only some of the 4000 nearest are looked at, which would favour the largest threefold."""
    sliver, usual = torch.tensor([[[60.0, 60, 214, 112]]]), some_boxes(1, seed=4)
    draws = noise(9)
    draws[:, -1] = torch.linspace(0, 1 - 1e-6, 9)
    boxes = torch.cat([sliver, usual, sliver]).repeat(3, 1, 1)  # with candidates and without, side by side
    got, index = drawn(boxes, draws, apart=True), candidates(sliver, grid())[0].nonzero()[:, 0]
    for row in (0, 2, 3, 5, 6, 8):
        falling = index[nms(grid()[index], draws[row, index], NEAR)]
        assert len(falling) > 1000 and got[row] == falling[int(draws[row, -1] * len(falling))]
    assert [got[row] for row in (1, 4, 7)] == drawn(usual.expand(3, 1, 4), draws[1::3], apart=True)


def test_near_pairs_are_those_of_all_anchors_compared() -> None:
    """Breaks when a neighbour at a border or of another kind is missed, or a line is filled up with an anchor."""
    pairs, every = near_pairs(), grid().double()
    for anchor in torch.randperm(ANCHORS, generator=torch.Generator().manual_seed(0))[:200].tolist():
        near = (iou(every[anchor : anchor + 1], every)[0] > NEAR).nonzero()[:, 0].tolist()
        listed = pairs[anchor][pairs[anchor] < ANCHORS].tolist()
        assert sorted([*listed, anchor]) == near


def test_survivors_are_those_of_the_greedy_loop() -> None:
    """Breaks when a round keeps what a later one would drop, or padding suppresses something."""
    boxes, draws = some_boxes(40, least=40), noise(40)
    scores = torch.where(candidates(boxes, grid()), draws[:, :-1], -1.0)
    best = scores.topk(MOST)
    chosen, valid = grid()[best.indices], best.values >= 0
    keep = survivors(best.indices, best.values, near_pairs())
    for row in range(40):
        count = int(valid[row].sum())
        assert valid[row, :count].all()
        want = nms(chosen[row, :count], best.values[row, :count], NEAR).sort().values
        assert keep[row].nonzero()[:, 0].tolist() == want.tolist()


def test_one_survivor_is_drawn_evenly() -> None:
    """Breaks when the best or the first is always taken, the last never, or suppressed ones still are."""
    box = some_boxes(1, seed=4)
    draws = noise(1).repeat(240, 1)
    draws[:, -1] = torch.linspace(0, 1 - 1e-6, 240)
    got = drawn(box.expand(240, 1, 4), draws, apart=True)
    scores = torch.where(candidates(box, grid()), draws[:1, :-1], -1.0)[0]
    index = (scores >= 0).nonzero()[:, 0]
    alive = index[nms(grid()[index], scores[index], NEAR)].tolist()
    counts = {anchor: got.count(anchor) for anchor in got}
    assert counts.keys() == set(alive) and len(alive) > 3
    assert max(counts.values()) - min(counts.values()) <= 1  # 240 places, evenly spread


def test_without_suppression_every_candidate_is_drawn_evenly() -> None:
    """Breaks when the switch changes nothing, or prefers clusters or their edges."""
    box = some_boxes(1, seed=6)
    draws = noise(1500, seed=2)
    got = torch.tensor(drawn(box.expand(1500, 1, 4), draws, apart=False)).bincount(minlength=ANCHORS)
    index = candidates(box, grid())[0]
    share = got[index] / 1500
    assert got[~index].sum() == 0 and (got[index] > 0).all()
    even = 1 / index.sum()
    assert (share - even).abs().max() < 5 * (even / 1500).sqrt()
