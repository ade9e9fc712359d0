"""Masks lie where their outlines do, at any size, mirrored or not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from boxwise.data.outlines import rasterise, rle, unpacked


def box(left: int, top: int, right: int, bottom: int) -> list[list[float]]:
    return [[left, top, right, top, right, bottom, left, bottom]]


def block(height: int, width: int, rows: slice, columns: slice) -> torch.Tensor:
    mask = torch.zeros(height, width, dtype=torch.uint8)
    mask[rows, columns] = 1
    return mask


def runs(mask: np.ndarray) -> list[int]:
    """Uncompressed run lengths, by a loop: down the columns, unset pixels first."""
    counts, value = [0], 0
    for pixel in mask.T.ravel().tolist():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return counts


def test_polygons_scale_before_they_are_filled() -> None:
    """Breaks when height and width are swapped, or a mask is filled small and then enlarged."""
    found = rasterise(box(1, 2, 3, 5), source=(6, 4), size=(12, 20))
    assert torch.equal(found, block(12, 20, slice(4, 10), slice(5, 15)))
    triangle = rasterise([[0, 0, 4, 0, 0, 4]], source=(4, 4), size=(64, 64))
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    away = (rows + columns - 63).abs() > 1  # off the slope itself
    assert torch.equal(triangle[away], (rows + columns < 63)[away].to(torch.uint8)), "no steps of 16 pixels"


def test_polygons_are_joined() -> None:
    """Breaks when only the first of several parts is drawn, or one with less than three points stops it."""
    outline = [*box(0, 0, 2, 2), [1.0, 1.0, 3.0, 3.0], *box(3, 3, 5, 5)]
    found = rasterise(outline, source=(6, 6), size=(6, 6))
    wanted = block(6, 6, slice(0, 2), slice(0, 2)) + block(6, 6, slice(3, 5), slice(3, 5))
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("packed", [True, False])
def test_run_lengths_are_decoded_and_resized(packed: bool) -> None:
    """Breaks when runs are read along rows, or the resized mask is that of a transposed picture."""
    mask = block(8, 6, slice(2, 6), slice(0, 2)).numpy()
    outline: dict[str, Any] = rle(mask) if packed else {"size": [8, 6], "counts": runs(mask)}
    assert np.array_equal(unpacked(outline), mask)
    same = rasterise(outline, source=(8, 6), size=(8, 6))
    assert torch.equal(same, torch.from_numpy(mask))
    halved = rasterise(outline, source=(8, 6), size=(4, 3))
    assert torch.equal(halved, block(4, 3, slice(1, 3), slice(0, 1)))
    tripled = rasterise(outline, source=(8, 6), size=(24, 18))
    assert torch.equal(tripled, block(24, 18, slice(6, 18), slice(0, 6)))


@pytest.mark.parametrize("kind", ["polygon", "runs"])
def test_a_flip_is_that_of_the_picture(kind: str) -> None:
    mask = block(6, 8, slice(1, 4), slice(1, 3)).numpy()
    outline: Any = box(1, 1, 3, 4) if kind == "polygon" else rle(mask)
    found = rasterise(outline, source=(6, 8), size=(6, 8), flip=True)
    assert torch.equal(found, torch.from_numpy(mask).flip(1))


@pytest.mark.parametrize("nothing", [None, [], [[1.0, 1.0, 2.0, 2.0]]])
def test_no_outline_has_no_pixel(nothing: Any) -> None:
    assert torch.equal(rasterise(nothing, source=(4, 5), size=(4, 5)), torch.zeros(4, 5, dtype=torch.uint8))
