"""How much memory a training step takes, counted before it is taken."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from boxwise.data.cut import ViewSpec
from boxwise.data.objects import Objects, known_per_view
from boxwise.engine.device import device_of, dtype_of
from boxwise.geometry.views import Batch, View
from boxwise.methods.base import Method
from boxwise.recipes.recipe import Recipe

SLACK = 1.25
"""Workspaces and fragmentation on top of what autograd keeps."""
COUNTED = (2, 4)
"""Images of the batches that memory is counted on; norms need two."""


def blank_batch(
    views: tuple[ViewSpec, ...],
    draws: Mapping[str, tuple[int, ...]],
    *,
    count: int,
    objects: Objects | None = None,
) -> Batch:
    """Noise in the shape of a batch on the host: views of one source picture, each showing all of it.

    With `objects`, each view knows as many boxes as in training, each box the whole picture.
    """
    generator = torch.Generator().manual_seed(0)
    listed = [] if objects is None else known_per_view([v.crop for v in views], objects)
    made = []
    for i, v in enumerate(views):
        image = torch.randn(count, 3, v.crop.size, v.crop.size, generator=generator)
        crop = torch.tensor([0.0, 0, v.crop.size, v.crop.size]).expand(count, 4).contiguous()
        known = () if objects is None else (crop[:, None].repeat(1, listed[i], 1),)
        ids = () if objects is None else (torch.arange(listed[i]).repeat(count, 1),)
        made.append(View(image, crop, torch.zeros(count, dtype=torch.bool), *known, *ids))
    noise = {name: torch.rand(count, *shape, generator=generator) for name, shape in draws.items()}
    return Batch(tuple(made), torch.arange(count), noise)


@dataclass(frozen=True, slots=True)
class Kept:
    """Bytes that autograd keeps for the backward pass."""

    once: int
    """However many images there are: copies of weights in half precision."""
    per_image: int


def kept(module: nn.Module, batch_of: Callable[[int], Batch], *, dtype: torch.dtype) -> Kept:
    """What a forward keeps of batches of two sizes tells what grows with them. Runs no backward.

    On the host, before a device is touched: what a device keeps is the same. Leaves the module as it was:
    buffers (queues, running statistics) are put back.
    """
    few, more = (_kept(module, batch_of(count), dtype=dtype) for count in COUNTED)
    per_image = (more - few) // (COUNTED[1] - COUNTED[0])
    return Kept(max(0, few - COUNTED[0] * per_image), per_image)


def _kept(module: nn.Module, batch: Batch, *, dtype: torch.dtype) -> int:
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    weights = {p.untyped_storage().data_ptr() for p in module.parameters()}
    seen: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    half = dtype != torch.float32  # all halves are of one size, and a CPU knows this one best
    with (
        torch.autograd.graph.saved_tensors_hooks(count, lambda t: t),
        torch.autocast(batch.index.device.type, dtype=torch.bfloat16, enabled=half),
    ):
        held = module(batch)
    del held
    for name, buffer in module.named_buffers():
        buffer.data.copy_(before[name])
    return sum(seen.values())


def fixed(module: nn.Module) -> int:
    """Bytes that do not grow with the batch: all weights and buffers, gradients, momentum."""
    own = sum(t.numel() * t.element_size() for t in [*module.parameters(), *module.buffers()])
    trained = sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad)
    return own + 2 * trained


def largest_batch(
    module: nn.Module, batch_of: Callable[[int], Batch], *, dtype: torch.dtype, free: int
) -> int:
    """Images that one device can train on at a time, 0 when not even the weights fit."""
    need = kept(module, batch_of, dtype=dtype)
    return max(0, int((free - fixed(module) - need.once) / (need.per_image * SLACK)))


def free_memory(device: torch.device, *, ranks: int = 1, nodes: int = 1) -> int:
    """Bytes that can be had now on `device`.

    For one of several ranks, `ranks` of them on this machine: its part of all there is, whoever holds it now, so
    that ranks which ask at different moments hear the same.
    """
    alone = ranks * nodes == 1
    if device.type == "cuda":
        if alone:
            return int(torch.cuda.mem_get_info(device)[0])
        own = int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count()
        # Asked so, no GPU of another rank is opened.
        return int(torch.cuda.get_device_properties(own).total_memory)
    meminfo, limit = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
    if not meminfo.exists():  # macOS
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // (2 * ranks)
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
    free = int(lines["MemAvailable" if alone else "MemTotal"].split()[0]) * 1024
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        used = Path("/sys/fs/cgroup/memory.current")
        free = min(free, int(text) - (int(used.read_text()) if alone and used.exists() else 0))
    return free // ranks


def room(recipe: Recipe, method: Method) -> int:
    """Images that one device can train on at a time."""
    device = device_of(recipe.run.device)

    def batch_of(count: int) -> Batch:
        return blank_batch(recipe.views, recipe.method.draws(), count=count, objects=recipe.method.objects)

    dtype = dtype_of(recipe.run.precision, device)
    free = free_memory(device, ranks=recipe.run.devices, nodes=recipe.run.nodes)
    return largest_batch(method, batch_of, dtype=dtype, free=free)


def check_memory(recipe: Recipe, method: Method) -> None:
    """Raises ValueError with a batch size that fits, before the device is filled."""
    run = recipe.run
    parts = run.accumulate * run.devices * run.nodes
    fits = room(recipe, method)
    if run.batch_size // parts > fits:
        mend = f"pass --batch-size {fits * parts}" if fits >= 2 else "choose a smaller backbone or image size"
        raise ValueError(
            f"a batch of {run.batch_size // parts} images a device needs more memory than there is: {mend}, "
            "or split each step with --accumulate"
        )
