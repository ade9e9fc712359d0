"""InsLoc: what it compares, and one whole step against loops."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import slow_insloc
import torch
from known_objects import composites
from torch import Tensor, nn

from boxwise.engine.optim import build_optimiser
from boxwise.geometry.boxes import iou
from boxwise.geometry.views import Batch, View
from boxwise.methods.base import Method
from boxwise.methods.insloc import Config, InsLoc, compare, pasted
from boxwise.nn.encoder import EncoderConfig
from boxwise.nn.heads import box_head, moco_projector
from boxwise.nn.queue import Queue
from boxwise.nn.shuffle import Shuffle
from boxwise.nn.teacher import Teacher
from boxwise.recipes.insloc import (
    insloc_r50_c4_200ep,
    insloc_r50_fpn_200ep,
    roi_align_only,
    without_box_augmentation,
)
from boxwise.recipes.pretrain import mocov2_r50_200ep
from boxwise.recipes.views import MOCO_VIEW
from boxwise.strict import SettingsError
from encoders import SeeThrough, TinyEncoder
from ramps import ramp_view

IMAGES = 8
SMALL: dict[str, Any] = {"width": 6, "hidden": 10, "queue": 12, "temperature": 0.5}
C4: dict[str, Any] = {"levels": ("c4",), "augmented": (True,), "pool_size": 14}
VARIANTS: dict[str, dict[str, Any]] = {
    "fpn": {},
    "fpn, all augmented, no suppression": {"augmented": (True, False, True, True), "apart": False},
    "fpn, no augmentation": {"augmented": (False,) * 4},
    "c4": C4,
}


def build(**options: Any) -> InsLoc:
    """As after some training: student and teacher differ, no bias or scale is at its neutral value."""
    torch.manual_seed(0)
    config = Config(**SMALL | options)
    c4 = config.levels == ("c4",)
    method = config.build(TinyEncoder(6, fpn=not c4, c4=c4))
    with torch.no_grad():
        for p in method.parameters():
            p += (
                0.2 * torch.randn_like(p) / max(1, p[0].numel()) ** 0.5
                if p.dim() > 1
                else torch.randn_like(p) / 5
            )
    return method


def a_batch(config: Config, *, seed: int = 1, images: int = IMAGES) -> Batch:
    dice = torch.Generator().manual_seed(seed)
    pixels = torch.rand(2, images, 3, 64, 64, generator=dice) - 0.5
    flips = torch.rand(2, images, generator=dice) < 0.5
    crop = torch.tensor([[0.0, 0, 64, 64]]).expand(images, 4)
    draws = {name: torch.rand(images, *shape, generator=dice) for name, shape in config.draws().items()}
    views = tuple(View(p, crop, f) for p, f in zip(pixels, flips))
    batch = Batch(views, torch.arange(images), draws)
    big = torch.rand(2, images, 1, 2, 2, generator=dice)  # sides of 16 to 62 px, as pasted
    size = (16 + 46 * big[..., 0, :]).floor()
    corner = ((64 - size) * big[..., 1, :]).floor()
    boxes = torch.cat([corner, corner + size], dim=-1)
    return replace(batch, views=tuple(replace(v, objects=b) for v, b in zip(views, boxes)))


@pytest.mark.parametrize("name", VARIANTS)
def test_whole_step_equals_the_loops(name: str, double: None) -> None:
    """Breaks when anything between pixels and gradients is not InsLoc's: boxes, anchors, levels, norms, queues."""
    method = build(**VARIANTS[name])
    batch, c = a_batch(method.config), method.config
    queues = [queue.keys.clone() for queue in parts(method, Queue)]
    trained = {n: p for n, p in method.student.named_parameters()}
    weights = {n: p.detach().clone().requires_grad_() for n, p in trained.items()}
    teacher = {n: p.detach().clone() for n, p in method.teacher.network.named_parameters()}
    out = method(batch)
    out["loss"].backward()
    objects = [v.objects for v in batch.views]
    slow = slow_insloc.losses(
        torch.stack([v.image for v in batch.views]),
        [[tuple(box) for box in o[:, 0].tolist()] for o in objects if o is not None],
        torch.stack([v.flip for v in batch.views]),
        batch.draws.get("anchors", torch.zeros(IMAGES, 5121)),
        batch.draws["shuffle"],
        queues,
        weights,
        teacher,
        augmented=c.augmented,
        apart=c.apart,
        temperature=c.temperature,
    )
    torch.stack(slow).sum().backward()
    got = torch.stack([out[level] for level in c.levels])
    torch.testing.assert_close(got, torch.stack(slow), rtol=1e-9, atol=0)
    for n, p in trained.items():
        want = weights[n].grad
        assert want is not None and p.grad is not None, n
        floor = 1e-9 * max(float(want.abs().max()), 1e-3)
        torch.testing.assert_close(p.grad, want, rtol=1e-7, atol=floor, msg=n)


