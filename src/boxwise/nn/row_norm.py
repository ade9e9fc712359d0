"""Norms of embeddings that leave padding out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from boxwise.nn.ranks import world
from boxwise.shapes import Embeddings, Keep

LEAST = 1e-6
"""Added to variances, so that a batch of equal rows can be whitened as well."""
ROOT_STEPS = 22
"""Of an iteration that first grows small eigenvalues by half a step, and then doubles its digits."""


class RowNorm(nn.Module):
    """BatchNorm1d, names and all, whose statistics come from the rows that `only_kept` names, of all ranks.

    Region batches have a fixed number of rows, and images whose views share too little fill theirs with
    padding. The official codes leave those rows out before they project; here they weigh nothing instead, so
    that shapes stay fixed and nobody waits for a count. Padding is normalised like any row.
    """

    weight: Float[Tensor, " D"] | None
    bias: Float[Tensor, " D"] | None
    running_mean: Float[Tensor, " D"]
    running_var: Float[Tensor, " D"]
    num_batches_tracked: Tensor
    keep: Keep | None = None
    """Set by `only_kept`; none: every row counts."""

    def __init__(self, width: int, *, eps: float = 1e-5, momentum: float = 0.1, affine: bool = True) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.register_parameter("weight", nn.Parameter(torch.ones(width)) if affine else None)
        self.register_parameter("bias", nn.Parameter(torch.zeros(width)) if affine else None)
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.long))

    def forward(self, rows: Embeddings) -> Embeddings:
        if self.training:
            self.num_batches_tracked.add_(1)
        if not self.training or (self.keep is None and world() == 1):
            seen, affine = (self.running_mean, self.running_var), (self.weight, self.bias)
            return F.batch_norm(rows, *seen, *affine, self.training, self.momentum, self.eps)
        x = rows.to(torch.promote_types(rows.dtype, torch.float32))
        kept = x.new_ones(len(x), 1) if self.keep is None else self.keep[:, None].to(x.dtype)
        count = over_ranks(kept.sum())
        mean = over_ranks((x * kept).sum(0)) / count.clamp(min=1)
        centred = x - mean
        var = over_ranks((centred.square() * kept).sum(0)) / count.clamp(min=1)
        self._record(mean, var, count)
        normed = centred * (var + self.eps).rsqrt()
        if self.weight is not None and self.bias is not None:
            normed = normed * self.weight + self.bias
        return normed.to(rows.dtype)

    @torch.no_grad()
    def _record(self, mean: Float[Tensor, " D"], var: Float[Tensor, " D"], count: Float[Tensor, ""]) -> None:
        """Moves the running statistics, unless no row was kept."""
        share = self.momentum * (count > 0)
        unbiased = var * (count / (count - 1).clamp(min=1))
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share.to(self.running_mean.dtype))
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), share.to(self.running_var.dtype))


@torch.no_grad()
def whitened(rows: Embeddings, keep: Keep, *, ridge: float = 0.01) -> Embeddings:
    """Rows whose columns have mean 0 and variance 1 and are uncorrelated, over the kept rows of all ranks.

    Of all such rows these are the nearest to what they were (ZCA), so that a number means the same from batch to
    batch; whitening targets is W-MSE's idea (https://arxiv.org/abs/2007.06346). `ridge` times the mean variance is
    added to every variance, so that directions of which a batch holds next to nothing stay small.
    """
    with torch.autocast(rows.device.type, enabled=False):
        x = rows.to(torch.promote_types(rows.dtype, torch.float32))
        kept = keep[:, None].to(x.dtype)
        count = over_ranks(kept.sum()).clamp(min=1)
        x = x - over_ranks((x * kept).sum(0)) / count
        covariance = over_ranks((x * kept).mT @ x) / count
        variance = covariance.diagonal()
        covariance = covariance + torch.diag_embed((ridge * variance.mean() + LEAST).expand_as(variance))
        return (x @ inverse_root(covariance)).to(rows.dtype)


def inverse_root(matrix: Float[Tensor, "D D"]) -> Float[Tensor, "D D"]:
    """The symmetric inverse square root of a positive definite matrix, by Newton and Schulz's coupled iteration.

    Products alone, so that no device waits for a decomposition; exact for eigenvalues down to a millionth of their
    sum.
    """
    scale = matrix.diagonal().sum()
    root, inverse = matrix / scale, torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    three = 3 * inverse
    for _ in range(ROOT_STEPS):
        turn = (three - inverse @ root) / 2
        root, inverse = root @ turn, turn @ inverse
    return inverse * scale.rsqrt()


@contextmanager
def only_kept(keep: Keep, *modules: nn.Module) -> Iterator[None]:
    """Inside, every RowNorm of `modules` is met by one row for each of `keep` and ignores those not kept."""
    norms = [part for module in modules for part in module.modules() if isinstance(part, RowNorm)]
    for norm in norms:
        norm.keep = keep
    try:
        yield
    finally:
        for norm in norms:
            norm.keep = None


def over_ranks(x: Float[Tensor, ...]) -> Float[Tensor, ...]:
    """The sum over all ranks, differentiable."""
    return x if world() == 1 else _Sum.apply(x)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.clone()
        dist.all_reduce(total)
        return total
