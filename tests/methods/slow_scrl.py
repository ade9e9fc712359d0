"""One step of SCRL as its paper and official code tell it, in loops; nothing of the package is used."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

Box = tuple[float, float, float, float]
Weights = Mapping[str, Tensor]


def loss(
    images: Tensor,
    crops: Tensor,
    flips: Tensor,
    noise: Tensor,
    online: Weights,
    target: Weights,
    *,
    least: int,
) -> Tensor:
    """`images` (2, B, 3, H, W), `crops` (2, B, 4) xyxy, `flips` (2, B), `noise` (B, K, T, 8).

    `online` and `target` hold weights by name: student.*, predictor.* and, without a prefix, the target's.
    """
    size, count = images.shape[-1], images.shape[1]
    rows: list[list[tuple[int, Box]]] = [[], []]
    for i in range(count):
        for one, two in pairs(crops[:, i].tolist(), flips[:, i].tolist(), noise[i].tolist(), size, least):
            rows[0].append((i, one))
            rows[1].append((count + i, two))
    student = {name.removeprefix("student."): w for name, w in online.items() if name.startswith("student.")}
    head = {name.removeprefix("predictor."): w for name, w in online.items() if name.startswith("predictor.")}
    joint = torch.cat([images[0], images[1]])
    p = mlp(embed(joint, rows[0] + rows[1], student), head, "")
    with torch.no_grad():
        z = embed(joint, rows[0] + rows[1], target)
    total, boxes = torch.zeros(()), len(rows[0])
    for k in range(boxes):
        total = total + 2 - 2 * cosine(p[k], z[boxes + k]) + 2 - 2 * cosine(p[boxes + k], z[k])
    return total / boxes


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / (a.square().sum().sqrt() * b.square().sum().sqrt())


def pairs(
    crops: list[Box], flips: list[bool], noise: list[list[list[float]]], size: int, least: int
) -> list[tuple[Box, Box]]:
    """One image's box pairs from the grid generator; none when its views share too little."""
    left, top = max(c[0] for c in crops), max(c[1] for c in crops)
    right, bottom = min(c[2] for c in crops), min(c[3] for c in crops)
    if right <= left or bottom <= top:
        return []
    sx, sy = ([size / (c[2 + axis] - c[axis]) for c in crops] for axis in (0, 1))
    width, height = round((right - left) * min(sx)), round((bottom - top) * min(sy))
    if width <= least or height <= least:
        return []

    def seen(v: int, x: float, y: float, w: float, h: float) -> Box:
        """A box of the work frame in view v, not clipped."""
        x1 = x * sx[v] / min(sx) + (left - crops[v][0]) * sx[v]
        y1 = y * sy[v] / min(sy) + (top - crops[v][1]) * sy[v]
        x2, y2 = x1 + w * sx[v] / min(sx), y1 + h * sy[v] / min(sy)
        return (size - x2, y1, size - x1, y2) if flips[v] else (x1, y1, x2, y2)

    found: list[tuple[Box, Box]] = []
    for tries in noise:
        for u in tries:
            x, w = along(width, u[0::2], least)
            y, h = along(height, u[1::2], least)
            if all(iou(seen(0, x, y, w, h), one) < 0.5 for one, _ in found):
                break
        one, two = (tuple(min(max(c, 0), size) for c in seen(v, x, y, w, h)) for v in (0, 1))
        found.append((one, two))
    return found


def along(size: int, u: list[float], least: int) -> tuple[int, int]:
    """Start and side along one axis."""
    cells = 1 + math.floor(u[0] * (size // least))
    cell = math.floor(u[1] * cells)
    room = math.floor(size / cells)
    side = least + math.floor(u[2] * (room - least + 1))
    return math.floor(cell * (size / cells)) + math.floor(u[3] * (room - side + 1)), side


def iou(a: Box, b: Box) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def embed(images: Tensor, rows: list[tuple[int, Box]], weights: Weights) -> Tensor:
    """Five strided convolutions, RoIAlign on the last map, projector."""
    x = images
    for stage in range(5):
        name = f"encoder.body.stages.{stage}"
        x = F.conv2d(x, weights[f"{name}.0.weight"], stride=2, padding=1)
        x = normalised(x, weights[f"{name}.1.weight"], weights[f"{name}.1.bias"]).relu()
    stride = images.shape[-1] / x.shape[-1]
    pooled = torch.stack([pool(x[i], [c / stride for c in box]) for i, box in rows])
    return mlp(pooled, weights, "taps.box.project.")


def pool(features: Tensor, box: list[float]) -> Tensor:
    """The mean over a grid of about one point per cell; cell j's value lies at coordinate j."""
    x1, y1, x2, y2 = box
    width, height = max(x2 - x1, 1.0), max(y2 - y1, 1.0)
    across, down = math.ceil(width), math.ceil(height)
    points = [
        point(features, x1 + (i + 0.5) * width / across, y1 + (j + 0.5) * height / down)
        for j in range(down)
        for i in range(across)
    ]
    return torch.stack(points).mean(0)


def point(features: Tensor, x: float, y: float) -> Tensor:
    """Bilinear between the four cells around; held at the border, zero beyond one cell outside."""
    rows, columns = features.shape[1:]
    if not (-1 <= x <= columns and -1 <= y <= rows):
        return torch.zeros(len(features))
    x, y = min(max(x, 0), columns - 1), min(max(y, 0), rows - 1)
    i, j = int(x), int(y)
    right, below = min(i + 1, columns - 1), min(j + 1, rows - 1)
    upper = features[:, j, i] * (1 - x + i) + features[:, j, right] * (x - i)
    lower = features[:, below, i] * (1 - x + i) + features[:, below, right] * (x - i)
    return upper * (1 - y + j) + lower * (y - j)


def mlp(x: Tensor, weights: Weights, at: str) -> Tensor:
    """Linear, BatchNorm, ReLU, Linear without bias."""
    x = x @ weights[f"{at}1.weight"].T + weights[f"{at}1.bias"]
    x = normalised(x, weights[f"{at}2.weight"], weights[f"{at}2.bias"]).relu()
    return x @ weights[f"{at}4.weight"].T


def normalised(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    across = [0, *range(2, x.dim())]
    mean = x.mean(across, keepdim=True)
    y = (x - mean) / ((x - mean).square().mean(across, keepdim=True) + 1e-5).sqrt()
    along_channels = [1, -1, *[1] * (x.dim() - 2)]
    return y * scale.view(along_channels) + shift.view(along_channels)
