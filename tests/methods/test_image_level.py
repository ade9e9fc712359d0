"""MoCo-v2, BYOL and SimSiam: whole steps against loops, and what sets each apart."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from slow_scrl import cosine, mlp, normalised
from torch import Tensor

from boxwise.config import SGD
from boxwise.engine.optim import build_optimiser
from boxwise.geometry.views import Batch, View
from boxwise.methods.base import Method
from boxwise.methods.image_level import BYOLConfig, MoCoConfig, SimSiamConfig
from boxwise.nn.shuffle import Shuffle
from encoders import TinyEncoder

IMAGES = 8
CONFIGS: dict[str, Any] = {
    "mocov2": MoCoConfig(width=6, hidden=10, queue=12, temperature=0.5),
    "byol": BYOLConfig(width=6, hidden=10),
    "byol, joint": BYOLConfig(width=6, hidden=10, joint=True),
    "simsiam": SimSiamConfig(width=6, hidden=4),
}


pytestmark = pytest.mark.usefixtures("double")


def build(name: str) -> Method:
    """As after some training: student and teacher differ."""
    torch.manual_seed(0)
    method = CONFIGS[name].build(TinyEncoder(6))
    with torch.no_grad():
        for p in method.parameters():
            p += 0.2 * torch.randn_like(p)
    return method


def a_batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(2, IMAGES, 3, 64, 64, generator=generator) - 0.5
    crop = torch.tensor([[0.0, 0, 64, 64]]).expand(IMAGES, 4)
    views = tuple(View(p, crop, torch.zeros(IMAGES, dtype=torch.bool)) for p in pixels)
    return Batch(views, torch.arange(IMAGES), {"shuffle": torch.rand(IMAGES, generator=generator)})


def trunk(images: Tensor, w: Mapping[str, Tensor], at: str) -> Tensor:
    """Five strided convolutions and the mean over all cells."""
    x = images
    for stage in range(5):
        name = f"{at}encoder.body.stages.{stage}"
        x = F.conv2d(x, w[f"{name}.0.weight"], stride=2, padding=1)
        x = normalised(x, w[f"{name}.1.weight"], w[f"{name}.1.bias"]).relu()
    return x.mean((2, 3))


def slow_moco(method: Method, batch: Batch, w: Mapping[str, Tensor]) -> Tensor:
    one, two = (v.image for v in batch.views)
    project, target = "student.taps.image.project.", "teacher.network.taps.image.project."

    def head(x: Tensor, at: str) -> Tensor:
        x = (x @ w[f"{at}1.weight"].T + w[f"{at}1.bias"]).relu()
        return x @ w[f"{at}3.weight"].T + w[f"{at}3.bias"]

    query = head(trunk(one, w, "student."), project)
    key: dict[int, Tensor] = {}
    order = Shuffle(batch.draws["shuffle"]).order()
    for group in (order[:4], order[4:]):  # each with its own statistics
        rows = head(trunk(two[group], w, "teacher.network."), target).detach()
        key |= dict(zip(group.tolist(), rows))
    total = torch.zeros(())
    for i in range(IMAGES):
        logits = [cosine(query[i], key[i]), *(cosine(query[i], n) for n in method.queue.keys)]
        total = total - torch.log_softmax(torch.stack(logits) / 0.5, 0)[0]
    return total / IMAGES


def slow_byol(method: Method, batch: Batch, w: Mapping[str, Tensor]) -> Tensor:
    p, z = [], []
    for view in batch.views:  # each view its own statistics
        p.append(byol_student(view.image, w))
        z.append(byol_teacher(view.image, w))
    return byol_loss(p, z)


def slow_joint_byol(method: Method, batch: Batch, w: Mapping[str, Tensor]) -> Tensor:
    both = torch.cat([view.image for view in batch.views])
    p, z = byol_student(both, w), byol_teacher(both, w)
    return byol_loss([p[:IMAGES], p[IMAGES:]], [z[:IMAGES], z[IMAGES:]])


def byol_student(images: Tensor, w: Mapping[str, Tensor]) -> Tensor:
    projected = mlp(trunk(images, w, "student."), w, "student.taps.image.project.")
    return mlp(projected, w, "predictor.")


def byol_teacher(images: Tensor, w: Mapping[str, Tensor]) -> Tensor:
    at = "teacher.network."
    return mlp(trunk(images, w, at), w, f"{at}taps.image.project.").detach()


def byol_loss(p: list[Tensor], z: list[Tensor]) -> Tensor:
    pairs = [(p[0][i], z[1][i]) for i in range(IMAGES)] + [(p[1][i], z[0][i]) for i in range(IMAGES)]
    return sum((2 - 2 * cosine(a, b) for a, b in pairs), torch.zeros(())) / IMAGES


def slow_simsiam(method: Method, batch: Batch, w: Mapping[str, Tensor]) -> Tensor:
    p, z = [], []
    for view in batch.views:
        x, at = trunk(view.image, w, "student."), "student.taps.image.project."
        for layer in (1, 4):
            x = x @ w[f"{at}{layer}.weight"].T
            x = normalised(x, w[f"{at}{layer + 1}.weight"], w[f"{at}{layer + 1}.bias"]).relu()
        x = normalised(x @ w[f"{at}7.weight"].T, torch.ones(6), torch.zeros(6))
        z.append(x.detach())
        x = normalised(x @ w["predictor.1.weight"].T, w["predictor.2.weight"], w["predictor.2.bias"]).relu()
        p.append(x @ w["predictor.4.weight"].T + w["predictor.4.bias"])
    pairs = [(p[0][i], z[1][i]) for i in range(IMAGES)] + [(p[1][i], z[0][i]) for i in range(IMAGES)]
    return sum((-cosine(a, b) for a, b in pairs), torch.zeros(())) / (2 * IMAGES)


@pytest.mark.parametrize(
    ("name", "slow"),
    [("mocov2", slow_moco), ("byol", slow_byol), ("byol, joint", slow_joint_byol), ("simsiam", slow_simsiam)],
)
def test_whole_step_equals_the_loops(name: str, slow: Any) -> None:
    """Breaks when views are crossed, joined or averaged otherwise than published, or a gradient leaks."""
    method, batch = build(name), a_batch()
    weights = {n: p.detach().clone().requires_grad_() for n, p in method.named_parameters()}
    want = slow(copy.deepcopy(method), batch, weights)
    want.backward()
    out = method(batch)["loss"]
    out.backward()
    torch.testing.assert_close(out, want, rtol=1e-10, atol=0)
    for n, p in method.named_parameters():
        if p.requires_grad:
            grad = weights[n].grad
            floor = 1e-10 * max(float(grad.abs().max()), 1e-3)  # biases before a norm have none but rounding
            torch.testing.assert_close(p.grad, grad, rtol=1e-8, atol=floor, msg=n)
        else:
            assert p.grad is None and weights[n].grad is None


def forwards(module: torch.nn.Module) -> set[int]:
    """How often each BatchNorm has been passed in training."""
    return {int(b) for n, b in module.named_buffers() if n.endswith("num_batches_tracked")}


def test_trap_16_each_view_is_a_forward_of_its_own() -> None:
    """Breaks when BYOL or SimSiam join their views as SCRL does, or BYOL in SCRL's tables does not."""
    for name, times in {"byol": 2, "simsiam": 2, "byol, joint": 1}.items():
        method = build(name)
        method(a_batch())
        assert forwards(method) == {times}, name


