"""ReSim against arrays of the official implementation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from boxwise.geometry.regions import Regions
from boxwise.geometry.views import Batch, View
from boxwise.geometry.windows import lattice, windows
from boxwise.methods.base import Pair
from boxwise.methods.resim import Config, ReSim
from boxwise.methods.resim_windows import FPN, Windows
from boxwise.nn.cells import means
from boxwise.nn.encoder import EncoderConfig, build_encoder
from boxwise.nn.precise import PrecisePool, precise
from encoders import TinyEncoder
from given import Given, numbered, t

SIZE, TEMPERATURE = 224, 0.2  # switches of the golden files that their arrays do not hold
LEVELS = {"p4": (48, 32), "p3": (32, 24)}
ONE_PROCESS = tuple(Windows(level=n, size=w, stride=s, negatives="rank") for n, (w, s) in LEVELS.items())
Arrays = dict[str, np.ndarray]


def two_views(arrays: Arrays, dtype: torch.dtype, *, flip: bool) -> tuple[View, View]:
    """The file's crops are of images that have been mirrored already: `flip` says the same of those that will be."""
    views = []
    for name in ("crops_q", "crops_k"):
        top, left, height, width = torch.from_numpy(arrays[name]).to(dtype).unbind(-1)
        right = left + width
        if flip:
            left, right = 10_000 - right, 10_000 - left
        crop = torch.stack([left, top, right, top + height], dim=-1)
        image = torch.zeros(1, dtype=dtype).expand(len(crop), 3, SIZE, SIZE)
        views.append(View(image, crop, torch.full((len(crop),), flip)))
    return views[0], views[1]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("level", LEVELS)
def test_windows(golden, level: str, dtype: torch.dtype, flip: bool) -> None:
    """Breaks when an edge on the border is decided the other way, in either precision, mirrored or not."""
    a = golden("resim_windows")
    size, stride = LEVELS[level]
    one, two = two_views(a, dtype, flip=flip)
    found = windows(one, two, window=size, stride=stride)
    valid = a[f"{level}_valid"]
    assert (found.keep.view(valid.shape).numpy() == valid).all()
    assert (found.a.double() == t(a[f"{level}_query_boxes"])).all()
    exact = dtype == torch.float64
    want = t(a[f"{level}_key_boxes"])
    torch.testing.assert_close(
        found.b.double(), want, rtol=1e-9 if exact else 1e-6, atol=1e-11 if exact else 1e-4
    )


