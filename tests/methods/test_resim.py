"""ReSim: windows, negatives, and one whole step against loops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import slow_insloc
import slow_resim
import slow_resim_simsiam
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from boxwise.data.cut import Crop, ViewSpec, draw_cuts
from boxwise.data.loader import feed
from boxwise.geometry.regions import Regions
from boxwise.geometry.views import Batch, View
from boxwise.methods.base import Pair
from boxwise.methods.resim import Config
from boxwise.methods.resim_simsiam import Config as SimSiamConfig
from boxwise.methods.resim_windows import C4, FPN, Windows
from boxwise.nn.cells import means, own_only, touched
from boxwise.nn.encoder import EncoderConfig
from boxwise.nn.shuffle import Shuffle
from boxwise.nn.teacher import Teacher
from boxwise.recipes.resim import views as published_views
from encoders import SeeThrough, TinyEncoder
from given import Given, numbered
from ramps import ramp_view

LEVELS = ("p3", "p4")
ONE, TWO = (
    [[10.0, 20, 150, 130], [0, 0, 96, 96], [0, 0, 80, 80], [5, 5, 100, 120]],
    [[4.0, 5, 160, 145], [12, 8, 120, 110], [75, 75, 170, 160], [2, 1, 130, 140]],
)  # the third image's views share next to nothing


def rand(*shape: int, seed: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def small(encoder: TinyEncoder | None = None, **options: Any) -> Any:
    torch.manual_seed(0)
    config = Config(**{"width": 5, "hidden": 7, "queue": 12} | options)
    method = config.build(encoder or TinyEncoder(6, fpn=LEVELS))
    with torch.no_grad():  # as after some training; no bias or scale is at its neutral value
        for p in method.parameters():
            p += 0.2 * torch.randn_like(p)
    return method


def a_batch(images: int = 8, *, size: int = 96) -> Batch:
    """Crops that share much but for every fourth image; every image's views are mirrored alike."""
    crops = torch.tensor([ONE, TWO]).repeat(1, -(-images // 4), 1)[:, :images]
    flip = torch.tensor([False, True, True, False, True, False, False, True])[:images]
    pixels = rand(2, images, 3, size, size, seed=1) - 0.5
    made = tuple(View(p, c, flip) for p, c in zip(pixels, crops))
    return Batch(made, torch.arange(images), {"shuffle": rand(images, seed=2)})


def stacked(batch: Batch) -> list[torch.Tensor]:
    """Images, crops and flips of both views, as the loops take them."""
    return [torch.stack([getattr(v, part) for v in batch.views]) for part in ("image", "crop", "flip")]


def assert_one_step(
    out: Mapping[str, torch.Tensor],
    slow: Mapping[str, torch.Tensor],
    trained: Mapping[str, torch.Tensor],
    weights: Mapping[str, torch.Tensor],
) -> None:
    """The loops' losses, which are followed back here, and the gradients of all that trains."""
    sum(slow.values()).backward()
    for name, want in slow.items():
        torch.testing.assert_close(out[name], want, rtol=1e-9, atol=0, msg=name)
    for name, parameter in trained.items():
        want = weights[name].grad
        floor = 1e-9 * max(float(want.abs().max()), 1e-3)
        torch.testing.assert_close(parameter.grad, want, rtol=1e-7, atol=floor, msg=name)


def test_whole_step_equals_the_loops(double: None) -> None:
    """Breaks when anything between pixels and gradients is not ReSim's: windows, FPN, pools, negatives, mean."""
    method, batch = small(), a_batch()
    queue = method.queue.keys.clone()
    out = method(batch)
    out["loss"].backward()

    trained = {n: p for n, p in method.student.named_parameters()}
    weights = {n: p.detach().clone().requires_grad_() for n, p in trained.items()}
    slow = slow_resim.losses(
        *stacked(batch),
        query=weights,
        key=dict(method.teacher.network.named_parameters()),
        queue=queue,
        groups=slow_insloc.dealt(batch.draws["shuffle"].tolist()),
    )
    assert_one_step(out, slow, trained, weights)


def see_through(method: Any, levels: Sequence[str]) -> Any:
    """A map holds each pixel's own source coordinates, so a window's row is the mean place that it shows."""
    method.student.encoder = SeeThrough([*levels, "c5"], aligned=False)
    for level in levels:
        method.student.taps[level].project = nn.Identity()
    method.student.taps["image"].project = nn.Flatten()
    method.teacher = Teacher(method.student)
    return method


@pytest.mark.parametrize("size", [96, 128])
@pytest.mark.parametrize("pool", ["precise", "align"])
def test_trap_22_windows_show_the_same_place(pool: str, size: int) -> None:
    """Breaks when one view alone is mirrored, a window drifts, is read in the pixels of the other view, or pixel j
    at half a cell."""
    method = see_through(small(TinyEncoder(6), windows=C4, pool=pool, width=3), ["c4"])
    flip = torch.tensor([False, True, True, True])
    views = tuple(ramp_view(torch.tensor(c), flip, s) for c, s in ((ONE, 96), (TWO, size)))
    batch = Batch(views, torch.arange(4), {"shuffle": rand(4, seed=1)})
    regions = method.pairs(batch)[0].regions
    method(batch)
    seen = method.watched
    keep = regions.keep.view(4, -1)
    assert keep.any(1).tolist() == [True, True, False, True]
    rows = regions.keep
    centres = [
        v.locate(r).flatten(0, 1).unflatten(1, (2, 2)).mean(1) for v, r in zip(views, (regions.a, regions.b))
    ]
    torch.testing.assert_close(centres[0][rows], centres[1][rows], atol=1e-3, rtol=0)
    torch.testing.assert_close(seen.query[rows, :2], centres[0][rows], atol=0.4, rtol=0)
    torch.testing.assert_close(seen.key[rows, :2], seen.query[rows, :2], atol=0.4, rtol=0)


@pytest.mark.parametrize("size", [96, 128])
@pytest.mark.parametrize("pool", ["precise", "align"])
def test_trap_22_simsiams_windows_show_the_same_place(pool: str, size: int) -> None:
    """Breaks when a view is read at the other's windows or in its pixels, or one view alone is mirrored."""
    method = SimSiamConfig(width=6, hidden=4, windows=C4, pool=pool).build(TinyEncoder(3))
    method.student.encoder = SeeThrough(["c4", "c5"], aligned=False)
    for name, tap in method.student.taps.items():
        tap.project, method.predictor[name] = nn.Flatten(), nn.Identity()
    flip = torch.tensor([False, True, True, True])
    views = tuple(ramp_view(torch.tensor(c), flip, s) for c, s in ((ONE, 96), (TWO, size)))
    batch = Batch(views, torch.arange(4), {})
    regions = method.pairs(batch)[0].regions
    method(batch)
    seen, rows = method.watched, regions.keep
    assert rows.view(4, -1).any(1).tolist() == [True, True, False, True]
    centre = views[0].locate(regions.a).flatten(0, 1).unflatten(1, (2, 2)).mean(1)
    torch.testing.assert_close(seen.query[rows, :2], centre[rows], atol=0.4, rtol=0)
    torch.testing.assert_close(seen.key[rows, :2], centre[rows], atol=0.4, rtol=0)


def test_simsiams_whole_step_equals_the_loops(double: None) -> None:
    """Breaks when anything between pixels and gradients is not SimSiam's: windows, pools, norms over the windows
    that are shown, heads, both directions, where the gradient stops."""
    torch.manual_seed(0)
    method = SimSiamConfig(width=6, hidden=4, windows=C4).build(TinyEncoder(8))
    with torch.no_grad():
        for p in method.parameters():
            p += 0.2 * torch.randn_like(p)
    batch = a_batch()
    out = method(batch)
    out["loss"].backward()
    weights = {n: p.detach().clone().requires_grad_() for n, p in method.named_parameters()}
    slow = slow_resim_simsiam.losses(*stacked(batch), weights)
    assert_one_step(out, slow, dict(method.named_parameters()), weights)


def test_trap_21_half_a_cell_is_seen() -> None:
    """Breaks when the test above could not tell a frame with half a cell from one without."""
    method = see_through(small(TinyEncoder(6), windows=C4, width=3), ["c4"])
    method.student.encoder.aligned = method.teacher.network.encoder.aligned = True
    views = tuple(ramp_view(torch.tensor(c[:1]), torch.tensor([True])) for c in (ONE, TWO))
    batch = Batch(views, torch.arange(1), {"shuffle": rand(1, seed=1)})
    regions = method.pairs(batch)[0].regions
    method(batch)
    centre = views[0].locate(regions.a).flatten(0, 1).unflatten(1, (2, 2)).mean(1)
    off = (method.watched.query[:, :2] - centre)[regions.keep].abs()
    assert off.min() > 0.5  # half a pixel of 110 / 96 or 140 / 96 source pixels


def test_trap_22_views_share_one_flip() -> None:
    """Breaks when the recipes mirror each view on its own."""
    one, two = published_views()
    assert (one.crop.flip_like, two.crop.flip_like, one.crop.flip) == (None, 0, 0.5)
    assert one.photo.order == two.photo.order == ("blur", "jitter", "gray")


def test_trap_22_both_views_of_an_image_are_mirrored_or_neither() -> None:
    """Breaks when the loader draws a flip for each view, or none is ever mirrored."""
    specs = tuple(replace(v, crop=replace(v.crop, size=32)) for v in published_views())
    flips = [
        [cut.flip for cut in draw_cuts([*rngs], [s.crop for s in specs], width=90, height=60)]
        for rngs in ((np.random.default_rng((i, v)) for v in (0, 1)) for i in range(40))
    ]
    assert {*map(tuple, flips)} == {(False, False), (True, True)}
    batch = next(iter(feed(Noise(), specs, {}, batch_size=16, seed=5, start=0, total=1, workers=0))).ready(
        "cpu"
    )
    one, two = (view.flip for view in batch.views)
    assert torch.equal(one, two) and one.any() and not one.all()
    assert not torch.equal(batch.views[0].crop, batch.views[1].crop)


class Noise:
    """Sixteen pictures."""

    def __len__(self) -> int:
        return 16

    def read(self, index: int) -> Tensor:
        return torch.randint(
            0, 256, (3, 40, 60), dtype=torch.uint8, generator=torch.Generator().manual_seed(index)
        )

    def name(self, index: int) -> str:
        return f"{index}.png"

    def fingerprint(self) -> str:
        return ""


def maps(count: int, seed: int) -> dict[str, Tensor]:
    """Embeddings and maps of `count` images of 96 pixels."""
    shapes = {"image": (5,), "p4": (4, 6, 6), "p3": (4, 12, 12)}
    return {n: rand(count, *s, seed=seed + i) - 0.5 for i, (n, s) in enumerate(shapes.items())}


def region_losses(
    query: dict[str, Tensor], key: dict[str, Tensor], regions: list[Regions], **options: Any
) -> Any:
    """The losses of maps that are given."""
    count = len(query["image"])
    method = small(**options)
    method.student, method.teacher = Given(query), Given(key)
    method.pairs = lambda batch: [Pair(0, 1, r) for r in regions]
    return method(Batch((numbered(count, 96),) * 2, torch.arange(count), {"shuffle": rand(count, seed=3)}))


def same(images: int, keep: Tensor) -> list[Regions]:
    """One window a level, at the same place in both views."""
    box = torch.tensor([[8.0, 8, 56, 56]]).expand(images, 1, 4)
    return [Regions(box, box, keep), Regions(box / 2, box / 2, keep)]


def test_trap_23_negatives_are_the_grids_means_with_the_own_place() -> None:
    """Breaks when windows serve as negatives, the own place or image is left out, or cells are not averaged."""
    query, key = maps(3, 1), maps(3, 9)
    keep = torch.ones(3, dtype=torch.bool)
    got = region_losses(query, key, same(3, keep))["p4"]
    cells = [
        key["p4"][n, :, j : j + 3, i : i + 3].mean((1, 2))
        for n in range(3)
        for j in range(4)
        for i in range(4)
    ]
    negatives = F.normalize(torch.stack(cells), dim=-1)
    pooled = ([slow_resim.pooled(x["p4"][n], [0.5, 0.5, 3.5, 3.5]) for n in range(3)] for x in (query, key))
    q, k = (F.normalize(torch.stack(rows), dim=-1) for rows in pooled)
    logits = torch.cat([(q * k).sum(-1, keepdim=True), q @ negatives.T], dim=1) / 0.2
    torch.testing.assert_close(got, F.cross_entropy(logits, torch.zeros(3, dtype=torch.long)))


def test_trap_23_windows_that_the_key_does_not_show_are_left_out() -> None:
    """Breaks when they are averaged in with weight 0, or an all-invalid batch divides 0 by 0."""
    query, key = maps(4, 1), maps(4, 9)
    options = {"windows": tuple(replace(w, negatives="rank") for w in FPN)}
    some = torch.tensor([True, False, True, False])
    every = torch.ones(4, dtype=torch.bool)
    first = [region_losses(query, key, same(4, every & (torch.arange(4) == n)), **options) for n in (0, 2)]
    both = region_losses(query, key, same(4, some), **options)
    for level in LEVELS:
        torch.testing.assert_close(both[level], (first[0][level] + first[1][level]) / 2)
    none = region_losses(query, key, same(4, ~every), **options)
    assert none["p4"] == none["p3"] == 0 and none["loss"].isfinite()


def test_trap_23_p3_keeps_to_its_own_group() -> None:
    """Breaks when p3's negatives are gathered, or p4's are not: of 8 images on one device, 4 make a rank."""
    query, key = maps(8, 1), maps(8, 9)
    keep = torch.tensor([True, True, False, True, True, False, False, False])
    whole = region_losses(query, key, same(8, keep))
    halves = [
        region_losses(*({n: x[h] for n, x in m.items()} for m in (query, key)), same(4, keep[h]))
        for h in (slice(4), slice(4, 8))
    ]
    apart = {n: (3 * halves[0][n] + halves[1][n]) / 4 for n in LEVELS}
    torch.testing.assert_close(whole["p3"], apart["p3"])
    assert whole["p4"] > apart["p4"] + 0.1
    alone = region_losses(query, key, same(8, keep), windows=tuple(replace(w, negatives="rank") for w in FPN))
    assert alone["p3"] > whole["p3"] + 0.1


def test_trap_04_key_maps_come_back_in_the_order_of_the_images() -> None:
    """Breaks when vectors are unshuffled and maps are not."""
    query, batch = maps(8, 1), numbered(8, 96)
    shuffle = Shuffle(rand(8, seed=4))
    assert shuffle.order().tolist() != [*range(8)]
    back = shuffle(Given(query), batch)
    assert all(torch.equal(back[name], x) for name, x in query.items())


def test_masked_cells_are_the_own_images_that_touch_the_window() -> None:
    """Breaks when other images' cells are masked, rows and columns swap, or touching edges count."""
    boxes = torch.tensor([[[0.0, 0, 16, 16]], [[64.0, 0, 96, 32]]])
    overlap = touched(boxes, (6, 8), (128, 96))  # cells of 16 pixels, their means of 48, 4 rows of 6
    assert overlap[0, 0].nonzero().flatten().tolist() == [0]
    assert overlap[1, 0].nonzero().flatten().tolist() == [6 * j + i for j in (0, 1) for i in (2, 3, 4, 5)]
    mask = own_only(overlap, 1, 3).view(2, 3, 24)
    assert not mask[0, [0, 2]].any() and torch.equal(mask[0, 1], overlap[0, 0])
    assert not mask[1, [0, 1]].any() and torch.equal(mask[1, 2], overlap[1, 0])


def test_masking_takes_the_own_place_out_of_the_loss() -> None:
    """Breaks when the setting is read nowhere, or masks all that there is into NaN."""
    query, key = maps(4, 1), maps(4, 9)
    keep = torch.ones(4, dtype=torch.bool)
    plain, masked = (region_losses(query, key, same(4, keep), mask_self_overlap=m) for m in (False, True))
    assert all(masked[n] < plain[n] for n in LEVELS)
    lone = {n: x[:1] for n, x in query.items()}, {n: x[:1] for n, x in key.items()}
    box = torch.tensor([[[0.0, 0, 95, 95]]])  # touches every cell there is
    out = region_losses(*lone, [Regions(box, box, keep[:1])] * 2, mask_self_overlap=True)
    assert out["p4"] == out["p3"] == 0


def test_means_need_no_padding() -> None:
    """Breaks when the border's means take in zeros, or cells run down first."""
    x = torch.arange(20.0).view(1, 1, 4, 5)
    assert means(x)[0, :, 0].tolist() == [6, 7, 8, 11, 12, 13]


def test_simsiam_compares_windows_both_ways() -> None:
    """Breaks when a direction is left out, padding reaches a norm, or the target gets a gradient."""
    method = SimSiamConfig(width=6, hidden=4, windows=C4).build(TinyEncoder(8))
    batch = a_batch(4)
    for norm in [m for m in method.student.encoder.modules() if isinstance(m, nn.BatchNorm2d)]:
        norm.eval()
    kept = method.pairs(batch)[0].regions.keep.view(4, -1)
    assert kept.any(1).tolist() == [True, True, False, True]
    few = [0, 1, 3]
    fewer = Batch(
        tuple(View(v.image[few], v.crop[few], v.flip[few]) for v in batch.views), batch.index[few], {}
    )
    whole, alone = method(batch), method(fewer)
    torch.testing.assert_close(whole["c4"], alone["c4"])
    swapped = method(Batch(batch.views[::-1], batch.index, {}))
    torch.testing.assert_close(whole["image"], swapped["image"])
    assert -1 <= float(whole["c4"].detach()) <= 1 and method.predictor["c4"][1].out_features == 2


def conflicts(config: Any, *, size: int = 224, **encoder: Any) -> list[str]:
    view = ViewSpec(crop=Crop(size=size))
    return [*config.conflicts((view, view), EncoderConfig(**encoder))]


def test_what_cannot_be_is_told() -> None:
    """Breaks when a missing level, a window without a place, or a doubled level ends in a shape error."""
    partial = {"fpn": True, "fpn_levels": LEVELS}
    assert conflicts(Config(), **partial) == [] == conflicts(Config(windows=C4))
    assert "p4 needs encoder.fpn: true" in conflicts(Config())[0]
    assert "p3 among encoder.fpn_levels" in conflicts(Config(), fpn=True, fpn_levels=("p4",))[0]
    assert "a view of 48 px is too small; it needs 49" in conflicts(Config(windows=C4), size=48)[0]
    assert conflicts(Config(), fpn=True) == ["encoder.fpn_levels: nothing would train p2, p5"]
    assert conflicts(SimSiamConfig(), **partial) == ["encoder.fpn_levels: nothing would train p3, p4"]
    assert "name each level once" in conflicts(Config(windows=C4 * 2))[0]
    assert "name each level once" in conflicts(SimSiamConfig(windows=()))[0]
    with pytest.raises(ValueError, match="nothing would train p2, p5"):
        Config().build(TinyEncoder(fpn=True))


def test_windows_grow_with_the_views() -> None:
    """Breaks when a smaller image size leaves windows that do not fit."""
    assert Config().resized(0.5) == {
        "windows": {"0": {"size": 24, "stride": 16}, "1": {"size": 16, "stride": 12}}
    }


@pytest.mark.parametrize(("window", "stride", "count"), [(48, 16, 121), (48, 32, 36), (64, 48, 16)])
def test_published_lattices(window: int, stride: int, count: int) -> None:
    """Breaks when a variant of Table 3 has other windows than the paper's."""
    windows = (Windows(level="c4", size=window, stride=stride),)
    views = (numbered(1, 224),) * 2
    regions = small(TinyEncoder(6), windows=windows).pairs(Batch(views, torch.arange(1), {}))[0].regions
    assert regions.keep.tolist() == [True] * count
