"""What every method owes the loop, checked once for all. A new method is one more line of METHODS."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import box_simclr
import pytest
import torch
import torch.nn.functional as F
from known_objects import composites, with_objects
from torch import Tensor

import pretend
from boxwise.data.objects import Objects
from boxwise.geometry.views import Batch, View
from boxwise.methods import detco, image_level, insloc, resim, resim_simsiam, scrl, soco
from boxwise.methods.base import Method, MethodConfig
from boxwise.methods.resim_windows import Windows
from boxwise.nn.encoder import EncoderConfig, build_encoder
from boxwise.nn.queue import Queue
from boxwise.nn.teacher import Teacher
from boxwise.run.pretrain import Pretraining
from encoders import TinyEncoder

SMALL = {"width": 16, "hidden": 32}
PYRAMID = ("p2", "p3", "p4", "p5")
WINDOWS = (  # of 64-pixel views
    Windows(level="p4", size=14, stride=9),
    Windows(level="p3", size=9, stride=7, negatives="group"),
)
C4 = (Windows(level="c4", size=14, stride=9),)
METHODS: dict[str, tuple[MethodConfig, bool | tuple[str, ...]]] = {  # settings, and the FPN that they need
    "mocov2": (image_level.MoCoConfig(**SMALL, queue=20), False),
    "byol": (image_level.BYOLConfig(**SMALL), False),
    "byol, joint": (image_level.BYOLConfig(**SMALL, joint=True), False),
    "byol, whitened": (image_level.BYOLConfig(**SMALL, whitened=True), False),
    "simsiam": (image_level.SimSiamConfig(**SMALL), False),
    "scrl": (scrl.Config(**SMALL, min_box=16, boxes=3), False),
    "scrl, paper's boxes": (scrl.Config(**SMALL, min_box=16, generator="uniform", jitter=0.1), False),
    "scrl, own target": (scrl.Config(**SMALL, min_box=16, boxes=3, target_init="random"), False),
    "scrl, any overlap": (scrl.Config(**SMALL, min_box=16, boxes=3, max_iou=None, pool_size=3), False),
    "scrl, unmatched": (scrl.Config(**SMALL, min_box=16, boxes=3, matched=False), False),
    "scrl, whitened": (scrl.Config(**SMALL, min_box=16, boxes=8, whitened=True), False),
    "scrl, fpn": (
        scrl.Config(
            **SMALL,
            boxes=4,
            min_box=8,
            levels=PYRAMID,
            limits=(12, 20, 32),
            pool_size=7,
            box_head=True,
            aligned=True,
        ),
        True,
    ),
    "insloc": (insloc.Config(**SMALL, queue=20), True),
    "insloc, every level": (insloc.Config(**SMALL, queue=20, augmented=(True,) * 4, apart=False), True),
    "insloc, whole views": (insloc.Config(**SMALL, queue=20, augmented=(False,) * 4), True),
    "insloc, res5": (
        insloc.Config(**SMALL, queue=20, levels=("c4",), augmented=(True,), pool_size=14),
        False,
    ),
    "soco": (soco.Config(**SMALL, objects=Objects(count=3), limits=(10, 20, 36)), True),
    "soco, own crops": (soco.Config(**SMALL, objects=Objects(count=3), limits=(10, 20, 36)), True),
    "soco, used levels": (
        soco.Config(**SMALL, objects=Objects(count=3), limits=(10, 20, 36), statistics="used"),
        True,
    ),
    "soco, whitened": (
        soco.Config(**SMALL, objects=Objects(count=3), limits=(10, 20, 36), whitened=True),
        True,
    ),
    "soco, every level": (soco.Config(**SMALL, objects=Objects(count=2), scale_aware=False), True),
    "soco, no head": (
        soco.Config(**SMALL, levels=("c5",), limits=(), pool_size=1, box_head=False, count_repeats=False),
        False,
    ),
    "detco": (detco.Config(**SMALL, queue=20), False),
    "detco, both ways": (
        detco.Config(**SMALL | {"hidden": "stage"}, queue=20, symmetric_gl=True, shuffle_patches=False),
        False,
    ),
    "detco, last stage": (
        detco.Config(
            **SMALL | {"hidden": "in"}, queue=20, stages=("c5",), weights=(2.0,), global_local=False
        ),
        False,
    ),
    "resim": (resim.Config(**SMALL, queue=20, windows=WINDOWS), ("p3", "p4")),
    "resim, c4": (resim.Config(**SMALL, queue=20, windows=C4, region_proj=True, region_width=16), False),
    "resim, masked": (
        resim.Config(**SMALL, queue=20, windows=C4, pool="align", mask_self_overlap=True),
        False,
    ),
    "resim, simsiam": (resim_simsiam.Config(**SMALL, windows=C4), False),
    "resim, simsiam, fpn": (resim_simsiam.Config(**SMALL, windows=WINDOWS), ("p3", "p4")),
    "a user's own": (box_simclr.Config(width=16), False),
}
every_method = pytest.mark.parametrize("name", METHODS)


def build(name: str) -> Method:
    """Student and teacher differ, as they do after some training."""
    torch.manual_seed(0)
    config, fpn = METHODS[name]
    method = config.build(TinyEncoder(fpn=fpn, c4=name.endswith("res5")))
    with torch.no_grad():
        for parameter in method.student.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return method.train()


def a_batch(name: str, images: int = 8, *, disjoint: bool = False, seed: int = 0) -> Batch:
    """Two views of 64 pixels of each image, or DetCo's four, and the numbers that the method asks for."""
    generator = torch.Generator().manual_seed(seed)
    count = 4 if name.startswith("detco") else 2
    corners = 30 * torch.rand(count, images, 2, generator=generator)
    if disjoint:
        corners[1] += 500
    crops = torch.cat([corners, corners + 90], dim=-1)
    flips = torch.rand(count, images, generator=generator) < 0.5
    pixels = torch.rand(count, images, 3, 64, 64, generator=generator)
    draws = METHODS[name][0].draws()
    noise = {key: torch.rand(images, *shape, generator=generator) for key, shape in draws.items()}
    views = tuple(View(*parts) for parts in zip(pixels, crops, flips))
    batch = Batch(views, torch.arange(images), noise)
    if name.startswith("insloc") and "whole" not in name:
        return composites(batch, generator)
    if (objects := METHODS[name][0].objects) is None:
        return batch
    apart = range(images) if disjoint else ()
    return with_objects(batch, objects, generator, own="own crops" in name, apart=apart)


