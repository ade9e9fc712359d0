"""Pools, FPN and box head against the arrays of the official implementations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from boxwise.nn.encoder import EncoderConfig, build_encoder
from boxwise.nn.heads import BOX_HEAD_WIDTH, box_head
from boxwise.nn.pools import Align, EveryLevel, RegionPool

Golden = dict[str, np.ndarray]
LEVELS = ["p2", "p3", "p4", "p5"]


def tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array)).double()


def close(got: Tensor, expected: np.ndarray, *, tolerance: float) -> None:
    """Relative to the largest value of the array."""
    limit = tolerance * max(float(np.abs(expected).max()), 1e-12)
    torch.testing.assert_close(got.detach().double(), tensor(expected), rtol=0, atol=limit)


def test_insloc_pools_every_level_image_by_image(golden) -> None:
    """Breaks when levels and images swap places, or the augmented box leaves p5."""
    a = golden("insloc_roi_pool")
    pyramid = {level: tensor(a[level]) for level in LEVELS}
    true, moved = (tensor(a[name])[:, None] for name in ("boxes", "boxes_augmented"))
    boxes = {"p2": true, "p3": true, "p4": true, "p5": moved}
    crops = EveryLevel(LEVELS, 7, aligned=True)(pyramid, boxes, 4 * a["p2"].shape[-1])
    close(crops, a["out"].reshape(-1, *a["out"].shape[2:]), tolerance=1e-6)


def test_soco_pools_boxes_in_shares_of_the_view(golden) -> None:
    """Breaks when a map is read by a nominal stride: 112 pixels in 4 cells, or a map that is not square."""
    a = golden("soco_roi_pool")
    sizes = [name.removeprefix("map_") for name in a if name.startswith("map_")]
    assert sizes
    shares = tensor(a["boxes"])[..., :4]
    for size in sizes:
        features = tensor(a[f"map_{size}"])
        height, width = features.shape[-2:]
        view = 32 * width, 24 * height  # any size will do: boxes are shares of it
        boxes = shares * torch.tensor([*view, *view])
        crops = RegionPool("p2", 7, aligned=True)({"p2": features}, boxes, *view)
        close(crops, a[f"out_{size}"], tolerance=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_insloc_neck_and_head(golden, dtype: torch.dtype) -> None:
    """Breaks when FPN or box head differ from the detector's in a norm, a bias or the way down."""
    a = golden("insloc_neck_head")
    maps = {f"c{i}": stage(a, i) for i in range(2, 6)}
    fpn = build_encoder(EncoderConfig(backbone="resnet50", fpn=True)).fpn
    assert fpn is not None
    width = a["out"].shape[1]
    fcs = nn.Sequential(nn.Linear(BOX_HEAD_WIDTH, 1024), nn.ReLU(), nn.Linear(1024, width))
    network = nn.ModuleList([fpn, box_head(256), fcs])
    fill(network, a)
    network.to(dtype)

    pyramid = dict(zip(LEVELS, fpn({name: x.to(dtype) for name, x in maps.items()}).values()))
    stats = [torch.stack([x.mean(), x.std(correction=0), x.abs().max()]) for x in pyramid.values()]
    exact = dtype == torch.float64
    close(torch.stack(stats), a["fpn_stats"], tolerance=1e-7 if exact else 1e-3)
    close(pyramid["p5"], a["p5"], tolerance=1e-6 if exact else 1e-3)  # stored in float32

    view = 4 * a["m2"].shape[-1]
    align, rows = Align(7, aligned=True), torch.from_numpy(a["boxes"]).to(dtype)
    crops = torch.stack([align(pyramid[level], rows, (view, view)) for level in LEVELS], dim=1)
    unit = F.normalize(fcs(network[1](crops.flatten(0, 1))), dim=-1)
    close(unit, a["unit"], tolerance=1e-6 if exact else 1e-3)

    place = torch.arange(unit.numel(), dtype=dtype)
    (unit.flatten() * place.cos()).sum().backward()
    norms = torch.stack([p.grad.norm() for p in network.parameters()])
    floor = 1e-9 if exact else 1e-4 * a["grad_norm"].max()
    torch.testing.assert_close(
        norms.double(), tensor(a["grad_norm"]), rtol=1e-7 if exact else 3e-2, atol=floor
    )


def stage(a: Golden, i: int) -> Tensor:
    """The map of one stage: an outer product of places and channels."""
    factor, offset = (tensor(a[f"{kind}{i}"])[:, None, None] for kind in "ab")
    return F.relu(tensor(a[f"m{i}"]) * factor + offset)


def fill(network: nn.Module, a: Golden) -> None:
    """The rule of the golden README: tensor i from a generator seeded with 24000 + i, scaled by its kind."""
    parameters = list(network.parameters())
    assert len(parameters) == len(a["param_names"])
    for i, (p, name, shape) in enumerate(zip(parameters, a["param_names"].tolist(), a["param_ndim_shape"])):
        assert tuple(p.shape) == tuple(shape[shape > 0]), name
        r = torch.randn(p.shape, generator=torch.Generator().manual_seed(24000 + i)).double()
        if p.dim() > 1:
            r = r * (2 / p[0].numel()) ** 0.5
        else:
            r = 1 + 0.1 * r if name.endswith("weight") else 0.1 * r
        p.data = r.float()
