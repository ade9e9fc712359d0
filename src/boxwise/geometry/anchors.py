"""Anchors, and a box put in the place of another that it overlaps: InsLoc's box augmentation."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
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
"""Candidates among which the lower ones of near pairs are dropped; no box inside a view has more than 282."""
ROUNDS = 12
"""Rounds of `survivors`. Of thousands of boxes, none needed more than 5."""

Grid = Float[Tensor, "A 4"]


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


def nearby(boxes: Boxes, grid: Grid, noise: Float[Tensor, "B _N"], *, apart: bool = True) -> Boxes:
    """One anchor in the place of the one box of each image: drawn from those of more than `OVERLAP` IoU with it.

    `grid` in pixels of the same view; `noise` holds a uniform number for each anchor, its score, and one more for
    the draw. With `apart`, only candidates are drawn from that no candidate of higher score comes nearer than
    `NEAR`, so that dense clusters of anchors do not outweigh the rest. A box without candidates draws from the
    `FALLBACK` anchors of highest IoU, and then from the best `MOST` of them by score.
    """
    scores, pick = noise[:, :-1], noise[:, -1:]
    scores = torch.where(candidates(boxes, grid), scores, -1)
    best = scores.topk(min(MOST, len(grid)) if apart else 1, dim=-1)
    chosen = grid[best.indices]  # (B, K, 4)
    keep = survivors(chosen, best.values >= 0, near=NEAR)
    wanted = (pick * keep.sum(-1, keepdim=True)).floor()
    place = (keep & (keep.cumsum(-1) == wanted + 1)).int().argmax(-1)
    return chosen.gather(1, place[:, None, None].expand(-1, 1, 4))


def candidates(boxes: Boxes, grid: Grid) -> Bool[Tensor, "B A"]:
    """Anchors that overlap their image's one box by more than `OVERLAP`; where none does, the `FALLBACK` nearest."""
    overlap = iou(boxes, grid.expand(len(boxes), -1, -1))[:, 0]
    hit = overlap > OVERLAP
    nearest = overlap.topk(min(FALLBACK, len(grid)), dim=-1).indices
    spare = torch.zeros_like(hit).scatter(1, nearest, True)
    return torch.where(hit.any(-1, keepdim=True), hit, spare)


def survivors(
    boxes: Float[Tensor, "B K 4"], valid: Bool[Tensor, "B K"], *, near: float
) -> Bool[Tensor, "B K"]:
    """Non-maximum suppression of boxes in the order of falling scores.

    for k in order:
        keep[k] = valid[k] and all(iou(boxes[k], boxes[j]) <= near for j in order before k if keep[j])

    Round by round, all boxes at once: what has no open box of higher score near it is kept, what is near to that
    goes.
    """
    higher = torch.tril(iou(boxes, boxes) > near, diagonal=-1).to(boxes.dtype)
    keep, open_ = torch.zeros_like(valid), valid
    for _ in range(ROUNDS):
        new = open_ & ~_any(higher, open_)
        keep = keep | new
        open_ = open_ & ~new & ~_any(higher, new)
    return keep


def _any(matrix: Float[Tensor, "B K K"], rows: Bool[Tensor, "B K"]) -> Bool[Tensor, "B K"]:
    return (matrix @ rows[..., None].to(matrix.dtype))[..., 0] > 0
