"""SCRL against arrays of the official implementation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from boxwise.geometry.boxes import iou
from boxwise.geometry.regions import Regions, random_in_overlap, work_area
from boxwise.geometry.views import Batch, View
from boxwise.methods.scrl import Config
from boxwise.nn.encoder import EncoderConfig, build_encoder
from boxwise.nn.objectives import cosine_distance
from boxwise.nn.pools import Align
from boxwise.nn.teacher import cosine_momentum
from given import t

SIZE, MIN, STRIDE = 224, 32, 32  # switches of the golden files that their arrays do not hold
Arrays = dict[str, np.ndarray]


def two_views(arrays: Arrays) -> tuple[View, View]:
    top, left, height, width, flip = t(arrays["crops"]).unbind(-1)  # (N, 2) each
    crops = torch.stack([left, top, left + width, top + height], dim=-1)
    image = torch.zeros(1).expand(len(crops), 3, SIZE, SIZE)
    a, b = (View(image, crops[:, v], flip[:, v] > 0) for v in (0, 1))
    return a, b


def test_work_area(golden) -> None:
    arrays = golden("scrl_boxes")
    area = work_area(*two_views(arrays))
    want, met = t(arrays["frame"]), ~np.isnan(arrays["frame"]).any(-1)
    got = torch.cat([area.corner, area.scale, area.size], dim=-1)
    torch.testing.assert_close(got[met], want[met][:, [0, 1, 4, 5, 6, 7]], rtol=1e-12, atol=1e-9)
    assert ((area.size > MIN).all(-1).numpy() == arrays["used"]).all()


@pytest.mark.parametrize("generator", ["grid", "uniform"])
def test_boxes_from_recorded_candidates(golden, generator: str) -> None:
    """The draws that lead to the official candidates give the official boxes, through the public door."""
    arrays = golden("scrl_boxes")
    a, b = two_views(arrays)
    candidates, used = arrays[f"{generator}_candidates"], arrays["used"]
    count = int(candidates[:, 1].max()) + 1
    tries = int(arrays[f"{generator}_tries"].max())
    noise = torch.full((len(used), count, tries, 8), 0.5, dtype=torch.float64)
    for i, r, k, x, y, w, h, *_ in candidates.tolist():
        size = arrays["frame"][int(i), 6:].astype(int)
        draws = zip(numbers(generator, size[0], x, w), numbers(generator, size[1], y, h))
        noise[int(i), int(r), int(k) - first_try(candidates) :] = t(np.array([*draws]).flatten())

    regions = random_in_overlap(a, b, noise, min_size=MIN, generator=generator, max_iou=0.5)
    keep = regions.keep.unflatten(0, (-1, count))
    assert (keep.all(-1).numpy() == used).all() and (keep.any(-1).numpy() == used).all()

    unclear = np.unique(candidates[np.abs(candidates[:, 7] - 0.5) < 1e-6, 0])  # either answer is allowed
    clear = ~np.isin(arrays[f"{generator}_view1"][:, 0], unclear)
    assert clear.any()
    for got, view in ((regions.a, "view1"), (regions.b, "view2")):
        want = t(arrays[f"{generator}_{view}"])[:, 1:]
        torch.testing.assert_close(got[used].flatten(0, 1)[clear], want[clear], rtol=0, atol=1e-9)


@pytest.mark.parametrize("generator", ["grid", "uniform"])
def test_overlaps_of_candidates(golden, generator: str) -> None:
    """Unclipped candidates against the clipped boxes taken before them, in view 1."""
    arrays = golden("scrl_boxes")
    a, b = two_views(arrays)
    area, candidates = work_area(a, b), arrays[f"{generator}_candidates"]
    taken = t(arrays[f"{generator}_view1"])
    limit = arrays[f"{generator}_tries"].max()
    for i, r, k, x, y, w, h, worst, accepted in candidates.tolist():
        box = torch.tensor([x, y, x + w, y + h], dtype=torch.float64).expand(len(a.crop), 1, 4)
        seen = a.place(area.to_source(box))[int(i)]
        before = taken[taken[:, 0] == i][: int(r), 1:]
        got = float(iou(seen, before).max()) if len(before) else 0.0
        assert got == pytest.approx(worst, abs=1e-9)
        if abs(got - 0.5) > 1e-6:
            last = k - first_try(candidates) + 1 == limit
            assert bool(accepted) == (got < 0.5) or (last and r > 0)


def first_try(candidates: np.ndarray) -> int:
    """Whether tries are counted from 0 or 1."""
    return int(candidates[:, 2].min())


def numbers(generator: str, size: int, start: float, side: float) -> list[float]:
    """Uniform numbers, each in the middle of its range, that draw this side at this place along an axis."""
    if generator == "uniform":
        return [0.5, 0.5, (side - MIN + 0.5) / (size - MIN), (start + 0.5) / (size - side)]
    most = size // MIN
    for cells in range(most, 0, -1):  # as many cells as can have led to it
        room = math.floor(size / cells)
        for cell in range(cells):
            place = start - math.floor(cell * (size / cells))
            if side <= room and 0 <= place <= room - side:
                return [
                    (cells - 0.5) / most,
                    (cell + 0.5) / cells,
                    (side - MIN + 0.5) / (room - MIN + 1),
                    (place + 0.5) / (room - side + 1),
                ]
    raise AssertionError(f"no grid gives a box from {start} of {side} in {size}")


def test_loss(golden) -> None:
    arrays = golden("scrl_loss")
    p, z = t(arrays["p_online"]).requires_grad_(), t(arrays["z_target"])
    there = torch.cat(z.chunk(2)[::-1])
    pairs = len(p) // 2
    loss = cosine_distance(p, there, torch.full((2 * pairs,), 1 / pairs, dtype=torch.float64))
    loss.backward()
    assert loss.item() == pytest.approx(float(arrays["loss"]), rel=1e-8)
    torch.testing.assert_close(p.grad, t(arrays["grad_p_online"]), rtol=1e-8, atol=1e-12)
    for i in range(pairs):
        rows = (p[i : i + 1], there[i : i + 1]), (p[pairs + i :][:1], there[pairs + i :][:1])
        for (one, other), name in zip(rows, ("per_box_1to2", "per_box_2to1")):
            assert cosine_distance(one, other).item() == pytest.approx(arrays[name][i], rel=1e-8)


def test_roi_pool(golden) -> None:
    arrays = golden("scrl_roi_pool")
    features, boxes = t(arrays["features"]).requires_grad_(), t(arrays["boxes"])
    height, width = (STRIDE * n for n in features.shape[2:])
    out = Align(1, aligned=False)(features, boxes, (width, height)).flatten(1)
    torch.testing.assert_close(out, t(arrays["out"]), rtol=0, atol=1e-8)
    (out * t(arrays["upstream"])).sum().backward()
    torch.testing.assert_close(features.grad, t(arrays["grad_features"]), rtol=0, atol=1e-8)


def fill(parameters: dict[str, nn.Parameter], names: list[str], *, seed: int) -> None:
    """The golden file's rule for weights."""
    for i, name in enumerate(names):
        if (parameter := parameters.get(name)) is None:
            continue
        generator = torch.Generator().manual_seed(seed + i)
        r = torch.randn(parameter.shape, generator=generator, dtype=torch.float32).double()
        small = 1 + 0.1 * r if name.endswith("weight") else 0.1 * r
        parameter.data.copy_((r * math.sqrt(2 / r[0].numel()) if r.dim() > 1 else small).float())


