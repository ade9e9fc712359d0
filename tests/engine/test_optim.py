"""Optimisers and rates, against formulas written out."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from torch import nn

import pretend
from boxwise.config import LARS, SGD, AdamW, Schedule
from boxwise.engine import optim
from boxwise.engine.guard import Guard
from boxwise.engine.metrics import Meter
from boxwise.engine.optim import build_optimiser, learning_rate

YES, NO = torch.tensor(1.0), torch.tensor(0.0)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5)).double()


def set_gradients(module: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)


def slow_lars(module: nn.Module, moments: dict[str, torch.Tensor], lr: float, c: LARS) -> None:
    with torch.no_grad():
        for name, p in module.named_parameters():
            g = p.grad.clone()
            if p.ndim > 1:
                whole = g + c.weight_decay * p
                size, slope = float(p.norm()), float(g.norm())
                below = slope + c.weight_decay * size if c.norm == "sum" else float(whole.norm())
                zero = size == 0 or (slope if c.norm == "sum" else below) == 0
                g = whole * (1 if zero else c.trust * size / (below + c.eps))
            moments[name] = c.momentum * moments.get(name, torch.zeros_like(p)) + g
            p -= lr * moments[name]


@pytest.mark.parametrize("norm", ["joint", "sum"])
def test_trap_17_lars_is_its_formula_and_leaves_one_dimension_alone(norm: str) -> None:
    """Breaks when decay or ratio reach biases and norms, or when the two norms are mixed up."""
    config = LARS(weight_decay=0.5, trust=0.1, norm=norm)
    ours = net()
    with torch.no_grad():
        ours[3].weight.zero_()
    slow, moments = copy.deepcopy(ours), {}
    optimiser = build_optimiser(ours, config, lr=0.2)
    for step in range(3):
        set_gradients(ours, step), set_gradients(slow, step)
        optimiser.step_if(YES)
        slow_lars(slow, moments, 0.2, config)
    for a, b in zip(ours.parameters(), slow.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_trap_17_what_is_adapted_is_told_by_dimension_not_by_name() -> None:
    """Breaks when norms without "bn" in their names (stem, shortcut, projector) get decay and ratio after all."""
    module = nn.ModuleDict({"body": torchvision.models.resnet18(weights=None), "project": nn.BatchNorm1d(4)})
    optimiser = build_optimiser(module, LARS(), lr=1.0)
    adapted = {id(p) for group in optimiser.param_groups if group["adapt"] for p in group["params"]}
    told = {name: id(p) in adapted for name, p in module.named_parameters()}
    assert told == {name: p.ndim > 1 for name, p in module.named_parameters()}
    assert (
        not told["body.layer2.0.downsample.1.weight"]
        and not told["project.weight"]
        and told["body.fc.weight"]
    )


@pytest.mark.parametrize("decay_1d", [True, False])
@pytest.mark.parametrize("nesterov", [True, False])
def test_sgd_is_torchs(decay_1d: bool, nesterov: bool) -> None:
    """Breaks when the momentum that is filled ahead, or the groups for decay, change a step."""
    config = SGD(momentum=0.8, weight_decay=0.3, decay_1d=decay_1d, nesterov=nesterov)
    ours, theirs = net(), net()
    optimiser = build_optimiser(ours, config, lr=0.1)
    flat = [p for p in theirs.parameters() if p.ndim == 1]
    groups = [
        {"params": flat, "weight_decay": 0.3 * decay_1d},
        {"params": [p for p in theirs.parameters() if p.ndim > 1]},
    ]
    plain = torch.optim.SGD(groups, lr=0.1, momentum=0.8, weight_decay=0.3, nesterov=nesterov, foreach=False)
    for step in range(3):
        set_gradients(ours, step), set_gradients(theirs, step)
        optimiser.step_if(YES)
        plain.step()
    for a, b in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_detectron2_decays_biases_and_no_norm() -> None:
    """Breaks when the norms of published detectors shrink with the rest, or biases no longer do."""
    module = nn.ModuleDict({"body": net(), "group": nn.GroupNorm(2, 4), "wide": nn.LayerNorm((2, 3))})
    for decays, kept in ((False, {"body.1", "group", "wide"}), (True, set())):
        optimiser = build_optimiser(module, SGD(weight_decay=0.3, decay_norms=decays), lr=0.1)
        shrinks = {id(p) for g in optimiser.param_groups if g["weight_decay"] == 0.3 for p in g["params"]}
        still = {name.rpartition(".")[0] for name, p in module.named_parameters() if id(p) not in shrinks}
        assert still == kept


@pytest.mark.parametrize("decay_1d", [True, False])
def test_adamw_is_torchs(decay_1d: bool) -> None:
    """Breaks when groups, decay or moments differ from torch's own."""
    config = AdamW(weight_decay=0.3, decay_1d=decay_1d, betas=(0.8, 0.9))
    ours, theirs = net(), net()
    optimiser = build_optimiser(ours, config, lr=0.1)
    groups = [
        {"params": [p for p in theirs.parameters() if p.ndim == 1], "weight_decay": 0.3 * decay_1d},
        {"params": [p for p in theirs.parameters() if p.ndim > 1]},
    ]
    plain = torch.optim.AdamW(groups, lr=0.1, betas=(0.8, 0.9), weight_decay=0.3, foreach=False)
    for step in range(3):
        set_gradients(ours, step), set_gradients(theirs, step)
        optimiser.step_if(YES)
        plain.step()
    for a, b in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("flags", [optim.READS_FLAGS, ()], ids=["by the device", "by the host"])
