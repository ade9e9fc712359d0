"""One step of SoCo as its paper and official code tell it, in loops; nothing of the package is used."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from slow_scrl import normalised, point
from torch import Tensor

Box = tuple[float, float, float, float]
Weights = Mapping[str, Tensor]
Key = tuple[int, int, int]  # image, place of the box in its view, level


@dataclass
class Seen:
    """One view: `image` (B, 3, S, S), and for each image its crop, its flip, its boxes in source pixels, their ids."""

    image: Tensor
    crops: list[Box]
    flips: list[bool]
    boxes: list[list[Box]]
    ids: list[list[int]]


def loss(
    views: Sequence[Seen],
    online: Weights,
    target: Weights,
    *,
    limits: Sequence[float],
    bins: int,
    per_pair: int,
    exact: bool,
) -> Tensor:
    """`online` and `target` hold weights by name: student.*, predictor.* and, without a prefix, the target's."""
    student = {name.removeprefix("student."): w for name, w in online.items() if name.startswith("student.")}
    predictor = {
        name.removeprefix("predictor."): w for name, w in online.items() if name.startswith("predictor.")
    }
    p, z = [], []
    for view in views:
        groups = (batches if exact else one_batch)(view, limits, per_pair)
        p.append(embed(view, student, predictor, groups, bins))
        with torch.no_grad():
            z.append(embed(view, target, None, groups, bins))
    total = torch.zeros(())
    for other in range(1, len(views)):
        for a, b in ((0, other), (other, 0)):
            for i in range(len(views[0].crops)):
                matches, similarity = 0, torch.zeros(())
                for one, id_a in enumerate(views[a].ids[i]):
                    for two, id_b in enumerate(views[b].ids[i]):
                        if id_a == id_b:
                            here = p[a][i, one, level(views[a], i, one, limits)]
                            there = z[b][i, two, level(views[b], i, two, limits)]
                            similarity = similarity + here @ there / (here.norm() * there.norm())
                            matches += 1
                total = total - 2 * similarity / (matches + 1e-6) / len(views[0].crops)
    return total


def batches(view: Seen, limits: Sequence[float], per_pair: int) -> list[list[Key]]:
    """What the heads see at a time: of all images, the boxes of one pair of views, on one level."""
    found = []
    for start in range(0, len(view.ids[0]), per_pair):
        for at in range(len(limits) + 1):
            found.append([(i, k, at) for i in range(len(view.crops)) for k in range(start, start + per_pair)])
    return found


def one_batch(view: Seen, limits: Sequence[float], per_pair: int) -> list[list[Key]]:
    """All boxes, each on its own level."""
    every = [(i, k) for i in range(len(view.crops)) for k in range(len(view.ids[i]))]
    return [[(i, k, level(view, i, k, limits)) for i, k in every]]


def shares(view: Seen, i: int, k: int) -> Box:
    """A box in shares of its view, before the view is mirrored."""
    left, top, right, bottom = view.crops[i]
    x1, y1, x2, y2 = view.boxes[i][k]
    width, height = right - left, bottom - top
    return (x1 - left) / width, (y1 - top) / height, (x2 - left) / width, (y2 - top) / height


def level(view: Seen, i: int, k: int, limits: Sequence[float]) -> int:
    side = view.image.shape[-1]
    x1, y1, x2, y2 = (int(c * side) for c in shares(view, i, k))
    size = math.sqrt((x2 - x1 + 1) * (y2 - y1 + 1))
    for at, limit in enumerate(limits):
        if size <= limit:
            return at
    return len(limits)


def embed(
    view: Seen, weights: Weights, predictor: Weights | None, groups: list[list[Key]], bins: int
) -> dict[Key, Tensor]:
    maps = pyramid(view.image, weights)
    found: dict[Key, Tensor] = {}
    for group in groups:
        crops = []
        for i, k, at in group:
            x1, y1, x2, y2 = shares(view, i, k)
            if view.flips[i]:
                x1, x2 = 1 - x2, 1 - x1
            height, width = maps[at].shape[-2:]
            crops.append(pool(maps[at][i], (x1 * width, y1 * height, x2 * width, y2 * height), bins))
        rows = mlp(head(torch.stack(crops), weights), weights, "taps.box.project.")
        if predictor is not None:
            rows = mlp(rows, predictor, "")
        found |= dict(zip(group, rows))
    return found


def pyramid(image: Tensor, weights: Weights) -> list[Tensor]:
    """Five strided convolutions, then the FPN of the last four, finest first."""
    x, maps = image, []
    for stage in range(5):
        name = f"encoder.body.stages.{stage}"
        x = normed(F.conv2d(x, weights[f"{name}.0.weight"], stride=2, padding=1), weights, f"{name}.1").relu()
        maps.append(x)
    above, levels = None, []
    for at in (3, 2, 1, 0):
        name = f"encoder.fpn.inner_blocks.{at}"
        here = normed(F.conv2d(maps[at + 1], weights[f"{name}.0.weight"]), weights, f"{name}.1")
        if above is not None:
            rows = [j * above.shape[2] // here.shape[2] for j in range(here.shape[2])]
            columns = [j * above.shape[3] // here.shape[3] for j in range(here.shape[3])]
            here = here + above[:, :, rows][:, :, :, columns]
        above, name = here, f"encoder.fpn.layer_blocks.{at}"
        out = normed(F.conv2d(here, weights[f"{name}.0.weight"], padding=1), weights, f"{name}.1")
        levels.insert(0, out)
    return levels


def pool(features: Tensor, box: Box, bins: int) -> Tensor:
    """(C, bins, bins): means over about one point per cell; cell j's value lies at coordinate j + 1/2."""
    x1, y1, x2, y2 = box
    width, height = (x2 - x1) / bins, (y2 - y1) / bins
    across, down = math.ceil(width), math.ceil(height)
    rows = []
    for j in range(bins):
        row = []
        for i in range(bins):
            points = [
                point(
                    features,
                    x1 - 0.5 + (i + (m + 0.5) / across) * width,
                    y1 - 0.5 + (j + (n + 0.5) / down) * height,
                )
                for n in range(down)
                for m in range(across)
            ]
            row.append(torch.stack(points).mean(0))
        rows.append(torch.stack(row, dim=-1))
    return torch.stack(rows, dim=-2)


def head(x: Tensor, weights: Weights) -> Tensor:
    """Four convolutions with norm, then a layer of 1024."""
    at = "taps.box.box_head."
    for conv in range(4):
        x = F.conv2d(x, weights[f"{at}{conv}.0.weight"], padding=1)
        x = normed(x, weights, f"{at}{conv}.1").relu()
    return (x.flatten(1) @ weights[f"{at}5.weight"].T + weights[f"{at}5.bias"]).relu()


def mlp(x: Tensor, weights: Weights, at: str) -> Tensor:
    """Linear, BatchNorm, ReLU, Linear."""
    x = normed(x @ weights[f"{at}1.weight"].T + weights[f"{at}1.bias"], weights, f"{at}2").relu()
    return x @ weights[f"{at}4.weight"].T + weights[f"{at}4.bias"]


def normed(x: Tensor, weights: Weights, at: str) -> Tensor:
    return normalised(x, weights[f"{at}.weight"], weights[f"{at}.bias"])
