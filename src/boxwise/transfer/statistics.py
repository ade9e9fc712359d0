"""BatchNorm's statistics of a trained detector, measured anew ("precise BN").

In training they are an average that forgets, of weights that have since moved on. Of batches b, each with the mean
m[b] and the variance v[b] (over its rows and cells, divided by their number) of a channel:

    mean = sum(m[b] for b in batches) / count
    var = sum(v[b] + (m[b] - mean) ** 2 for b in batches) / count

so that a batch counts as much as any other, whatever its pictures' size, and the variance is that of all of them
around their common mean.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from boxwise.engine.steps import seed_draws
from boxwise.nn.ranks import gather, rank
from boxwise.transfer.samples import DetectionBatch
from boxwise.transfer.task import Detection


@torch.no_grad()
def remeasured(
    module: Detection,
    batches: Iterable[DetectionBatch],
    *,
    seed: int = 0,
    step: int = 0,
    precision: Literal["fp32", "bf16"] = "fp32",
) -> int:
    """Makes the running statistics of all norms that train those of `batches`; returns how many norms those are.

    Nothing else changes: no weight, no frozen norm, none that no batch reached (a mask head's, where nothing was
    there to be masked). The detector draws its samples as in training at step number `step` and those after it.
    Each rank has batches of its own, and all count: every rank must call this, and all end with the same
    statistics. Leaves the module in training, where it lies.
    """
    device = module.mean.device
    module.train()
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    all_moments = [Moments(norm) for norm in norms]
    hooks = [
        norm.register_forward_pre_hook(moments.add) for norm, moments in zip(norms, all_moments, strict=True)
    ]
    try:
        for i, batch in enumerate(batches):
            seed_draws(seed, step + i, 0, rank(), device=device)
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                module(batch.to(device))
    finally:
        for hook in hooks:
            hook.remove()
    return sum(moments.into(norm) for norm, moments in zip(norms, all_moments, strict=True))


class Moments:
    """Mean and variance of each channel over the batches that a norm has met, each batch counting alike.

    Sums of squares would lose a small variance around a large mean: what is kept are means and squares of distances.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        none = torch.zeros(norm.num_features, device=norm.running_mean.device)  # type: ignore[union-attr]
        self.count = 0
        self.mean, self.within, self.between = none, none, none
        """Of the batches' means; of their variances; the sum of squares of the means' distances from `mean`."""

    def add(self, norm: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Takes in what `norm` is about to normalise; nothing, where that has no rows."""
        x: Tensor = inputs[0]
        if not x.numel():
            return
        across = [0, *range(2, x.dim())]
        var, mean = torch.var_mean(x.to(torch.promote_types(x.dtype, torch.float32)), across, correction=0)
        self.count += 1
        off = mean - self.mean
        self.mean = self.mean + off / self.count
        self.between = self.between + off * (mean - self.mean)
        self.within = self.within + (var - self.within) / self.count

    def joined(self) -> tuple[Float[Tensor, " C"], Float[Tensor, " C"], int]:
        """Mean and variance over the batches of all ranks, and how many those are."""
        share = torch.stack([self.mean, self.within, self.between, torch.full_like(self.mean, self.count)])
        means, within, between, counts = gather(share[None]).unbind(1)  # (ranks, C) each
        total = counts.sum(0)
        mean = (means * counts).sum(0) / total
        var = (counts * (within + (means - mean).square()) + between).sum(0) / total
        return mean, var, int(total[0])

    def into(self, norm: _BatchNorm) -> bool:
        """Makes these the statistics of `norm`; whether any batch reached it."""
        mean, var, count = self.joined()
        if count:
            kept = (norm.running_mean, norm.running_var, norm.num_batches_tracked)
            for buffer, value in zip(kept, (mean, var, count), strict=True):
                if buffer is not None:
                    buffer.copy_(torch.as_tensor(value))
        return bool(count)
