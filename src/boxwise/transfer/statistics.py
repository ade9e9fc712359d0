"""BatchNorm's statistics of a trained detector, measured anew ("precise BN")."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from boxwise.transfer.samples import DetectionBatch
from boxwise.transfer.task import Detection


@torch.no_grad()
def remeasured(
    module: Detection,
    batches: Iterable[DetectionBatch],
    *,
    precision: Literal["fp32", "bf16"] = "fp32",
) -> int:
    """Makes the running statistics of all norms that train the plain means of those of `batches`.

    In training they are an average that forgets, of weights that have since moved on. Nothing else changes: no
    weight, no frozen norm, none that no batch reached (a mask head's, where nothing was there to be masked). Norms
    over all devices take in those of all: every rank must call it. Leaves the module in training, where it lies.
    Returns how many norms were measured.
    """
    device = module.mean.device
    module.train()
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    before = [[buffer.clone() for buffer in norm.buffers(recurse=False)] for norm in norms]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch then takes the mean of all that came since the reset
    for batch in batches:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            module(batch.to(device))
    reached = 0
    for norm, momentum, buffers in zip(norms, momenta, before, strict=True):
        norm.momentum = momentum
        if _count(norm):
            reached += 1
        else:
            for buffer, value in zip(norm.buffers(recurse=False), buffers, strict=True):
                buffer.copy_(value)
    return reached


def _count(norm: nn.Module) -> int:
    """Batches since the reset."""
    return int(norm.num_batches_tracked)  # type: ignore[arg-type]
