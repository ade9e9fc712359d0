"""Precise RoI pooling against sums over a fine grid, and under autocast."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from boxwise.nn.pools import Level, Together
from boxwise.nn.precise import PrecisePool, precise


def rand(*shape: int, seed: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def surface(features: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The bilinear surface at points: (C, points)."""
    rows, columns = (torch.arange(n, dtype=torch.float64) for n in features.shape[1:])
    across = (1 - (x[:, None] - columns).abs()).clamp(min=0)
    down = (1 - (y[:, None] - rows).abs()).clamp(min=0)
    return torch.einsum("cij,pi,pj->cp", features, down, across)


def test_trap_21_pooled_is_the_mean_over_a_fine_grid() -> None:
    """Breaks when pixels sit at half cells, the border is held beyond the map, or images are crossed."""
    features = rand(2, 3, 5, 7, seed=1)
    boxes = torch.tensor(
        [[[0.3, 0.2, 4.7, 3.9], [-2.0, 1.5, 2.2, 6.4]], [[5.5, 3.0, 9.0, 4.0], [2.0, 2.0, 2.4, 2.1]]]
    )
    boxes = boxes.double()
    out = precise(features, boxes, (7, 5))
    assert out.shape == (4, 3, 1, 1)
    steps = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    for n in range(2):
        for r in range(2):
            x0, y0, x1, y1 = boxes[n, r].tolist()
            y, x = torch.meshgrid(y0 + steps * (y1 - y0), x0 + steps * (x1 - x0), indexing="ij")
            want = surface(features[n], x.flatten(), y.flatten()).mean(1)
            torch.testing.assert_close(out[2 * n + r, :, 0, 0], want, atol=1e-4, rtol=0)


def test_gradients_are_exact() -> None:
    """Breaks when a gradient of features or coordinates is not that of the value, whole coordinates too."""
    features = rand(1, 2, 4, 4, seed=2).requires_grad_()
    boxes = torch.tensor([[[0.3, 0.4, 2.6, 3.1], [-0.5, 1.2, 1.7, 4.4]]]).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda f, b: precise(f, b, (4, 4)), (features, boxes))
    whole = torch.tensor([[[1.0, 1.0, 3.0, 2.0]]]).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda b: precise(features.detach(), b, (4, 4)), (whole,), atol=1e-4)


def test_a_box_without_area_is_zero_and_has_no_gradient() -> None:
    """Breaks when padding divides by zero."""
    features = rand(1, 2, 4, 4, seed=3).requires_grad_()
    boxes = torch.tensor([[[1.0, 1, 1, 2], [3, 1, 2, 2], [2, 2, 2, 2]]]).double().requires_grad_()
    out = precise(features, boxes, (4, 4))
    out.sum().backward()
    assert (out == 0).all() and (features.grad == 0).all() and (boxes.grad == 0).all()


def test_each_axis_has_its_own_stride() -> None:
    """Breaks when a view that is not square is read by one stride."""
    features = rand(1, 2, 4, 6, seed=4)
    box = torch.tensor([[[1.0, 1, 3, 2]]]).double()
    wide = precise(features, box * torch.tensor([8.0, 16, 8, 16]), (48, 64))
    torch.testing.assert_close(wide, precise(features, box, (6, 4)))
    torch.testing.assert_close(
        PrecisePool("p3")({"p3": features}, {"p3": box}, 6, 4), precise(features, box, (6, 4))
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_maps_are_read_exactly(dtype: torch.dtype) -> None:
    """Breaks when coordinates or sums are rounded to half precision, by autocast or by the map."""
    features = rand(1, 2, 14, 14, seed=5).to(dtype)
    boxes = torch.tensor([[[3.3, 40.1, 51.7, 88.2]]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = precise(features, boxes, (224, 224))
    want = precise(features.float(), boxes, (224, 224)).to(dtype)
    assert out.dtype == dtype and torch.equal(out, want)


def test_levels_as_they_are_and_tiles_side_by_side() -> None:
    """Breaks when a map is pooled, or tiles are averaged together."""
    x = rand(6, 2, 3, 3, seed=6)
    assert Level("c4")({"c4": x}, None, 48) is x
    rows = Together("c4", 3)({"c4": x}, None, 48)
    assert rows.shape == (2, 6, 1, 1)
    torch.testing.assert_close(rows[1, 2:4, 0, 0], x[4].mean((1, 2)))
