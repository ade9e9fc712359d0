"""SoCo: what it compares, and one whole step against loops."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import slow_soco
import torch
from known_objects import boxes_in, with_objects
from torch import nn

from boxwise.data.objects import Objects
from boxwise.geometry.views import Batch, View
from boxwise.methods.soco import Config, SoCo
from boxwise.nn.encoder import EncoderConfig, build_encoder
from boxwise.nn.heads import Res5Head
from boxwise.nn.objectives import matched_cosine
from boxwise.nn.teacher import Teacher
from boxwise.recipes import soco as recipes
from encoders import SeeThrough, TinyEncoder
from ramps import ramp_view

LIMITS = (18.0, 28.0, 44.0)


def small(*, count: int = 2, fpn: bool = True, **options: Any) -> SoCo:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"width": 6, "hidden": 10, "limits": LIMITS, "pool_size": 3}
    method = Config(**settings | options, objects=Objects(count=count)).build(TinyEncoder(6, fpn=fpn))
    with torch.no_grad():  # as after some training; no bias or scale is at its neutral value
        for p in method.parameters():
            p += 0.2 * torch.randn_like(p)
    return method


def a_batch(*, count: int = 2, own: bool = True, apart: object = (), side: int = 64) -> Batch:
    """Three images of three views, with flips of all kinds; the second image lists a box twice."""
    generator = torch.Generator().manual_seed(1)
    crops = torch.tensor([[[0.0, 0, 96, 80]] * 3, [[10.0, 4, 90, 70], [0, 0, 90, 80], [16, 8, 80, 72]]])
    flips = torch.tensor([[False, True, False], [True, True, False]])
    pixels = torch.rand(2, 3, 3, side, side, generator=generator) - 0.5
    views = tuple(View(*parts) for parts in zip(pixels, crops, flips))
    batch = Batch(views, torch.arange(3), {})
    return with_objects(batch, Objects(count=count), generator, own=own, apart=apart)


def as_lists(view: View) -> slow_soco.Seen:
    return slow_soco.Seen(
        view.image,
        *(getattr(view, name).tolist() for name in ("crop", "flip", "objects", "ids")),
    )


@pytest.mark.parametrize("statistics", ["exact", "used"])
def test_whole_step_equals_the_loops(statistics: str, double: None) -> None:
    """Breaks when anything between pixels and gradients is not SoCo's: levels, pools, heads, norms, matches, mean."""
    method, batch = small(statistics=statistics), a_batch()
    out = method(batch)["loss"]
    out.backward()

    trained = {n: p for n, p in method.named_parameters() if p.requires_grad}
    weights = {n: p.detach().clone().requires_grad_() for n, p in trained.items()}
    slow = slow_soco.loss(
        [as_lists(view) for view in batch.views],
        weights,
        dict(method.teacher.network.named_parameters()),
        limits=LIMITS,
        bins=3,
        per_pair=2,
        exact=statistics == "exact",
    )
    slow.backward()
    levels = torch.cat([method.levels(view).flatten() for view in batch.views])
    assert levels.unique().tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(out, slow, rtol=1e-10, atol=0)
    for name, parameter in trained.items():
        want = weights[name].grad
        floor = 1e-10 * max(float(want.abs().max()), 1e-3)  # biases before a norm have none but rounding
        torch.testing.assert_close(parameter.grad, want, rtol=1e-8, atol=floor, msg=name)


def see_through(statistics: str, *, scale_aware: bool = True) -> SoCo:
    """Every learned part passes coordinates on: an embedding is the mean source x and y of its box."""
    config = Config(
        objects=Objects(count=3),
        limits=(20.0, 40.0, 60.0),
        box_head=False,
        statistics=statistics,
        scale_aware=scale_aware,
    )
    method = config.build(SeeThrough(config.levels, aligned=True))
    method.student.taps["box"].project = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    method.predictor, method.teacher = nn.Identity(), Teacher(method.student)
    return method


def ramps() -> Batch:
    """Views of 192, 192 and 96 pixels that show their own source coordinates."""
    crops = [
        torch.tensor([[0.0, 0, 150, 130], [0, 0, 96, 96], [0, 0, 80, 110]]),
        torch.tensor([[40.0, 5, 140, 125], [12, 8, 80, 90], [5, 15, 70, 100]]),
    ]
    flips = torch.tensor([[False, True, False], [True, True, False], [False, True, True]])
    sizes, parts = (192, 192, 96), (crops[0], crops[1], crops[1])
    plain = [ramp_view(crop, flip, size) for crop, flip, size in zip(parts, flips, sizes)]
    boxes = boxes_in(plain[1], 3, torch.Generator().manual_seed(2))
    ids = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    return Batch(tuple(replace(v, objects=boxes, ids=ids) for v in plain), torch.arange(3), {})