def parts(method: Method, kind: type) -> list:
    return [m for m in method.modules() if isinstance(m, kind)]


def teachers(method: Method) -> list[Tensor]:
    """All weights that only `after_step` may move."""
    return [p.detach().clone() for teacher in parts(method, Teacher) for p in teacher.parameters()]


def gap(method: Method) -> float:
    """How far the teacher is from its student."""
    pairs = zip(teachers(method), method.student.parameters())
    return sum(float((p - q).detach().norm()) for p, q in pairs)


@every_method
def test_loss_is_finite_and_the_sum_of_its_terms(name: str) -> None:
    """Breaks when a term is left out of what is minimised, or a fresh network overflows."""
    out = build(name)(a_batch(name))
    terms = [out[key] for key in out if key != "loss"]
    assert terms and all(term.isfinite() for term in terms)
    torch.testing.assert_close(out["loss"], sum(terms))


@every_method
def test_gradient_reaches_everything_that_is_trained(name: str) -> None:
    """Breaks when a tap, a level or a predictor hangs loose, or a gradient leaks into a teacher."""
    method = build(name)
    method(a_batch(name))["loss"].backward()
    without = [n for n, p in method.named_parameters() if p.requires_grad and p.grad is None]
    assert not without
    for tap_name, tap in method.student.taps.items():
        weights = [p for p in tap.parameters() if p.dim() > 1]
        assert all(p.grad.abs().sum() > 0 for p in weights), tap_name
    assert method.student.encoder.body.stages[0][0].weight.grad.abs().sum() > 0
    for teacher in parts(method, Teacher):
        assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())


@every_method
def test_losses_moves_neither_weights_nor_teachers(name: str) -> None:
    """Breaks when the teacher follows inside the forward: accumulation would move it several times a step."""
    method = build(name)
    before = copy.deepcopy(dict(method.named_parameters()))
    method(a_batch(name))["loss"].backward()
    method(a_batch(name, seed=1))
    assert all(torch.equal(p, before[n]) for n, p in method.named_parameters())


@every_method
def test_after_step_moves_every_teacher_towards_its_student(name: str) -> None:
    """Breaks when a teacher is forgotten, runs away, or moves although the step was dropped."""
    method = build(name)
    if not parts(method, Teacher):
        pytest.skip("learns without a teacher")
    before = teachers(method)
    far = gap(method)
    method.after_step(3, 10, ok=torch.zeros(()))
    assert all(torch.equal(p, q) for p, q in zip(teachers(method), before))
    method.after_step(3, 10, ok=torch.ones(()))
    assert any(not torch.equal(p, q) for p, q in zip(teachers(method), before))
    assert 0.9 * far < gap(method) < far
    plain = build(name)
    plain.after_step(3, 10)
    for p, q in zip(teachers(plain), teachers(method)):
        torch.testing.assert_close(p, q)


