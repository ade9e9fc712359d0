"""RoIAlign by matrix products beside torchvision's kernel."""

from __future__ import annotations

import pytest
import torch
import torchvision.ops
from torch import Tensor

from boxwise.nn import align
from boxwise.nn.align import roi_align


def some_boxes(count: int, *, images: int = 3) -> Tensor:
    """Of all sizes, some without area, many partly or wholly outside of an 80 x 96 view, images in no order."""
    generator = torch.Generator().manual_seed(3)
    corner = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 110 - 15
    side = torch.rand(count, 2, generator=generator, dtype=torch.float64) ** 2 * 90
    side[::9, 0] = 0
    image = torch.randint(images, (count, 1), generator=generator).double()
    return torch.cat([image, corner, corner + side], dim=1)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, 1, 2])
@pytest.mark.parametrize("size", [1, 7])
def test_equals_torchvision_in_value_and_gradient(aligned: bool, sampling_ratio: int, size: int) -> None:
    """Breaks when points, the half cell, the border, a clamp or the order of rows differ."""
    generator = torch.Generator().manual_seed(4)
    maps = torch.randn(3, 4, 24, 20, generator=generator, dtype=torch.float64, requires_grad=True)
    boxes, options = some_boxes(60), {"sampling_ratio": sampling_ratio, "aligned": aligned}
    ours = roi_align(maps, boxes, size, scale=0.25, **options)
    theirs = torchvision.ops.roi_align(maps, boxes, size, spatial_scale=0.25, **options)
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)
    slope = torch.randn(ours.shape, generator=generator, dtype=torch.float64)
    gradients = [torch.autograd.grad((x * slope).sum(), maps)[0] for x in (ours, theirs)]
    torch.testing.assert_close(*gradients, atol=1e-12, rtol=0)


def test_large_maps_are_left_to_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks when a box of a large map costs a product with all of it, or the two ways give other numbers."""
    maps, boxes = torch.randn(3, 2, 24, 20).double(), some_boxes(20)
    small = roi_align(maps, boxes, 3, scale=0.25, sampling_ratio=0, aligned=True)
    seen: list[int] = []
    kernel = torchvision.ops.roi_align
    monkeypatch.setattr(align, "MOST_CELLS", 479)
    monkeypatch.setattr(
        torchvision.ops, "roi_align", lambda *a, **n: seen.append(len(a[1])) or kernel(*a, **n)
    )
    large = roi_align(maps, boxes, 3, scale=0.25, sampling_ratio=0, aligned=True)
    assert seen == [20]
    torch.testing.assert_close(small, large)


def test_no_boxes_and_images_without_boxes() -> None:
    """Breaks when an image that has no box shifts the rows of those after it, or none at all raises."""
    maps = torch.arange(3.0)[:, None, None, None].expand(3, 2, 8, 8)
    boxes = torch.tensor([[2.0, 1, 1, 5, 5], [0, 1, 1, 5, 5]])
    options = {"scale": 1.0, "sampling_ratio": 2, "aligned": True}
    assert roi_align(maps, boxes, 2, **options)[:, 0, 0, 0].tolist() == [2.0, 0.0]
    assert roi_align(maps, boxes[:0], 2, **options).shape == (0, 2, 2, 2)