@pytest.mark.parametrize("variant", ["exact", "used", "every level"])
def test_matched_rows_show_the_same_place(variant: str) -> None:
    """Breaks when rows of views, images, levels or pairs are crossed, or a flip is left out."""
    method = see_through("used" if variant == "used" else "exact", scale_aware=variant != "every level")
    batch = ramps()
    boxes = batch.views[0].objects
    centres = (boxes[..., :2] + boxes[..., 2:]) / 2
    seen = [method.embed(view, i) for i, view in enumerate(batch.views)]
    for p, z, ids in seen:
        count = len(method.config.levels)
        owner = torch.where(ids < 0, 0, ids // count if variant == "every level" else ids) - 1
        for rows in (p, z):
            want = centres.flatten(0, 1)[owner.clamp(min=0)]
            off = (rows[..., :2] - want).norm(dim=-1)[owner >= 0]
            assert off.max() < 1.0 and len(off) == 9 * (count if variant == "every level" else 1)
    assert method(batch)["loss"] == pytest.approx(-8, abs=1e-3)


def test_trap_10_an_object_is_compared_across_levels() -> None:
    """Breaks when objects are compared only where both views show them on one level, or dummies match."""
    method, batch = see_through("exact"), ramps()
    ids = [method.read(view, i)[1] for i, view in enumerate(batch.views)]
    levels = [method.levels(view) for view in batch.views]
    assert (levels[1] != levels[2]).any(), "a view of half the size shows boxes on finer levels"
    for i in (1, 2):
        match = ids[0][:, :, None] == ids[i][:, None]
        assert (match.sum((1, 2)) == 3).all(), "each object once, on whatever levels"
        rows = [(levels[0] * 3 + torch.arange(3)), (levels[i] * 3 + torch.arange(3))]
        assert match[torch.arange(3)[:, None], rows[0], rows[1]].all()
    assert len({int(x.min()) for x in ids}) == 3, "a dummy for each view"


def test_trap_10_sizes_in_whole_pixels() -> None:
    """Breaks when sizes are compared as fractions, without the last pixel, or on a mirrored box."""
    method = Config(width=4, hidden=4, objects=Objects(count=5)).build(TinyEncoder(4, fpn=True))
    sides = [47.0, 47.99, 48.0, 95.5, 191.9]  # 48, 48, 49, 96 and 192 whole pixels
    boxes = torch.tensor([[[0.5, 0.5, s, s] for s in sides]])
    for flip in (False, True):
        view = View(
            torch.zeros(1, 3, 224, 224), torch.tensor([[0.0, 0, 224, 224]]), torch.tensor([flip]), boxes
        )
        assert method.levels(view).tolist() == [[0, 0, 1, 1, 2]]
    view = replace(view, objects=torch.tensor([[[0.0, 0, 192.0, 192.0], [0, 0, 223, 223]]]))
    assert method.levels(view).tolist() == [[3, 3]]


def test_trap_11_boxes_are_shares_of_the_map() -> None:
    """Breaks when p5 of a 112-pixel view, which has 4 cells, is read at a stride of 32."""
    config = Config(objects=Objects(count=1), box_head=False, pool_size=2, width=4, hidden=4)
    tap = config.build(TinyEncoder(4, fpn=True)).student.taps["box"]
    tap.project = nn.Flatten()
    columns = torch.arange(4.0).expand(1, 4, 4, 4)
    maps = {f"p{i}": columns for i in (2, 3, 4, 5)}
    whole = torch.tensor([[[0.0, 0, 112, 112]]])
    for row in tap(maps, whole, 112).view(4, 4, 2, 2):  # the mean of columns 0 and 1, and of 2 and 3
        torch.testing.assert_close(row, torch.tensor([0.5, 2.5]).expand(4, 2, 2))


def test_trap_12_views_of_one_part_share_a_set_and_others_do_not() -> None:
    """Breaks when a pair is compared by the boxes of another pair."""
    for own, sets in ((False, 1), (True, 2)):
        batch = a_batch(own=own)
        assert batch.views[0].ids.shape[1] == 2 * sets
        method = small()
        ids = [method.read(view, i)[1] for i, view in enumerate(batch.views)]
        for i in (1, 2):
            matched = (ids[0][:, :, None] == ids[i][:, None]).any(2).unflatten(1, (sets, -1)).any(2)
            assert matched.tolist() == [[at == (i - 1) * own for at in range(sets)]] * 3


def test_trap_14_repeats_count_and_images_are_averaged() -> None:
    """Breaks when repeated boxes count once, or all matches of a batch are averaged at once."""
    torch.manual_seed(0)
    p, z = torch.randn(2, 3, 5), torch.randn(2, 4, 5)
    match = torch.zeros(2, 3, 4)
    match[0, :2, :3] = 1  # m = 2 and n = 3 copies of one object
    match[0, 2, 3] = match[1, 0, 0] = 1
    cosine = nn.functional.cosine_similarity(p[:, :, None], z[:, None], dim=-1)
    images = [(cosine[0, :2, :3].sum() + cosine[0, 2, 3]) / 7, cosine[1, 0, 0]]
    assert matched_cosine(p, z, match) == pytest.approx(float(-2 * sum(images) / 2), abs=1e-5)
    method = small(count_repeats=False)
    once = [(cosine[0, :2, :3].mean() + cosine[0, 2, 3]) / 2, cosine[1, 0, 0]]
    assert method.compare(p, z, match > 0) == pytest.approx(float(-2 * sum(once) / 2), abs=1e-5)


def test_trap_14_the_loss_lies_between_minus_8_and_8() -> None:
    """Breaks when a constant 2 is added, or a direction is left out."""
    method, batch = see_through("exact"), ramps()
    out = method(batch)
    assert set(out) == {"1_to_2", "2_to_1", "1_to_3", "3_to_1", "loss"}
    assert all(out[k] == pytest.approx(-2, abs=1e-3) for k in out if k != "loss")


def test_images_without_a_match_weigh_nothing() -> None:
    """Breaks when the 1e-6 is missing (NaN), or an image without a match moves the others."""
    method = small()
    for branch in (method.student, method.teacher.network, method.predictor):
        branch.eval()  # image by image, so that only rows can differ
    out, apart = method(a_batch())["loss"], method(a_batch(apart=[1]))["loss"]
    lone = Batch(tuple(rows(v, [1]) for v in a_batch().views), torch.arange(1), {})
    torch.testing.assert_close(out - apart, method(lone)["loss"] / 3, rtol=1e-4, atol=1e-5)


def rows(view: View, images: list[int]) -> View:
    return View(*(getattr(view, n)[images] for n in ("image", "crop", "flip", "objects", "ids")))


def test_trap_16_norms_see_one_level_and_one_pair_at_a_time() -> None:
    """Breaks when the heads are run once for all levels (InsLoc) or views (SCRL), or by image."""
    counts = {}
    for statistics in ("exact", "used"):
        method = small(statistics=statistics)
        method(a_batch())
        box = method.student.taps["box"]
        norms = [method.student.encoder.body.stages[0][1], box.box_head[0][1], box.project[2]]
        counts[statistics] = [int(norm.num_batches_tracked) for norm in [*norms, method.predictor[2]]]
    # three views; view 1 has the boxes of two pairs, the others those of one, each on four levels
    assert counts == {"exact": [3, 16, 16, 16], "used": [3, 3, 3, 3]}


def test_trap_16_moving_average_leaves_buffers_alone() -> None:
    """Breaks when running statistics are averaged: the teacher keeps its own."""
    method = small()
    method(a_batch())
    before = {n: b.clone() for n, b in method.teacher.named_buffers()}
    assert any((b != 0).any() for b in before.values())
    method.after_step(0, 10)
    assert all(torch.equal(b, before[n]) for n, b in method.teacher.named_buffers())


def test_order_of_images_does_not_matter() -> None:
    """Breaks when boxes stay behind while images move."""
    method, batch = small(), a_batch()
    turned = Batch(tuple(rows(v, [2, 0, 1]) for v in batch.views), batch.index, {})
    torch.testing.assert_close(method(turned)["loss"], method(batch)["loss"])


def test_c4_reads_boxes_through_the_last_stage() -> None:
    """Breaks when C4 pools c5, or hands over a backbone without its last stage."""
    torch.manual_seed(0)
    config = Config(
        levels=("c4",), limits=(), pool_size=14, width=8, hidden=8, objects=Objects(count=2, jitter=0.0)
    )
    method = config.build(build_encoder(EncoderConfig(backbone="resnet18", c4=True)))
    batch = a_batch(own=False)
    batch = replace(batch, views=batch.views[:2])
    out = method(batch)
    out["loss"].backward()
    assert set(out) == {"1_to_2", "2_to_1", "loss"}
    head = method.student.taps["box"].box_head
    assert isinstance(head, Res5Head) and head.width == 512
    whole = method.handed_over()
    assert list(whole) == ["backbone"] and "layer4.1.conv2.weight" in whole["backbone"].state_dict()
    assert all(p.grad.abs().sum() > 0 for n, p in whole["backbone"].named_parameters() if "conv" in n)


def test_published_parts() -> None:
    """Breaks when projector or predictor lose their published size, or FPN and blocks start otherwise."""
    recipe = recipes.soco_r50_fpn_100ep()
    torch.manual_seed(0)
    method = recipe.method.build(build_encoder(recipe.encoder))
    project = method.student.taps["box"].project
    assert sum(p.numel() for p in project.parameters()) == 5_255_424
    assert sum(p.numel() for p in method.predictor.parameters()) == 2_109_696
    encoder = method.student.encoder
    assert encoder.body.layer3[0].bn3.weight.abs().sum() == 0
    weight = encoder.fpn.layer_blocks[0][0].weight  # 256 to 256 channels, 3 by 3
    assert weight.detach().std() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.01)
    narrow = encoder.fpn.inner_blocks[3][0].weight  # 2048 to 256 channels, 1 by 1
    assert narrow.detach().std() == pytest.approx((2 / 256) ** 0.5, rel=0.01)
    c4 = recipes.soco_r50_c4_100ep()
    wide = c4.method.build(build_encoder(c4.encoder)).student.taps["box"].project
    assert sum(p.numel() for p in wide.parameters()) == 9_449_728


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": ("p2", "p3"), "limits": (10.0, 20.0)}, "2 levels need one limit fewer, got 2"),
        ({"limits": (90.0, 40.0, 100.0)}, "must rise"),
        ({"pool_size": 0}, "pool_size"),
    ],
    ids=str,
)
def test_impossible_settings_are_refused(options: dict[str, Any], message: str) -> None:
    """Breaks when a mistake shows up as a shape error in the middle of a run."""
    with pytest.raises(ValueError, match=message):
        Config(**options)


