"""What crosses ranks: gathered rows, and means over what all of them hold.

Everything here is also correct, and waits for nothing, on one rank without torch.distributed.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from jaxtyping import Int, Shaped
from torch import Tensor

from boxwise.shapes import Keep, RowWeight

_gather_into = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # since torch 2.14


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
    _gather_into(everyone, x)
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
