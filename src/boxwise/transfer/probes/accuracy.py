"""How often a trained probe is right."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch

from boxwise.transfer.probes.base import Probe
from boxwise.transfer.probes.looks import ProbeBatch

BEST = 5
"""Of so many classes, the surest, one may be the right one for `top5`."""


def accuracy(
    probe: Probe,
    batches: Iterable[ProbeBatch],
    *,
    device: torch.device | str,
    precision: Literal["fp32", "bf16"] = "fp32",
) -> dict[str, float]:
    """Shares of all rows in 0..100: "top1", and "top5" where there are more than five classes; "balanced", the mean of
    what top1 is of each class that occurs; "rows" and "images" say of how many. -1 where there is no row.

    Leaves the probe on `device`, and in the mode it was in.
    """
    device = torch.device(device)
    was_training = probe.training
    probe.to(device).eval()
    best = min(BEST, probe.classifier.out_features)
    hits = torch.zeros(best, dtype=torch.long, device=device)
    right, asked = torch.zeros(2, probe.classifier.out_features, dtype=torch.long, device=device)
    count = images = 0
    try:
        for batch in batches:
            with (
                torch.no_grad(),
                torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"),
            ):
                there = batch.to(device)
                surest = probe.scores(there).topk(best, dim=1).indices  # (M, best)
            found = surest == there.classes[:, None]
            hits += found.sum(0)
            right.index_add_(0, there.classes, found[:, 0].long())
            asked.index_add_(0, there.classes, torch.ones_like(there.classes))
            count += len(batch.classes)
            images += len(batch)
    finally:
        probe.train(was_training)
    shares = [100 * within / count if count else -1.0 for within in hits.cumsum(0).tolist()]
    each = 100 * (right[asked > 0] / asked[asked > 0]).double()
    figures = {"top1": shares[0]}
    if probe.classifier.out_features > BEST:
        figures["top5"] = shares[-1]
    return {**figures, "balanced": float(each.mean()) if count else -1.0, "rows": count, "images": images}
