"""SCRL: what it compares, and one whole step against loops."""

from __future__ import annotations

from typing import Any

import pytest
import slow_scrl
import torch
from torch import Tensor, nn

from boxwise.geometry.boxes import iou
from boxwise.geometry.views import Batch, View
from boxwise.methods.scrl import SCRL, Config
from boxwise.nn.teacher import Teacher
from encoders import SeeThrough, TinyEncoder
from ramps import ramp_view

PYRAMID: dict[str, Any] = {
    "levels": ("p2", "p3", "p4", "p5"),
    "limits": (20.0, 40.0, 60.0),
    "pool_size": 7,
    "aligned": True,
}


def rand(*shape: int, seed: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def small(encoder: TinyEncoder | None = None, **options: Any) -> SCRL:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"width": 6, "hidden": 10, "boxes": 4, "min_box": 20, "tries": 5}
    method = Config(**settings | options).build(encoder or TinyEncoder(6))
    with torch.no_grad():  # as after some training; no bias or scale is at its neutral value
        for p in method.parameters():
            p += 0.2 * torch.randn_like(p)
    return method


def a_batch(config: Config, *, size: int = 96, crops: Tensor | None = None) -> Batch:
    """Three images: two with much in common and flips of all kinds, one that shares too little."""
    if crops is None:
        one = [[10.0, 20, 150, 130], [0, 0, 96, 96], [0, 0, 80, 80]]
        two = [[40.0, 5, 140, 125], [12, 8, 80, 90], [75, 75, 170, 160]]
        crops = torch.tensor([one, two])
    flips = torch.tensor([[False, True, False], [True, True, False]])[:, : crops.shape[1]]
    count = crops.shape[1]
    pixels = rand(2, count, 3, size, size, seed=1) - 0.5
    views = tuple(View(*parts) for parts in zip(pixels, crops, flips))
    draws = {name: rand(count, *shape, seed=2) for name, shape in config.draws().items()}
    return Batch(views, torch.arange(count), draws)


def test_whole_step_equals_the_loops(double: None) -> None:
    """Breaks when anything between pixels and gradients is not SCRL's: boxes, pools, norms, pairs, mean."""
    method = small()
    batch = a_batch(method.config)
    out = method(batch)["loss"]
    out.backward()

    trained = {n: p for n, p in method.named_parameters() if p.requires_grad}
    weights = {n: p.detach().clone().requires_grad_() for n, p in trained.items()}
    slow = slow_scrl.loss(
        *(torch.stack([getattr(v, part) for v in batch.views]) for part in ("image", "crop", "flip")),
        batch.draws["boxes"],
        online=weights,
        target=dict(method.teacher.network.named_parameters()),
        least=20,
    )
    slow.backward()
    regions = method.regions(batch)
    assert regions.keep.tolist() == [True] * 8 + [False] * 4  # the loops know nothing of padding
    torch.testing.assert_close(out, slow, rtol=1e-10, atol=0)
    for name, parameter in trained.items():
        want = weights[name].grad
        floor = 1e-10 * max(float(want.abs().max()), 1e-3)  # biases before a norm have none but rounding
        torch.testing.assert_close(parameter.grad, want, rtol=1e-8, atol=floor, msg=name)


def see_through(config: Config, *, aligned: bool) -> SCRL:
    """Every learned part passes coordinates on: an embedding is the mean source x and y of its box."""
    method = config.build(SeeThrough(config.levels, aligned=aligned))
    method.student.taps["box"].project = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    method.predictor, method.teacher = nn.Identity(), Teacher(method.student)
    return method


def ramps(config: Config, seed: int = 3) -> Batch:
    one = torch.tensor([[10.0, 20, 150, 130], [0, 0, 96, 96], [0, 0, 80, 80], [5, 5, 100, 120]])
    two = torch.tensor([[40.0, 5, 140, 125], [12, 8, 80, 90], [75, 75, 170, 160], [20, 30, 130, 110]])
    flips = torch.tensor([[False, True, False, True], [True, True, False, False]])
    draws = {name: rand(4, *shape, seed=seed) for name, shape in config.draws().items()}
    return Batch((ramp_view(one, flips[0]), ramp_view(two, flips[1])), torch.arange(4), draws)