@pytest.mark.parametrize("config", [SGD(), LARS(), AdamW()], ids=["sgd", "lars", "adamw"])
def test_a_refused_step_changes_nothing(
    config: SGD | LARS | AdamW, flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks when NaN gradients reach weights or momentum of a refused step, the first one too, on devices that read
    the flag and on others."""
    monkeypatch.setattr(optim, "READS_FLAGS", flags)
    refused, spared = net(), net()
    optimiser, reference = build_optimiser(refused, config, lr=0.5), build_optimiser(spared, config, lr=0.5)
    for step, ok in enumerate([NO, YES, NO, YES]):
        set_gradients(refused, step), set_gradients(spared, step)
        if not ok:
            for p in refused.parameters():
                p.grad.fill_(float("nan"))
        optimiser.step_if(ok)
        if ok:
            reference.step_if(YES)
        assert all(torch.equal(a, b) for a, b in zip(refused.parameters(), spared.parameters()))


@pytest.mark.parametrize("config", [SGD(), LARS(norm="joint"), LARS(norm="sum"), AdamW()], ids=str)
def test_what_follows_the_gradients_never_waits(config: SGD | LARS | AdamW) -> None:
    """Breaks when the guard, the means or an optimiser makes a number on the host, or reads one there."""
    module = net()
    with pretend.cuda() as waits:
        module = module.to("cuda")
        waits.seen.clear()
        descent = build_optimiser(module, config, lr=0.1)
        device = torch.device("cuda")
        guard, meter = Guard(device, scaled=False), Meter(device)
        for step in range(2):
            descent.set_rate(0.05, base=0.1)
            for p in module.parameters():
                p.grad = torch.ones_like(p)
            loss = torch.ones((), device=device)
            meter.add({"loss": loss, "loss_view": loss})
            means, norm = meter.step(), torch.nn.utils.get_total_norm([p.grad for p in module.parameters()])
            ok = guard.judge(step, means, norm)
            torch.nn.utils.clip_grads_with_norm_(module.parameters(), 1.0, norm)
            descent.step_if(ok)
            meter.count(means, norm, ok)
        assert ok.device.type == "cuda" and waits.seen == []


def test_channels_last_takes_the_same_steps() -> None:
    """Breaks when the fused kernel walks momentum and weights in different memory orders."""
    plain, last = net(), net().to(memory_format=torch.channels_last)
    a, b = build_optimiser(plain, SGD(), lr=0.1), build_optimiser(last, SGD(), lr=0.1)
    for step in range(2):
        set_gradients(plain, step), set_gradients(last, step)
        for p in last.parameters():
            p.grad = torch.empty_like(p).copy_(p.grad)
        a.step_if(YES), b.step_if(YES)
    for x, y in zip(plain.parameters(), last.parameters()):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-14)


def test_a_constant_rate_stays_where_the_schedule_moves() -> None:
    module = nn.ModuleDict({"head": nn.Linear(2, 2), "header": nn.Linear(2, 2)})
    optimiser = build_optimiser(module, SGD(), lr=0.4, constant_lr=["head"])
    optimiser.set_rate(0.1, base=0.4)
    rates = {id(p): group["lr"] for group in optimiser.param_groups for p in group["params"]}
    assert {name: rates[id(p)] for name, p in module.named_parameters()} == {
        "head.weight": 0.4,
        "head.bias": 0.4,
        "header.weight": 0.1,
        "header.bias": 0.1,
    }


def test_names_that_match_nothing_are_errors() -> None:
    with pytest.raises(ValueError, match=r"constant_lr.*predictor"):
        build_optimiser(net(), SGD(), lr=0.1, constant_lr=["predictor"])
    with pytest.raises(ValueError, match="nothing to train"):
        build_optimiser(net().requires_grad_(False), SGD(), lr=0.1)


def test_frozen_parameters_are_left_out() -> None:
    module = net()
    module[0].requires_grad_(False)
    before = module[0].weight.clone()
    optimiser = build_optimiser(module, SGD(weight_decay=1.0), lr=0.1)
    set_gradients(module, 0)
    optimiser.step_if(YES)
    assert torch.equal(module[0].weight, before)


def rates(schedule: Schedule, total: int, steps_per_epoch: int = 10) -> list[float]:
    return [
        learning_rate(k, base=1.0, schedule=schedule, steps_per_epoch=steps_per_epoch, total=total)
        for k in range(total)
    ]


def test_multistep_falls_at_shares_of_the_whole_length() -> None:
    found = rates(
        Schedule(steps=9, kind="multistep", milestones=(2 / 3, 8 / 9), warmup_steps=2, warmup_from=0.5), 9
    )
    assert found == pytest.approx([0.5, 0.75, 1, 1, 1, 1, 0.1, 0.1, 0.01])


def test_warmups_in_epochs_and_steps_add_up() -> None:
    found = rates(Schedule(steps=20, warmup_epochs=0.2, warmup_steps=2), 20)
    assert found[:5] == pytest.approx([0, 0.25, 0.5, 0.75, 1.0])


def test_an_early_cosine_ends_at_its_final_rate() -> None:
    assert rates(Schedule(steps=10, early=True, final_lr=0.01), 10)[-1] == pytest.approx(0.01, abs=1e-12)


def test_a_warmup_longer_than_the_run_still_has_rates() -> None:
    found = rates(Schedule(steps=4, warmup_steps=8, early=True), 4)
    assert found == pytest.approx([1 / 8, 2 / 8, 3 / 8, 4 / 8])