@every_method
def test_student_alone_changes_nothing_of_the_teacher(name: str) -> None:
    """Breaks when teacher and student share a tensor."""
    method = build(name)
    before = teachers(method)
    with torch.no_grad():
        for p in method.student.parameters():
            p += 1
    assert all(torch.equal(p, q) for p, q in zip(teachers(method), before))


@every_method
def test_views_that_share_nothing_give_a_finite_loss(name: str) -> None:
    """Breaks when a batch of which every image is skipped divides by nothing, forward or backward."""
    method = build(name)
    batch = a_batch(name, disjoint=True)
    out = method(batch)
    out["loss"].backward()
    grads = [p.grad for p in method.parameters() if p.requires_grad]
    assert out["loss"].isfinite() and all(g is not None and g.isfinite().all() for g in grads)
    if method.pairs(batch) and not name.startswith(
        "insloc"
    ):  # whose views show one image, wherever it was cut
        assert all(out[key] == 0 for key in out if key not in ("image", "loss"))
        assert "image" in out or all((g == 0).all() for g in grads)
        assert method.watched.keep is not None and not method.watched.keep.any()
    assert all(b.isfinite().all() for b in method.buffers())


@every_method
def test_queues_take_in_the_keys_of_the_batch(name: str) -> None:
    """Breaks when keys are never queued, are queued before they were compared, or not normalised."""
    method = build(name)
    before = [(q.keys.clone(), int(q.cursor)) for q in parts(method, Queue)]
    method(a_batch(name))
    for (keys, cursor), queue in zip(before, parts(method, Queue)):
        changed = (queue.keys != keys).any(-1)
        assert changed[(cursor + torch.arange(8)) % len(keys)].all() and changed.sum() == 8
        torch.testing.assert_close(queue.keys.norm(dim=-1), torch.ones(len(keys)))


@every_method
def test_loss_is_a_function_of_batch_and_weights(name: str) -> None:
    """Breaks when a draw comes from a global generator: ranks, devices and resumed runs would differ."""
    first, again = build(name), build(name)
    batch = a_batch(name)
    torch.manual_seed(1)
    one = first(batch)
    torch.manual_seed(2)
    assert all(torch.equal(one[key], value) for key, value in again(batch).items())


@every_method
def test_teacher_stays_in_training_mode(name: str) -> None:
    """Breaks when an evaluation in between freezes the teacher's BatchNorm for the rest of the run."""
    method = build(name).eval().train()
    method.eval()
    assert all(m.training for teacher in parts(method, Teacher) for m in teacher.modules())


@every_method
def test_begin_hands_loaded_weights_to_the_teacher(name: str) -> None:
    """Breaks when a run that starts from weights keeps a random teacher."""
    method = build(name)
    method.begin()
    if name != "scrl, own target" and parts(method, Teacher):
        assert gap(method) == 0
        buffers = [b for teacher in parts(method, Teacher) for b in teacher.buffers()]
        assert all(torch.equal(b, c) for b, c in zip(buffers, method.student.buffers()))


@every_method
def test_watches_matched_rows(name: str) -> None:
    """Breaks when the health figures get rows with gradient, or of different lengths."""
    method = build(name)
    method(a_batch(name))
    seen = method.watched
    assert seen is not None and seen.query.shape == seen.key.shape
    assert not seen.query.requires_grad and not seen.key.requires_grad
    assert seen.keep is None or len(seen.keep) == len(seen.query)


@every_method
def test_hands_over_what_it_trained(name: str) -> None:
    """Breaks when the teacher's or an untrained part would be carried into a detector."""
    method, fpn = build(name), METHODS[name][1]
    parts_out = method.handed_over()
    head = ["head"] if fpn is True else []
    assert list(parts_out) == (["backbone", "fpn", *head] if fpn else ["backbone"])
    method(a_batch(name))["loss"].backward()
    assert all(p.grad is not None for part in parts_out.values() for p in part.parameters())


@every_method
def test_half_precision_is_finite(name: str) -> None:
    """Breaks when boxes or losses are computed in bfloat16, or RoIAlign is asked for it."""
    method = build(name)
    exact = copy.deepcopy(method)(a_batch(name))["loss"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = method(a_batch(name))["loss"]
    loss.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=0.1, atol=0.1)


def follows_the_schedule(name: str, momentum: Callable[[int], float]) -> None:
    method = build(name)
    for step in (0, 3, 9):
        before = teachers(method)
        method.after_step(step, 10)
        m = momentum(step)
        assert method.ema_momentum == pytest.approx(m)
        for new, old, student in zip(teachers(method), before, method.student.parameters()):
            torch.testing.assert_close(new, m * old + (1 - m) * student.detach())


