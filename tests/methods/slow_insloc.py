"""One step of InsLoc as its paper and official code tell it, in loops; nothing of the package is used."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Box = tuple[float, float, float, float]
Weights = Mapping[str, Tensor]
Rows = list[tuple[int, list[Box]]]
"""Images, each with the box that is read from every level."""


def losses(
    images: Tensor,
    boxes: Sequence[Sequence[Box]],
    flips: Tensor,
    anchors: Tensor,
    shuffle: Tensor,
    queues: Sequence[Tensor],
    student: Weights,
    teacher: Weights,
    *,
    augmented: Sequence[bool],
    apart: bool,
    temperature: float,
) -> list[Tensor]:
    """`images` (2, B, 3, S, S), `boxes` before the flip, `anchors` (B, 5121) and `shuffle` (B,) uniform numbers.

    `student` and `teacher` hold weights by name. One level, c4, where `augmented` has one switch.
    """
    size, count, levels = images.shape[-1], images.shape[1], len(augmented)
    seen = [[mirrored(b, size) if f else b for b, f in zip(boxes[v], flips[v].tolist())] for v in (0, 1)]
    query_rows: Rows = []
    for i in range(count):
        moved = drawn(seen[0][i], anchors[i].tolist(), size, apart)
        query_rows.append((i, [moved if a else seen[0][i] for a in augmented]))
    q = embed(images[0], query_rows, student)
    k: dict[int, Tensor] = {}
    with torch.no_grad():
        for group in dealt(shuffle.tolist()):  # each with statistics of its own
            rows = embed(images[1][group], [(n, [seen[1][i]] * levels) for n, i in enumerate(group)], teacher)
            k |= {i: rows[n * levels : (n + 1) * levels] for n, i in enumerate(group)}
    found = []
    for level in range(levels):
        total = torch.zeros(())
        for i in range(count):
            query = q[i * levels + level]
            logits = [cosine(query, k[i][level]), *(cosine(query, n) for n in queues[level])]
            total = total - torch.log_softmax(torch.stack(logits) / temperature, 0)[0]
        found.append(total / count)
    return found


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / (a.square().sum().sqrt() * b.square().sum().sqrt())


def mirrored(box: Box, size: int) -> Box:
    return size - box[2], box[1], size - box[0], box[3]


def dealt(noise: list[float]) -> list[list[int]]:
    """Groups of four images, each with an equal share of every four in a row, shuffled."""
    groups: list[list[int]] = [[] for _ in range(len(noise) // 4)]
    for start in range(0, len(noise), 4):
        for turn, image in enumerate(sorted(range(start, start + 4), key=lambda i: noise[i])):
            groups[turn * len(groups) // 4].append(image)
    return groups


def drawn(box: Box, noise: list[float], size: int, apart: bool) -> Box:
    """One of the anchors that overlap the box by more than a half."""
    cell, found = size / 16, []
    number = 0
    for row in range(16):
        for column in range(16):
            for ratio in (0.5, 0.75, 1.0, 1.5, 2.0):
                for scale in (2, 4, 8, 16):
                    w, h = scale / math.sqrt(ratio) * cell, scale * math.sqrt(ratio) * cell
                    x, y = column * cell, row * cell
                    anchor = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
                    if iou(box, anchor) > 0.5:
                        found.append((noise[number], anchor))
                    number += 1
    assert found, "boxes of the tests have candidates"
    found.sort(reverse=True)
    if not apart:
        return found[0][1]
    kept: list[Box] = []
    for _, anchor in found:
        if all(iou(anchor, other) <= 0.7 for other in kept):
            kept.append(anchor)
    return kept[math.floor(noise[-1] * len(kept))]


def iou(a: Box, b: Box) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def embed(images: Tensor, rows: Rows, w: Weights) -> Tensor:
    """One row for each image and level."""
    fpn = any(name.startswith("encoder.fpn") for name in w)
    maps, x = [], images
    for stage in range(5 if fpn else 4):
        at = f"encoder.body.stages.{stage}"
        x = normalised(F.conv2d(x, w[f"{at}.0.weight"], stride=2, padding=1), w, f"{at}.1").relu()
        maps.append(x)
    read = pyramid(maps[1:], w) if fpn else maps[-1:]
    bins, crops = (7 if fpn else 14), []
    for i, boxes in rows:
        for level, box in zip(read, boxes, strict=True):
            stride = images.shape[-1] / level.shape[-1]
            crops.append(pool(level[i], [c / stride for c in box], bins))
    x = torch.stack(crops)
    head, project = "taps.box.box_head", "taps.box.project"
    if fpn:
        for layer in range(4):
            x = F.conv2d(x, w[f"{head}.{layer}.0.weight"], padding=1)
            x = normalised(x, w, f"{head}.{layer}.1").relu()
        x = linear(x.flatten(1), w, f"{head}.5").relu()
    else:
        x = F.conv2d(x, w[f"{head}.last.stage.0.weight"], stride=2, padding=1)
        x = normalised(x, w, f"{head}.last.stage.1").relu().mean((2, 3))
    return linear(linear(x, w, f"{project}.1").relu(), w, f"{project}.3")


def pyramid(maps: Sequence[Tensor], w: Weights) -> list[Tensor]:
    """Lateral and output convolutions, a norm after each, nearest on the way down."""
    above, out = torch.zeros(()), []
    for i in reversed(range(4)):
        at = f"encoder.fpn.inner_blocks.{i}"
        here = normalised(F.conv2d(maps[i], w[f"{at}.0.weight"]), w, f"{at}.1")
        above = here + (above.repeat_interleave(2, 2).repeat_interleave(2, 3) if above.dim() else 0)
        at = f"encoder.fpn.layer_blocks.{i}"
        out.append(normalised(F.conv2d(above, w[f"{at}.0.weight"], padding=1), w, f"{at}.1"))
    return out[::-1]


def pool(features: Tensor, box: list[float], bins: int) -> Tensor:
    """Bins of a box, each the mean of about one point per cell; cell j's value lies at coordinate j + 1/2."""
    x1, y1, x2, y2 = (c - 0.5 for c in box)
    width, height = (x2 - x1) / bins, (y2 - y1) / bins
    across, down = math.ceil(width), math.ceil(height)
    columns = [x1 + (i + (s + 0.5) / across) * width for i in range(bins) for s in range(across)]
    lines = [y1 + (j + (s + 0.5) / down) * height for j in range(bins) for s in range(down)]
    grid = torch.stack([torch.stack([point(features, x, y) for x in columns], -1) for y in lines], -2)
    return grid.unflatten(-1, (bins, across)).mean(-1).unflatten(-2, (bins, down)).mean(-2)


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


def linear(x: Tensor, w: Weights, at: str) -> Tensor:
    return x @ w[f"{at}.weight"].T + w[f"{at}.bias"]


def normalised(x: Tensor, w: Weights, at: str) -> Tensor:
    mean = x.mean((0, 2, 3), keepdim=True)
    y = (x - mean) / ((x - mean).square().mean((0, 2, 3), keepdim=True) + 1e-5).sqrt()
    return y * w[f"{at}.weight"][:, None, None] + w[f"{at}.bias"][:, None, None]
