"""One step of ReSim on SimSiam as its paper tells it, in loops; nothing of the package is used."""

from __future__ import annotations

import torch
from slow_resim import Box, Weights, pooled, seen_by_key, stages, unit, windows
from torch import Tensor

WINDOW, STEP, CELL = 48, 32, 16
"""Of c4."""


def losses(images: Tensor, crops: Tensor, flips: Tensor, w: Weights) -> dict[str, Tensor]:
    """`images` (2, B, 3, H, W), `crops` (2, B, 4) xyxy, `flips` (2, B), all weights of student and predictor."""
    size, count = images.shape[-1], images.shape[1]
    shown: list[tuple[int, Box, Box]] = []
    for i in range(count):
        for box in windows(size, WINDOW, STEP):
            other = seen_by_key(box, crops[:, i].tolist(), flips[:, i].tolist(), size)
            if min(other) >= 0 and max(other) < size:
                shown.append((i, box, other))
    embedded = []
    for side in (0, 1):
        *_, c4, c5 = stages(images[side], w, "student.encoder.body")
        boxes = [(found[0], found[1 + side]) for found in shown]
        rows = {
            "image": c5.mean((2, 3)),
            "c4": torch.stack([pooled(c4[i], [c / CELL for c in box]) for i, box in boxes]),
        }
        embedded.append(
            {name: (z := projected(x, w, name), predicted(z, w, name)) for name, x in rows.items()}
        )
    found = {}
    for name in ("image", "c4"):
        (z1, p1), (z2, p2) = (side[name] for side in embedded)
        terms = [
            (-(unit(a) @ unit(b.detach())) - unit(c) @ unit(d.detach())) / 2
            for a, b, c, d in zip(p1, z2, p2, z1, strict=True)
        ]
        found[name] = sum(terms) / len(terms)
    return found


def projected(x: Tensor, w: Weights, name: str) -> Tensor:
    """Three layers without biases, a norm after each; the last without scale and shift, and no ReLU after it."""
    at = f"student.taps.{name}.project"
    x = centred(x @ w[f"{at}.1.weight"].T) * w[f"{at}.2.weight"] + w[f"{at}.2.bias"]
    x = centred(x.relu() @ w[f"{at}.4.weight"].T) * w[f"{at}.5.weight"] + w[f"{at}.5.bias"]
    return centred(x.relu() @ w[f"{at}.7.weight"].T)


def predicted(z: Tensor, w: Weights, name: str) -> Tensor:
    at = f"predictor.{name}"
    x = centred(z @ w[f"{at}.1.weight"].T) * w[f"{at}.2.weight"] + w[f"{at}.2.bias"]
    return x.relu() @ w[f"{at}.4.weight"].T + w[f"{at}.4.bias"]


def centred(rows: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the rows there are: windows that the other view does not show have none."""
    apart = rows - rows.mean(0)
    return apart / (apart.square().mean(0) + 1e-5).sqrt()
