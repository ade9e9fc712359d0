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
    """Shares of all rows in 0..100: "top1", and "top5" where there are more than five classes; "rows" and "images"
    say of how many. -1 where there is no row. Leaves the probe on `device`, and in the mode it was in.
    """
    device = torch.device(device)
    was_training = probe.training
    probe.to(device).eval()
    best = min(BEST, probe.classifier.out_features)
    hits = torch.zeros(best, dtype=torch.long, device=device)
    count = images = 0
    try:
        for batch in batches:
            with (
                torch.no_grad(),
                torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"),
            ):
                there = batch.to(device)
                surest = probe.scores(there).topk(best, dim=1).indices  # (M, best)
            hits += (surest == there.classes[:, None]).sum(0)
            count += len(batch.classes)
            images += len(batch)
    finally:
        probe.train(was_training)
    within = hits.cumsum(0).tolist()
    shares = [100 * right / count if count else -1.0 for right in within]
    found = {"top1": shares[0]}
    if probe.classifier.out_features > BEST:
        found["top5"] = shares[-1]
    return {**found, "rows": count, "images": images}
