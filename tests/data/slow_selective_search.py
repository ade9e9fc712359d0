"""Selective search as its module's docstring states it, one pixel and one pair at a time; shares no code with it."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from skimage.feature import local_binary_pattern
from skimage.segmentation import felzenszwalb


def slow_search(unit: np.ndarray, *, texture_top: float, colours: np.ndarray) -> list[tuple[int, ...]]:
    """(left, top, width, height) in order. `colours` are the HSV values (H, W, 3) that are counted in [0, 255]."""
    segments = felzenszwalb(unit, scale=300, sigma=0.9, min_size=100)
    bytes_or_unit = unit if texture_top == 1 else np.round(unit * 255)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        codes = np.stack([local_binary_pattern(bytes_or_unit[..., c], 8, 1.0) for c in range(3)], axis=-1)
    regions: dict[int, dict[str, Any]] = {}
    for y, x in np.ndindex(segments.shape):
        one = regions.setdefault(int(segments[y, x]), {"x": [], "y": []})
        one["x"].append(x)
        one["y"].append(y)
    for label, one in regions.items():
        here = segments == label
        one["size"] = int(here.sum())
        one["box"] = (min(one["x"]), min(one["y"]), max(one["x"]), max(one["y"]))
        one["colour"] = histogram(colours[here], 25, 255.0)
        one["texture"] = histogram(codes[here], 10, texture_top)
    area = segments.size
    pairs = {}
    labels = list(regions)
    for k, a in enumerate(labels):
        for b in labels[k + 1 :]:
            if touches(regions[a]["box"], regions[b]["box"]):
                pairs[a, b] = alike(regions[a], regions[b], area)
    while pairs:
        i, j = max(pairs, key=lambda pair: (pairs[pair], list(pairs).index(pair)))
        t = max(regions) + 1
        regions[t] = together(regions[i], regions[j])
        gone = [pair for pair in pairs if i in pair or j in pair]
        for pair in gone:
            del pairs[pair]
        for a, b in gone:
            if {a, b} != {i, j}:
                n = b if a in (i, j) else a
                pairs[t, n] = alike(regions[t], regions[n], area)
    return [(b[0], b[1], b[2] - b[0], b[3] - b[1]) for b in (one["box"] for one in regions.values())]


def histogram(values: np.ndarray, bins: int, top: float) -> np.ndarray:
    return np.concatenate([np.histogram(values[:, c], bins, (0.0, top))[0] for c in range(3)]) / len(values)


def touches(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return any(a[0] < x < a[2] and a[1] < y < a[3] for x in (b[0], b[2]) for y in (b[1], b[3]))


def alike(a: dict[str, Any], b: dict[str, Any], area: int) -> float:
    total = 0.0
    for key in ("colour", "texture"):
        shared = 0.0
        for p, q in zip(a[key], b[key]):
            shared += min(p, q)
        total += shared
    (left, top, right, bottom), both = union(a["box"], b["box"]), a["size"] + b["size"]
    total += 1.0 - both / area
    return total + (1.0 - ((right - left) * (bottom - top) - both) / area)


def union(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    return (min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3]))


def together(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    size = a["size"] + b["size"]
    mean = {key: (a[key] * a["size"] + b[key] * b["size"]) / size for key in ("colour", "texture")}
    return {"size": size, "box": union(a["box"], b["box"]), **mean}