def parts(method: Method, kind: type) -> list[Any]:
    return [m for m in method.modules() if isinstance(m, kind)]


def see_through(config: Config) -> InsLoc:
    """Every learned part passes coordinates on: an embedding is the mean x and y of its box, level by level."""
    encoder = SeeThrough(config.levels, aligned=True)
    encoder.fpn = nn.Identity()
    with torch.device("meta"):
        method = config.build(TinyEncoder(3, fpn=True))
    method = method.to_empty(device="cpu")
    tap = method.student.taps["box"]
    method.student.encoder, tap.box_head = encoder, None
    tap.project = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    method.teacher = Teacher(method.student)
    fresh = config.build(TinyEncoder(3, fpn=True))
    method.grid, method.near, method.queues = fresh.grid, fresh.near, fresh.queues
    return method


def ramps(config: Config) -> Batch:
    """Canvases that show their own coordinates, before the flip."""
    batch = composites(a_batch(config), torch.Generator().manual_seed(2))
    views = tuple(ramp_view(96 / 64 * v.crop, v.flip, 96, 1.5 * v.objects) for v in batch.views)
    return replace(batch, views=views)


def test_trap_02_rows_read_the_box_as_it_lies_after_the_flip() -> None:
    """Breaks when pixels are mirrored and boxes are not, levels or images are crossed, or half a cell is added."""
    config = Config(**SMALL | {"width": 3}, augmented=(False,) * 4)
    method, batch = see_through(config), ramps(config)
    method(batch)
    assert method.watched is not None
    for view, rows in zip(batch.views, (method.watched.query, method.watched.key)):
        assert view.objects is not None
        centres = view.objects[:, 0].unflatten(1, (2, 2)).mean(1).repeat_interleave(4, 0)
        torch.testing.assert_close(rows[:, :2], centres, atol=1.3, rtol=0)  # the last half cell is lost
        assert view.flip.any() and not view.flip.all()


def test_trap_03_only_the_querys_p5_reads_the_augmented_box() -> None:
    """Breaks when other levels or the key move, or p5 does not."""
    method = build()
    batch = a_batch(method.config)
    boxes = method._query_boxes(batch)
    true = pasted(batch.views[0])
    assert all(torch.equal(boxes[level], true) for level in ("p2", "p3", "p4"))
    overlap = iou(boxes["p5"], true)[:, 0, 0]
    assert (overlap > 0.5).all() and (overlap < 1).all()
    seen: list[Tensor] = []
    method.teacher.network.register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    method(batch)
    keys = torch.cat(seen).flatten().sort().values
    assert torch.equal(keys, pasted(batch.views[1]).flatten().sort().values)


def test_trap_03_an_augmented_box_may_reach_out_of_the_view() -> None:
    """Breaks when anchors are clipped before they are pooled."""
    method = build()
    outside = torch.zeros(())
    for seed in range(6):
        boxes = method._query_boxes(a_batch(method.config, seed=seed))["p5"]
        outside = outside + ((boxes < 0) | (boxes > 64)).any(-1).float().mean() / 6
    assert outside > 0.2
    assert method(a_batch(method.config))["loss"].isfinite()


def test_trap_04_boxes_are_shuffled_with_their_images() -> None:
    """Breaks when images are embedded with another image's box, or keys come back in another order."""
    method = build()
    batch = a_batch(method.config)
    method.teacher.network.apply(lambda m: m.eval() if isinstance(m, nn.BatchNorm2d) else None)
    plain = method.teacher(batch.views[1], pasted(batch.views[1]))["box"]
    method(batch)
    assert method.watched is not None
    torch.testing.assert_close(method.watched.key, plain)
    swapped = pasted(batch.views[1]).roll(1, 0)
    other = method.teacher(batch.views[1], swapped)["box"]
    assert not torch.allclose(other, plain, atol=1e-3)


