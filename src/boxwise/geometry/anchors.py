"""Anchors, and a box put in the place of another that it overlaps: InsLoc's box augmentation."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from boxwise.geometry.boxes import iou
from boxwise.shapes import Boxes

GRID = 16
"""Cells a side: p4 of a 256-pixel composite."""
SCALES, RATIOS = (2, 4, 8, 16), (0.5, 0.75, 1.0, 1.5, 2.0)
"""Sides of a square anchor in cells, and height / width."""
ANCHORS = GRID**2 * len(SCALES) * len(RATIOS)
OVERLAP, NEAR, FALLBACK = 0.5, 0.7, 4000
"""IoU with the box that a candidate must exceed; IoU from which the lower of two candidates goes; how many of the
nearest anchors stand in for a box without candidates."""
MOST = 320
"""Candidates of highest score that are looked at first; no box inside a view has more than 282 of its own."""
RARE = 8
"""Boxes of a batch whose candidates are all looked at where they are more. One box in a thousand is such; more than 8
of 256 hardly ever are, and then the others are content with the first."""
ROUNDS = 12
"""Rounds of `survivors`. Of thousands of boxes none needed more than 5, of thousands of fallbacks none more than 8."""

Grid = Float[Tensor, "A 4"]
Pairs = Int[Tensor, "A W"]


def anchor_grid() -> Grid:
    """All anchors of a view, in parts of its side, cell by cell (rows outermost), ratio by ratio, scale by scale.

    Each is centred on the upper left corner of its cell, and none is clipped: most of those that overlap a large
    box reach out of the view.
    """
    scale, ratio = torch.tensor(SCALES).double(), torch.tensor(RATIOS).double()[:, None]
    sides = torch.stack([scale / ratio.sqrt(), scale * ratio.sqrt()], dim=-1).flatten(0, 1)  # (20, 2)
    corner = torch.arange(GRID).double()
    y, x = torch.meshgrid(corner, corner, indexing="ij")
    centre = torch.stack([x, y], dim=-1).view(-1, 1, 2)
    boxes = torch.cat([centre - sides / 2, centre + sides / 2], dim=-1).flatten(0, 1) / GRID
    return boxes.to(torch.get_default_dtype())


def near_pairs() -> Pairs:
    """For each anchor, the others of more than `NEAR` IoU with it; lines are filled up with `ANCHORS`, which is none.

    What lies how near depends on kinds and distances alone, so one cell is compared with all around it.
    """
    with torch.device("cpu"):  # counted, whatever device a network is built on
        kinds, far = len(SCALES) * len(RATIOS), torch.arange(1 - GRID, GRID)
        one = anchor_grid().double()[:kinds]
        y, x = torch.meshgrid(far, far, indexing="ij")
        away = torch.stack([x, y, x, y], dim=-1).view(-1, 1, 4)
        overlap = iou(one, (one + away / GRID).flatten(0, 1)).view(kinds, -1, kinds)
        mine, cell, theirs = ((overlap > NEAR) & (overlap < 1 - 1e-9)).nonzero().unbind(1)
        dy, dx = y.flatten()[cell], x.flatten()[cell]
        place = torch.arange(GRID)
        rows, columns = place[:, None, None] + dy, place[None, :, None] + dx  # of each neighbour of each cell
        there = (rows * GRID + columns) * kinds + theirs
        inside = (rows >= 0) & (rows < GRID) & (columns >= 0) & (columns < GRID)
        there = torch.where(inside, there, ANCHORS).view(GRID**2, -1)
        widest = int(mine.bincount().max())
        pairs = torch.full((GRID**2, kinds, widest), ANCHORS)
        for kind in range(kinds):
            of_kind = there[:, mine == kind]
            pairs[:, kind, : of_kind.shape[1]] = of_kind
        return pairs.flatten(0, 1)


def nearby(boxes: Boxes, grid: Grid, noise: Float[Tensor, "B _N"], *, pairs: Pairs | None) -> Boxes:
    """One anchor in the place of the one box of each image: drawn from those of more than `OVERLAP` IoU with it.

    `grid` in pixels of the same view; `noise` holds a uniform number for each anchor, its score, and one more for
    the draw. With `pairs`, only candidates are drawn from that no candidate of higher score comes nearer than
    `NEAR`, so that dense clusters of anchors do not outweigh the rest. A box without candidates, as one in a
    thousand of up to 3 to 1 is, draws from the `FALLBACK` anchors of highest IoU in the same way.
    """
    scores, pick = noise[:, :-1], noise[:, -1:]
    scores = torch.where(candidates(boxes, grid), scores, -1)
    if pairs is None:
        return grid[scores.argmax(-1, keepdim=True)]
    place = one_apart(scores, pick, pairs, most=MOST)
    many = (scores >= 0).sum(-1, keepdim=True) > MOST
    if boxes.device.type == "cpu" and not many.any():  # other devices would have to be waited for
        return grid[place]
    some = many[:, 0].int().topk(min(RARE, len(boxes))).indices
    long = one_apart(scores[some], pick[some], pairs, most=FALLBACK)
    place[some] = torch.where(many[some], long, place[some])
    return grid[place]


def one_apart(
    scores: Float[Tensor, "B A"], pick: Float[Tensor, "B 1"], pairs: Pairs, *, most: int
) -> Int[Tensor, "B 1"]:
    """One of the survivors among the `most` anchors of highest score, all equally likely."""
    best = scores.topk(most, dim=-1)
    falling = torch.arange(most, 0, -1, device=scores.device, dtype=scores.dtype)  # no two alike
    keep = survivors(best.indices, torch.where(best.values >= 0, falling, -1), pairs)
    wanted = (pick * keep.sum(-1, keepdim=True)).floor()
    place = (keep & (keep.cumsum(-1) == wanted + 1)).int().argmax(-1, keepdim=True)
    return best.indices.gather(1, place)


def candidates(boxes: Boxes, grid: Grid) -> Bool[Tensor, "B A"]:
    """Anchors that overlap their image's one box by more than `OVERLAP`; where none does, the `FALLBACK` nearest."""
    overlap = iou(boxes, grid.expand(len(boxes), -1, -1))[:, 0]
    hit, others = overlap > OVERLAP, max(0, len(grid) - FALLBACK)
    farthest = overlap.topk(others, dim=-1, largest=False, sorted=False).indices
    spare = torch.ones_like(hit).scatter(1, farthest, False)
    return torch.where(hit.any(-1, keepdim=True), hit, spare)


def survivors(index: Int[Tensor, "B K"], scores: Float[Tensor, "B K"], pairs: Pairs) -> Bool[Tensor, "B K"]:
    """Non-maximum suppression of anchors of different scores, of which those below 0 are padding.

    for k in the order of falling scores:
        keep[k] = scores[k] >= 0 and not any(keep[j] for j that are near k)

    Round by round, all anchors at once: what has a higher score than all open anchors near it is kept, what is near
    to that goes.
    """
    near = pairs[index].flatten(1)  # (B, K*W)

    def around(values: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
        """The highest value of the anchors near each."""
        everywhere = values.new_full((len(values), ANCHORS + 1), -1).scatter(1, index, values)
        return everywhere.gather(1, near).view(*index.shape, -1).amax(-1)

    keep, open_ = torch.zeros_like(index, dtype=torch.bool), scores
    for _ in range(ROUNDS):
        new = (open_ >= 0) & (open_ > around(open_))
        keep = keep | new
        gone = new | (around(torch.where(new, 1.0, -1.0).to(scores.dtype)) > 0)
        open_ = torch.where(gone, -1, open_)
    return keep
