"""BatchNorm over the joint batch of all ranks, on accelerators and on CPUs."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from boxwise.nn.ranks import gather, world


def synchronise(module: nn.Module, device: torch.device | str | None = None) -> nn.Module:
    """Makes every BatchNorm inside see the batch of all ranks; weights, statistics and names stay.

    Works in place. `device` is where the module will run, by default where it is: torch's SyncBatchNorm on an
    accelerator, `AllReduceNorm` on a CPU, where torch's raises. On one rank nothing changes.
    """
    if world() == 1:
        return module
    if device is None:
        device = next((t.device for t in chain(module.parameters(), module.buffers())), "cpu")
    if torch.device(device).type != "cpu":
        from timm.layers.norm_act import convert_sync_batchnorm  # knows norms with an activation inside

        joined: nn.Module = convert_sync_batchnorm(module)
        for norm in joined.modules():
            if isinstance(norm, nn.SyncBatchNorm):
                norm.register_forward_pre_hook(_exact_where_empty)
        return joined
    if isinstance(module, _BatchNorm):
        return _joined(module)
    for name, child in module.named_children():
        setattr(module, name, synchronise(child, device))
    return module


def _exact_where_empty(norm: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """No rows in float32. torch sends what it has of no rows in their own precision, and all else in float32: in
    bfloat16 a rank whose mask head reads nothing would send half the bytes that the others wait for."""
    return inputs if inputs[0].numel() else (inputs[0].float(),)


class AllReduceNorm(_BatchNorm):
    """BatchNorm over the rows of all ranks, for 2-D input and maps alike, in plain differentiable torch.

    Values, gradients and running statistics are those of BatchNorm over the joint batch; ranks may hold
    different numbers of rows. One exchange forward and one backward. Children are applied to the result.
    """

    def forward(self, input: Float[Tensor, "rows C *cells"]) -> Float[Tensor, "rows C *cells"]:
        y = self._normalised(input) if self.training and world() > 1 else super().forward(input)
        for after in self.children():
            y = after(y)
        return y

    def _normalised(self, input: Tensor) -> Tensor:
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        mean, var, count = _joint_moments(x)
        self._record(mean, var, count)
        y = _Normalise.apply(x, mean, (var + self.eps).rsqrt(), count)
        if self.affine:
            y = y * _along(self.weight, y) + _along(self.bias, y)
        return y.to(input.dtype)

    @torch.no_grad()
    def _record(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        share = momentum * (count > 0).to(self.running_mean.dtype)  # of a mask head, no rank may have a row
        unbiased = var * (count / (count - 1).clamp(min=1))
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected rows and channels, got {tuple(input.shape)}")


@torch.no_grad()
def _joint_moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance per channel over all ranks, and the number of values behind them.

    Ranks exchange their own mean and variance: in float32, sums of squares would lose a small variance
    around a large mean.
    """
    channels, count = x.shape[1], x.numel() // x.shape[1]
    var, mean = torch.var_mean(x, _rows_and_cells(x), correction=0) if count else x.new_zeros(2, channels)
    everyone = gather(torch.cat([mean, var, x.new_tensor([count])])[None])  # (ranks, 2C+1)
    means, vars, counts = everyone.split([channels, channels, 1], dim=1)
    total = counts.sum()
    mean = (means * counts).sum(0) / total.clamp(min=1)
    var = ((vars + (means - mean).square()) * counts).sum(0) / total.clamp(min=1)
    return mean, var, total


class _Normalise(torch.autograd.Function):
    """(x - mean) * scale, where mean and scale are functions of the x of all ranks."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, mean: Tensor, scale: Tensor, count: Tensor) -> Tensor:
        y = (x - _along(mean, x)) * _along(scale, x)
        ctx.save_for_backward(y, scale, count)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        y, scale, count = ctx.saved_tensors
        across = _rows_and_cells(y)
        sums = torch.stack([grad.sum(across), (grad * y).sum(across)])
        dist.all_reduce(sums)
        through_mean, through_scale = (_along(s, y) for s in sums / count.clamp(min=1))
        return (grad - through_mean - y * through_scale) * _along(scale, y), None, None, None


def _rows_and_cells(x: Tensor) -> list[int]:
    return [0, *range(2, x.dim())]


def _along(per_channel: Tensor, x: Tensor) -> Tensor:
    return per_channel.view(1, -1, *[1] * (x.dim() - 2))


def _joined(norm: _BatchNorm) -> AllReduceNorm:
    """The same norm over all ranks, sharing parameters and buffers."""
    if isinstance(norm, AllReduceNorm):
        return norm
    new = AllReduceNorm(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    new.weight, new.bias = norm.weight, norm.bias
    new.running_mean, new.running_var = norm.running_mean, norm.running_var
    new.num_batches_tracked = norm.num_batches_tracked
    for name, after in norm.named_children():  # timm's norms hold a dropout and an activation
        new.add_module(name, after)
    return new.train(norm.training)
