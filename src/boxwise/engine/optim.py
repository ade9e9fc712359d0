"""Optimisers whose step the device can refuse, and the learning rate at every step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from boxwise.config import LARS, SGD, AdamW, Optimiser, Schedule
from boxwise.shapes import Scalar

Groups = Iterable[dict[str, Any]]

READS_FLAGS = ("cpu", "cuda")
"""Devices on which every torch that is supported lets a fused step be refused; elsewhere the host looks and waits."""
NORMS = (_BatchNorm, nn.GroupNorm, nn.LayerNorm)


def learning_rate(step: int, *, base: float, schedule: Schedule, steps_per_epoch: int, total: int) -> float:
    """The rate of optimiser step `step`, counted from 0, of `total`.

    The warm-up is linear from `base * warmup_from` at its first step to `base` at its end. `early` reads
    everything one step ahead, so that the very last step of a cosine has the rate `final_lr`.
    """
    k = step + schedule.early
    warmup = schedule.warmup_epochs * steps_per_epoch + schedule.warmup_steps
    if warmup > 0 and k <= warmup:
        return base * (schedule.warmup_from + (1 - schedule.warmup_from) * k / warmup)
    if schedule.kind == "multistep":
        passed = sum(k >= round(milestone * total) for milestone in schedule.milestones)
        return float(base * schedule.gamma**passed)
    if schedule.per == "epoch":
        k = max(k // steps_per_epoch * steps_per_epoch, math.ceil(warmup))
    fall = (1 + math.cos(math.pi * (k - warmup) / (total - warmup))) / 2
    return schedule.final_lr + (base - schedule.final_lr) * fall


class Refusable:
    """A step that a flag on the device turns into nothing, without asking the host. For torch's fused optimisers."""

    param_groups: list[dict[str, Any]]
    found_inf: Tensor | None = None  # read by torch's fused kernels: 1 leaves parameters and moments alone

    def step_if(self, ok: Scalar) -> None:
        """One step where `ok` is 1; nothing at all, not even momentum, where it is 0."""
        if ok.device.type in READS_FLAGS:
            self.found_inf = 1 - ok.float()
            self.step()
        elif bool(ok):
            self.step()

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """torch's own."""
        return super().step(closure)  # type: ignore[misc]

    def set_rate(self, lr: float, *, base: float) -> None:
        """The rate of the coming step; parts with a constant rate keep `base`."""
        for group in self.param_groups:
            group["lr"] = base if group["constant"] else lr


class Descent(Refusable, torch.optim.SGD):  # type: ignore[misc]
    """SGD with momentum."""

    def __init__(self, groups: Groups, *, lr: float, momentum: float, nesterov: bool) -> None:
        super().__init__(groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=True)
        if momentum:
            for group in self.param_groups:  # torch fills them at the first step, which the flag may refuse
                for p in group["params"]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)


class AdaptiveDescent(Refusable, torch.optim.AdamW):  # type: ignore[misc]
    """AdamW."""

    def __init__(self, groups: Groups, *, lr: float, betas: tuple[float, float]) -> None:
        super().__init__(groups, lr=lr, betas=betas, fused=True)


class LayerwiseDescent(Descent):
    """LARS: gradients of matrices and kernels are scaled to their layer's size, then plain SGD with momentum.

    Per parameter of two or more dimensions, with d the weight decay: g = trust * (grad + d p) * |p| / n,
    where n is |grad + d p| + eps (`norm="joint"`: BYOL, SoCo) or |grad| + d |p| + eps (`norm="sum"`: SCRL).
    Where a norm is 0, g = grad + d p. Parameters of one dimension keep their gradient, without decay.
    """

    def __init__(self, groups: Groups, *, config: LARS, lr: float) -> None:
        super().__init__(groups, lr=lr, momentum=config.momentum, nesterov=config.nesterov)
        self.config = config

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        params = [
            p for group in self.param_groups if group["adapt"] for p in group["params"] if p.grad is not None
        ]
        if params:
            self._adapt(params, [p.grad for p in params if p.grad is not None])
        return super().step(closure)

    def _adapt(self, params: list[Tensor], grads: list[Tensor]) -> None:
        c = self.config
        sizes = torch.stack(torch._foreach_norm(params))
        slopes = torch.stack(torch._foreach_norm(grads))
        torch._foreach_add_(grads, params, alpha=c.weight_decay)
        if c.norm == "sum":
            whole = slopes + c.weight_decay * sizes
        else:
            slopes = whole = torch.stack(torch._foreach_norm(grads))
        ratio = c.trust * sizes / (whole + c.eps)
        ratio = torch.where((sizes > 0) & (slopes > 0), ratio, torch.ones_like(ratio))
        torch._foreach_mul_(grads, list(ratio.unbind()))


def build_optimiser(
    module: nn.Module, config: Optimiser, *, lr: float, constant_lr: Sequence[str] = ()
) -> Descent | AdaptiveDescent:
    """The optimiser of every trainable parameter; `lr` is the rate at the run's own batch size.

    `constant_lr` names submodules whose rate no schedule moves (SimSiam's predictor). Raises ValueError
    where a name matches nothing.
    """
    groups: dict[tuple[bool, bool, bool], dict[str, Any]] = {}
    matched: set[str] = set()
    spared = _norms(module) if isinstance(config, SGD) and not config.decay_norms else frozenset()
    for name, p in module.named_parameters():
        if not p.requires_grad:
            continue
        constant = [prefix for prefix in constant_lr if name.startswith(f"{prefix}.")]
        matched.update(constant)
        decayed = not isinstance(config, LARS) and name not in spared and (p.ndim > 1 or config.decay_1d)
        group = groups.setdefault(
            (p.ndim > 1, bool(constant), decayed),
            {
                "params": [],
                "weight_decay": config.weight_decay if decayed else 0.0,
                "adapt": isinstance(config, LARS) and p.ndim > 1,
                "constant": bool(constant),
            },
        )
        group["params"].append(p)
    if unknown := set(constant_lr) - matched:
        raise ValueError(f"constant_lr: no trainable parameter under {', '.join(sorted(unknown))}")
    if not groups:
        raise ValueError("nothing to train: no parameter requires a gradient")
    if isinstance(config, LARS):
        return LayerwiseDescent(groups.values(), config=config, lr=lr)
    if isinstance(config, AdamW):
        return AdaptiveDescent(groups.values(), lr=lr, betas=config.betas)
    return Descent(groups.values(), lr=lr, momentum=config.momentum, nesterov=config.nesterov)


def _norms(module: nn.Module) -> frozenset[str]:
    """Names of the parameters of norms."""
    found = ((at, norm) for at, norm in module.named_modules() if isinstance(norm, NORMS))
    return frozenset(
        f"{at}.{name}" if at else name for at, norm in found for name, _ in norm.named_parameters()
    )