def official(name: str) -> str:
    """A parameter's name in the official code, from its name in the method."""
    if name.startswith("student.encoder.body."):
        part, _, rest = name.removeprefix("student.encoder.body.").partition(".")
        trunk = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
        return f"online.encoder.{trunk[part]}.{rest}"
    *_, index, kind = name.split(".")
    head = "predictor" if name.startswith("predictor") else "online.projector"
    return f"{head}.net.{int(index) - 1}.{kind}"  # ours flattens first


def test_full_model(golden, double: None) -> None:
    arrays = golden("scrl_full_model")
    names = [str(n) for n in arrays["param_names"]]
    shapes = dict(zip(names, arrays["param_ndim_shape"].tolist()))
    hidden, width = (shapes[n][:2] for n in names if n.startswith("predictor") and shapes[n][1])
    method = Config(hidden=hidden[0], width=width[0]).build(build_encoder(EncoderConfig(backbone="resnet50")))
    method.double()

    online = {official(n): p for n, p in method.named_parameters() if not n.startswith("teacher")}
    target = {official(f"student.{n}"): p for n, p in method.teacher.network.named_parameters()}
    assert online.keys() == set(names)
    fill(online, names, seed=18000)
    fill(target, names, seed=19000)

    images = [t(arrays[k]) / 127.5 - 1 for k in ("image1", "image2")]
    count, _, height, side = images[0].shape
    crop = torch.tensor([[0.0, 0, side, height]]).expand(count, 4)
    views = tuple(View(image, crop, torch.zeros(count, dtype=torch.bool)) for image in images)
    boxes = t(arrays["boxes"])
    boxes = boxes[:, 1:].unflatten(0, (2, count, -1))
    regions = Regions(boxes[0], boxes[1], torch.ones(boxes[0].shape[:2].numel(), dtype=torch.bool))
    method.regions = lambda batch: regions
    gap = method.student.encoder(torch.cat(images))["c5"].mean((2, 3))
    torch.testing.assert_close(
        gap, t(arrays["pooled_gap"]), rtol=0, atol=1e-6 * abs(arrays["pooled_gap"]).max()
    )
    out = method(Batch(views, torch.arange(count), {}))
    out["loss"].backward()

    assert out["loss"].item() == pytest.approx(float(arrays["loss"]), rel=1e-7)
    seen = method.watched
    assert seen is not None
    torch.testing.assert_close(F.normalize(seen.query), t(arrays["prediction"]), rtol=0, atol=1e-7)
    there = torch.cat(t(arrays["target"]).chunk(2)[::-1])
    torch.testing.assert_close(F.normalize(seen.key), there, rtol=0, atol=1e-7)
    norms = torch.stack([online[n].grad.norm() for n in names])
    want = t(arrays["grad_norm"])  # zero up to rounding for biases in front of a BatchNorm
    assert ((norms - want).abs() <= 1e-7 * want + 1e-10 * want.max()).all()
    assert all(p.grad is None for p in target.values())


def test_momentum(golden) -> None:
    for m0, total, step, want in golden("scrl_schedules")["momentum"]:
        assert cosine_momentum(m0, int(step), int(total)) == pytest.approx(want, rel=1e-9)