VARIANTS = {
    "c5": Config(min_box=16),
    "c5, paper's boxes": Config(min_box=16, generator="uniform", max_iou=None),
    "fpn": Config(min_box=16, **PYRAMID),
    "fpn, 3 by 3": Config(min_box=16, **PYRAMID | {"pool_size": 3}),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_trap_21_matched_rows_show_the_same_place(name: str) -> None:
    """Breaks when rows of two views or images are crossed, boxes drift, or half a cell is added."""
    config = VARIANTS[name]
    method, batch = see_through(config, aligned=config.aligned), ramps(config)
    loss, regions = method(batch)["loss"], method.regions(batch)
    seen, keep = method.watched, regions.keep
    assert seen is not None and keep.tolist() == [True] * 20 + [False] * 10 + [True] * 10
    keep = keep.repeat(2)
    centres = [
        v.locate(r).flatten(0, 1).unflatten(1, (2, 2)).mean(1)
        for v, r in zip(batch.views, (regions.a, regions.b))
    ]
    # Pixels are up to 1.5 source pixels wide; the last half cell at a map's border is lost.
    torch.testing.assert_close(seen.query[keep, :2], torch.cat(centres)[keep], atol=0.4, rtol=0)
    torch.testing.assert_close(seen.key[keep], seen.query[keep], atol=0.4, rtol=0)
    assert loss < 1e-4


def test_trap_21_half_a_cell_is_seen() -> None:
    """Breaks when the test above could not tell the two conventions apart."""
    config = Config(min_box=16)
    method, batch = see_through(config, aligned=True), ramps(config)
    method(batch)
    assert method.watched is not None
    keep = method.regions(batch).keep.repeat(2)
    off = (method.watched.key - method.watched.query)[keep, 0].abs()
    assert off.max() > 0.9  # twice half a pixel, where just one of the views is flipped


def test_trap_16_both_views_are_one_batch_to_every_norm() -> None:
    """Breaks when views are forwarded one by one, which gives every BatchNorm other statistics."""
    method = small()
    batch = a_batch(method.config)
    method(batch)
    for branch in (method.student, method.teacher.network):
        stage = branch.encoder.body.stages[0]
        joint = stage[0](torch.cat([v.image for v in batch.views]))
        torch.testing.assert_close(stage[1].running_mean, 0.1 * joint.detach().mean((0, 2, 3)))
        assert {int(b) for n, b in branch.named_buffers() if n.endswith("batches_tracked")} == {1}
    assert int(method.predictor[2].num_batches_tracked) == 1


def test_trap_16_moving_average_leaves_buffers_alone() -> None:
    """Breaks when running statistics are averaged: the teacher keeps its own."""
    method = small()
    method(a_batch(method.config))
    before = {n: b.clone() for n, b in method.teacher.named_buffers()}
    assert any((b != 0).any() for b in before.values())
    method.after_step(0, 10)
    assert all(torch.equal(b, before[n]) for n, b in method.teacher.named_buffers())


def test_trap_19_target_starts_as_a_copy_or_on_its_own() -> None:
    """Breaks when `target_init` does nothing, or an own start has weights of another size."""
    for init, equal in (("copy", True), ("random", False)):
        torch.manual_seed(0)
        method = Config(width=6, hidden=10, target_init=init).build(TinyEncoder(6))
        weights = list(zip(method.teacher.network.parameters(), method.student.parameters()))
        matrices = [(p, q) for p, q in weights if p.dim() > 1]
        assert all(torch.equal(p, q) == equal for p, q in matrices)
        assert all(abs(p.std() / q.std() - 1) < 0.2 for p, q in matrices)
        before = [p.clone() for p, _ in weights]
        method.begin()
        assert all(torch.equal(p, b) for (p, _), b in zip(weights, before)) or equal


@pytest.mark.parametrize("variant", ["c5", "fpn"])
def test_trap_20_skipped_images_weigh_nothing(variant: str) -> None:
    """Breaks when padding reaches the loss, its mean, or a projector's BatchNorm."""
    options = {} if variant == "c5" else PYRAMID
    method = small(TinyEncoder(6, fpn=variant == "fpn"), **options)
    batch = a_batch(method.config)
    fewer = Batch(
        tuple(View(v.image[:2], v.crop[:2], v.flip[:2]) for v in batch.views),
        batch.index[:2],
        {name: draw[:2] for name, draw in batch.draws.items()},
    )
    for branch in (method.student, method.teacher.network):  # image by image, so that only rows can differ
        branch.encoder.eval()
    whole, alone = method(batch)["loss"], method(fewer)["loss"]
    torch.testing.assert_close(whole, alone)
    weight = method.predictor[1].weight
    torch.testing.assert_close(*(torch.autograd.grad(loss, weight)[0] for loss in (whole, alone)))


def test_trap_20_all_skipped_batch_costs_nothing() -> None:
    """Breaks when a batch without a single pair gives NaN, or moves a running statistic of a head."""
    method = small()
    apart = torch.tensor([[[0.0, 0, 50, 50]] * 2, [[200.0, 200, 260, 260]] * 2])
    loss = method(a_batch(method.config, crops=apart))["loss"]
    loss.backward()
    assert loss == 0
    assert all((p.grad == 0).all() for p in method.parameters() if p.requires_grad)
    assert (method.predictor[2].running_mean == 0).all()


def test_options_reach_the_boxes() -> None:
    """Breaks when a setting is read nowhere."""
    base = {"min_box": 20, "boxes": 6}
    plain = small(**base)
    batch = a_batch(plain.config)
    reference = plain.regions(batch)
    assert reference.a.shape == (3, 6, 4)
    for option in ({"generator": "uniform"}, {"max_iou": 0.05}, {"min_box": 30}):
        assert not torch.equal(small(**base | option).regions(batch).a, reference.a), option
    jittered = small(**base, jitter=0.3)
    moved = jittered.regions(a_batch(jittered.config))
    assert moved.a.shape == (3, 6, 4)
    sides = [
        (r.b[:2, :, 2:] - r.b[:2, :, :2]) / (r.a[:2, :, 2:] - r.a[:2, :, :2]) for r in (moved, reference)
    ]
    assert sides[0].std(dim=1).min() > 0.02 > sides[1].std(dim=1).max()


def test_unmatched_boxes_show_anything() -> None:
    """Breaks when an infinite jitter leaves boxes where the first view shows theirs, or moves the first view's."""
    base = {"min_box": 20, "boxes": 6, "tries": 30}
    method, matched = small(**base, matched=False), small(**base)
    batch = a_batch(method.config, size=224)
    found, reference = method.regions(batch), matched.regions(batch)
    assert torch.equal(found.a, reference.a) and torch.equal(found.keep, reference.keep)
    apart = batch.views[1].locate(found.b) - batch.views[0].locate(found.a)
    assert apart[:2].abs().amax(-1).min() > 1, "not one box is where it was"
    sides = found.b[:2, :, 2:] - found.b[:2, :, :2]
    assert sides.min() >= 20 and found.b.min() >= 0 and found.b.max() <= 224
    shared = iou(found.b[:2], found.b[:2]) - torch.eye(6)
    assert shared.max() < 0.5, "they are kept apart like the first view's"
    assert (found.b[2] == torch.tensor([0.0, 0, 224, 224])).all(), (
        "an image that shares too little keeps nothing"
    )
    method(batch)["loss"].backward()


def test_unmatched_boxes_reach_every_part_of_the_view() -> None:
    """Breaks when they are drawn inside the overlap only, which would still match in part."""
    method = small(min_box=20, boxes=10, matched=False)
    crops = torch.tensor([[[0.0, 0, 100, 100]] * 64, [[60.0, 60, 160, 160]] * 64])
    pixels, flip = torch.zeros(64, 3, 96, 96), torch.zeros(64, dtype=torch.bool)
    draws = {name: rand(64, *shape, seed=4) for name, shape in method.config.draws().items()}
    batch = Batch(tuple(View(pixels, crop, flip) for crop in crops), torch.arange(64), draws)
    shown = batch.views[1].locate(method.regions(batch).b)
    assert shown[..., :2].amin() < 64 and shown[..., 2:].amax() > 156
    assert (shown[..., :2] > 100).all(-1).any(), "some lie where the first view shows nothing"


def test_draws_name_what_is_read() -> None:
    """Breaks when a run would draw, and send to the device, numbers that nobody reads."""
    assert Config().draws() == {"boxes": (10, 50, 8)}
    assert Config(max_iou=None, boxes=3).draws() == {"boxes": (3, 1, 8)}
    assert Config(matched=False, tries=7).draws() == {"boxes": (10, 7, 8), "others": (10, 7, 8)}
    assert Config(jitter=0.1, tries=7).draws() == {"boxes": (10, 7, 8), "jitter": (10, 4)}


def test_published_heads() -> None:
    """Breaks when projector or predictor lose their published size, or their last layer gains a bias."""
    method = Config().build(TinyEncoder(2048))
    project = method.student.taps["box"].project
    assert sum(p.numel() for p in project.parameters()) == 9_449_472
    assert sum(p.numel() for p in method.predictor.parameters()) == 2_109_440


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": ("p2", "p3"), "limits": (10.0, 20.0)}, "2 levels need one limit fewer, got 2"),
        ({"levels": ()}, "0 levels"),
        ({"boxes": 0}, "boxes"),
        ({"tries": 0}, "tries"),
        ({"jitter": 0.1, "matched": False}, "set one of jitter: 0 and matched: true"),
    ],
    ids=str,
)
def test_impossible_settings_are_refused(options: dict[str, Any], message: str) -> None:
    """Breaks when a mistake shows up as a shape error in the middle of a run."""
    with pytest.raises(ValueError, match=message):
        Config(**options)


def test_levels_that_the_encoder_lacks_are_named() -> None:
    """Breaks when p-levels without an FPN end in a KeyError."""
    with pytest.raises(ValueError, match=r"no p2, p3, p4, p5; .*encoder.fpn"):
        Config(**PYRAMID).build(TinyEncoder())
    with pytest.raises(ValueError, match="nothing would train p2, p3, p4, p5"):
        Config().build(TinyEncoder(fpn=True))
    uneven = TinyEncoder()
    uneven.channels["c4"] = 3
    with pytest.raises(ValueError, match="c4, c5 differ in channels"):
        Config(levels=("c4", "c5"), limits=(40.0,)).build(uneven)
