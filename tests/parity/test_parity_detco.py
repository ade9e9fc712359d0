"""DetCo against arrays computed slowly from the paper's formulas (its training code was never released)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from boxwise.geometry.tiles import corners, cut_tiles
from boxwise.geometry.views import Batch
from boxwise.methods.detco import Config
from boxwise.nn.pools import Together
from encoders import TinyEncoder
from given import Given, numbered, t

SIDE, VIEW, GRID = 64, 255, 3  # switches of the golden files that their arrays do not hold
Arrays = dict[str, np.ndarray]


def ours(name: str) -> str:
    """res2_global is our global_c2."""
    stage, kind = name.split("_")
    return f"{kind}_c{stage.removeprefix('res')}"


def method_with(a: Arrays, **options: Any) -> tuple[Any, Batch, dict[str, str]]:
    """DetCo whose embeddings and queues are the file's; the file's names by ours."""
    names = {ours(n.removeprefix("queue_")): n.removeprefix("queue_") for n in a if n.startswith("queue_res")}
    width, length = a["queue_res2_global"].shape
    count = len(a["q_res2_global"])
    config = Config(
        width=width, hidden=4, queue=length, weights=tuple(a["weights"].tolist()), patch=(4, 8), **options
    )
    method = config.build(TinyEncoder(4))
    method.student = Given({name: t(a[f"q_{n}"]).requires_grad_() for name, n in names.items()})
    method.teacher = Given({name: t(a[f"k_{n}"]) for name, n in names.items()})
    for name, n in names.items():
        method.queues[name].keys.copy_(t(a[f"queue_{n}"]).T)
    draws = {name: torch.rand(count, *shape) for name, shape in config.draws().items()}
    return method, Batch(tuple(numbered(count, 24) for _ in range(4)), torch.arange(count), draws), names


def test_twelve_terms(golden, double: None) -> None:
    """Breaks when a term takes another's query, key or queue: all of them are losses that fall."""
    a = golden("detco_loss")
    method, _, _ = method_with(a)
    for row, stage in zip(a["terms"], ("c2", "c3", "c4", "c5"), strict=True):
        terms = method.terms(stage, method.student.rows, method.teacher.rows)
        assert [terms[name].item() for name in ("gg", "ll", "gl")] == pytest.approx(row.tolist(), rel=1e-7)
        assert len(terms) == 3


def test_step(golden, double: None) -> None:
    """Breaks when weights are normalised, a gradient is lost, or keys enter the wrong queue, or too early."""
    a = golden("detco_loss")
    method, batch, names = method_with(a)
    out = method(batch)
    out["loss"].backward()
    assert out["loss"].item() == pytest.approx(float(a["total"]), rel=1e-7)
    for name, n in names.items():
        want = t(a[f"grad_q_{n}"])
        close = {"rtol": 0, "atol": 1e-6 * float(want.abs().max())}
        torch.testing.assert_close(method.student.rows[name].grad, want, **close)
        torch.testing.assert_close(method.queues[name].keys.T, t(a[f"queue_after_{n}"]), rtol=0, atol=1e-6)
        assert int(method.queues[name].cursor) == len(batch.index) % len(method.queues[name].keys)


def picture(count: int) -> Tensor:
    """The file's image, written as a rule."""
    x, y = torch.meshgrid(torch.arange(VIEW), torch.arange(VIEW), indexing="xy")
    return torch.stack([x, y, (3 * x + 5 * y) % 256]).to(torch.uint8).expand(count, 3, VIEW, VIEW)


def test_patches(golden) -> None:
    """Breaks when rows and columns swap, cells run down first, or a patch crosses its cell."""
    a = golden("detco_patches")
    offsets = torch.from_numpy(a["offsets"])
    image = picture(len(offsets))
    assert (corners(image, offsets, grid=GRID).numpy() == a["corners"]).all()
    cut = cut_tiles(image, offsets, grid=GRID, side=SIDE)
    assert (cut.double().sum((-2, -1)).numpy() == a["patch_sums"]).all()
    stored = [name for name in a if name.startswith("patch_") and name.removeprefix("patch_").isdigit()]
    assert stored
    for name in stored:
        assert (cut[0, int(name.removeprefix("patch_"))].numpy() == a[name]).all(), name
    order = torch.from_numpy(a["permutation"])
    shuffled = cut_tiles(image, offsets, order, grid=GRID, side=SIDE)
    for n, cells in enumerate(order.tolist()):
        assert all(torch.equal(shuffled[n, p], cut[n, cell]) for p, cell in enumerate(cells))


def test_patches_are_put_side_by_side(golden) -> None:
    """Breaks when nine patches of nine images become one row, or channels run outermost."""
    a = golden("detco_patches")
    features = t(a["features"])
    count, patches, channels = features.shape
    together = Together("c5", patches)
    rows = features.flatten(0, 1)[..., None, None].expand(-1, -1, 2, 3)
    torch.testing.assert_close(together({"c5": rows}).flatten(1), t(a["concatenated"]), rtol=1e-12, atol=0)

    cell = torch.arange(GRID).repeat_interleave(VIEW // GRID)
    number = (GRID * cell[:, None] + cell).expand(count, 3, VIEW, VIEW)
    order = torch.from_numpy(a["permutation"][1 : count + 1])
    offsets = torch.zeros(count, patches, 2, dtype=torch.long)
    tiles = cut_tiles(number, offsets, order, grid=GRID, side=SIDE)  # every pixel holds its cell's number
    shown = tiles[:, :, 0, 0, 0]
    rows = features.gather(1, shown[..., None].expand(-1, -1, channels)).flatten(0, 1)[..., None, None]
    want = t(a["features_shuffled_input"])
    torch.testing.assert_close(together({"c5": rows}).flatten(1), want, rtol=1e-12, atol=0)