@pytest.mark.parametrize("level", LEVELS)
def test_lattice(golden, level: str) -> None:
    """Breaks when windows run down first, or one more reaches the border."""
    want = t(golden("resim_windows")[f"{level}_query_boxes"])
    size, stride = LEVELS[level]
    torch.testing.assert_close(
        lattice(want, window=size, stride=stride, width=SIZE, height=SIZE), want, rtol=0, atol=0
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", ["a", "b", "c"])
def test_precise_pool(golden, case: str, dtype: torch.dtype) -> None:
    """Breaks when pixels sit at half cells, the border is repeated, or a gradient is wrong at a whole coordinate."""
    a = golden("resim_prroi_pool")
    features = torch.from_numpy(a[f"features_{case}"]).to(dtype).requires_grad_()
    rois = torch.from_numpy(a[f"rois_{case}"]).to(dtype)
    boxes = rois[:, 1:].clone().requires_grad_()
    view = tuple(round(side / float(a[f"scale_{case}"])) for side in (features.shape[-1], features.shape[-2]))
    out = precise(features[rois[:, 0].long()], boxes[:, None], view)[..., 0, 0]  # each box a view of its own
    (out * torch.from_numpy(a[f"upstream_{case}"]).to(dtype)).sum().backward()

    sides = (rois[:, 3:] - rois[:, 1:3]).double() * float(a[f"scale_{case}"])
    shown, tiny = (sides > 0).all(-1), (sides > 0).all(-1) & (sides.prod(-1) < 0.01)
    exact = dtype == torch.float64
    limit = torch.where(tiny, 1e-3, 1e-5)[:, None] if not exact else torch.tensor(1e-10)
    assert ((out.double() - t(a[f"out_{case}"])).abs() <= limit).all()
    assert (out[~shown] == 0).all() and (~shown).any()
    want = t(a[f"grad_features_{case}"])
    assert ((features.grad.double() - want).abs() <= (1e-10 if exact else 1e-4 + 0.01 * want.abs())).all()
    want = t(a[f"grad_rois_{case}"])[shown]
    gap = (boxes.grad.double()[shown] - want).abs()
    assert (gap[~tiny[shown]] <= (1e-10 if exact else 1e-4)).all() and (gap <= 0.01 * want.abs() + 1e-3).all()


def region_maps(a: Arrays, side: str) -> dict[str, Tensor]:
    return {level: t(a[f"{level}_{side}"]) for level in LEVELS}


def found(a: Arrays) -> list[Pair]:
    return [
        Pair(
            0,
            1,
            Regions(
                *(t(a[f"{n}_{s}_boxes"]) for s in ("query", "key")),
                torch.from_numpy(a[f"{n}_valid"]).flatten(),
            ),
        )
        for n in LEVELS
    ]


def test_losses(golden, double: None) -> None:
    """Breaks when invalid windows count, negatives are windows, or the key gets a gradient."""
    a = golden("resim_losses")
    (count, width), length = a["q"].shape, a["queue"].shape[1]
    config = Config(width=width, hidden=4, queue=length, windows=ONE_PROCESS)
    method = config.build(TinyEncoder(4, fpn=("p3", "p4")))
    query = {"image": t(a["q"]), **region_maps(a, "query")}
    key = {"image": t(a["k"]), **region_maps(a, "key")}
    for x in (*query.values(), *key.values()):
        x.requires_grad_()
    method.student, method.teacher = Given(query), Given({n: x.detach() for n, x in key.items()})
    method.queue.keys.copy_(t(a["queue"]).T)
    method.pairs = lambda batch: found(a)
    views = numbered(count, SIZE), numbered(count, SIZE)
    out = method(Batch(views, torch.arange(count), {"shuffle": torch.rand(count)}))
    out["loss"].backward()
    for name, want in (("image", "image"), ("p4", "p4"), ("p3", "p3"), ("loss", "total")):
        assert out[name].item() == pytest.approx(float(a[f"loss_{want}"]), rel=1e-6), name
    for name, want in (("image", "q"), ("p4", "p4_query"), ("p3", "p3_query")):
        grad = t(a[f"grad_{want}"])
        torch.testing.assert_close(query[name].grad, grad, rtol=0, atol=1e-5 * float(grad.abs().max()))
    assert all(x.grad is None for x in key.values())
    torch.testing.assert_close(method.queue.keys.T, t(a["queue_after"]), rtol=0, atol=1e-7)
    assert int(method.queue.cursor) == int(a["queue_ptr_after"][0])


@pytest.mark.parametrize("place", range(len(LEVELS)))
def test_logits(golden, place: int) -> None:
    """Breaks when windows or the grid's means are read from elsewhere; placeholders are read as well."""
    a = golden("resim_losses")
    level, regions = [*LEVELS][place], found(a)[place].regions
    pool, query, key = PrecisePool(level), *(t(a[f"{level}_{side}"]) for side in ("query", "key"))
    q, k = (
        F.normalize(pool({level: x}, boxes, SIZE).flatten(1))
        for x, boxes in ((query, regions.a), (key, regions.b))
    )
    shape = a[f"{level}_valid"].shape
    positive = (q * k).sum(-1).view(shape) / TEMPERATURE
    torch.testing.assert_close(positive, t(a[f"{level}_positive_logits"]), rtol=0, atol=1e-5)
    negatives = F.normalize(means(key).flatten(0, 1), dim=-1)
    assert len(negatives) == a["n_negatives"][place]
    sums = (q @ negatives.T).sum(-1).view(shape) / TEMPERATURE
    torch.testing.assert_close(sums, t(a[f"{level}_negative_logit_sum"]), rtol=1e-5, atol=1e-4)


def official(name: str) -> str:
    """A parameter's name in the official code, from its name in our branch."""
    if name.startswith("encoder.body."):
        return name.removeprefix("encoder.body.")
    part, rest = name.split(".", 2)[1:]
    if part == "fpn":
        block, place, _, kind = rest.split(".")
        return f"fpn_{'lateral' if block == 'inner_blocks' else 'output'}{int(place) + 2}.{kind}"
    index, kind = rest.split(".")[-2:]
    return f"fc.{int(index) - 1}.{kind}"  # ours flattens first


def fill(parameters: dict[str, nn.Parameter], names: list[str], *, seed: int) -> None:
    """The golden file's rule for weights."""
    for i, name in enumerate(names):
        parameter = parameters[name]
        generator = torch.Generator().manual_seed(seed + i)
        r = torch.randn(parameter.shape, generator=generator, dtype=torch.float32).double()
        small = 1 + 0.1 * r if name.endswith("weight") else 0.1 * r
        parameter.data.copy_((r * math.sqrt(2 / r[0].numel()) if r.dim() > 1 else small).float())


def whole(a: Arrays) -> tuple[ReSim, dict[str, nn.Parameter], dict[str, nn.Parameter], list[str]]:
    """The file's model, before its first step."""
    names = [str(n) for n in a["param_names"]]
    shapes = dict(zip(names, a["param_ndim_shape"].tolist(), strict=True))
    (hidden, *_), (width, *_) = shapes["fc.0.weight"], shapes["fc.2.weight"]
    encoder = EncoderConfig(
        backbone="resnet50",
        fpn=True,
        fpn_levels=("p3", "p4"),
        fpn_norm="none",
        fpn_channels=shapes["fpn_output4.weight"][0],
    )
    config = Config(width=width, hidden=hidden, queue=a["queue"].shape[1], windows=ONE_PROCESS)
    method = config.build(build_encoder(encoder)).double()
    query = {official(n): p for n, p in method.student.named_parameters()}
    key = {official(n): p for n, p in method.teacher.network.named_parameters()}
    assert query.keys() == key.keys() == set(names)
    fill(query, names, seed=12000)
    fill(key, names, seed=13000)
    method.queue.keys.copy_(t(a["queue"]).T)
    return method, query, key, names


def test_full_model(golden, double: None) -> None:
    """Breaks when anything between pixels and gradients of the released model differs."""
    a = golden("resim_full_model")
    method, query, key, names = whole(a)
    method.after_step(0, 1)  # the official forward opens with the key's update
    sums = torch.stack([key[n].detach().sum() for n in names])
    torch.testing.assert_close(sums, t(a["key_sum_after"]), rtol=1e-7, atol=1e-7)

    crop = torch.tensor([[0.0, 0, SIZE, SIZE]]).expand(len(a["image_q"]), 4)
    flip = torch.zeros(len(crop), dtype=torch.bool)
    views = tuple(View(t(a[k]) / 127.5 - 1, crop, flip) for k in ("image_q", "image_k"))
    method.pairs = lambda batch: found(a)
    seen: list[dict[str, Tensor]] = []
    for branch in (method.student, method.teacher.network):
        branch.register_forward_hook(
            lambda module, inputs, output: seen.append({n: x.detach() for n, x in output.items()})
        )
    out = method(
        Batch(
            views,
            torch.arange(len(crop)),
            {"shuffle": torch.tensor([0.1, 0.9]).repeat(len(crop))[: len(crop)]},
        )
    )
    out["loss"].backward()

    losses = torch.stack([out[n].detach() for n in ("image", "p4", "p3")])
    torch.testing.assert_close(losses, t(a["losses"]), rtol=1e-7, atol=0)
    assert out["loss"].item() == pytest.approx(float(a["total"]), rel=1e-7)
    torch.testing.assert_close(F.normalize(seen[0]["image"]), t(a["q"]), rtol=0, atol=1e-6)
    k = method.queue.keys[: len(crop)]  # what was queued, in image order
    torch.testing.assert_close(k, t(a["k"]), rtol=0, atol=1e-6)
    stats = [
        [[x.mean(), x.std(correction=0), x.abs().max()] for x in (maps["p4"], maps["p3"])] for maps in seen
    ]
    torch.testing.assert_close(
        torch.tensor(stats, dtype=torch.float64), t(a["map_stats"]), rtol=1e-6, atol=1e-9
    )
    cell = a["p3_center_cell"]
    middle = seen[0]["p3"].shape[-1] // 2
    scale = float(np.abs(cell).max())
    torch.testing.assert_close(seen[0]["p3"][..., middle, middle], t(cell), rtol=0, atol=1e-6 * scale)
    torch.testing.assert_close(seen[0]["p4"][..., 0, 0], t(a["p4_first_cell"]), rtol=0, atol=1e-6 * scale)
    norms = torch.stack([query[n].grad.norm() for n in names])
    want = t(a["grad_norm"])
    assert ((norms - want).abs() <= 1e-6 * want + 1e-9 * want.max()).all()
    assert all(p.grad is None for p in key.values())


def test_published_windows_are_the_golden_ones() -> None:
    """Breaks when the defaults lose the released code's sizes and strides."""
    assert {w.level: (w.size, w.stride) for w in FPN} == LEVELS
