"""What DensePose R-CNN learns in a box, as pure functions: body from ground, parts, and u and v upon them.

As loops, over boxes b that lie well on an annotated person, cells of their maps, and annotated points inside them:

    for b in boxes:
        for cell in cells:
            body_total -= log_softmax(body[b, :, cell])[annotated part at the cell's middle, 0 outside the person's box]
        for point in points of the person of b:
            if point lies in b:
                at = the maps of b, between the four cells around the point
                part_total -= log_softmax(at.part)[point.part]
                if point.part > 0:
                    u_total += smooth_l1(at.u[point.part] - point.u)
                    v_total += smooth_l1(at.v[point.part] - point.v)
    losses = 5 body_total / cells of all boxes, 1 part_total / points, .01 u_total, .01 v_total

The weights are detectron2's, and so are the sums of u and v, which it takes over the two images of a device: here they
are scaled to two images, whatever the batch. Without a point or a box the losses are 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from boxwise.shapes import Scalar

SUMMED = 2
"""Images that detectron2 sums the losses of u and v over."""


@dataclass(frozen=True, slots=True)
class Surfaces:
    """What is read in each of M boxes, before softmax; cells of a square map over the box."""

    body: Float[Tensor, "M _B S S"]
    """Ground, and the body or its coarse parts."""
    part: Float[Tensor, "M P S S"]
    """Ground, and the charts."""
    u: Float[Tensor, "M P S S"]
    """0 to 1 on each chart."""
    v: Float[Tensor, "M P S S"]


@dataclass(frozen=True, slots=True)
class Points:
    """Annotated points, each in one of the boxes that are read."""

    box: Int[Tensor, " n"]
    """Row of the box."""
    xy: Float[Tensor, "n 2"]
    """Cells of its map, 0 at the middle of the first."""
    part: Int[Tensor, " n"]
    u: Float[Tensor, " n"]
    v: Float[Tensor, " n"]


def surface_losses(
    found: Surfaces,
    body: Int[Tensor, "M S S"],
    points: Points,
    *,
    images: int,
    weights: tuple[float, float, float],
) -> dict[str, Scalar]:
    """The four terms; `weights` of body, part, and u and v. `body` is the wanted class of each cell."""
    of_body, of_part, of_place = weights
    cells = F.cross_entropy(found.body, body, reduction="sum") / max(1, body.numel())
    parts = F.cross_entropy(between(found.part, points), points.part, reduction="sum") / max(
        1, len(points.part)
    )
    scale = of_place * SUMMED / images
    return {
        "loss_densepose_body": of_body * cells,
        "loss_densepose_part": of_part * parts,
        "loss_densepose_u": scale * _apart(found.u, points, points.u),
        "loss_densepose_v": scale * _apart(found.v, points, points.v),
    }


def points_in(
    boxes: Float[Tensor, "M 4"],
    matched: Int[Tensor, " M"],
    annotated: Float[Tensor, "_p 6"],
    *,
    cells: int,
    first: int = 0,
) -> Points:
    """The points of each box's person that lie in the box.

    `annotated` are rows of person, x, y, part, u, v in the pixels of `boxes`; `matched` is each box's person; `first`
    is added to the rows of boxes.
    """
    corner, size = boxes[:, None, :2], (boxes[:, None, 2:] - boxes[:, None, :2])
    share = (annotated[None, :, 1:3] - corner) / size
    inside = ((share >= 0) & (share < 1)).all(-1) & (annotated[None, :, 0] == matched[:, None])
    row, point = inside.nonzero(as_tuple=True)
    rest = annotated[point]
    return Points(row + first, share[row, point] * cells - 0.5, rest[:, 3].long(), rest[:, 4], rest[:, 5])


def joined(points: list[Points]) -> Points:
    """Of several images."""
    fields = ("box", "xy", "part", "u", "v")
    return Points(*(torch.cat([getattr(one, name) for one in points]) for name in fields))


def between(maps: Float[Tensor, "M P S S"], points: Points) -> Float[Tensor, "n P"]:
    """Bilinear between the middles of cells, and the outermost cell's own beyond them."""
    last = maps.shape[-1] - 1
    place = points.xy.clamp(0, last)
    low = place.floor()
    share_x, share_y = (place - low).unbind(1)
    (x, y), (right, down) = low.long().unbind(1), (low.long() + 1).clamp(max=last).unbind(1)
    corners = (
        (x, y, 1 - share_x, 1 - share_y),
        (right, y, share_x, 1 - share_y),
        (x, down, 1 - share_x, share_y),
        (right, down, share_x, share_y),
    )
    rows = [maps[points.box, :, b, a] * (wide * tall)[:, None] for a, b, wide, tall in corners]
    return torch.stack(rows).sum(0)


def wanted_body(
    boxes: Float[Tensor, "M 4"],
    frames: Float[Tensor, "M 4"],
    parts: UInt8[Tensor, "M h w"],
    *,
    cells: int,
    classes: int,
) -> Int[Tensor, "M S S"]:
    """The annotated part at the middle of each cell of `boxes`: `parts` are stretched over the persons' `frames`.

    With two classes all parts are one.
    """
    middles = (torch.arange(cells, device=boxes.device) + 0.5) / cells
    place = []
    for axis, count in ((0, parts.shape[2]), (1, parts.shape[1])):
        at = boxes[:, axis, None] + middles * (boxes[:, axis + 2] - boxes[:, axis])[:, None]
        side = (frames[:, axis + 2] - frames[:, axis])[:, None]
        place.append(((at - frames[:, axis, None]) / side * count).floor().long())
    column, row = place[0][:, None, :], place[1][:, :, None]  # (M, 1, S), (M, S, 1)
    outside = (column < 0) | (column >= parts.shape[2]) | (row < 0) | (row >= parts.shape[1])
    which = torch.arange(len(boxes), device=boxes.device)[:, None, None]
    known = parts[which, row.clamp(0, parts.shape[1] - 1), column.clamp(0, parts.shape[2] - 1)].long()
    known = known.clamp(max=1) if classes == 2 else known
    return torch.where(outside, 0, known)


def _apart(maps: Float[Tensor, "M P S S"], points: Points, wanted: Float[Tensor, " n"]) -> Scalar:
    """Summed over the points, each on its own part's chart; the ground has none."""
    found = between(maps, points).gather(1, points.part[:, None])[:, 0]
    apart = F.smooth_l1_loss(found, wanted.to(found.dtype), reduction="none")
    return (apart * (points.part > 0)).sum()