def test_moco_shuffles_keys_alone() -> None:
    """Breaks when a key shares its statistics with just the images that its query did."""
    method, batch = build("mocov2"), a_batch()
    plain = method.teacher(batch.views[1])["image"]
    method = build("mocov2")
    method(batch)
    assert forwards(method.student) == {1} and forwards(method.teacher) == {2}  # two groups of four
    seen = method.watched
    assert seen is not None and not torch.allclose(seen.key, plain)


def test_moco_puts_keys_back_in_order() -> None:
    """Breaks when a query meets another image's key, or keys are queued in another order than images."""
    method, batch = build("mocov2"), a_batch()
    method.teacher.network.encoder.eval()  # without statistics of a group, its order cannot matter
    plain = method.teacher(batch.views[1])["image"]
    method(batch)
    assert method.watched is not None
    torch.testing.assert_close(method.watched.key, plain)
    torch.testing.assert_close(method.queue.keys[:IMAGES], F.normalize(plain))


def test_moco_compares_before_it_queues() -> None:
    """Breaks when the key of this very image is among its own negatives, which costs every query log 2."""
    method, batch = build("mocov2"), a_batch()
    first = method(batch)["loss"]
    again = method(batch)["loss"]  # now the same keys are negatives
    assert again > first


@pytest.mark.parametrize("name", CONFIGS)
def test_an_fpn_that_nothing_trains_is_refused(name: str) -> None:
    """Breaks when untrained random weights would be handed over as pretrained ones."""
    with pytest.raises(ValueError, match=r"nothing would train p2, p3, p4, p5.*encoder.fpn: false"):
        CONFIGS[name].build(TinyEncoder(6, fpn=True))


def test_norms_and_rates_are_the_published_ones() -> None:
    """Breaks when MoCo's BatchNorm is synchronised, BYOL's is not, or SimSiam's predictor gets a schedule."""
    methods = {name: build(name) for name in CONFIGS}
    assert {name: m.sync_norm for name, m in methods.items()} == {
        "mocov2": False,
        "byol": True,
        "byol, joint": True,
        "simsiam": True,
    }
    constant = {name: m.constant_lr for name, m in methods.items()}
    assert constant == {"mocov2": (), "byol": (), "byol, joint": (), "simsiam": ("predictor",)}
    method = methods["simsiam"]
    optimiser = build_optimiser(method, SGD(), lr=0.1, constant_lr=method.constant_lr)
    optimiser.set_rate(0.01, base=0.1)
    rates = {id(p): group["lr"] for group in optimiser.param_groups for p in group["params"]}
    assert {float(rates[id(p)]) for p in method.predictor.parameters()} == {0.1}
    assert {float(rates[id(p)]) for p in method.student.parameters()} == {0.01}


def test_whitened_byol_predicts_targets_without_correlation() -> None:
    """Breaks when one view alone is whitened, whitened targets are paired with their own view, or nothing is."""
    torch.manual_seed(0)
    method, batch = BYOLConfig(width=3, hidden=10, whitened=True).build(TinyEncoder(6)), a_batch()
    loss = method(batch)["loss"]

    p = [method.predictor(method.student(view)["image"]) for view in batch.views]
    z = torch.cat([method.teacher(view)["image"] for view in batch.views])
    z = z - z.mean(0)
    covariance = z.T @ z / len(z)
    values, axes = torch.linalg.eigh(covariance + (0.01 * covariance.diagonal().mean() + 1e-6) * torch.eye(3))
    flat = z @ axes @ torch.diag(values.rsqrt()) @ axes.T
    others = reversed(flat.chunk(2))
    expected = sum(2 - 2 * F.cosine_similarity(a, b).mean() for a, b in zip(p, others, strict=True))
    torch.testing.assert_close(loss, expected)
