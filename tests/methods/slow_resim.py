"""One step of ReSim on MoCo-v2 as its paper and official code tell it, in loops; nothing of the package is used."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

Box = list[float]
Weights = Mapping[str, Tensor]
LEVELS = {
    "p4": (48, 32, 16, "all"),
    "p3": (32, 24, 8, "half"),
}  # window, stride, stride of the map, whose negatives
HOT = 0.2


def losses(
    images: Tensor,
    crops: Tensor,
    flips: Tensor,
    query: Weights,
    key: Weights,
    queue: Tensor,
    groups: list[list[int]],
) -> dict[str, Tensor]:
    """`images` (2, B, 3, H, W), `crops` (2, B, 4) xyxy, `flips` (2, B), weights by name, `queue` unit rows.

    `groups` are the images that the key network sees together. On p3, negatives are those of the own half of the
    batch.
    """
    size, count = images.shape[-1], images.shape[1]
    here = network(images[0], query)
    with torch.no_grad():
        there = {name: torch.empty_like(x) for name, x in here.items()}
        for group in groups:
            for name, x in network(images[1][group], key).items():
                there[name][group] = x
    image = [nce(unit(here["image"][i]), unit(there["image"][i]), [*queue]) for i in range(count)]
    found = {"image": sum(image) / count}
    for name, (window, step, cell, whose) in LEVELS.items():
        terms = []
        for i in range(count):
            half = range(count // 2) if i < count // 2 else range(count // 2, count)
            negatives = [n for j in (range(count) if whose == "all" else half) for n in grid(there[name][j])]
            for box in windows(size, window, step):
                other = seen_by_key(box, crops[:, i].tolist(), flips[:, i].tolist(), size)
                if min(other) < 0 or max(other) >= size:
                    continue
                q, k = (
                    unit(pooled(x[name][i], [c / cell for c in b])) for x, b in ((here, box), (there, other))
                )
                terms.append(nce(q, k, negatives))
        found[name] = sum(terms) / len(terms)
    return found


def windows(size: int, window: int, step: int) -> list[Box]:
    """Row by row from the corner, as long as the far edges stay short of the view's."""
    starts = [s for s in range(0, size, step) if s + window < size]
    return [[float(x), float(y), float(x + window), float(y + window)] for y in starts for x in starts]


def seen_by_key(box: Box, crops: list[Box], flips: list[bool], size: int) -> Box:
    """A query's box in the pixels of the key."""
    (lq, tq, rq, bq), (lk, tk, rk, bk) = crops
    x0, y0, x1, y1 = box
    if flips[0]:
        x0, x1 = size - x1, size - x0
    x0, x1 = ((lq + x * (rq - lq) / size - lk) * size / (rk - lk) for x in (x0, x1))
    y0, y1 = ((tq + y * (bq - tq) / size - tk) * size / (bk - tk) for y in (y0, y1))
    if flips[1]:
        x0, x1 = size - x1, size - x0
    return [x0, y0, x1, y1]


def pooled(features: Tensor, box: Box) -> Tensor:
    """The bilinear surface's integral over the box, piece by piece between whole coordinates, over its area.

    On each piece the surface is a product of two lines, of which the middle tells the mean.
    """
    x0, y0, x1, y1 = box
    total = torch.zeros(len(features))
    for left, right in pieces(x0, x1):
        for top, bottom in pieces(y0, y1):
            total = total + point(features, (left + right) / 2, (top + bottom) / 2) * (right - left) * (
                bottom - top
            )
    return total / ((x1 - x0) * (y1 - y0))


def pieces(start: float, end: float) -> list[tuple[float, float]]:
    whole = [float(i) for i in range(int(start) + 1, int(end) + 1) if start < i < end]
    return list(zip([start, *whole], [*whole, end], strict=True))


def point(features: Tensor, x: float, y: float) -> Tensor:
    """Pixel j at coordinate j, 0 outside of the map."""
    rows, columns = features.shape[1:]
    i, j = int(x // 1), int(y // 1)
    total = torch.zeros(len(features))
    for row, down in ((j, 1 - (y - j)), (j + 1, y - j)):
        for column, across in ((i, 1 - (x - i)), (i + 1, x - i)):
            if 0 <= row < rows and 0 <= column < columns:
                total = total + features[:, row, column] * down * across
    return total


def grid(features: Tensor) -> list[Tensor]:
    """Unit means of 3 x 3 cells."""
    rows, columns = features.shape[1:]
    return [
        unit(features[:, j : j + 3, i : i + 3].mean((1, 2)))
        for j in range(rows - 2)
        for i in range(columns - 2)
    ]


def nce(q: Tensor, k: Tensor, negatives: list[Tensor]) -> Tensor:
    logits = torch.stack([(q * k).sum(), *(torch.stack(negatives) @ q)]) / HOT
    return -logits.log_softmax(0)[0]


def unit(x: Tensor) -> Tensor:
    return x / x.square().sum().sqrt()


def network(images: Tensor, w: Weights) -> dict[str, Tensor]:
    """The body's maps, an FPN of two levels, and the head of the whole image."""
    maps = stages(images, w, "encoder.body")
    fpn = "encoder.fpn."
    c3, c4, c5 = (
        F.conv2d(maps[at + 1], w[f"{fpn}inner_blocks.{at}.0.weight"], w[f"{fpn}inner_blocks.{at}.0.bias"])
        for at in (1, 2, 3)
    )
    c4 = c4 + c5.repeat_interleave(2, 2).repeat_interleave(2, 3)
    c3 = c3 + c4.repeat_interleave(2, 2).repeat_interleave(2, 3)
    p3, p4 = (
        F.conv2d(c, w[f"{fpn}layer_blocks.{at}.0.weight"], w[f"{fpn}layer_blocks.{at}.0.bias"], padding=1)
        for at, c in ((1, c3), (2, c4))
    )
    head = "taps.image.project."
    hidden = maps[-1].mean((2, 3)) @ w[f"{head}1.weight"].T + w[f"{head}1.bias"]
    return {"image": hidden.relu() @ w[f"{head}3.weight"].T + w[f"{head}3.bias"], "p4": p4, "p3": p3}


def stages(images: Tensor, w: Weights, body: str) -> list[Tensor]:
    """The maps of five strided convolutions."""
    x, maps = images, []
    for stage in range(5):
        at = f"{body}.stages.{stage}"
        x = F.conv2d(x, w[f"{at}.0.weight"], stride=2, padding=1)
        x = normalised(x, w[f"{at}.1.weight"], w[f"{at}.1.bias"]).relu()
        maps.append(x)
    return maps


def normalised(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    mean = x.mean((0, 2, 3), keepdim=True)
    y = (x - mean) / ((x - mean).square().mean((0, 2, 3), keepdim=True) + 1e-5).sqrt()
    return y * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)
