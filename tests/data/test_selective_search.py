"""Selective search equals a slow reference and the package `selectivesearch`, box for box and in the same order."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path

import numpy as np
import pytest
import selectivesearch
from PIL import Image
from skimage.color import rgb2hsv
from skimage.feature import local_binary_pattern
from slow_selective_search import slow_search

from boxwise.data.selective_search import _zeros_and_ones, neighbours, segment, selective_search

PHOTOS = Path(__file__).parents[3] / "shared" / "data" / "coco_sample" / "train2017"


def patches(seed: int, *, rows: int = 6, columns: int = 7, cell: int = 14, levels: int = 5) -> np.ndarray:
    """uint8 (H, W, 3): cells of few colours, a few of them noisy: many equal similarities."""
    draw = np.random.default_rng(seed)
    cells = draw.integers(0, levels, (rows, columns, 3)) * (255 // (levels - 1))
    flat = np.kron(cells, np.ones((cell, cell, 1))).astype(np.int64)
    noise = draw.integers(-40, 40, flat.shape) * np.kron(
        draw.random((rows, columns, 1)) < 0.4, np.ones((cell, cell, 1))
    )
    return np.clip(flat + noise, 0, 255).astype(np.uint8)


def smooth(seed: int) -> np.ndarray:
    draw = np.random.default_rng(seed).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(draw).resize((110, 90), Image.Resampling.BICUBIC))


PICTURES = {
    "patches": patches(0),
    "gray patches": np.repeat(patches(1, levels=3)[..., :1], 3, axis=2),
    "smooth": smooth(2),
    "noise": np.random.default_rng(3).integers(0, 256, (60, 70, 3), dtype=np.uint8),
    "black": np.zeros((40, 50, 3), dtype=np.uint8),
    "thin": patches(4)[:3],
}


@pytest.mark.parametrize("name", PICTURES)
def test_boxes_are_those_of_the_loops(name: str) -> None:
    """Breaks when neighbours, a term of the similarity, its order of adding, the rule for ties or a box changes."""
    unit = PICTURES[name] * (1 / 255)
    wanted = slow_search(unit, texture_top=1.0, colours=rgb2hsv(unit))
    assert selective_search(PICTURES[name]).tolist() == [list(box) for box in wanted]


@pytest.mark.parametrize("name", PICTURES)
def test_bytes_count_all_texture_codes_and_brightness(name: str) -> None:
    """Breaks when SoCo's own search counts two codes only, or takes brightness in [0, 1]."""
    unit = PICTURES[name] * (1 / 255)
    hsv = rgb2hsv(PICTURES[name].astype(np.float64))
    wanted = slow_search(unit, texture_top=255.0, colours=hsv)
    assert selective_search(PICTURES[name], values="bytes").tolist() == [list(box) for box in wanted]


def test_the_two_kinds_of_values_are_two_searches() -> None:
    """Breaks when `values` is not heard: then both tests above would hold one and the same thing."""
    unlike = [
        n
        for n, p in PICTURES.items()
        if selective_search(p).tolist() != selective_search(p, values="bytes").tolist()
    ]
    assert unlike


@pytest.mark.parametrize("number", range(3))
def test_boxes_equal_those_of_the_package_on_photos(number: int) -> None:
    """Breaks when anything differs from `selectivesearch` on what it is used for."""
    photos = sorted(PHOTOS.glob("*.jpg"))
    if not photos:
        pytest.skip("no photos here")
    with Image.open(photos[number * 17]) as file:
        pixels = np.asarray(file.convert("RGB").resize((200, 170)))
    unit = pixels / 255
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, wanted = selectivesearch.selective_search(unit, scale=300, sigma=0.9, min_size=100)
    assert selective_search(unit).tolist() == [list(map(int, one["rect"])) for one in wanted]
    assert len(wanted) > 10


@pytest.mark.parametrize("name", PICTURES)
def test_boxes_equal_those_of_the_package(name: str) -> None:
    """Breaks when the slow reference and the search err together."""
    unit = PICTURES[name] / 255
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, wanted = selectivesearch.selective_search(unit, scale=300, sigma=0.9, min_size=100)
    assert selective_search(unit).tolist() == [list(map(int, one["rect"])) for one in wanted]


@pytest.mark.parametrize("name", PICTURES)
def test_bytes_give_the_boxes_of_the_package_with_its_texture_range_mended(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks when SoCo's variant, the package on bytes with LBP codes counted in [0, 255], is not what is run."""
    package = importlib.import_module("selectivesearch.selectivesearch")

    def all_codes(values: np.ndarray) -> np.ndarray:
        return np.concatenate([np.histogram(values[:, c], 10, (0.0, 255.0))[0] for c in range(3)]) / len(
            values
        )

    monkeypatch.setattr(package, "_calc_texture_hist", all_codes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, wanted = package.selective_search(PICTURES[name], scale=300, sigma=0.9, min_size=100)
    found = selective_search(PICTURES[name], values="bytes")
    assert found.tolist() == [list(map(int, one["rect"])) for one in wanted]


@pytest.mark.parametrize("levels", [2, 4, 9, 256])
def test_the_two_codes_are_found_to_the_last_bit(levels: int) -> None:
    """Breaks when a diagonal is blended in another order: with few levels, many blends equal their pixel."""
    plane = np.random.default_rng(levels).integers(0, levels, (70, 90)) * (1 / max(levels - 1, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        codes = local_binary_pattern(plane, 8, 1.0).ravel()
    zeros, ones = _zeros_and_ones(plane)
    assert np.flatnonzero(codes == 0).tolist() == zeros.tolist()
    assert np.flatnonzero(codes == 1).tolist() == ones.tolist()
    assert len(zeros) > 10 and len(ones) > 10


def test_a_neighbour_has_a_corner_strictly_inside_the_earlier_box() -> None:
    """Breaks when edges count, when the later box may hold the earlier one, or when the order is lost."""
    box = np.array([[0, 0, 10, 10], [5, 5, 20, 20], [10, 0, 20, 4], [-5, -5, 30, 30], [6, 6, 7, 7]])
    near = {(int(a), int(b)) for a, b in np.argwhere(neighbours(box))}
    assert near == {(0, 1), (0, 4), (1, 4), (3, 4)}


def test_segments_are_numbered_in_reading_order() -> None:
    """Breaks when a faster segmentation numbers differently: ties between pairs would fall otherwise."""
    segments = segment(PICTURES["patches"] * (1 / 255), scale=300, sigma=0.9, min_size=100)
    _, first = np.unique(segments, return_index=True)
    assert (np.diff(first) > 0).all() and len(first) > 5