def test_trap_19_when_and_how_far_teachers_move() -> None:
    """Breaks when a method takes another's schedule, or counts steps from 1."""
    follows_the_schedule("mocov2", lambda k: 0.999)
    follows_the_schedule("byol", lambda k: 1 - 0.01 * (1 + math.cos(math.pi * k / 10)) / 2)
    follows_the_schedule("insloc", lambda k: 0.999)
    follows_the_schedule("detco", lambda k: 0.999)
    follows_the_schedule("resim", lambda k: 0.999)
    follows_the_schedule("scrl", lambda k: 1 - 0.03 * (1 + math.cos(math.pi * k / 10)) / 2)
    # opens the next forward, and takes that one's number
    follows_the_schedule("soco", lambda k: 1 - 0.01 * (1 + math.cos(math.pi * (k + 1) / 10)) / 2)


@every_method
def test_nothing_waits_for_the_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks when a step reads a value back (an item, a count, a boolean index): meta tensors have none."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # knows no meta device
    method, batch = build(name).to("meta"), a_batch(name).to("meta")
    method(batch)["loss"].backward()
    method.after_step(0, 10, ok=torch.ones((), device="meta"))


@every_method
def test_nothing_is_copied_from_the_host_within_a_step(name: str) -> None:
    """Breaks with a list as index, a tensor made of Python's numbers, or one that was left on the host: on a GPU each
    makes the host wait for all that it has been given, or is an error."""
    method, batch = build(name), a_batch(name)
    with pretend.cuda() as waits:
        method, batch = method.to("cuda"), batch.to("cuda")
        waits.seen.clear()
        loss = method(batch)["loss"]
        method.after_step(0, 10, ok=torch.ones((), device="cuda"))
        assert loss.device.type == "cuda" and waits.seen == []
        figures = Pretraining(method).figures()
        # As the loop reads them.
        torch.cat([loss.detach().reshape(1), *(x.reshape(1) for x in figures.values())])
        assert waits.seen == []


ON_CONVNEXT = (
    *("mocov2", "byol", "simsiam", "scrl", "scrl, fpn", "insloc", "insloc, res5", "soco", "detco"),
    *("resim", "resim, c4", "resim, simsiam", "resim, simsiam, fpn"),
)


@pytest.mark.parametrize("name", ON_CONVNEXT)
def test_every_method_learns_on_a_body_without_batch_norm_or_padding(name: str) -> None:
    """Breaks when a method counts on a ResNet's names, widths, norms or the cells that padding adds."""
    config, fpn = METHODS[name]
    levels = fpn if isinstance(fpn, tuple) else PYRAMID
    torch.manual_seed(0)
    encoder = EncoderConfig(
        backbone="test_convnext",
        fpn=bool(fpn),
        fpn_channels=8,
        fpn_levels=levels,
        c4=name.endswith("res5"),
    )
    method, batch = config.build(build_encoder(encoder)).train(), a_batch(name)
    if name == "detco":  # whose patches are about a quarter of a view
        patched = [replace(v, image=F.interpolate(v.image, (126, 126))) for v in batch.views[2:]]
        batch = replace(batch, views=(*batch.views[:2], *patched))
    loss = method(batch)["loss"]
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters() if p.requires_grad)
    assert next(iter(method.student.encoder.body.parameters())).grad.abs().sum() > 0


OWN_NORMS = ("mocov2", "insloc", "detco", "resim", "resim, c4")
JOINT_NORMS = ("byol", "simsiam", "scrl", "scrl, fpn", "soco", "resim, simsiam", "resim, simsiam, fpn")


@pytest.mark.parametrize("name", [*OWN_NORMS, *JOINT_NORMS])
def test_trap_04_trap_16_which_norms_see_the_batch_of_all_ranks(name: str) -> None:
    """Breaks when keys that are shuffled over ranks meet norms that see all of them, or a method without a queue
    normalises each rank alone."""
    assert build(name).sync_norm is (name in JOINT_NORMS)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@every_method
def test_a_step_on_a_gpu_makes_the_host_wait_for_nothing(name: str) -> None:
    """Breaks when a step reads a value back from the device; the test on meta tensors is its twin on a CPU."""
    method, batch = build(name).cuda(), a_batch(name).to("cuda")
    method(batch)["loss"].backward()  # the first pass loads kernels, which waits
    ok = torch.ones((), device="cuda")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        method(batch)["loss"].backward()
        method.after_step(1, 10, ok=ok)
    finally:
        torch.cuda.set_sync_debug_mode("default")