@pytest.mark.parametrize("images", [8, 11, 16, 32])
def test_trap_04_a_pair_never_shares_a_groups_statistics(images: int) -> None:
    """Breaks when keys are embedded in the company that their queries have, from which the pair could be told."""
    method = build(augmented=(False,) * 4)
    batch = a_batch(method.config, images=images)
    groups: list[list[float]] = []
    # an image is known by its first pixel
    method.teacher.network.register_forward_pre_hook(
        lambda _, args: groups.append(args[0].image[:, 0, 0, 0].tolist())
    )
    method(batch)
    known = batch.views[1].image[:, 0, 0, 0].tolist()
    company = [sorted(known.index(pixel) for pixel in group) for group in groups]
    assert len(company) == max(1, min(8, images // 4)) and sorted(
        i for group in company for i in group
    ) == list(range(images))
    lies = Shuffle(batch.draws["shuffle"]).order().tensor_split(len(company))
    assert company == [sorted(rows.tolist()) for rows in lies]
    blocks = [rows.tolist() for rows in torch.arange(images).tensor_split(len(company))]
    assert not any(group in blocks for group in company)


def test_trap_05_every_level_has_a_queue_and_all_stand_at_one_place() -> None:
    """Breaks when levels share negatives, a level's keys land in another's queue, or pointers part ways."""
    method = build()
    batch = a_batch(method.config)
    queues = parts(method, Queue)
    assert len(queues) == 4 and len({q.keys.data_ptr() for q in queues}) == 4
    for step, cursor in enumerate((8, 4, 0)):
        method(a_batch(method.config, seed=step))
        assert {int(q.cursor) for q in queues} == {cursor}  # 8 keys a step, 12 places
    method = build()
    method(batch)
    assert method.watched is not None
    for level, queue in enumerate(parts(method, Queue)):
        keys = nn.functional.normalize(method.watched.key[level::4], dim=-1)
        torch.testing.assert_close(queue.keys[:IMAGES], keys)


def test_trap_05_keys_are_queued_after_all_levels_were_compared() -> None:
    """Breaks when a key is among its own negatives."""
    method = build()
    batch, before = a_batch(method.config), copy.deepcopy(parts(build(), Queue))
    out = method(batch)
    assert method.watched is not None
    held = nn.ModuleDict({level: q for level, q in zip(method.config.levels, before)})
    want = compare(method.watched.query, method.watched.key, held, temperature=method.config.temperature)
    for level in method.config.levels:
        torch.testing.assert_close(out[level], want[level])


def test_trap_16_the_head_runs_once_for_all_levels() -> None:
    """Breaks when levels pass the head one by one, so that its BatchNorm sees one level at a time."""
    method = build()
    rows: list[int] = []
    method.student.taps["box"].box_head.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    method(a_batch(method.config))
    assert rows == [4 * IMAGES]


def test_norms_and_optimiser_are_the_published_ones() -> None:
    """Breaks when BatchNorm is synchronised, Nesterov is off, or weight decay leaves biases out."""
    assert not build().sync_norm
    recipe = insloc_r50_fpn_200ep()
    method = build()
    optimiser = build_optimiser(method, recipe.optim, lr=0.03)
    assert all(g["nesterov"] and g["momentum"] == 0.9 for g in optimiser.param_groups)
    assert {g["weight_decay"] for g in optimiser.param_groups} == {1e-4}
    assert (recipe.run.batch_size, recipe.schedule.per, recipe.schedule.warmup_epochs) == (256, "epoch", 0)


def test_head_has_the_published_numbers_of_parameters() -> None:
    """Breaks when a layer of the head appears or goes: reference figures of the official configuration."""
    with torch.device("meta"):
        method = insloc_r50_fpn_200ep().method.build(TinyEncoder(256, fpn=True))
    tap = method.student.taps["box"]
    counts = [sum(p.numel() for p in part.parameters()) for part in (*tap.box_head, *tap.project)]
    assert sum(counts[:4]) == 2_361_344 and [n for n in counts[4:] if n] == [12_846_080, 1_049_600, 131_200]


def test_initial_weights_are_those_of_the_official_code() -> None:
    """Breaks when linear layers start as torch's do, or the last is not small."""
    torch.manual_seed(0)
    method = Config(queue=8).build(TinyEncoder(16, fpn=True))
    tap = method.student.taps["box"]
    fc1, fc2, last = tap.box_head[5], tap.project[1], tap.project[3]
    for layer in (fc1, fc2):
        bound = (6 / (layer.in_features + layer.out_features)) ** 0.5
        assert 0.99 * bound < layer.weight.abs().max() <= bound
    assert float(last.weight.detach().std()) == pytest.approx(0.01, rel=0.02)
    assert all((layer.bias == 0).all() for layer in (fc1, fc2, last))
    assert insloc_r50_fpn_200ep().encoder == EncoderConfig(backbone="resnet50", fpn=True, fpn_init="xavier")


def test_what_is_handed_over_ends_at_the_first_linear_layer() -> None:
    """Breaks when fc2 or the output layer travel along, or fc1 stays behind."""
    handed = build().handed_over()
    assert list(handed) == ["backbone", "fpn", "head"]
    assert handed["head"].state_dict().keys() == box_head(6).state_dict().keys()
    assert (
        moco_projector(6, 5, 4).state_dict().keys() == build().student.taps["box"].project.state_dict().keys()
    )
    assert list(build(**C4).handed_over()) == ["backbone"]


def test_table_3b_is_built_up_part_by_part() -> None:
    """Breaks when an ablation leaves out more or less than it names."""
    full = insloc_r50_fpn_200ep()
    pasted_only = without_box_augmentation(full)
    assert pasted_only.method == replace(full.method, augmented=(False,) * 4)
    assert pasted_only.views == full.views and "anchors" not in pasted_only.method.draws()
    rois = roi_align_only(full)
    assert rois.method == pasted_only.method and rois.views == mocov2_r50_200ep().views == (MOCO_VIEW,) * 2
    assert (rois.encoder, rois.optim, rois.schedule) == (full.encoder, full.optim, full.schedule)
    assert without_box_augmentation(insloc_r50_c4_200ep()).method.augmented == (False,)


def test_where_nothing_was_pasted_the_box_is_the_whole_view() -> None:
    """Breaks when "RoIAlign only" has no boxes, or reads the crop's source pixels."""
    view = View(torch.zeros(2, 3, 64, 64), torch.tensor([[5.0, 6, 90, 70]] * 2), torch.tensor([True, False]))
    assert pasted(view).tolist() == [[[0, 0, 64, 64]]] * 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"encoder.fpn": False}, "method.levels: p2 to p5 need encoder.fpn: true"),
        ({"encoder.c4": True}, "c4 and fpn"),
        ({"method.levels": ("p2", "p4")}, "p2, p3, p4, p5 or c4 alone"),
        ({"method.levels": ("c4",), "method.augmented": (True,)}, "needs encoder.c4: true"),
        ({"method.augmented": (True,)}, "one switch for each of p2, p3, p4, p5"),
    ],
)
def test_settings_that_cannot_work_are_refused_in_one_sentence(change: dict[str, Any], words: str) -> None:
    """Breaks when an impossible run starts, or ends in a traceback."""
    with pytest.raises(SettingsError, match=words):
        insloc_r50_fpn_200ep().changed(change)


def test_pairs_show_both_boxes_of_a_query() -> None:
    """Breaks when drawn views leave out what p5 reads, or its key's box."""
    method = build()
    batch = a_batch(method.config)
    (pair,) = method.pairs(batch)
    boxes = method._query_boxes(batch)
    assert (pair.a, pair.b) == (0, 1) and pair.regions.keep.all()
    assert torch.equal(pair.regions.a, torch.cat([boxes["p2"], boxes["p5"]], dim=1))
    assert torch.equal(pair.regions.b, pasted(batch.views[1]).expand(-1, 2, -1))
    (single,) = build(**C4).pairs(a_batch(Config(**SMALL, **C4)))
    assert single.regions.a.shape == (IMAGES, 1, 4)
