"""What crosses ranks: gathered rows, means over all kept rows, and BatchNorm over the joint batch.

Everything here is also correct, and waits for nothing, on one rank without torch.distributed.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from boxwise.geometry.views import View
from boxwise.nn.pools import BoxesAt
from boxwise.shapes import Keep, RowWeight

GROUPS = 8
"""Most groups on one device; MoCo's published runs had eight ranks."""
GROUP = 4
"""Fewest images in a group."""


def world() -> int:
    """Number of ranks that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's place among them."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


@torch.no_grad()
def gather(x: Shaped[Tensor, "_rows ..."]) -> Shaped[Tensor, "_all ..."]:
    """The rows of all ranks, in rank order, without gradient. Every rank holds the same number of rows."""
    if world() == 1:
        return x.detach()
    x = x.detach().contiguous()
    everyone = x.new_empty(world() * len(x), *x.shape[1:])
    dist.all_gather_into_tensor(everyone, x)
    return everyone


@torch.no_grad()
def shared_count(count: Int[Tensor, ""]) -> Shaped[Tensor, ""]:
    """What each rank divides its sum by, so that the mean over ranks is the mean over what all ranks counted.

    for r in range(ranks):
        loss[r] = total[r] / (sum(count) / ranks)
    mean(loss) == sum(total) / sum(count)

    As if one were counted where no rank counts any.
    """
    if world() == 1:
        return count.clamp(min=1)
    everyone = count.clone()
    dist.all_reduce(everyone)
    return everyone.clamp(min=1) / world()


@torch.no_grad()
def row_weight(keep: Keep) -> RowWeight:
    """Weights that make a sum over rows the mean over all kept rows, once DDP has averaged over ranks.

    for r in range(ranks):
        loss[r] = sum(weight[r] * per_row[r])
    mean(loss) == mean of per_row over all kept rows of all ranks

    All zero when no rank kept any.
    """
    kept = keep.sum(dtype=torch.get_default_dtype())
    if world() > 1:
        dist.all_reduce(kept)
    return keep * (world() / kept.clamp(min=1))


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

        return convert_sync_batchnorm(module)
    if isinstance(module, _BatchNorm):
        return _joined(module)
    for name, child in module.named_children():
        setattr(module, name, synchronise(child, device))
    return module


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


@dataclass(frozen=True, slots=True)
class Shuffle:
    """Shuffled BatchNorm: keys are normalised in other company than their queries.

    With statistics in common, a network would tell the matching key from the queue by those alone (He et al.,
    Momentum Contrast, CVPR 2020, section 3.3). Over several ranks, each embeds as many images as it has,
    dealt from all ranks in equal shares. On one device the images are dealt into up to 8 groups of 4 or more,
    each embedded on its own. Of two or more groups, none is a part of the batch as it lies. Fewer than 8
    images on one device make a single group, which hides nothing.
    """

    noise: Float[Tensor, " B"]
    """Uniform numbers in [0, 1) drawn on the host, one an image: the deal is a function of them."""

    def __call__(
        self, embed: Callable[[View, BoxesAt], Mapping[str, Tensor]], view: View, boxes: BoxesAt = None
    ) -> dict[str, Tensor]:
        """What `embed` (a teacher) gives for `view` and its boxes, in the order of `view`, without gradient.

        Rows may be vectors or maps, and several an image: regions, levels, patches.
        """
        order = self.order()
        everyone = _each(gather, view, boxes)
        mine = order.view(world(), -1)[rank()]
        dealt = mine.tensor_split(groups(len(mine)))
        parts = [embed(*_each(operator.itemgetter(rows), *everyone)) for rows in dealt]
        return {name: self._restored(torch.cat([p[name] for p in parts]), order) for name in parts[0]}

    def order(self) -> Int[Tensor, " N"]:
        """Images of all ranks in the order in which they are embedded.

        Every rank's (or block's) images are shuffled, then dealt in turn like the cards of as many players.
        """
        noise = gather(self.noise)
        parts = world() if world() > 1 else groups(len(noise))
        size = -(-len(noise) // parts)
        place = torch.arange(len(noise), device=noise.device)
        shuffled = (place // size + noise).argsort(stable=True)
        return shuffled[(place % size * parts + place // size).argsort()]

    def _restored(self, rows: Tensor, order: Int[Tensor, " N"]) -> Tensor:
        images = len(self.noise)
        per_image = gather(rows.unflatten(0, (images, -1)))
        return per_image[order.argsort().view(world(), -1)[rank()]].flatten(0, 1)


def groups(images: int) -> int:
    """Equal parts of a batch that stand for ranks on one device; over several ranks each is one."""
    return 1 if world() > 1 else max(1, min(GROUPS, images // GROUP))


AnyBoxes = Tensor | Mapping[str, Tensor] | None  # of as many images as `change` leaves


def _each(change: Callable[[Tensor], Tensor], view: View, boxes: AnyBoxes) -> tuple[View, AnyBoxes]:
    """`change` of every tensor of a view and its boxes."""
    objects, ids = (None if x is None else change(x) for x in (view.objects, view.ids))
    view = View(change(view.image), change(view.crop), change(view.flip), objects, ids)
    if isinstance(boxes, Mapping):
        return view, {level: change(at) for level, at in boxes.items()}
    return view, None if boxes is None else change(boxes)
