import pytest
import torch
from torchvision.ops import MultiScaleRoIAlign

from boxwise.transfer.detectors.pooler import RoIPooler

STRIDES = {"0": 4, "1": 8, "2": 16, "3": 32}
CORNER = torch.tensor([0.0, 0.0, 256.0, 192.0])


def pyramid(channels: int = 3, batch: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        n: torch.randn(batch, channels, 192 // s, 256 // s, generator=generator) for n, s in STRIDES.items()
    }


def boxes(count: int, seed: int) -> torch.Tensor:
    """Of all sizes from 2 to 250 pixels, so that every level is used."""
    generator = torch.Generator().manual_seed(seed)
    size = 2 ** (1 + 7 * torch.rand(count, 1, generator=generator)) * (
        0.7 + 0.6 * torch.rand(count, 2, generator=generator)
    )
    corner = torch.rand(count, 2, generator=generator) * (torch.tensor([256.0, 192.0]) - size).clamp(min=0)
    return torch.cat([corner, torch.minimum(corner + size, CORNER[2:])], dim=1)


@pytest.mark.parametrize(("sampling", "canonical"), [(2, 112), (0, 56), (3, 56), (2, 20)])
def test_equals_torchvision_when_set_the_same(sampling: int, canonical: int) -> None:
    """A wrong level, stride, row order or half-pixel would move values."""
    maps, rois, shapes = pyramid(), [boxes(40, 1), boxes(25, 2)], [(192, 256), (180, 256)]
    ours = RoIPooler(
        STRIDES, output_size=7, sampling_ratio=sampling, aligned=False, canonical_size=float(canonical)
    )
    theirs = MultiScaleRoIAlign([*STRIDES], 7, sampling, canonical_scale=canonical)
    assert len(ours.levels(torch.cat(rois)).unique()) >= 3
    got, expected = ours(maps, rois, shapes), theirs(maps, rois, shapes)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)


def test_gradient_equals_torchvision() -> None:
    rois = [boxes(30, 3), boxes(30, 4)]
    weight = torch.randn(60, 3, 7, 7, generator=torch.Generator().manual_seed(9))
    grads = []
    for pool in (
        RoIPooler(STRIDES, output_size=7, sampling_ratio=2, aligned=False),
        MultiScaleRoIAlign([*STRIDES], 7, 2),
    ):
        maps = {n: m.requires_grad_() for n, m in pyramid().items()}
        (pool(maps, rois, [(192, 256)] * 2) * weight).sum().backward()
        grads.append([m.grad for m in maps.values()])
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


@pytest.mark.parametrize("aligned", [True, False])
def test_a_ramp_gives_the_centre_of_every_box(aligned: bool) -> None:
    """Maps hold the pixel coordinates of their cells' centres: aligned, a box reads its own centre; else it
    reads half a cell off."""
    maps = {}
    for name, stride in STRIDES.items():
        xs = (torch.arange(256 // stride) + 0.5) * stride
        ys = (torch.arange(192 // stride) + 0.5) * stride
        maps[name] = torch.stack(torch.meshgrid(ys, xs, indexing="ij"))[None]
    rois = torch.tensor([[64.0, 48.0, 90.0, 70.0], [60.0, 40.0, 180.0, 140.0], [40.0, 40.0, 216.0, 152.0]])
    pool = RoIPooler(STRIDES, output_size=1, sampling_ratio=4, aligned=aligned)
    stride = torch.tensor([*STRIDES.values()])[pool.levels(rois)]
    centre = (rois[:, [1, 0]] + rois[:, [3, 2]]) / 2
    expected = centre if aligned else centre + stride[:, None] / 2
    torch.testing.assert_close(pool(maps, [rois], [(192, 256)])[:, :, 0, 0], expected, atol=1e-3, rtol=0)


def test_a_box_of_canonical_size_lies_on_the_canonical_level() -> None:
    pool = RoIPooler(STRIDES, output_size=1, sampling_ratio=2, aligned=True, canonical_size=56)
    side = torch.tensor([10.0, 27.9, 28.0, 55.9, 56.0, 111.9, 112.0, 500.0])
    square = torch.stack([side * 0, side * 0, side, side], dim=1)
    assert pool.levels(square).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_an_image_without_boxes_and_half_precision_maps() -> None:
    pool = RoIPooler(STRIDES, output_size=7, sampling_ratio=2, aligned=True)
    maps, rois = pyramid(), [torch.zeros(0, 4), boxes(5, 5)]
    full = pool(maps, rois, [(192, 256)] * 2)
    half = pool({n: m.bfloat16() for n, m in maps.items()}, rois, [(192, 256)] * 2)
    assert full.shape == (5, 3, 7, 7) and half.dtype == torch.float32
    torch.testing.assert_close(half, full, atol=0.05, rtol=0)
    assert pool(maps, [torch.zeros(0, 4)] * 2, [(192, 256)] * 2).shape == (0, 3, 7, 7)


def test_strides_that_do_not_double_are_refused() -> None:
    with pytest.raises(ValueError, match="double"):
        RoIPooler({"0": 4, "1": 16}, output_size=7, sampling_ratio=2, aligned=True)
