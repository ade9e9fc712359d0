"""Pooling against maps that show their own coordinates or level."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.ops import roi_align

from boxwise.nn import pools
from boxwise.nn.pools import Align, EveryLevel, LevelBySize, RegionPool, Whole


def ramp(stride_x: int, stride_y: int, width: int = 64, height: int = 64) -> Tensor:
    """A map that holds the centre of each of its cells in view pixels, x then y."""
    x = torch.arange(width // stride_x) * stride_x + stride_x / 2
    y = torch.arange(height // stride_y) * stride_y + stride_y / 2
    return torch.stack(torch.meshgrid(x, y, indexing="xy"))[None]


def centres(boxes: Tensor) -> Tensor:
    return ((boxes[..., :2] + boxes[..., 2:]) / 2).flatten(0, 1)


EIGHT = torch.tensor([[[0.0, 0, 32, 32]]])
BOXES = torch.tensor([[[8.0, 12, 40, 20], [9, 9, 19, 45], [20, 20, 52, 52]]])


@pytest.mark.parametrize("stride", [4, 8])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_a_box_pools_its_own_centre(stride: int, sampling_ratio: int) -> None:
    """Breaks when the scale or the half-cell shift is wrong: features would come from beside the box."""
    pool = RegionPool("c2", 1, aligned=True, sampling_ratio=sampling_ratio)
    pooled = pool({"c2": ramp(stride, stride)}, BOXES, 64)
    torch.testing.assert_close(pooled.flatten(1), centres(BOXES))


def test_without_alignment_it_pools_half_a_cell_further() -> None:
    """Breaks when `aligned` is ignored: SCRL's flag."""
    pooled = RegionPool("c2", 1, aligned=False)({"c2": ramp(4, 4)}, BOXES, 64)
    torch.testing.assert_close(pooled.flatten(1), centres(BOXES) + 2)


@pytest.mark.parametrize("sampling_ratio", [0, 1, 2])
def test_each_bin_averages_as_many_points_as_asked(sampling_ratio: int) -> None:
    """Breaks when `sampling_ratio` is dropped on the way: features of large boxes change."""
    column = torch.tensor([0.0, 1, 0, 0, 0, 0, 0, 0]).expand(1, 1, 8, 8)
    pooled = RegionPool("c3", 1, aligned=True, sampling_ratio=sampling_ratio)({"c3": column}, EIGHT, 64)
    points = {0: [0.5, 1.5, 2.5, 3.5], 1: [2.0], 2: [1.0, 3.0]}[sampling_ratio]  # cells from the left edge
    assert pooled.item() == pytest.approx(sum(max(0, 1 - abs(x - 1.5)) for x in points) / len(points))


def test_a_view_that_is_not_square_has_two_strides() -> None:
    """Breaks when one scale serves both axes."""
    view = ramp(4, 8, width=64, height=96)
    pooled = RegionPool("c2", 1, aligned=True)({"c2": view}, BOXES, 64, 96)
    torch.testing.assert_close(pooled.flatten(1), centres(BOXES))


def test_bins_run_left_to_right_then_down() -> None:
    """Breaks when rows and columns of the crop are swapped."""
    pooled = RegionPool("c2", 2, aligned=True)({"c2": ramp(4, 4)}, torch.tensor([[[8.0, 16, 40, 32]]]), 64)
    assert pooled[0, 0].tolist() == [[16, 32], [16, 32]] and pooled[0, 1].tolist() == [[20, 20], [28, 28]]


def test_rows_run_image_by_image() -> None:
    """Breaks when boxes meet the map of another image."""
    maps = torch.arange(3.0)[:, None, None, None].expand(3, 1, 8, 8)
    boxes = torch.tensor([[8.0, 8, 24, 24], [16, 16, 40, 40]]).expand(3, 2, 4)
    assert RegionPool("c3", 1, aligned=True)({"c3": maps}, boxes, 64).flatten().tolist() == [0, 0, 1, 1, 2, 2]


def test_whole_is_the_mean_of_the_map() -> None:
    """Breaks when the mean of the map becomes its sum or its largest value."""
    maps = torch.randn(2, 5, 3, 4)
    torch.testing.assert_close(Whole("c5")({"c5": maps}), maps.flatten(2).mean(-1)[..., None, None])


def levels(channels: int = 1, images: int = 1) -> dict[str, Tensor]:
    """Maps filled with 2, 3, 4 and 5: what a box pools says which level it was read from."""
    return {f"p{i}": torch.full((images, channels, 64 >> i, 64 >> i), float(i)) for i in range(2, 6)}


def test_every_level_runs_level_by_level_within_a_box() -> None:
    """Breaks InsLoc's loss: one queue a level takes its rows by place."""
    pool = EveryLevel(["p2", "p3", "p4", "p5"], 1, aligned=True)
    boxes = torch.tensor([[8.0, 8, 24, 24]]).expand(2, 1, 4)
    assert pool(levels(images=2), boxes, 64).flatten().tolist() == [2, 3, 4, 5, 2, 3, 4, 5]