def test_what_cannot_be_together_is_named() -> None:
    """Breaks when one view, levels without their FPN, or an idle last stage are found in the middle of a run."""
    config, recipe = Config(), recipes.soco_r50_fpn_100ep()
    said = list(config.conflicts(recipe.views[:1], EncoderConfig()))
    assert len(said) == 2 and "needs 2 or more" in said[0] and "encoder.fpn" in said[1]
    bare = Config(levels=("c4",), limits=(), box_head=False)
    assert "last stage" in next(bare.conflicts(recipe.views, EncoderConfig(c4=True)))
    uneven = TinyEncoder()
    uneven.channels["c4"] = 3
    with pytest.raises(ValueError, match="c4, c5 differ in channels"):
        Config(levels=("c4", "c5"), limits=(40.0,)).build(uneven)


def test_whitened_targets_are_those_that_may_be_compared() -> None:
    """Breaks when rows that no loss reads have a say in the whitening, or predictions are whitened as well."""
    method, batch = small(statistics="exact", whitened=True, width=2), a_batch()
    plain = copy.deepcopy(method)
    plain.config = replace(plain.config, whitened=False)
    p, z, ids = method.embed(batch.views[0], 0)
    p_plain, z_plain, _ = plain.embed(batch.views[0], 0)
    rows, raw = z[ids >= 0], z_plain[ids >= 0]
    assert torch.equal(p, p_plain) and 4 < len(rows) < z[..., 0].numel()
    raw = raw - raw.mean(0)
    covariance = raw.T @ raw / len(raw)
    covariance = covariance + (0.01 * covariance.diagonal().mean() + 1e-6) * torch.eye(2)
    values, axes = torch.linalg.eigh(covariance)
    expected = raw @ axes @ torch.diag(values.rsqrt()) @ axes.T
    torch.testing.assert_close(rows, expected, rtol=1e-3, atol=1e-3)