def test_each_level_may_have_boxes_of_its_own() -> None:
    """Breaks InsLoc's augmented box, which is used on p5 alone."""
    here, there = torch.tensor([[[8.0, 8, 24, 24]]]), torch.tensor([[[24.0, 24, 40, 40]]])
    maps = {"p2": ramp(4, 4), "p3": ramp(8, 8)}
    pooled = EveryLevel(["p2", "p3"], 1, aligned=True)(maps, {"p2": here, "p3": there}, 64)
    assert pooled[..., 0, 0].tolist() == [[16, 16], [32, 32]]


def test_boxes_that_are_missing_are_named() -> None:
    """Breaks when a tap that needs regions silently pools something else."""
    with pytest.raises(ValueError, match="c2 needs boxes"):
        RegionPool("c2", 1, aligned=True)({"c2": ramp(4, 4)}, None, 64)


LIMITS = {"p2": 8, "p3": 16, "p4": 32, "p5": 64}
SIDES = [4.0, 8, 9, 16, 30, 33, 64, 90]
LEVELS = [2, 2, 3, 3, 4, 5, 5, 5]


@pytest.mark.parametrize("read", [pools._sorted, pools._masked])
def test_boxes_are_read_from_the_level_of_their_size(read, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks when a limit is exclusive, or rows come back in the order of their levels."""
    monkeypatch.setattr(pools, "_sorted", read)
    order = torch.randperm(len(SIDES), generator=torch.Generator().manual_seed(1))
    sides = torch.tensor(SIDES)[order]
    boxes = torch.stack([0 * sides, 0 * sides, sides, sides], dim=-1).view(2, 4, 4).clamp(max=64)
    pooled = LevelBySize(LIMITS, 1, aligned=True)(levels(images=2), boxes, 64)
    assert pooled.flatten().tolist() == torch.tensor(LEVELS)[order].tolist()


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_the_way_of_a_gpu_gives_what_the_way_of_a_cpu_gives(aligned: bool, sampling_ratio: int) -> None:
    """Breaks when static shapes change a value or a gradient."""
    generator = torch.Generator().manual_seed(5)
    maps = [
        torch.randn(3, 2, 64 >> i, 64 >> i, generator=generator, dtype=torch.float64) for i in range(2, 6)
    ]
    corner = torch.rand(3, 4, 2, generator=generator, dtype=torch.float64) * 40
    boxes = torch.cat([corner, corner + torch.rand(3, 4, 2, generator=generator) * 60], dim=-1)
    pool = LevelBySize(LIMITS, 7, aligned=aligned, sampling_ratio=sampling_ratio)
    rows, level = pools.rows(boxes), pool.levels(boxes)
    assert len(set(level.tolist())) >= 3
    got = []
    for read in (pools._sorted, pools._masked):
        leaves = [m.clone().requires_grad_() for m in maps]
        crops = read(pool.align, leaves, rows, level, (64, 64))
        got.append([crops, *torch.autograd.grad((crops * crops.detach().cos()).sum(), leaves)])
    for a, b in zip(*got):
        torch.testing.assert_close(a, b)


def test_a_level_without_boxes_still_has_a_gradient() -> None:
    """Breaks step 1 and DDP: an FPN level that no box of a batch falls on must not drop out of the graph."""
    maps = {name: m.requires_grad_() for name, m in levels().items()}
    LevelBySize(LIMITS, 7, aligned=True)(maps, torch.tensor([[[0.0, 0, 30, 30]]]), 64).sum().backward()
    assert all(m.grad is not None for m in maps.values())
    assert maps["p4"].grad.abs().sum() > 0 and maps["p2"].grad.abs().sum() == 0


def test_limits_must_rise() -> None:
    """Breaks when levels given coarsest first put every box on the wrong map."""
    with pytest.raises(ValueError, match="rise"):
        LevelBySize({"p3": 96, "p2": 48}, 7, aligned=True)


@pytest.mark.parametrize("autocast", [True, False])
def test_maps_of_half_precision_are_pooled_in_float32(autocast: bool) -> None:
    """Breaks on a CPU, whose RoIAlign has no bfloat16, and wherever box coordinates are rounded to 8 bits."""
    maps = torch.randn(2, 8, 16, 16, generator=torch.Generator().manual_seed(2)).bfloat16()
    maps = maps.to(memory_format=torch.channels_last)
    boxes = torch.tensor([[[3.3, 7.7, 41.9, 55.1]]]).expand(2, 1, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        pooled = RegionPool("c2", 7, aligned=True)({"c2": maps}, boxes, 64)
    exact = roi_align(maps.float().contiguous(), list(boxes), 7, 1 / 4, 0, True)
    assert pooled.dtype == torch.bfloat16
    torch.testing.assert_close(pooled.float(), exact, rtol=2**-8, atol=1e-6)  # rounded once, at the end


def test_zero_rows_are_an_empty_crop() -> None:
    """Breaks when an empty level raises."""
    assert Align(7, True)(torch.zeros(1, 3, 8, 8), torch.zeros(0, 5), (64, 64)).shape == (0, 3, 7, 7)
